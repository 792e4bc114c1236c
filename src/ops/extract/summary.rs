//! What an extraction did, for people and programs. Serialises to the JSON that `docs/reference/json.md` describes.

use std::path::PathBuf;

use serde::Serialize;

use crate::truncate::NewAdapterReport;

/// What an extraction did, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ExtractReport {
    /// The model that was tuned.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub base: PathBuf,
    /// What it became.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub tuned: PathBuf,
    /// The adapter.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// Its dialect.
    pub to: &'static str,
    /// Nothing was written.
    pub dry_run: bool,
    /// The adapter: its modules in the order of the base's files.
    #[serde(flatten)]
    pub made: NewAdapterReport,
    /// Modules whose error is not above the rounding of the tuned weight.
    pub at_rounding_floor: usize,
    /// Tensors that are equal in both models.
    pub unchanged: usize,
    /// Tensors left out by choice, and constants that one side lacks.
    pub skipped: Vec<String>,
    /// Bytes of the tuned model's tensors.
    pub tuned_bytes: u64,
    /// Wall time.
    pub seconds: f64,
    /// Largest resident memory, where the caller measured it.
    pub peak_resident_bytes: Option<u64>,
}
