//! How many heads a model has: the order of the rows of q and k depends on it.

use crate::formats::gguf::Metadata;
use crate::llama::{HeadCounts, Place};
use crate::model::ModelConfig;

impl HeadCounts {
    /// By the config of a model.
    pub fn of(config: &ModelConfig) -> Option<Self> {
        let narrow = |count: u64| usize::try_from(count).ok();
        let heads = narrow(config.heads?)?;
        Some(Self { heads, kv_heads: config.kv_heads.and_then(narrow).unwrap_or(heads) })
    }

    /// By the metadata of a file of the architecture `arch`.
    pub fn in_metadata(metadata: &Metadata, arch: &str) -> Option<Self> {
        let number = |key: &str| usize::try_from(metadata.number(&format!("{arch}.attention.{key}"))?).ok();
        let heads = number("head_count")?;
        Some(Self { heads, kv_heads: number("head_count_kv").unwrap_or(heads) })
    }
}

/// For every row in the file the one of the checkpoint, where the order differs.
pub(crate) fn row_order(place: &Place, counts: Option<HeadCounts>, rows: usize) -> Result<Option<Vec<usize>>, String> {
    let Some(order) = place.order else { return Ok(None) };
    let counts = counts.ok_or("the number of attention heads is not known, and the order of its rows needs it")?;
    order.rows(rows, counts).map(Some)
}
