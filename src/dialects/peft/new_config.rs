//! `adapter_config.json` of a new adapter.
//!
//! PEFT 0.21 finds targets by the end of their path at a dot, and ranks and alphas by the first pattern that matches
//! `(.*\.)?(KEY)$` (`utils/other.py`). So keys are as short as they can be without meaning a module that is not meant.

use std::collections::{BTreeMap, BTreeSet};

use foldhash::{HashMap, HashSet};
use serde_json::{Value, json};

use super::new_adapter::NewAdapter;
use crate::dialects::experts::order;
use crate::naming::experts::peft::WRITTEN_VERSION;
use crate::naming::{ends, layer_of};
use crate::pairs::{NewPair, PairKind};

/// Settings that say where an adapter belongs, not what it does.
pub const INHERITED: [&str; 6] =
    ["auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "lora_dropout", "revision", "task_type"];

/// PEFT's name for having no targets (`utils/constants.py`, `DUMMY_TARGET_MODULES`); an empty list it refuses.
const NO_TARGETS: &str = "dummy-target-modules";

/// Token rows lie in a wrapper of their own, which is no module that is saved whole.
const TOKEN_ADAPTER: &str = "token_adapter";

/// Numbers of a module: rank and the alpha that goes with it.
type Numbers = (usize, f64);

/// The config, sorted by key as PEFT writes it.
pub fn render(adapter: &NewAdapter) -> Value {
    let pairs: BTreeMap<String, Numbers> =
        adapter.pairs.iter().map(|pair| (pattern_path(pair), (pair.rank, pair.alpha))).collect();
    let rank = most_frequent(pairs.values().map(|(rank, _)| *rank)).unwrap_or(1);
    let alpha = most_frequent(pairs.values().map(|(_, alpha)| Ordered(*alpha))).map_or(1.0, |alpha| alpha.0);
    let saved = saved_whole(adapter);
    let defaults = json!({
        "bias": bias(adapter),
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": number(alpha),
        "lora_bias": adapter.pairs.iter().any(|pair| pair.up_bias.is_some()),
        "lora_dropout": 0.0,
        "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": patterns(&pairs, &rank, |(rank, _)| *rank, |rank| json!(rank)),
        "alpha_pattern": patterns(&pairs, &alpha, |(_, alpha)| *alpha, |alpha| number(*alpha)),
        "target_modules": targets(adapter, &saved),
        "task_type": null,
        "use_dora": false,
        "use_rslora": adapter.rslora,
    });
    let Value::Object(mut config) = defaults else { unreachable!("an object stands above") };
    let parameters = target_parameters(adapter);
    if !parameters.is_empty() {
        config.insert("target_parameters".into(), json!(parameters));
    }
    config.extend(adapter.inherited.clone());
    if has_stacks(adapter) {
        order::declare(&mut config, (!adapter.open).then_some(WRITTEN_VERSION));
    }
    let mut entries: Vec<(String, Value)> = config.into_iter().collect();
    entries.sort_by(|(left, _), (right, _)| left.cmp(right));
    Value::Object(entries.into_iter().collect())
}

/// Whether experts are adapted all at once.
pub fn has_stacks(adapter: &NewAdapter) -> bool {
    adapter.pairs.iter().any(|pair| pair.kind.experts() > 1)
}

/// The path that patterns are held against: of a parameter its own, of a layer within an adapted layer that of the outer one,
/// since PEFT builds both from one setting.
fn pattern_path(pair: &NewPair) -> String {
    match &pair.kind {
        PairKind::Parameter { name, .. } => format!("{}.{name}", pair.path),
        _ => pair.path.clone(),
    }
}

/// Whole numbers as PEFT writes them, without a fraction.
fn number(value: f64) -> Value {
    const EXACT: f64 = (1_u64 << 53) as f64;
    if value.fract() == 0.0 && value.abs() < EXACT { json!(value as i64) } else { json!(value) }
}

/// Numbers that are compared as numbers and never NaN.
#[derive(Clone, Copy, PartialEq)]
struct Ordered(f64);

impl Eq for Ordered {}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The value that occurs most often, the smallest of several.
fn most_frequent<T: Ord>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_insert(0_usize) += 1);
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(value, _)| value)
}

/// Patterns for the modules whose number is not the default.
fn patterns<T: PartialEq + Copy>(
    pairs: &BTreeMap<String, Numbers>,
    default: &T,
    of: impl Fn(&Numbers) -> T,
    render: impl Fn(&T) -> Value,
) -> Value {
    let mut groups: BTreeMap<&str, Vec<(&str, T)>> = BTreeMap::new();
    for (path, numbers) in pairs {
        groups.entry(last(path)).or_default().push((path, of(numbers)));
    }
    let mut keys: Vec<(String, T)> = Vec::new();
    for (name, members) in &groups {
        let first = members[0].1;
        if members.iter().all(|(_, value)| *value == first) && is_word(name) {
            keys.extend((first != *default).then(|| (escaped(name), first)));
        } else {
            let paths: HashSet<&str> = members.iter().map(|(path, _)| *path).collect();
            let others = members.iter().filter(|(path, value)| {
                // A module whose path is the end of another's would be taken for it, unless both are named.
                *value != *default || ends(path).skip(1).any(|end| paths.contains(end))
            });
            keys.extend(others.map(|(path, value)| (escaped(path), *value)));
        }
    }
    // The first match wins: a path before those it ends with.
    keys.sort_by(|(left, _), (right, _)| right.len().cmp(&left.len()).then(left.cmp(right)));
    Value::Object(keys.into_iter().map(|(key, value)| (key, render(&value))).collect())
}

