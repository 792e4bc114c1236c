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
    parse(path, "JSON", bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes))
}

/// Reads the JSON object `text`, which stands in `path` at `place`. What Python writes for numbers that JSON does not have is a text
/// here: `NaN`, `Infinity`, `-Infinity`.
///
/// # Errors
/// `Malformed` when it is not a JSON object.
pub fn parse(path: &Path, place: &str, text: &[u8]) -> Result<Map<String, Value>> {
    let values = count_values(text);
    if values > MAX_JSON_VALUES {
        return Err(Error::limit(path, "number of values in it", values, MAX_JSON_VALUES));
    }
    let read = serde_json::from_slice(text);
    let read = read.or_else(|problem| match with_texts(text) {
        Some(text) => serde_json::from_slice(&text),
        None => Err(problem),
    });
    match read {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(Error::malformed(path, place, format!("must hold a JSON object, holds {}", kind(&other)))),
        Err(problem) => Err(Error::malformed(path, place, problem.to_string())),
    }
}

/// Numbers of Python that JSON does not have.
pub const NOT_FINITE: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// The text with those in quotes; `None` if there are none.
fn with_texts(text: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut at, mut in_text, mut found) = (Vec::with_capacity(text.len()), 0, false, false);
    while let Some(byte) = text.get(at) {
        let word = NOT_FINITE.iter().find(|word| !in_text && text[at..].starts_with(word.as_bytes()));
        if let Some(word) = word {
            out.push(b'"');
            out.extend_from_slice(word.as_bytes());
            out.push(b'"');
            at += word.len();
            found = true;
            continue;
        }
        if in_text && *byte == b'\\' {
            out.push(*byte);
            at += 1;
            out.extend(text.get(at));
            at += 1;
            continue;
        }
        in_text ^= *byte == b'"';
        out.push(*byte);
        at += 1;
    }
    found.then_some(out)
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
    fn numbers_that_only_python_knows_are_texts() {
        let text = br#"{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN \" NaN", "d": 1}"#;
        let read = parse(Path::new("x.json"), "JSON", text).expect("an object");
        let wanted = serde_json::json!({"a": "NaN", "b": ["-Infinity", "Infinity"], "c": "NaN \" NaN", "d": 1});
        assert_eq!(Value::Object(read), wanted);
        assert!(parse(Path::new("x.json"), "JSON", b"{\"a\": nan}").is_err());
        assert!(parse(Path::new("x.json"), "JSON", b"{\"a\": NaN").is_err());
    }

    #[test]
    fn values_are_counted_without_being_read() {
        for (text, count) in [("{}", 2), (r#"{"a": [1, 2], "b": "x,[\",{"}"#, 5), ("7", 1), ("[[],[]]", 5)] {
            assert_eq!(count_values(text.as_bytes()), count, "{text}");
        }
    }
}
