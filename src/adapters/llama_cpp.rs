//! What a GGUF file says of its adapter beside the factors.

use crate::formats::gguf::Metadata;
use crate::llama::GgufArch;

/// What a GGUF file says beside its factors.
#[derive(Debug, Clone)]
pub struct LlamaCpp {
    /// Its architecture.
    pub arch: &'static GgufArch,
    /// Whether rows of B still stand as they lie in the file.
    pub unordered: bool,
    /// Its metadata.
    pub metadata: Metadata,
}
