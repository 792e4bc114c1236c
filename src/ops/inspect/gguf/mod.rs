//! What a GGUF file says about itself, and whether its tensors agree. Headers only: a tokenizer is counted, not read.
//!
//! Keys are those of ggml `docs/gguf.md` and llama.cpp `llama-arch.cpp`.

mod entries;
mod problems;

use serde::Serialize;

pub use entries::{Entry, Given};

use super::weights::elements;
use crate::formats::Checkpoint;
use crate::formats::gguf::Metadata;
use crate::llama::FileType;
use crate::tensor::{GgmlType, TensorInfo};

/// Least share of the weights that have to be of the type that `general.file_type` names: mixtures have others as well.
const LEAST_SHARE: f64 = 0.1;

/// What llama.cpp takes where the rows of a weight are no whole number of the larger blocks (`llama-quant.cpp`).
const INSTEAD: [(GgmlType, GgmlType); 13] = [
    (GgmlType::Tq1_0, GgmlType::Q4_0),
    (GgmlType::Tq2_0, GgmlType::Q4_0),
    (GgmlType::Iq2Xxs, GgmlType::Iq4Nl),
    (GgmlType::Iq2Xs, GgmlType::Iq4Nl),
    (GgmlType::Iq2S, GgmlType::Iq4Nl),
    (GgmlType::Iq3Xxs, GgmlType::Iq4Nl),
    (GgmlType::Iq3S, GgmlType::Iq4Nl),
    (GgmlType::Iq4Xs, GgmlType::Iq4Nl),
    (GgmlType::Q2K, GgmlType::Iq4Nl),
    (GgmlType::Q3K, GgmlType::Iq4Nl),
    (GgmlType::Q4K, GgmlType::Q5_0),
    (GgmlType::Q5K, GgmlType::Q5_1),
    (GgmlType::Q6K, GgmlType::Q8_0),
];

/// What the header of a GGUF file tells beside its tensors.
#[derive(Debug, Clone, Serialize)]
pub struct GgufFacts {
    /// 2 or 3.
    pub version: u32,
    /// The file has the highest byte of every number first.
    pub big_endian: bool,
    /// What offsets are multiples of.
    pub alignment: u64,
    /// `general.type`: `model`, `adapter` …; `None` where it is not said, which means a model.
    pub kind: Option<String>,
    /// `general.architecture`.
    pub architecture: Option<String>,
    /// `general.name`.
    pub name: Option<String>,
    /// `general.size_label`.
    pub size_label: Option<String>,
    /// `general.file_type` against the tensors.
    pub file_type: Option<FileTypeFacts>,
    /// Bits that a parameter takes on average.
    pub bits_per_weight: Option<f64>,
    /// Sizes of the model.
    pub sizes: Sizes,
    /// The tokenizer.
    pub tokenizer: Option<Tokenizer>,
    /// All entries in the order of the file.
    pub metadata: Vec<Entry>,
}

/// What the file says most of it is stored as.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileTypeFacts {
    /// The number.
    pub number: u64,
    /// llama.cpp's name for it.
    pub name: Option<&'static str>,
    /// Share of the weights that are stored so, or as llama.cpp does where that is not possible.
    pub share: f64,
    /// Whether that is enough.
    pub agrees: bool,
}

/// Sizes of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Tokens of the context it was trained with.
    pub context: Option<u64>,
    /// Layers.
    pub layers: Option<u64>,
    /// Width of the residual stream.
    pub width: Option<u64>,
    /// Width inside the MLP.
    pub inner: Option<u64>,
    /// Attention heads.
    pub heads: Option<u64>,
    /// Heads of keys and values.
    pub kv_heads: Option<u64>,
    /// Experts.
    pub experts: Option<u64>,
    /// Experts that are used for a token.
    pub experts_used: Option<u64>,
}

/// The tokenizer in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tokenizer {
    /// `tokenizer.ggml.model`: `gpt2` (byte pairs), `llama` (SentencePiece) …
    pub model: Option<String>,
    /// `tokenizer.ggml.pre`: how text is split first.
    pub pre: Option<String>,
    /// Number of tokens.
    pub tokens: Option<u64>,
    /// Number of merges.
    pub merges: Option<u64>,
    /// There is a chat template.
    pub chat_template: bool,
}