/// Modules saved whole, by full path.
fn saved_whole(adapter: &NewAdapter) -> Vec<String> {
    let whole = adapter.whole.iter().filter(|whole| !whole.frozen_bias && !whole.parameter.starts_with(TOKEN_ADAPTER));
    whole.map(|whole| whole.module.clone()).collect::<BTreeSet<String>>().into_iter().collect()
}

fn bias(adapter: &NewAdapter) -> &'static str {
    let adapted: BTreeSet<&str> = adapter.pairs.iter().map(|pair| pair.path.as_str()).collect();
    let mut biases = adapter.whole.iter().filter(|whole| whole.frozen_bias).peekable();
    if biases.peek().is_none() {
        "none"
    } else if biases.all(|whole| adapted.contains(whole.module.as_str())) {
        "lora_only"
    } else {
        "all"
    }
}

/// Adapted parameters by the end of their path where all modules of that name have them, else by the whole of it.
fn target_parameters(adapter: &NewAdapter) -> Vec<String> {
    let mut owners: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let all = adapter.pairs.iter().filter_map(|pair| match &pair.kind {
        PairKind::Parameter { name, .. } => Some((pair.path.as_str(), name.as_str())),
        _ => None,
    });
    all.for_each(|(path, name)| owners.entry(name).or_default().push(path));
    let modules: BTreeSet<&str> = owners.values().flatten().copied().collect();
    let mut by_name: HashMap<&str, Vec<&str>> = HashMap::default();
    modules.iter().for_each(|path| by_name.entry(last(path)).or_default().push(path));
    let depths = Depths::of(modules.iter().copied());
    let mut names = BTreeSet::new();
    for (name, paths) in owners {
        let own: HashSet<&str> = paths.iter().copied().collect();
        let mut short: HashMap<&str, bool> = HashMap::default();
        for path in &paths {
            let short = *short.entry(last(path)).or_insert_with_key(|name| {
                let alike = by_name.get(name).map_or(&[][..], Vec::as_slice);
                alike.iter().all(|other| own.contains(other)) && depths.fill(alike)
            });
            names.insert(format!("{}.{name}", if short { last(path) } else { path }));
        }
    }
    names.into_iter().collect()
}

/// The shortest names that mean the pairs' modules and no others.
fn targets(adapter: &NewAdapter, saved: &[String]) -> Value {
    let all: BTreeSet<&str> = adapter
        .pairs
        .iter()
        .filter(|pair| !matches!(pair.kind, PairKind::Parameter { .. }))
        .map(|pair| pair.path.as_str())
        .collect();
    let outer = |path: &str| path.match_indices('.').any(|(at, _)| all.contains(&path[..at]));
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for path in all.iter().filter(|path| !outer(path)) {
        groups.entry(last(path)).or_default().push(path);
    }
    if groups.is_empty() && target_parameters(adapter).is_empty() {
        return NO_TARGETS.into();
    }
    let mut names: Vec<&str> = Vec::new();
    let elsewhere = adapter.whole.iter().filter(|whole| !all.contains(whole.module.as_str()));
    let others: HashSet<&str> =
        elsewhere.map(|whole| whole.module.as_str()).chain(saved.iter().map(String::as_str)).map(last).collect();
    let depths = Depths::of(all.iter().copied());
    for (name, members) in groups {
        if is_word(name) && !others.contains(name) && depths.fill(&members) {
            names.push(name);
        } else {
            names.extend(members);
        }
    }
    names.sort_unstable();
    json!(names)
}

/// How many layers of a kind are known: what stands before the first number of a path → the largest number.
struct Depths<'a>(HashMap<&'a str, u64>);

impl<'a> Depths<'a> {
    fn of(paths: impl Iterator<Item = &'a str>) -> Self {
        let mut depths: HashMap<&str, u64> = HashMap::default();
        for (stem, number, _) in paths.filter_map(layer_of) {
            let known = depths.entry(stem).or_default();
            *known = number.max(*known);
        }
        Self(depths)
    }

