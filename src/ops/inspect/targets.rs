//! Which modules a config means by `target_modules` (PEFT 0.21 `tuners/tuners_utils.py`, `check_target_module_exists`).

use regex::Regex;
use serde_json::Value;

use crate::adapters::AdapterConfig;

/// What stands for every linear layer.
const ALL_LINEAR: &str = "all-linear";

/// The projection back inside `nn.MultiheadAttention`, which PEFT adapts along with the module that is named.
const ATTENTION_OUT: &str = ".out_proj";

/// The modules a config names.
pub enum Targets {
    /// Ends of paths.
    Endings(Vec<String>),
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
                Self::Endings(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            }
            Some(Value::String(text)) if text != ALL_LINEAR => {
                Regex::new(&format!("^(?:{text})$")).map_or(Self::Open, Self::Pattern)
            }
            _ => Self::Open,
        }
    }

    /// Whether `module` is one of them; `None` where that cannot be told.
    pub fn take(&self, module: &str) -> Option<bool> {
        let names = [Some(module), module.strip_suffix(ATTENTION_OUT)];
        let any = |takes: &dyn Fn(&str) -> bool| names.into_iter().flatten().any(takes);
        match self {
            Self::Endings(endings) => Some(any(&|name| endings.iter().any(|ending| ends_with(name, ending)))),
            Self::Pattern(pattern) => Some(any(&|name| pattern.is_match(name))),
            Self::Open => None,
        }
    }

    /// The names that mean none of `modules`.
    pub fn without<'a>(&'a self, modules: &[&str]) -> Vec<&'a str> {
        let Self::Endings(endings) = self else { return Vec::new() };
        let endings = endings.iter().map(String::as_str);
        endings.filter(|ending| !modules.iter().any(|module| ends_with(module, ending))).collect()
    }
}

/// Whether `ending` is the whole path, or its end from a dot on.
pub fn ends_with(path: &str, ending: &str) -> bool {
    path.strip_suffix(ending).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_begins_at_a_dot() {
        let targets = Targets::Endings(vec!["q_proj".into(), "mlp.up".into(), "attn".into()]);
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
