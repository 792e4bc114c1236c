//! Byte-level BPE: the vocabulary and the merges of `tokenizer.json`.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value as Json;

use super::{Added, Files, Kind, Vocabulary, looks_special};
use crate::error::{Error, Result};

const FILE: &str = "tokenizer.json";

/// Keys of tokenizer_config.json that name special tokens.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Tokens and their kinds.
///
/// # Errors
/// When the file holds another model than BPE, or more tokens than the model has.
pub(super) fn vocabulary(files: &Files) -> Result<Vocabulary> {
    let model = files.fast.as_ref().and_then(|fast| fast.get("model"));
    let kind = model.and_then(|model| model.get("type")).and_then(Json::as_str).unwrap_or_default();
    let vocab = model.and_then(|model| model.get("vocab")).and_then(Json::as_object);
    let Some(vocab) = vocab.filter(|_| kind == "BPE") else {
        let what =
            format!("holds a model of type `{kind}`; BPE can be written, and SentencePiece from `tokenizer.model`");
        return Err(Error::unsupported(files.path(FILE), what));
    };
    let mut by_id: BTreeMap<u64, &str> = BTreeMap::new();
    for (text, id) in vocab {
        let id =
            id.as_u64().ok_or_else(|| files.wrong(FILE, &format!("token `{text}`"), format!("its number is {id}")))?;
        by_id.insert(id, text);
    }
    let mut added = files.added();
    let known: HashSet<u64> = added.iter().map(|token| token.id).collect();
    added.extend(files.decoder().into_iter().filter(|token| !known.contains(&token.id)));
    added.iter().for_each(|token| {
        by_id.insert(token.id, &token.text);
    });
    let last = by_id.keys().next_back().map_or(0, |last| last + 1);
    let size = files.size(last)?;
    if last > size {
        let problem = format!("has number {}, and the model has {size} tokens (`vocab_size` of config.json)", last - 1);
        return Err(files.wrong(FILE, &format!("token `{}`", by_id[&(last - 1)]), problem));
    }
    let named = named(files);
    let mut found = Vocabulary::default();
    let by_number: BTreeMap<u64, &Added> = added.iter().map(|token| (token.id, token)).collect();
    for id in 0..size {
        let (text, kind) = match (by_id.get(&id), by_number.get(&id)) {
            (None, _) => (format!("[PAD{id}]"), Kind::Unused),
            (Some(text), Some(token)) => told(text, token.special || named.contains(*text)),
            (Some(text), None) if named.contains(*text) => ((*text).to_owned(), Kind::Control),
            (Some(text), None) => ((*text).to_owned(), Kind::Normal),
        };
        found.texts.push(text);
        found.kinds.push(kind);
    }
    Ok(found)
}

/// A token beside the vocabulary: it controls, or is taken as it stands.
pub(super) fn told(text: &str, special: bool) -> (String, Kind) {
    if special || looks_special(text) {
        return (text.to_owned(), Kind::Control);
    }
    (text.replace('▁', " "), Kind::UserDefined)
}

/// The texts that tokenizer_config.json names as special.
fn named(files: &Files) -> HashSet<String> {
    let of = |entry: &Json| match entry {
        Json::String(text) => Some(text.clone()),
        Json::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    };
    let mut found: HashSet<String> = NAMED.iter().filter_map(|key| of(files.config.get(*key)?)).collect();
    let more = files.config.get("additional_special_tokens").and_then(Json::as_array);
    found.extend(more.into_iter().flatten().filter_map(of));
    found
}

/// The merges, most frequent first: two parts with a space between them.
///
/// # Errors
/// When there are none, or one is not two texts.
pub(super) fn merges(files: &Files) -> Result<Vec<String>> {
    let list = files.fast.as_ref().and_then(|fast| fast.get("model")?.get("merges")?.as_array());
    let list = list.ok_or_else(|| files.wrong(FILE, "`model.merges`", "is no list of merges"))?;
    let one = |(at, merge): (usize, &Json)| -> Result<String> {
        let parts = match merge {
            Json::String(text) => return Ok(text.clone()),
            Json::Array(parts) => parts.iter().map(Json::as_str).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        match parts.as_deref() {
            // A space inside of a part has the letter that byte-level BPE has for it.
            Some([left, right]) => Ok(format!("{} {}", left.replace(' ', "Ġ"), right.replace(' ', "Ġ"))),
            _ => Err(files.wrong(FILE, &format!("`model.merges`, number {at}"), "must be two texts")),
        }
    };
    list.iter().enumerate().map(one).collect()
}
