//! Patterns of a config over module paths, as Python's `re` reads them: matched in linear time where the pattern allows it, else by
//! backtracking with a bound on its steps (look-around, back references).
//!
//! Rule: PEFT 0.21 `utils/other.py` (`get_pattern_key`): `(.*\.)?(pattern)$`, from the start of the path.

use regex::{Regex, RegexBuilder};

/// Largest compiled pattern, in bytes; a full module path takes about 10 kB.
const MAX_BYTES: usize = 128 << 10;

/// Longest pattern that is matched by backtracking, in bytes.
const MAX_BACKTRACKING: usize = 2048;

/// Most steps of one match by backtracking.
const MAX_STEPS: usize = 100_000;

/// A compiled pattern.
#[derive(Debug, Clone)]
pub enum Pattern {
    /// Matched in linear time.
    Linear(Regex),
    /// Matched by backtracking.
    Backtracking(Box<fancy_regex::Regex>),
}

impl Pattern {
    /// Compiles `pattern`.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let whole = format!(r"^(?:.*\.)?(?:{})$", as_in_python(pattern));
        let problem = match RegexBuilder::new(&whole).size_limit(MAX_BYTES).build() {
            Ok(regex) => return Ok(Self::Linear(regex)),
            Err(problem) => last_line(&problem.to_string()).to_owned(),
        };
        let backtracks =
            ["(?=", "(?!", "(?<", "(?>", "(?P=", "++", "*+", "?+", r"\1"].iter().any(|part| pattern.contains(part));
        if !backtracks || pattern.len() > MAX_BACKTRACKING {
            return Err(problem);
        }
        let built =
            fancy_regex::RegexBuilder::new(&whole).backtrack_limit(MAX_STEPS).delegate_size_limit(MAX_BYTES).build();
        built.map(|regex| Self::Backtracking(Box::new(regex))).map_err(|_| problem)
    }

    /// Whether the module `path` is one that it means. One that takes more steps than are allowed is not.
    pub fn is_match(&self, path: &str) -> bool {
        match self {
            Self::Linear(regex) => regex.is_match(path),
            Self::Backtracking(regex) => regex.is_match(path).unwrap_or(false),
        }
    }
}

/// A pattern of Python's `re` as these crates spell it: the end of the text is `\Z` there, and `\z` here.
fn as_in_python(pattern: &str) -> String {
    let mut spelled = String::with_capacity(pattern.len());
    let mut escaped = false;
    for letter in pattern.chars() {
        spelled.push(if escaped && letter == 'Z' { 'z' } else { letter });
        escaped = !escaped && letter == '\\';
    }
    spelled
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or(text).trim_start_matches("error: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_python() {
        for (pattern, path, wanted) in [
            ("q_proj", "a.q_proj", true),
            ("q_proj", "a.my_q_proj", false),
            (r"layers\.(?!0\.)\d+\.q_proj", "model.layers.1.q_proj", true),
            (r"layers\.(?!0\.)\d+\.q_proj", "model.layers.0.q_proj", false),
            (r"(?<=a\.)q", "a.q", true),
            (r"(?<=b\.)q", "a.q", false),
            (r"(?P<x>a|b)\.(?P=x)", "a.a", true),
            (r"(?P<x>a|b)\.(?P=x)", "a.b", false),
            (r"q_proj\Z", "a.q_proj", true),
            (r"a\\Z", r"a\Z", true),
        ] {
            assert_eq!(Pattern::new(pattern).expect(pattern).is_match(path), wanted, "{pattern} on {path}");
        }
        assert!(Pattern::new("(").expect_err("refused").contains("unclosed group"));
    }

    #[test]
    fn a_pattern_that_never_ends_is_given_up() {
        let pattern = Pattern::new(r"(?:(?=a)a*)*(?!x)b").expect("a pattern");
        assert!(!pattern.is_match(&"a".repeat(4000)));
    }
}