impl GgufFacts {
    /// What the header of `checkpoint` says; `None` if it is no GGUF file.
    pub fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let metadata = checkpoint.gguf()?;
        let first = checkpoint.files().first()?.gguf.as_ref()?;
        let text = |key: &str| metadata.text(key).map(str::to_owned);
        Some(Self {
            version: first.version,
            big_endian: first.big_endian,
            alignment: first.alignment,
            kind: text("general.type"),
            architecture: text("general.architecture"),
            name: text("general.name"),
            size_label: text("general.size_label"),
            file_type: file_type(metadata, checkpoint),
            bits_per_weight: bits_per_weight(checkpoint),
            sizes: Sizes::of(metadata),
            tokenizer: Tokenizer::of(metadata),
            metadata: metadata.iter().map(|(key, value)| Entry::of(key, value)).collect(),
        })
    }

    /// What is wrong with `checkpoint` as a GGUF file.
    pub fn problems(&self, checkpoint: &Checkpoint) -> Vec<String> {
        problems::find(self, checkpoint)
    }

    /// Whether the file says that it holds an adapter.
    pub fn is_adapter(&self) -> bool {
        self.kind.as_deref() == Some("adapter")
    }
}

impl Sizes {
    fn of(metadata: &Metadata) -> Self {
        let arch = metadata.text("general.architecture").unwrap_or_default();
        // Where layers differ there is a list of them, which is left to the metadata.
        let number = |key: &str| metadata.number(&format!("{arch}.{key}"));
        Self {
            context: number("context_length"),
            layers: number("block_count"),
            width: number("embedding_length"),
            inner: number("feed_forward_length"),
            heads: number("attention.head_count"),
            kv_heads: number("attention.head_count_kv"),
            experts: number("expert_count"),
            experts_used: number("expert_used_count"),
        }
    }
}

impl Tokenizer {
    fn of(metadata: &Metadata) -> Option<Self> {
        let own = |key: &str| metadata.get(&format!("tokenizer.ggml.{key}"));
        let count = |key: &str| own(key).and_then(|value| value.as_array()).map(crate::formats::gguf::Array::len);
        let text = |key: &str| own(key).and_then(|value| value.as_text()).map(str::to_owned);
        let found = Self {
            model: text("model"),
            pre: text("pre"),
            tokens: count("tokens"),
            merges: count("merges"),
            chat_template: metadata.iter().any(|(key, _)| key.starts_with("tokenizer.chat_template")),
        };
        (found.model.is_some() || found.tokens.is_some()).then_some(found)
    }
}

/// Tensors that are weights: vectors are kept as F32 in every file.
fn weights(checkpoint: &Checkpoint) -> impl Iterator<Item = (&TensorInfo, GgmlType)> {
    let tensors = checkpoint.tensors().filter(|tensor| tensor.shape.as_slice().len() > 1);
    tensors.filter_map(|tensor| Some((tensor, GgmlType::of(&tensor.dtype)?)))
}

fn file_type(metadata: &Metadata, checkpoint: &Checkpoint) -> Option<FileTypeFacts> {
    let number = metadata.number(FileType::KEY)?;
    let said = u32::try_from(number).ok().map(FileType);
    let ggml = said.and_then(FileType::ggml);
    let instead = ggml.and_then(|ggml| INSTEAD.iter().find(|(own, _)| *own == ggml)).map(|(_, other)| *other);
    let (mut all, mut so) = (0_u64, 0_u64);
    for (tensor, own) in weights(checkpoint) {
        all = all.saturating_add(elements(tensor));
        if Some(own) == ggml || Some(own) == instead {
            so = so.saturating_add(elements(tensor));
        }
    }
    let share = so as f64 / all.max(1) as f64;
    // A file without weights says nothing about them.
    Some(FileTypeFacts { number, name: said.and_then(FileType::name), share, agrees: all == 0 || share >= LEAST_SHARE })
}

fn bits_per_weight(checkpoint: &Checkpoint) -> Option<f64> {
    let known = checkpoint.tensors().filter(|tensor| GgmlType::of(&tensor.dtype).is_some());
    let (bytes, count) = known.fold((0_u64, 0_u64), |(bytes, count), tensor| {
        (bytes.saturating_add(tensor.bytes), count.saturating_add(elements(tensor)))
    });
    (count > 0).then(|| 8.0 * bytes as f64 / count as f64)
}
