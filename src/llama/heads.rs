//! How many heads a model has: the order of the rows of q and k depends on it.

use serde_json::{Map, Value};

use super::{HeadCounts, Place};
use crate::formats::gguf::Metadata;

impl HeadCounts {
    /// By the config of a model, or by that of its text part.
    pub fn of(config: &Map<String, Value>) -> Option<Self> {
        let number = |key: &str| config.get(key).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
        let Some(heads) = number("num_attention_heads").or_else(|| number("n_head")) else {
            return Self::of(config.get("text_config")?.as_object()?);
        };
        let flag = |key: &str| config.get(key).and_then(Value::as_bool);
        // Falcon: one head of keys, unless it is of the later kind.
        let kv_heads = match (flag("multi_query"), flag("new_decoder_architecture")) {
            (Some(true), Some(false) | None) => Some(1),
            (_, Some(true)) => number("num_kv_heads"),
            _ => number("num_key_value_heads"),
        };
        Some(Self { heads, kv_heads: kv_heads.unwrap_or(heads) })
    }

    /// By the metadata of a file of the architecture `arch`.
    pub fn in_metadata(metadata: &Metadata, arch: &str) -> Option<Self> {
        let number = |key: &str| usize::try_from(metadata.number(&format!("{arch}.attention.{key}"))?).ok();
        let heads = number("head_count")?;
        Some(Self { heads, kv_heads: number("head_count_kv").unwrap_or(heads) })
    }
}

/// For every row in the file the one of the checkpoint, where the order differs.
pub fn row_order(place: &Place, counts: Option<HeadCounts>, rows: usize) -> Result<Option<Vec<usize>>, String> {
    let Some(order) = place.order else { return Ok(None) };
    let counts = counts.ok_or("the number of attention heads is not known, and the order of its rows needs it")?;
    order.rows(rows, counts).map(Some)
}
