//! The settings of a config by key and type: what is of another type, or missing, is refused with file, key and value.

use std::path::Path;

use regex::RegexBuilder;
use serde_json::{Map, Value};

use super::patterns::Patterns;
use crate::error::{Error, Result};
use crate::formats::json::{self, kind};

/// Typed access that names file, key and the value found.
pub(super) struct Fields<'a> {
    /// The file.
    pub path: &'a Path,
    /// All of its settings.
    pub raw: &'a Map<String, Value>,
}

impl Fields<'_> {
    /// That the setting is not what it has to be.
    pub fn wrong(&self, key: &str, wanted: &str, found: &Value) -> Error {
        let is = match found.as_str().filter(|text| json::NOT_FINITE.contains(text)) {
            Some(number) => number.to_owned(),
            None => format!("{} ({})", kind(found), shorten(found)),
        };
        Error::malformed(self.path, format!("`{key}`"), format!("must be {wanted}, is {is}"))
    }

    /// The setting, unless it is null.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.raw.get(key).filter(|value| !value.is_null())
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.value(key).map(|value| value.as_str().ok_or_else(|| self.wrong(key, "a text", value))).transpose()
    }

    /// True or false, false if it is not set.
    pub fn flag(&self, key: &str) -> Result<bool> {
        self.flag_or(key, false)
    }

    /// True or false, `absent` if it is not set.
    pub fn flag_or(&self, key: &str, absent: bool) -> Result<bool> {
        let read = |value: &Value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false", value));
        self.value(key).map_or(Ok(absent), read)
    }

    /// A list of texts, or a single one.
    pub fn texts(&self, key: &str) -> Result<Vec<String>> {
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Array(list)) => {
                let text = |item: &Value| {
                    item.as_str().map(str::to_owned).ok_or_else(|| self.wrong(key, "a list of texts", item))
                };
                list.iter().map(text).collect()
            }
            Some(other) => Err(self.wrong(key, "a list of texts", other)),
        }
    }

    /// A whole number above zero, or the text of one.
    pub fn rank(&self, key: &str, value: &Value) -> Result<u64> {
        let text = || value.as_str().and_then(|text| text.trim().parse().ok());
        value
            .as_u64()
            .or_else(text)
            .filter(|rank| *rank > 0)
            .ok_or_else(|| self.wrong(key, "a whole number above zero", value))
    }

    /// A finite number, or the text of one.
    pub fn alpha(&self, key: &str, value: &Value) -> Result<f64> {
        let text = || value.as_str().and_then(|text| text.trim().parse().ok());
        value
            .as_f64()
            .or_else(text)
            .filter(|alpha: &f64| alpha.is_finite())
            .ok_or_else(|| self.wrong(key, "a finite number", value))
    }

    /// A finite number, or the text of one, where it is set.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.value(key).map(|value| self.alpha(key, value)).transpose()
    }

    /// A setting without which there is no scale.
    pub fn needed(&self, key: &str) -> Result<&Value> {
        let missing = || Error::malformed(self.path, format!("`{key}`"), "is missing, so the scale is unknown");
        self.value(key).ok_or_else(missing)
    }

    /// A number without which there is no scale.
    pub fn required(&self, key: &str) -> Result<f64> {
        self.alpha(key, self.needed(key)?)
    }

    /// Whether a list or pattern of modules names `path`, as PEFT matches it.
    pub fn names(&self, key: &str, path: &str) -> Result<bool> {
        match self.value(key) {
            None => Ok(false),
            Some(Value::String(pattern)) => {
                let regex = RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(128 << 10).build();
                regex.map(|regex| regex.is_match(path)).map_err(|problem| {
                    Error::malformed(self.path, format!("`{key}`"), format!("is no usable pattern: {problem}"))
                })
            }
            Some(Value::Array(list)) => {
                let named = |name: &str| path == name || path.ends_with(&format!(".{name}"));
                Ok(list.iter().filter_map(Value::as_str).any(named))
            }
            Some(value) => Err(self.wrong(key, "a list or a pattern", value)),
        }
    }

    /// Patterns in file order.
    pub fn pattern<T: Copy>(&self, key: &str, read: impl Fn(&str, &Value) -> Result<T>) -> Result<Patterns<T>> {
        let object = match self.value(key) {
            None => return Ok(Patterns::default()),
            Some(Value::Object(object)) => object,
            Some(other) => return Err(self.wrong(key, "an object of patterns", other)),
        };
        let one = |(pattern, value): (&'_ String, &Value)| read(&format!("{key}: {pattern}"), value);
        let values = object.iter().map(one).collect::<Result<Vec<T>>>()?;
        Patterns::read(self.path, key, object.keys().map(String::as_str).zip(values))
    }
}

/// A value for messages.
pub fn shorten(value: &Value) -> String {
    const SHOWN: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text,
    }
}
