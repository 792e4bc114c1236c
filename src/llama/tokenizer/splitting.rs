//! How texts are cut before BPE: the `pre_tokenizer` of `tokenizer.json` → llama.cpp's name for it.
//!
//! llama.cpp's converter encodes a text with the tokenizer and looks its hash up; here the description itself is looked up, so
//! that tokenizers that differ in nothing but their vocabulary are one.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::Files;

#[derive(Deserialize)]
struct Table {
    row: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    name: String,
    steps: Vec<String>,
    ignore_merges: Option<bool>,
    #[serde(default)]
    also: Vec<String>,
    #[serde(default)]
    nfc: bool,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    toml::from_str(include_str!("splitting.toml")).expect("the table is part of the program; a test reads it")
});

/// llama.cpp's name of how the tokenizer cuts texts.
///
/// # Errors
/// A note that says why there is none.
pub(super) fn name_of(files: &Files) -> Result<&'static str, String> {
    let fast = files.fast.as_ref();
    let steps = fast.and_then(|fast| fast.get("pre_tokenizer")).and_then(steps);
    let merges = fast.and_then(|fast| fast.get("model")?.get("ignore_merges")?.as_bool()).unwrap_or(false);
    let row = steps.as_ref().and_then(|steps| {
        TABLE.row.iter().find(|row| row.steps == *steps && row.ignore_merges.is_none_or(|said| said == merges))
    });
    row.map(|row| row.name.as_str()).ok_or_else(|| {
        let what = steps.map_or_else(|| "is of an unknown kind".into(), |steps| format!("is `{}`", steps.join("`, `")));
        format!(
            "how tokenizer.json cuts texts is not known to llama.cpp by a name that is known here, and `tokenizer.ggml.pre` \
             is `default`: texts may be cut otherwise than the model learnt it (`pre_tokenizer` {what})"
        )
    })
}

/// What tokenizer.json says of a way of cutting texts.
pub(super) struct Cut {
    /// `normalizer`.
    pub normalizer: Json,
    /// `pre_tokenizer`.
    pub pre_tokenizer: Json,
    /// `ignore_merges` of the model.
    pub ignore_merges: bool,
}

/// What llama.cpp's name stands for.
pub(super) fn named(name: &str) -> Option<Cut> {
    let row = TABLE.row.iter().find(|row| row.name == name || row.also.iter().any(|other| other == name))?;
    let bytes =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let step = |step: &String| match step.as_str() {
        "digits" => json!({"type": "Digits", "individual_digits": true}),
        "bytes gpt2" => bytes(true),
        "bytes" => bytes(false),
        split => {
            let regex = split.strip_prefix("split ").unwrap_or(split);
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
        }
    };
    Some(Cut {
        normalizer: if row.nfc { json!({"type": "NFC"}) } else { Json::Null },
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": row.steps.iter().map(step).collect::<Vec<Json>>()}),
        ignore_merges: row.ignore_merges.unwrap_or(false),
    })
}

/// The steps of a `pre_tokenizer`, each in one line; `None` where one is of another kind.
fn steps(step: &Json) -> Option<Vec<String>> {
    let flag = |key: &str, default: bool| step.get(key).and_then(Json::as_bool).unwrap_or(default);
    let one = |text: String| Some(vec![text]);
    match step.get("type")?.as_str()? {
        "Sequence" => {
            let all: Option<Vec<Vec<String>>> = step.get("pretokenizers")?.as_array()?.iter().map(steps).collect();
            all.map(|all| all.concat())
        }
        "Digits" if flag("individual_digits", false) => one("digits".into()),
        "ByteLevel" if flag("add_prefix_space", true) => None,
        "ByteLevel" => one(if flag("use_regex", true) { "bytes gpt2".into() } else { "bytes".into() }),
        // What stands between the matches removed is the same where the expression matches all there is, as these do.
        "Split"
            if [("Isolated", false), ("Removed", true)]
                .contains(&(step.get("behavior")?.as_str()?, flag("invert", false))) =>
        {
            let pattern = step.get("pattern")?;
            one(format!("split {}", pattern.get("Regex").or_else(|| pattern.get("String"))?.as_str()?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(pre: &Json, ignore_merges: bool) -> Result<&'static str, String> {
        let fast = json!({"pre_tokenizer": pre, "model": {"type": "BPE", "ignore_merges": ignore_merges}});
        let (Json::Object(fast), directory) = (fast, std::path::PathBuf::new()) else { panic!("an object") };
        let (config, model) = Default::default();
        name_of(&Files { directory, fast: Some(fast), config, model })
    }

    #[test]
    fn descriptions_have_one_name_each() {
        for (at, row) in TABLE.row.iter().enumerate() {
            let same = |other: &&Row| other.steps == row.steps && other.ignore_merges == row.ignore_merges;
            assert_eq!(TABLE.row[..at].iter().find(same).map(|other| &other.name), None, "{}", row.name);
        }
    }

    #[test]
    fn names_say_what_they_stand_for() {
        for row in &TABLE.row {
            for known in row.also.iter().chain([&row.name]) {
                let cut = named(known).unwrap();
                assert_eq!(name(&cut.pre_tokenizer, cut.ignore_merges), Ok(row.name.as_str()));
            }
        }
        assert!(named("default").is_none());
    }

    #[test]
    fn known_tokenizers_have_the_names_of_llama_cpp() {
        let bytes = |gpt2: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": gpt2});
        let sequence = |steps: &[Json]| json!({"type": "Sequence", "pretokenizers": steps});
        let digits = json!({"type": "Digits", "individual_digits": true});
        assert_eq!(name(&sequence(&[digits, bytes(true)]), false), Ok("smollm"));
        assert_eq!(name(&bytes(true), false), Ok("gpt-2"));
        let split = |numbers: &str| {
            let start = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
            let regex = format!(r"{start}{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+");
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
        };
        assert_eq!(name(&sequence(&[split(r"\p{N}"), bytes(false)]), false), Ok("qwen2"));
        let mut removed = split(r"\p{N}");
        (removed["behavior"], removed["invert"]) = (json!("Removed"), json!(true));
        assert_eq!(name(&sequence(&[removed, bytes(false)]), false), Ok("qwen2"));
        assert_eq!(name(&sequence(&[split(r"\p{N}{1,3}"), bytes(false)]), true), Ok("llama-bpe"));
        assert_eq!(name(&sequence(&[split(r"\p{N}{1,3}"), bytes(false)]), false), Ok("smaug-bpe"));
    }

    #[test]
    fn what_is_not_known_is_said() {
        let note = name(&json!({"type": "Metaspace"}), false).unwrap_err();
        assert!(note.contains("`tokenizer.ggml.pre` is `default`"), "{note}");
    }
}
