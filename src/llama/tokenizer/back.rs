//! The `tokenizer.*` keys of a GGUF file → `tokenizer.json` and `tokenizer_config.json`, for byte-level BPE.
//!
//! Tokens keep their numbers, merges their order; how texts are cut follows from the name that llama.cpp has for it.

use serde_json::{Map, Value as Json, json};

use super::splitting;
use crate::formats::gguf::{Metadata, Value};

/// Kinds of tokens that stand outside of the vocabulary proper (`tokenizer.ggml.token_type`).
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// What is named in tokenizer_config.json, and its key in the file.
const NAMED: [(&str, &str); 5] =
    [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"), ("sep", "seperator")];

/// The files of the tokenizer: name and contents.
///
/// # Errors
/// A note that says why there are none.
pub fn hub_tokenizer(metadata: &Metadata) -> Result<Vec<(&'static str, Json)>, String> {
    let left = |why: String| format!("the tokenizer is left out: {why}; take it from the original model");
    let key = |name: &str| metadata.get(&format!("tokenizer.ggml.{name}"));
    let model = key("model").and_then(Value::as_text).unwrap_or("none");
    if model != "gpt2" {
        return Err(left(format!("`tokenizer.ggml.model` is `{model}`, and byte-level BPE (`gpt2`) can be written")));
    }
    let pre = key("pre").and_then(Value::as_text).unwrap_or("default");
    let cut = splitting::named(pre).ok_or_else(|| left(format!("how `{pre}` cuts texts is not known")))?;
    let list = |name: &str| key(name).and_then(Value::as_array);
    let (Some(tokens), Some(merges)) = (list("tokens"), list("merges")) else {
        return Err(left("it has no tokens or no merges".into()));
    };
    let tokens: Vec<String> = tokens.texts().collect();
    let kinds: Vec<i64> =
        list("token_type").into_iter().flat_map(|kinds| kinds.iter()).map(|kind| number(&kind)).collect();
    let kind = |at: usize| kinds.get(at).copied().unwrap_or(1);
    let (mut vocabulary, mut added) = (Map::new(), Vec::new());
    for (id, text) in tokens.iter().enumerate().filter(|(id, _)| kind(*id) != UNUSED) {
        if vocabulary.insert(text.clone(), json!(id)).is_some() {
            return Err(left(format!("it has the token `{text}` twice")));
        }
        if [CONTROL, USER_DEFINED].contains(&kind(id)) {
            added.push(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": kind(id) == CONTROL,
            }));
        }
    }
    let merges: Vec<String> = merges.texts().collect();
    let token = |name: &str| {
        let id = key(&format!("{name}_token_id")).and_then(Value::as_u64)?;
        tokens.get(usize::try_from(id).ok()?).map(|text| (id, text.clone()))
    };
    let adds = |name: &str| match key(&format!("add_{name}_token")) {
        Some(Value::Bool(add)) => Some(*add),
        _ => None,
    };
    // What llama.cpp does where a file is silent.
    let begins = adds("bos").unwrap_or(["llama-bpe", "llama3", "llama-v3", "tekken"].contains(&pre));
    let ends = adds("eos").unwrap_or(false);
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let around = around(token("bos").filter(|_| begins), token("eos").filter(|_| ends));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": cut.normalizer,
        "pre_tokenizer": cut.pre_tokenizer, "post_processor": around.unwrap_or(Json::Null), "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": cut.ignore_merges,
            "vocab": vocabulary, "merges": merges,
        },
    });
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    for (name, in_file) in NAMED {
        config.extend(token(in_file).map(|(_, text)| (format!("{name}_token"), json!(text))));
    }
    for name in ["bos", "eos"] {
        config.extend(adds(name).map(|add| (format!("add_{name}_token"), json!(add))));
    }
    let longest =
        metadata.text("general.architecture").and_then(|arch| metadata.number(&format!("{arch}.context_length")));
    config.extend(longest.map(|longest| ("model_max_length".to_owned(), json!(longest))));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    config.extend(metadata.text("tokenizer.chat_template").map(|text| ("chat_template".to_owned(), json!(text))));
    Ok(vec![("tokenizer.json", tokenizer), ("tokenizer_config.json", config.into())])
}

fn number(value: &Value) -> i64 {
    value.as_u64().and_then(|value| value.try_into().ok()).unwrap_or(1)
}

/// `post_processor`: what is put before and after a text.
fn around(first: Option<(u64, String)>, last: Option<(u64, String)>) -> Option<Json> {
    if first.is_none() && last.is_none() {
        return None;
    }
    let special = |(_, text): &(u64, String), kind: u8| json!({"SpecialToken": {"id": text, "type_id": kind}});
    let one = |sequence: &str, kind: u8| {
        let text = json!({"Sequence": {"id": sequence, "type_id": kind}});
        let (first, last) =
            (first.iter().map(|token| special(token, kind)), last.iter().map(|token| special(token, kind)));
        first.chain([text]).chain(last).collect::<Vec<Json>>()
    };
    let tokens: Map<String, Json> = first
        .iter()
        .chain(&last)
        .map(|(id, text)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    let pair = [one("A", 0), one("B", 1)].concat();
    Some(json!({"type": "TemplateProcessing", "single": one("A", 0), "pair": pair, "special_tokens": tokens}))
}
