//! `rank_pattern` and `alpha_pattern` of PEFT's configs: numbers of the modules whose path a pattern means.
//!
//! PEFT 0.21 (`utils/other.py`, `get_pattern_key`) matches `(.*\.)?(PATTERN)$` from the start of the path; the first match in the
//! order of the file wins. Nearly all patterns are paths or ends of paths. Those are looked up by their text with the places of
//! dots, which stand for any letter, left open; what is more than that goes into one set of regular expressions of bounded size.
//! So the cost is that of reading the patterns, and for each module that of its length.

use std::path::Path;

use foldhash::HashMap;
use regex::{RegexSet, RegexSetBuilder};

use super::pattern::Pattern;
use crate::error::{Error, Result};
use crate::limits::{MAX_PATTERNS, MAX_PATTERNS_BYTES};
use crate::naming::ends;

/// Most ways in which dots lie in plain patterns of one length.
const MAX_OUTLINES: usize = 64;

/// What stands for a letter beyond ASCII, which only an open place matches.
const OTHER: char = '\u{1}';

/// Patterns and what they give.
#[derive(Debug, Clone)]
pub struct Patterns<T> {
    /// By length, the ways open places lie in plain patterns that may begin at any dot.
    outlines: HashMap<usize, Vec<Outline<T>>>,
    /// The same for those that stand for whole paths.
    anchored: HashMap<usize, Vec<Outline<T>>>,
    /// The others, with their places in the file.
    set: RegexSet,
    of_set: Vec<(usize, T)>,
    /// Those that need backtracking.
    alone: Vec<(usize, Pattern, T)>,
}

/// Plain patterns of one length with open places at the same letters.
#[derive(Debug, Clone)]
struct Outline<T> {
    open: Vec<usize>,
    /// Text with its open places blank → place in the file, and what the pattern gives.
    texts: HashMap<String, (usize, T)>,
}

impl<T: Copy> Default for Patterns<T> {
    fn default() -> Self {
        let (outlines, anchored) = (HashMap::default(), HashMap::default());
        Self { outlines, anchored, set: RegexSet::empty(), of_set: Vec::new(), alone: Vec::new() }
    }
}

impl<T: Copy> Patterns<T> {
    /// The patterns of the setting `key` of the file `path`, in its order.
    ///
    /// # Errors
    /// When one is no usable regular expression, or all together would take too much.
    pub fn read<'a>(path: &Path, key: &str, all: impl Iterator<Item = (&'a str, T)>) -> Result<Self> {
        let mut patterns = Self::default();
        let mut expressions = Vec::new();
        for (place, (pattern, value)) in all.enumerate() {
            let plain = Plain::read(pattern);
            if plain.is_some_and(|plain| patterns.add(plain, place, value)) {
                continue;
            }
            let compiled = Pattern::new(pattern).map_err(|problem| {
                let reason = format!("is not a usable regular expression: {problem}");
                Error::malformed(path, format!("{key}: {pattern}"), reason)
            })?;
            match compiled {
                Pattern::Linear(regex) => {
                    expressions.push(regex.as_str().to_owned());
                    patterns.of_set.push((place, value));
                }
                backtracking @ Pattern::Backtracking(_) => patterns.alone.push((place, backtracking, value)),
            }
            let count = (expressions.len() + patterns.alone.len()) as u64;
            if count > MAX_PATTERNS {
                let quantity = format!("number of patterns in `{key}` that are more than paths");
                return Err(Error::limit(path, quantity, count, MAX_PATTERNS));
            }
        }
        patterns.set = RegexSetBuilder::new(&expressions).size_limit(MAX_PATTERNS_BYTES).build().map_err(|_| {
            let what = format!("`{key}` holds {} patterns that take more than", expressions.len());
            Error::unsupported(path, format!("{what} {MAX_PATTERNS_BYTES} bytes as regular expressions"))
        })?;
        Ok(patterns)
    }

    /// What the first pattern gives that means `module`.
    pub fn find(&self, module: &str) -> Option<T> {
        let plain: String = if module.is_ascii() { module.to_owned() } else { module.chars().map(to_ascii).collect() };
        let whole = self.anchored.get(&plain.len()).into_iter().flatten().filter_map(|outline| outline.find(&plain));
        let parts = ends(&plain).filter(|_| !self.outlines.is_empty()).flat_map(|end| {
            self.outlines.get(&end.len()).into_iter().flatten().filter_map(move |outline| outline.find(end))
        });
        let in_set = (!self.of_set.is_empty()).then(|| self.set.matches(module).iter().next()).flatten();
        let alone = self.alone.iter().find(|(_, pattern, _)| pattern.is_match(module));
        whole
            .chain(parts)
            .chain(alone.map(|(place, _, value)| (*place, *value)))
            .chain(in_set.map(|at| self.of_set[at]))
            .min_by_key(|(place, _)| *place)
            .map(|(_, value)| value)
    }

    /// Adds a plain pattern, if there is room for its outline.
    fn add(&mut self, plain: Plain, place: usize, value: T) -> bool {
        let Plain { text, open, anchored } = plain;
        let outlines = if anchored { &mut self.anchored } else { &mut self.outlines };
        let outlines = outlines.entry(text.len()).or_default();
        let at = match outlines.iter().position(|outline| outline.open == open) {
            Some(at) => at,
            None if outlines.len() == MAX_OUTLINES => return false,
            None => {
                outlines.push(Outline { open, texts: HashMap::default() });
                outlines.len() - 1
            }
        };
        outlines[at].texts.entry(text).or_insert((place, value));
        true
    }
}

