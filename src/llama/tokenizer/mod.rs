//! The tokenizer of a model directory → the `tokenizer.*` keys of a GGUF file.
//!
//! * `pieces`: vocabularies of SentencePiece, from `tokenizer.model` or a `tokenizer.json` that falls back to bytes;
//! * `merges`: byte-level BPE, from `tokenizer.json`; `splitting` tells how it cuts texts before that;
//! * `special`: which tokens begin and end a text, chat templates;
//! * `back`: the way back, for byte-level BPE.
//!
//! Source: llama.cpp `conversion/base.py`, gguf-py `vocab.py`; SentencePiece's `sentencepiece_model.proto`.

mod back;
mod merges;
mod pieces;
mod special;
mod splitting;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::config::Family;
use crate::error::{Error, Result};
use crate::formats::gguf::{Array, Value};
use crate::formats::side;
pub use back::hub_tokenizer;
use special::Special;

/// The keys of a tokenizer.
#[derive(Debug, Default)]
pub struct Tokenizer {
    /// In the order of llama.cpp's converter.
    pub keys: Vec<(String, Value)>,
    /// Number of tokens.
    pub count: u64,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// Most tokens of a vocabulary; the largest have some 300 000.
const MAX_TOKENS: u64 = 1 << 24;

/// `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// The files of a tokenizer.
struct Files {
    directory: PathBuf,
    /// `tokenizer.json`.
    fast: Option<Map<String, Json>>,
    /// `tokenizer_config.json`.
    config: Map<String, Json>,
    /// `config.json`.
    model: Map<String, Json>,
}

/// A token that stands outside of the vocabulary proper.
struct Added {
    id: u64,
    text: String,
    special: bool,
}

impl Files {
    fn open(directory: &Path, model: &Map<String, Json>) -> Result<Self> {
        Ok(Self {
            fast: side::read(directory, "tokenizer.json")?,
            config: side::read(directory, "tokenizer_config.json")?.unwrap_or_default(),
            directory: directory.to_owned(),
            model: model.clone(),
        })
    }

