//! JSON side files: configs and shard indexes, read within bounds and written reproducibly.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::io::read_small;
use crate::limits::{MAX_JSON_BYTES, MAX_JSON_VALUES};

/// Reads a JSON file that must hold one object. Key order is kept.
///
/// # Errors
/// `Io` when it cannot be read, `Limit` when it is too long, `Malformed` when it is not a JSON object.
pub fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let bytes = read_small(path, MAX_JSON_BYTES)?;
    // Editors on Windows like to put a byte order mark in front.
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let values = count_values(text);
    if values > MAX_JSON_VALUES {
        return Err(Error::limit(path, "number of values in it", values, MAX_JSON_VALUES));
    }
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(Error::malformed(path, "byte 0", format!("must hold a JSON object, holds {}", kind(&other)))),
        Err(problem) => Err(Error::malformed(path, "JSON", problem.to_string())),
    }
}

/// How many values a JSON text has at most, told by its commas and brackets before anything is allocated for them.
fn count_values(text: &[u8]) -> u64 {
    let (mut count, mut in_text, mut escaped) = (1, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b',' | b'[' | b'{' if !in_text => count += 1,
            _ => {}
        }
    }
    count
}

/// The text of a JSON file as Hugging Face tools write it: two spaces, a line end at the end.
pub fn render(value: &impl serde::Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("maps with text keys and finite numbers always serialise");
    text.push(b'\n');
    text
}

/// A path as a text, for reports: names of files are bytes, and those that are no UTF-8 are shown as well as they can be.
///
/// # Errors
/// Those of the serialiser.
pub fn path<S: serde::Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// What a JSON value is, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_without_being_read() {
        for (text, count) in [("{}", 2), (r#"{"a": [1, 2], "b": "x,[\",{"}"#, 5), ("7", 1), ("[[],[]]", 5)] {
            assert_eq!(count_values(text.as_bytes()), count, "{text}");
        }
    }
}