impl<T: Copy> Outline<T> {
    /// `text` has the length of this outline, and is ASCII.
    fn find(&self, text: &str) -> Option<(usize, T)> {
        let mut blank = text.to_owned();
        for at in &self.open {
            // No `.` stands for the end of a line.
            if blank.as_bytes()[*at] == b'\n' {
                return None;
            }
            blank.replace_range(at..=at, " ");
        }
        self.texts.get(&blank).copied()
    }
}

/// A pattern that is a text, some of whose letters may be any.
struct Plain {
    text: String,
    /// Where any letter may stand; the text is blank there.
    open: Vec<usize>,
    /// It is the whole path.
    anchored: bool,
}

impl Plain {
    fn read(pattern: &str) -> Option<Self> {
        let (anchored, rest) = pattern.strip_prefix('^').map_or((false, pattern), |rest| (true, rest));
        let ends = rest.ends_with('$') && !rest.ends_with("\\$");
        let rest = if ends { &rest[..rest.len() - 1] } else { rest };
        let (mut text, mut open) = (String::with_capacity(rest.len()), Vec::new());
        let mut letters = rest.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '.' => {
                    open.push(text.len());
                    text.push(' ');
                }
                '\\' => {
                    text.push(letters.next().filter(|letter| letter.is_ascii_punctuation() && !"<>".contains(*letter))?)
                }
                _ if letter.is_ascii_alphanumeric() || "_-/:@,=".contains(letter) => text.push(letter),
                _ => return None,
            }
        }
        Some(Self { text, open, anchored })
    }
}

fn to_ascii(letter: char) -> char {
    if letter.is_ascii() { letter } else { OTHER }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(patterns: &[&str]) -> Result<Patterns<usize>> {
        Patterns::read(Path::new("c.json"), "rank_pattern", patterns.iter().enumerate().map(|(at, text)| (*text, at)))
    }

    /// The first pattern that matches, by the definition.
    fn defined(patterns: &[&str], module: &str) -> Option<usize> {
        let matches = |pattern: &&str| {
            let whole = format!(r"^(?:.*\.)?(?:{pattern})$");
            regex::Regex::new(&whole).expect("a pattern").is_match(module)
        };
        patterns.iter().position(matches)
    }

    #[test]
    fn the_first_match_is_that_of_the_definition() {
        let patterns = [
            "layers.0.q_proj",
            "^top",
            "^model.layers.1.k$",
            r"b\.c",
            "a|b",
            "v_proj$",
            "k[0-9]+",
            "q_proj",
            r"x\$",
            "é.b",
            "m.n",
            "",
            ".",
            "q_proj",
        ];
        let all = read(&patterns).expect("patterns");
        for module in [
            "model.layers.0.q_proj",
            "model.layers.0xq_proj",
            "model.layers.1.k",
            "x.model.layers.1.k",
            "top",
            "x.top",
            "a.b.c",
            "a.bxc",
            "x.b",
            "x.a",
            "y.v_proj",
            "yv_proj",
            "z.k17",
            "my_q_proj",
            "q_proj",
            "y.x$",
            "éxb",
            "z.mén",
            "mn",
            "",
            "x.",
            "q",
            "a.m\nn",
        ] {
            assert_eq!(all.find(module), defined(&patterns, module), "{module:?}");
        }
    }

    #[test]
    fn many_plain_patterns_are_looked_up_and_many_others_refused() {
        let paths: Vec<String> = (0..50_000).map(|at| format!("model.layers.{at}.q_proj")).collect();
        let plain: Vec<&str> = paths.iter().map(String::as_str).collect();
        assert_eq!(read(&plain).expect("patterns").find("x.model.layers.49999.q_proj"), Some(49_999));
        let wide = vec!["x1a{0,600}"; usize::try_from(MAX_PATTERNS).expect("small") + 1];
        let error = read(&wide).expect_err("refused").to_string();
        assert!(error.contains("patterns in `rank_pattern` that are more than paths is 1001"), "{error}");
    }
}
