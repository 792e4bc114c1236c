//! Typed access to a method's own settings.

use serde_json::Value;

use crate::adapters::config::AdapterConfig;
use crate::error::{Error, Result};

fn get<'a>(config: &'a AdapterConfig, key: &str) -> Option<&'a Value> {
    config.raw.get(key).filter(|value| !value.is_null())
}

fn wrong(config: &AdapterConfig, key: &str, wanted: &str, value: &Value) -> Error {
    Error::malformed(&config.path, format!("`{key}`"), format!("must be {wanted}, is {value}"))
}

/// A finite number.
///
/// # Errors
/// When it is anything else.
pub fn number(config: &AdapterConfig, key: &str) -> Result<Option<f64>> {
    let read = |value: &Value| value.as_f64().filter(|number| number.is_finite());
    get(config, key).map(|value| read(value).ok_or_else(|| wrong(config, key, "a number", value))).transpose()
}

/// A number that must be there.
///
/// # Errors
/// When it is missing or anything else.
pub fn required(config: &AdapterConfig, key: &str) -> Result<f64> {
    number(config, key)?
        .ok_or_else(|| Error::malformed(&config.path, format!("`{key}`"), "is missing, so the scale is unknown"))
}

/// True or false, `absent` if not set.
///
/// # Errors
/// When it is anything else.
pub fn flag(config: &AdapterConfig, key: &str, absent: bool) -> Result<bool> {
    get(config, key)
        .map_or(Ok(absent), |value| value.as_bool().ok_or_else(|| wrong(config, key, "true or false", value)))
}

/// A text.
pub fn text<'a>(config: &'a AdapterConfig, key: &str) -> Option<&'a str> {
    get(config, key).and_then(Value::as_str)
}

/// Whether a list or pattern of modules names `path`, as PEFT matches it.
///
/// # Errors
/// When the pattern is none.
pub fn names(config: &AdapterConfig, key: &str, path: &str) -> Result<bool> {
    match get(config, key) {
        None => Ok(false),
        Some(Value::String(pattern)) => {
            let regex = regex::RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(128 << 10).build();
            regex.map(|regex| regex.is_match(path)).map_err(|problem| {
                Error::malformed(&config.path, format!("`{key}`"), format!("is no usable pattern: {problem}"))
            })
        }
        Some(Value::Array(list)) => {
            let named = |name: &str| path == name || path.ends_with(&format!(".{name}"));
            Ok(list.iter().filter_map(Value::as_str).any(named))
        }
        Some(value) => Err(wrong(config, key, "a list or a pattern", value)),
    }
}
