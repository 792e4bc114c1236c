//! Which modules a config means by `target_modules` (PEFT 0.21 `tuners/tuners_utils.py`, `check_target_module_exists`).

use foldhash::HashSet;
use regex::Regex;
use serde_json::Value;

use crate::adapters::AdapterConfig;
use crate::naming::{Endings, ends};

/// What stands for every linear layer.
const ALL_LINEAR: &str = "all-linear";

/// The projection back inside `nn.MultiheadAttention`, which PEFT adapts along with the module that is named.
const ATTENTION_OUT: &str = ".out_proj";

/// The modules a config names.
pub enum Targets {
    /// Ends of paths, as they are listed.
    Endings(Vec<String>, Endings),
    /// Whole paths.
    Pattern(Regex),
    /// Nothing that can be compared with a file.
    Open,
}

impl Targets {
    /// Reads `target_modules`.
    pub fn of(config: &AdapterConfig) -> Self {
        match config.raw.get("target_modules") {
            Some(Value::Array(list)) if !list.is_empty() => {
                Self::ends(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            }
            Some(Value::String(text)) if text != ALL_LINEAR => {
                Regex::new(&format!("^(?:{text})$")).map_or(Self::Open, Self::Pattern)
            }
            _ => Self::Open,
        }
    }

    fn ends(names: Vec<String>) -> Self {
        let endings = names.iter().map(String::as_str).collect();
        Self::Endings(names, endings)
    }

    /// Whether `module` is one of them; `None` where that cannot be told.
    pub fn take(&self, module: &str) -> Option<bool> {
        let names = [Some(module), module.strip_suffix(ATTENTION_OUT)];
        let any = |takes: &dyn Fn(&str) -> bool| names.into_iter().flatten().any(takes);
        match self {
            Self::Endings(_, endings) => Some(any(&|name| endings.take(name))),
            Self::Pattern(pattern) => Some(any(&|name| pattern.is_match(name))),
            Self::Open => None,
        }
    }

    /// The names that mean none of `modules`.
    pub fn without<'a>(&'a self, modules: &[&str]) -> Vec<&'a str> {
        let Self::Endings(names, _) = self else { return Vec::new() };
        let there: HashSet<&str> = modules.iter().flat_map(|module| ends(module)).collect();
        names.iter().map(String::as_str).filter(|name| !there.contains(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_begins_at_a_dot() {
        let targets = Targets::ends(vec!["q_proj".into(), "mlp.up".into(), "attn".into()]);
        for (module, takes) in [
            ("a.q_proj", true),
            ("q_proj", true),
            ("a.my_q_proj", false),
            ("x.mlp.up", true),
            ("x.up", false),
            ("attn.out_proj", true),
        ] {
            assert_eq!(targets.take(module), Some(takes), "{module}");
        }
        assert_eq!(targets.without(&["a.q_proj", "x.attn"]), ["mlp.up"]);
    }
}