    /// Whether `members` fill every layer that the adapter knows: then their common name means no module of the same model that
    /// was left out.
    fn fill(&self, members: &[&str]) -> bool {
        let mut numbers: HashMap<(&str, &str), HashSet<u64>> = HashMap::default();
        for (stem, number, rest) in members.iter().copied().filter_map(layer_of) {
            numbers.entry((stem, rest)).or_default().insert(number);
        }
        numbers
            .iter()
            .all(|((stem, _), numbers)| self.0.get(stem).is_some_and(|depth| numbers.len() as u64 == depth + 1))
    }
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Whether a name tells more than a place in a list, and is no pattern.
fn is_word(name: &str) -> bool {
    name.contains(|letter: char| !letter.is_ascii_digit())
        && name.chars().all(|letter| letter.is_alphanumeric() || letter == '_' || letter == '-')
}

/// A path as a pattern. Dots stay as they are, as PEFT writes them.
fn escaped(path: &str) -> String {
    regex::escape(path).replace("\\.", ".").replace("\\-", "-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::{Bytes, NewWhole};
    use crate::tensor::Shape;

    fn pair(path: &str, rank: usize, alpha: f64) -> NewPair {
        NewPair::numbers(path, rank as u64, alpha)
    }

    fn whole(module: &str, parameter: &str, frozen_bias: bool) -> NewWhole {
        let bytes = Bytes::none();
        NewWhole { module: module.into(), parameter: parameter.into(), shape: Shape::default(), bytes, frozen_bias }
    }

    fn config(pairs: &[(&str, usize, f64)], whole: Vec<NewWhole>) -> Value {
        let pairs = pairs.iter().map(|(path, rank, alpha)| pair(path, *rank, *alpha)).collect();
        render(&NewAdapter { pairs, whole, ..NewAdapter::default() })
    }

    #[test]
    fn the_most_frequent_rank_is_the_default() {
        let config = config(
            &[("l.0.q", 4, 4.0), ("l.1.q", 4, 4.0), ("l.0.v", 8, 8.5), ("l.1.v", 8, 8.5), ("h", 4, 4.0)],
            vec![],
        );
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(4), &json!(4)));
        assert_eq!((&config["rank_pattern"], &config["alpha_pattern"]), (&json!({"v": 8}), &json!({"v": 8.5})));
        assert_eq!(config["target_modules"], json!(["h", "q", "v"]));
    }

    #[test]
    fn modules_of_one_name_with_different_ranks_are_told_apart_by_their_paths() {
        let config = config(&[("l.0.q", 4, 4.0), ("l.1.q", 8, 8.0), ("l.2.q", 4, 4.0)], vec![]);
        assert_eq!(config["rank_pattern"], json!({"l.1.q": 8}));
    }

    #[test]
    fn a_path_that_ends_like_another_is_not_taken_for_it() {
        let config = config(&[("q", 8, 8.0), ("a.q", 4, 4.0), ("b", 4, 4.0)], vec![]);
        assert_eq!(config["rank_pattern"].to_string(), r#"{"a.q":4,"q":8}"#);
    }

    #[test]
    fn a_name_is_short_only_where_it_means_nothing_else() {
        let config = config(
            &[("l.0.q", 1, 1.0), ("l.1.q", 1, 1.0), ("l.1.k", 1, 1.0), ("seq.0", 1, 1.0), ("a.head", 1, 1.0)],
            vec![whole("head", "weight", false)],
        );
        assert_eq!(config["target_modules"], json!(["a.head", "l.1.k", "q", "seq.0"]));
        assert_eq!(config["modules_to_save"], json!(["head"]));
    }

    #[test]
    fn parameters_are_named_by_their_ends_where_every_module_has_them() {
        let stack = |path: &str, name: &str| {
            let kind = PairKind::Parameter { name: name.into(), nesting: 0, experts: 2 };
            NewPair { kind, ..pair(path, 1, 1.0) }
        };
        let named =
            |pairs: Vec<NewPair>| render(&NewAdapter { pairs, ..NewAdapter::default() })["target_parameters"].clone();
        assert_eq!(named(vec![stack("l.0.experts", "up"), stack("l.1.experts", "up")]), json!(["experts.up"]));
        assert_eq!(
            named(vec![stack("l.0.experts", "up"), stack("l.0.experts", "down"), stack("l.1.experts", "up")]),
            json!(["experts.up", "l.0.experts.down"])
        );
    }

    #[test]
    fn biases_are_all_or_those_of_adapted_layers() {
        let bias = |module: &str| whole(module, "bias", true);
        assert_eq!(config(&[("q", 1, 1.0)], vec![bias("q")])["bias"], "lora_only");
        assert_eq!(config(&[("q", 1, 1.0)], vec![bias("q"), bias("norm")])["bias"], "all");
        assert_eq!(config(&[("q", 1, 1.0)], vec![])["bias"], "none");
    }

    #[test]
    fn an_adapter_of_whole_modules_alone_has_no_targets() {
        assert_eq!(config(&[], vec![whole("norm", "weight", false)])["target_modules"], NO_TARGETS);
    }

    #[test]
    fn keys_are_sorted_and_inherited_ones_win() {
        let inherited = serde_json::from_str(r#"{"task_type": "CAUSAL_LM", "base_model_name_or_path": "x"}"#);
        let adapter = NewAdapter { inherited: inherited.expect("JSON"), ..NewAdapter::default() };
        let Value::Object(config) = render(&adapter) else { panic!("an object") };
        assert_eq!(config["task_type"], "CAUSAL_LM");
        assert!(config.keys().is_sorted());
    }
}
