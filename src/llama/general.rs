//! `general.*`: what a file says of the model as a whole.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::error::Result;
use crate::formats::gguf::{Kind, Value};
use crate::formats::side;
use crate::tensor::TensorInfo;

/// How texts are drawn from the model: key, names in generation_config.json, type.
const SAMPLING: [(&str, &[&str], Kind); 12] = [
    ("sequence", &["sequence"], Kind::Text),
    ("top_k", &["top_k"], Kind::I32),
    ("top_p", &["top_p"], Kind::F32),
    ("min_p", &["min_p"], Kind::F32),
    ("xtc_probability", &["xtc_probability"], Kind::F32),
    ("xtc_threshold", &["xtc_threshold"], Kind::F32),
    ("temp", &["temperature"], Kind::F32),
    ("penalty_last_n", &["penalty_last_n"], Kind::I32),
    ("penalty_repeat", &["penalty_repeat", "repetition_penalty"], Kind::F32),
    ("mirostat", &["mirostat"], Kind::I32),
    ("mirostat_tau", &["mirostat_tau"], Kind::F32),
    ("mirostat_eta", &["mirostat_eta"], Kind::F32),
];

/// Keys from generation_config.json.
///
/// # Errors
/// When it is there and no JSON object.
pub fn sampling(directory: &Path) -> Result<Vec<(String, Value)>> {
    let config = side::read(directory, "generation_config.json")?.unwrap_or_default();
    let value = |names: &[&str], kind: Kind| -> Option<Value> {
        let said = names.iter().find_map(|name| config.get(*name))?;
        match kind {
            Kind::Text => Some(said.as_str()?.into()),
            Kind::I32 => Some(Value::I32(said.as_i64()?.try_into().ok()?)),
            _ => Some(Value::F32(said.as_f64()? as f32)),
        }
    };
    let keys = SAMPLING
        .iter()
        .filter_map(|(key, names, kind)| value(names, *kind).map(|value| (format!("general.sampling.{key}"), value)));
    Ok(keys.collect())
}

/// `general.name`: that of the repository, or of the directory.
pub fn name(config: &Map<String, Json>, directory: &Path) -> String {
    let said = config.get("_name_or_path").and_then(Json::as_str);
    let said = said.filter(|path| !path.is_empty() && path.matches('/').count() <= 1 && !path.starts_with('.'));
    let own = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let own = own.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = said.map_or(own.as_str(), |path| path.rsplit('/').next().unwrap_or(path));
    let words: Vec<String> = name.replace('-', " ").split_whitespace().map(titled).collect();
    words.join(" ")
}

/// A word with capitals, where it has none and is no version.
fn titled(word: &str) -> String {
    let digits = |text: &str| text.starts_with(|letter: char| letter.is_ascii_digit());
    let version = word
        .strip_prefix('v')
        .is_some_and(|rest| digits(rest) && rest.chars().all(|letter| letter.is_ascii_digit() || letter == '.'));
    let lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
    if !lower || version || digits(word) {
        return word.to_owned();
    }
    let mut inside = false;
    let mut out = String::new();
    for letter in word.chars() {
        if inside {
            out.push(letter)
        } else {
            out.extend(letter.to_uppercase())
        }
        inside = letter.is_alphabetic();
    }
    out
}

/// `general.size_label`: the number of parameters, as `135M` or `8x7B`.
pub fn size_label(tensors: &[TensorInfo]) -> String {
    let (mut shared, mut of_experts, mut stacks, mut experts) = (0_u64, 0_u64, 0_u64, 0_u64);
    for tensor in tensors {
        let count = tensor.shape.elements().unwrap_or(0);
        match tensor.shape.as_slice() {
            [of, _, _] if tensor.name.contains("_exps.") && *of > 0 => {
                of_experts += count / of;
                experts += of;
                stacks += 1;
            }
            _ => shared += count,
        }
    }
    let count = experts.checked_div(stacks).filter(|count| *count > 0);
    count.map_or_else(|| rounded(shared), |count| format!("{count}x{}", rounded(shared + of_experts)))
}

/// At least two digits, with the suffix of thousands.
fn rounded(count: u64) -> String {
    let count = count as f64;
    let steps = [(1e12, 'T'), (1e9, 'B'), (1e6, 'M')];
    let (unit, suffix) = steps.into_iter().find(|(unit, _)| count > *unit).unwrap_or((1e3, 'K'));
    let scaled = count / unit;
    let whole = format!("{scaled:.0}");
    let digits = 2 - whole.trim_start_matches('0').len().min(2);
    format!("{scaled:.digits$}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, Shape};

    #[test]
    fn names_are_titles() {
        for (word, title) in
            [("smollm2", "Smollm2"), ("qwen2_moe", "Qwen2_Moe"), ("v1.5", "v1.5"), ("7b", "7b"), ("LLaMA", "LLaMA")]
        {
            assert_eq!(titled(word), title);
        }
        let Json::Object(config) = serde_json::json!({"_name_or_path": "meta-llama/llama-2-7b-hf"}) else { panic!() };
        assert_eq!(name(&config, Path::new("x")), "Llama 2 7b Hf");
    }

    #[test]
    fn parameters_are_counted_to_two_digits() {
        let tensor = |name: &str, shape: &[u64]| TensorInfo {
            name: name.into(),
            dtype: Dtype::F32,
            shape: Shape::from(shape.to_vec()),
            offset: 0,
            bytes: 0,
        };
        assert_eq!(size_label(&[tensor("a", &[476_000])]), "476K");
        assert_eq!(size_label(&[tensor("a", &[1_300_000])]), "1.3M");
        assert_eq!(size_label(&[tensor("a", &[134_515_008])]), "135M");
        assert_eq!(size_label(&[tensor("a", &[100]), tensor("blk.0.ffn_up_exps.weight", &[8, 1000, 2000])]), "8x2.0M");
    }
}
