//! Entries of the metadata, in a form that is told: long texts are cut, of arrays the first few values are kept.

use serde::Serialize;

use crate::formats::gguf::{Array, Value};

/// Values of an array that are told.
const FIRST: usize = 4;

/// Most bytes of a text that are told.
const MAX_TEXT: usize = 64 << 10;

/// Most bytes of a text in an array.
const MAX_ITEM: usize = 256;

/// One entry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Its type: `u32`, `text`, `array` …
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its value.
    #[serde(flatten)]
    pub given: Given,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Given {
    /// One number, truth value or text.
    One {
        /// As JSON; what is not finite is a text.
        value: serde_json::Value,
        /// Bytes of a text that is longer than what is told of it.
        #[serde(skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
    },
    /// Several of one type.
    Several {
        /// Their type.
        of: &'static str,
        /// Their number.
        count: u64,
        /// The first few.
        first: Vec<serde_json::Value>,
    },
}

impl Entry {
    /// The entry of `key`.
    pub fn of(key: &str, value: &Value) -> Self {
        let given = match value {
            Value::Array(array) => {
                let first = array.iter().take(FIRST).map(|value| plain(&value, MAX_ITEM)).collect();
                Given::Several { of: array.kind().name(), count: array.len(), first }
            }
            Value::Text(bytes) => {
                let cut = bytes.len() > MAX_TEXT;
                Given::One { value: plain(value, MAX_TEXT), bytes: cut.then_some(bytes.len() as u64) }
            }
            value => Given::One { value: plain(value, MAX_TEXT), bytes: None },
        };
        Self { key: key.to_owned(), kind: value.kind().name(), given }
    }
}

/// A value as JSON; of a text at most `most` bytes, of an array inside an array its length.
fn plain(value: &Value, most: usize) -> serde_json::Value {
    match value {
        Value::Text(bytes) => String::from_utf8_lossy(&bytes[..bytes.len().min(most)]).into(),
        Value::Array(array) => described(array).into(),
        Value::Bool(value) => (*value).into(),
        Value::F32(value) => float(value.to_string(), f64::from(*value)),
        Value::F64(value) => float(value.to_string(), *value),
        Value::I8(value) => (*value).into(),
        Value::I16(value) => (*value).into(),
        Value::I32(value) => (*value).into(),
        Value::I64(value) => (*value).into(),
        Value::U8(_) | Value::U16(_) | Value::U32(_) | Value::U64(_) => value.as_u64().into(),
    }
}

/// The shortest decimal that is the number, as people wrote it; a text where JSON has no such number.
fn float(text: String, value: f64) -> serde_json::Value {
    if !value.is_finite() {
        return text.into();
    }
    text.parse::<f64>().map_or(serde_json::Value::Null, serde_json::Value::from)
}

fn described(array: &Array) -> String {
    format!("{} {}", array.len(), array.kind().name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(value: Value) -> serde_json::Value {
        serde_json::to_value(Entry::of("k", &value)).unwrap()
    }

    #[test]
    fn values_are_told_as_what_they_are() {
        assert_eq!(told(Value::F32(1e-5)), json!({"key": "k", "type": "f32", "value": 1e-5}));
        assert_eq!(told(Value::F32(f32::NAN)), json!({"key": "k", "type": "f32", "value": "NaN"}));
        assert_eq!(told(Value::F64(f64::NEG_INFINITY))["value"], "-inf");
        assert_eq!(told(Value::I64(-3))["value"], -3);
        assert_eq!(told(Value::Bool(true))["value"], true);
        assert_eq!(told(Value::U64(u64::MAX))["value"], u64::MAX);
        assert_eq!(told(Value::Text(b"a\xff".to_vec().into()))["value"], "a\u{fffd}");
    }

    #[test]
    fn what_is_long_is_counted() {
        let texts: Vec<String> = (0..9).map(|number| number.to_string()).collect();
        let array = Value::Array(Array::of_texts(texts.iter().map(String::as_str)));
        let wanted = json!({"key": "k", "type": "array", "of": "text", "count": 9, "first": ["0", "1", "2", "3"]});
        assert_eq!(told(array), wanted);
        let long = told(Value::from("x".repeat(MAX_TEXT + 1).as_str()));
        assert_eq!(long["bytes"], MAX_TEXT + 1);
        assert_eq!(long["value"].as_str().unwrap().len(), MAX_TEXT);
    }
}
