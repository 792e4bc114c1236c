//! Names with gaps: `double_blocks.{i}.img_attn.qkv`, where `{i}` is any number.
//!
//! Tables write more than that; it is expanded when they are read: `{q,k,v}` is one of several texts, `{3i+j+1}` is computed
//! from the counters a row runs over, and `*` in front is any path.

use std::collections::BTreeMap;

/// Numbers by the letter of their gap, and what stood for `*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filling {
    front: String,
    numbers: BTreeMap<char, String>,
}

#[cfg(test)]
impl Filling {
    pub fn numbered(numbers: &[(char, &str)], front: &str) -> Self {
        let numbers = numbers.iter().map(|(letter, number)| (*letter, (*number).to_owned())).collect();
        Self { front: front.to_owned(), numbers }
    }
}

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Any path may stand in front.
    open: bool,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Number(char),
}

impl Template {
    /// Reads an expanded name; `None` if a gap is not one letter.
    pub fn read(text: &str) -> Option<Self> {
        let (open, mut rest) = text.strip_prefix('*').map_or((false, text), |rest| (true, rest));
        let mut pieces = Vec::new();
        while let Some((before, after)) = rest.split_once('{') {
            let (gap, after) = after.split_once('}')?;
            let mut letters = gap.chars();
            let (Some(letter), None) = (letters.next(), letters.next()) else { return None };
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::Number(letter));
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        pieces.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
        Some(Self { open, pieces })
    }

    /// Whether any path may stand in front.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The name with its gaps filled.
    pub fn fill(&self, filling: &Filling) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Number(letter) => filling.numbers.get(letter).cloned().unwrap_or_default(),
        };
        let front = if self.open { filling.front.clone() } else { String::new() };
        front + &self.pieces.iter().map(piece).collect::<String>()
    }

    /// What fills the gaps if `path` is one of these names.
    pub fn fit(&self, path: &str) -> Option<Filling> {
        if !self.open {
            return self.fit_pieces(path, str::to_owned);
        }
        let mut starts = std::iter::once(0).chain(path.match_indices('.').map(|(at, _)| at + 1));
        starts.find_map(|at| {
            let filling = self.fit_pieces(&path[at..], str::to_owned)?;
            Some(Filling { front: path[..at].to_owned(), ..filling })
        })
    }

    /// What fills the gaps if `name` is one of these names with underscores in place of dots.
    pub fn fit_flat(&self, name: &str) -> Option<Filling> {
        if self.open { None } else { self.fit_pieces(name, |text| text.replace('.', "_")) }
    }

    /// The name with `#` for every component that is a number: what it has in common with the paths it fits.
    pub fn outline(&self, separator: char) -> String {
        let filled = self.pieces.iter().map(|piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Number(_) => "0".to_owned(),
        });
        outline(&filled.collect::<String>().replace('.', &separator.to_string()), separator)
    }

    fn fit_pieces(&self, name: &str, spelled: impl Fn(&str) -> String) -> Option<Filling> {
        let mut filling = Filling::default();
        let mut rest = name;
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => rest = rest.strip_prefix(spelled(text).as_str())?,
                Piece::Number(letter) => {
                    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                    let (number, after) = rest.split_at(end);
                    let canonical = number == "0" || !number.is_empty() && !number.starts_with('0');
                    if !canonical || filling.numbers.get(letter).is_some_and(|other| other != number) {
                        return None;
                    }
                    filling.numbers.insert(*letter, number.to_owned());
                    rest = after;
                }
            }
        }
        rest.is_empty().then_some(filling)
    }
}

/// `name` with `#` for every component that is a number.
pub fn outline(name: &str, separator: char) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.split(separator).map(|part| if is_number(part) { "#" } else { part });
    parts.collect::<Vec<_>>().join(&separator.to_string())
}

/// Every combination of the counters' values.
pub fn combinations(over: &BTreeMap<String, Vec<u64>>) -> Vec<BTreeMap<char, u64>> {
    over.iter().fold(vec![BTreeMap::new()], |all, (name, values)| {
        let letter = name.chars().next().unwrap_or_default();
        let with = |one: &BTreeMap<char, u64>, value: u64| {
            let mut one = one.clone();
            one.insert(letter, value);
            one
        };
        all.iter().flat_map(|one| values.iter().map(move |value| with(one, *value))).collect()
    })
}

/// `text` with the sums over `counters` computed: `{3i+j+1}` → a number.
pub fn computed(text: &str, counters: &BTreeMap<char, u64>) -> String {
    replaced(text, |gap| {
        let mut sum = 0;
        for term in gap.split('+') {
            let letter = term.chars().last().filter(char::is_ascii_alphabetic);
            let digits = term.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let factor = if digits.is_empty() { 1 } else { digits.parse::<u64>().ok()? };
            sum += factor * letter.map_or(Some(1), |letter| counters.get(&letter).copied())?;
        }
        Some(sum.to_string())
    })
}

/// How many texts the choices `{q,k,v}` of `text` have, in order.
pub fn choices(text: &str) -> Vec<usize> {
    let mut counts = Vec::new();
    replaced(text, |gap| {
        if gap.contains(',') {
            counts.push(gap.split(',').count());
        }
        None
    });
    counts
}

/// `text` with the choices numbered by `picked` made.
pub fn chosen(text: &str, picked: &[usize]) -> String {
    let mut picked = picked.iter();
    replaced(text, |gap| {
        if !gap.contains(',') {
            return None;
        }
        picked.next().and_then(|at| gap.split(',').nth(*at)).map(str::to_owned)
    })
}

/// `text` with the gaps for which `with` knows something replaced.
fn replaced(text: &str, mut with: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((gap, after)) = after.split_once('}') else { break };
        out += before;
        out += &with(gap).unwrap_or_else(|| format!("{{{gap}}}"));
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_takes_one_number_and_nothing_else() {
        let template = Template::read("blocks.{i}.ffn.0").unwrap();
        let filling = template.fit("blocks.12.ffn.0").unwrap();
        assert_eq!(template.fill(&filling), "blocks.12.ffn.0");
        assert_eq!(template.fit_flat("blocks_12_ffn_0"), Some(filling));
        for other in ["blocks.12.ffn.01", "blocks..ffn.0", "blocks.1.2.ffn.0", "blocks.012.ffn.0", "blocks.1.ffn.0.x"] {
            assert_eq!(template.fit(other), None, "{other}");
        }
    }

    #[test]
    fn any_path_stands_in_front_of_an_open_name() {
        let template = Template::read("*mlp.up_proj").unwrap();
        for path in ["model.layers.3.mlp.up_proj", "mlp.up_proj"] {
            assert_eq!(template.fill(&template.fit(path).unwrap()), path);
        }
        assert_eq!(template.fit("model.xmlp.up_proj"), None);
    }

    #[test]
    fn sums_and_choices_are_expanded() {
        let counters = BTreeMap::from([('i', 2), ('j', 1)]);
        assert_eq!(computed("input_blocks.{3i+j+1}.{m}.{a,b}", &counters), "input_blocks.8.{m}.{a,b}");
        assert_eq!(choices("{i}.{a,b}.{c,d,e}"), [2, 3]);
        assert_eq!(chosen("{i}.{a,b}.{c,d,e}", &[1, 2]), "{i}.b.e");
    }
}