    /// The number of tokens that the model has, or `own` where its config is silent.
    fn size(&self, own: u64) -> Result<u64> {
        let size = self.model.get("vocab_size").and_then(Json::as_u64).unwrap_or(own);
        if size > MAX_TOKENS {
            return Err(Error::limit(self.path("config.json"), "`vocab_size`", size, MAX_TOKENS));
        }
        Ok(size)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn wrong(&self, name: &str, at: &str, problem: impl Into<String>) -> Error {
        Error::malformed(self.path(name), at, problem)
    }

    /// `added_tokens` of tokenizer.json.
    fn added(&self) -> Vec<Added> {
        let list = self.fast.as_ref().and_then(|fast| fast.get("added_tokens")).and_then(Json::as_array);
        list.into_iter().flatten().filter_map(|token| added(token.get("id")?.as_u64()?, token)).collect()
    }

    /// `added_tokens_decoder` of tokenizer_config.json.
    fn decoder(&self) -> Vec<Added> {
        let map = self.config.get("added_tokens_decoder").and_then(Json::as_object);
        map.into_iter().flatten().filter_map(|(id, token)| added(id.parse().ok()?, token)).collect()
    }

    fn class(&self) -> &str {
        self.config.get("tokenizer_class").and_then(Json::as_str).unwrap_or_default()
    }

    fn is_bytewise(&self) -> bool {
        let model = self.fast.as_ref().and_then(|fast| fast.get("model"));
        model.is_some_and(|model| {
            model.get("type").and_then(Json::as_str) == Some("BPE")
                && model.get("byte_fallback").and_then(Json::as_bool) == Some(true)
        })
    }
}

fn added(id: u64, token: &Json) -> Option<Added> {
    let text = token.get("content")?.as_str()?.to_owned();
    Some(Added { id, text, special: token.get("special").and_then(Json::as_bool).unwrap_or(false) })
}

/// Tokens that control a conversation although some model does not say so (llama.cpp `does_token_look_special`).
fn looks_special(text: &str) -> bool {
    let framed = [("<|", "|>"), ("<｜", "｜>"), ("<unused", ">")];
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || framed.iter().any(|(start, end)| text.starts_with(start) && text.ends_with(end))
}

/// The tokens of a file: text, score where there are scores, kind.
#[derive(Default)]
struct Vocabulary {
    texts: Vec<String>,
    scores: Option<Vec<f32>>,
    kinds: Vec<Kind>,
}

impl Vocabulary {
    fn keys(&self) -> Vec<(String, Value)> {
        let mut keys = vec![array("tokens", Array::of_texts(self.texts.iter().map(String::as_str)))];
        keys.extend(self.scores.as_ref().map(|scores| array("scores", Array::of_f32(scores.iter().copied()))));
        keys.push(array("token_type", Array::of_i32(self.kinds.iter().map(|kind| *kind as i32))));
        keys
    }
}

fn array(name: &str, array: Array) -> (String, Value) {
    (format!("tokenizer.ggml.{name}"), Value::Array(array))
}

fn text(name: &str, text: &str) -> (String, Value) {
    (format!("tokenizer.ggml.{name}"), text.into())
}

impl Tokenizer {
    /// Reads the tokenizer that lies in `directory`, beside a model with this config; `None` where there is none.
    ///
    /// # Errors
    /// When its files are damaged, or of a kind that cannot be written.
    pub fn read(directory: &Path, family: &Family, model: &Map<String, Json>) -> Result<Option<Self>> {
        let files = Files::open(directory, model)?;
        let of_pieces = side::find(directory, "tokenizer.model")?.is_some() && files.class() != "GPT2Tokenizer";
        if files.fast.is_none() && !of_pieces {
            return Ok(None);
        }
        let mut found = Self::default();
        let prefix = files.config.get("add_prefix_space").and_then(Json::as_bool);
        if let Some(prefix) = prefix.filter(|_| ["llama", "smollm3"].contains(&family.arch.as_str())) {
            found.set("tokenizer.ggml.add_space_prefix", Value::Bool(prefix));
        }
        if of_pieces || files.is_bytewise() {
            let vocabulary = if of_pieces {
                pieces::of_model(&files, family)?
            } else {
                found.notes.extend(files.is_bytewise().then(|| {
                    "`tokenizer.model` is missing: the scores of the tokens follow the merges of `tokenizer.json`"
                        .into()
                }));
                pieces::of_json(&files)?
            };
            found.take("llama", "default", &vocabulary);
            let special = Special::load(&files, &special::TYPES, Some(found.count))?;
            found.extend(special.keys());
        } else {
            let pre = splitting::name_of(&files);
            if let Err(note) = &pre {
                found.notes.push(note.clone());
            }
            found.take("gpt2", pre.unwrap_or("default"), &merges::vocabulary(&files)?);
            let merges = merges::merges(&files)?;
            found.keys.push(array("merges", Array::of_texts(merges.iter().map(String::as_str))));
            let special = Special::load(&files, &special::TYPES, None)?;
            found.extend(special.keys());
        }
        found.finish(&files, family)?;
        Ok(Some(found))
    }

    fn set(&mut self, key: &str, value: Value) {
        match self.keys.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value,
            None => self.keys.push((key.to_owned(), value)),
        }
    }

    fn extend(&mut self, keys: Vec<(String, Value)>) {
        keys.into_iter().for_each(|(key, value)| self.set(&key, value));
    }

    fn take(&mut self, model: &str, pre: &str, vocabulary: &Vocabulary) {
        self.keys.extend([text("model", model), text("pre", pre)]);
        self.keys.extend(vocabulary.keys());
        self.count = vocabulary.texts.len() as u64;
    }

    /// What holds for some families whatever their files say.
    fn finish(&mut self, files: &Files, family: &Family) -> Result<()> {
        let size = files.model.get("vocab_size").and_then(Json::as_u64);
        match (family.arch.as_str(), size) {
            // SmolLM and Granite.
            ("llama" | "smollm3", Some(49_152)) => self.set("tokenizer.ggml.add_bos_token", Value::Bool(false)),
            // Code Llama, whose `▁<EOT>` ends a text that was filled in.
            ("llama" | "smollm3", Some(32_016)) => self.set("tokenizer.ggml.eot_token_id", Value::U32(32_010)),
            ("gemma", _) => {
                let special = Special::load(files, &["prefix", "suffix", "middle", "fsep", "eot"], None)?;
                self.extend(special.without_template().keys());
                // `<end_of_turn>`.
                if self.keys.iter().all(|(key, _)| key != "tokenizer.ggml.eot_token_id") {
                    self.set("tokenizer.ggml.eot_token_id", Value::U32(107));
                }
                self.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
            }
            ("gemma2" | "gemma3", _) if self.is_of_pieces() => {
                self.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
            }
            _ => {}
        }
        Ok(())
    }

    fn is_of_pieces(&self) -> bool {
        self.keys.iter().any(|(key, _)| key == "tokenizer.ggml.scores")
    }
}
