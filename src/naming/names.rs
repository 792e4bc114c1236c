//! The keys of a base: what is there, what resembles it, and how an adapter's paths map onto it.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::OnceLock;

use foldhash::HashSet;

use super::renamed;

/// Most keys that are compared letter by letter when a suggestion is looked for.
const MAX_COMPARED: usize = 20_000;

/// Longest name that is compared letter by letter.
const MAX_COMPARED_LENGTH: usize = 500;

/// Prefixes with more components than this are not taken for wrappers of a model class.
const MAX_SHIFT_COMPONENTS: usize = 3;

/// The tensor names of a base.
#[derive(Debug)]
pub struct Names {
    keys: HashSet<String>,
    /// Their modules and those that share another's weight, at the first question that needs them.
    modules: OnceLock<BTreeSet<String>>,
    shared: Vec<String>,
    /// The keys in order, at the first question that needs it.
    sorted: OnceLock<BTreeSet<String>>,
}

/// A change of prefix that maps every path of an adapter onto the base: model classes wrap the same layers under
/// different names (`layers.0 …` in a bare model, `model.layers.0 …` with a head).
#[derive(Debug, Clone, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Shift {
    /// What is taken off in front, with its dot.
    pub strip: String,
    /// What is put there instead, with its dot.
    pub add: String,
}

impl Shift {
    /// The path in the base.
    pub fn apply(&self, path: &str) -> String {
        path.strip_prefix(&self.strip).map_or_else(|| path.to_owned(), |rest| format!("{}{rest}", self.add))
    }

    /// Whether it changes nothing.
    pub fn is_identity(&self) -> bool {
        self.strip == self.add
    }
}

impl Names {
    /// The names of a base's tensors.
    pub fn new(keys: impl IntoIterator<Item = String>) -> Self {
        Self { keys: keys.into_iter().collect(), modules: OnceLock::new(), shared: Vec::new(), sorted: OnceLock::new() }
    }

    /// The same names, and the module `module` whose weight is another's.
    #[must_use]
    pub fn with_module(mut self, module: &str) -> Self {
        self.shared.push(module.to_owned());
        self.modules = OnceLock::new();
        self
    }

    /// What stands in front of `name` in the one key that ends in it, with its dot; `None` where there are none or several, or
    /// it is no wrapper of a model class.
    pub fn prefix_of(&self, name: &str) -> Option<&str> {
        let is_prefix = |prefix: &&str| {
            let parts = prefix.strip_suffix('.').map(|prefix| prefix.split('.').collect::<Vec<&str>>());
            parts.is_some_and(|parts| is_wrapper(&parts))
        };
        let mut found = self.keys.iter().filter_map(|key| key.strip_suffix(name)).filter(is_prefix);
        found.next().filter(|_| found.next().is_none())
    }

    /// The keys that are `name` with a prefix of a model class more, or less, in their order.
    pub fn one_prefix_away(&self, name: &str) -> Vec<&str> {
        let is_prefix = |longer: &str, shorter: &str| {
            let prefix = longer.strip_suffix(shorter).and_then(|prefix| prefix.strip_suffix('.'));
            shorter.contains('.') && prefix.is_some_and(|prefix| is_wrapper(&prefix.split('.').collect::<Vec<&str>>()))
        };
        let is = |key: &&str| is_prefix(key, name) || is_prefix(name, key);
        let mut found: Vec<&str> = self.keys.iter().map(String::as_str).filter(is).collect();
        found.sort_unstable();
        found
    }

    /// Whether the base holds a tensor of this name.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// The names that begin with `start`.
    pub fn beginning_with<'a>(&'a self, start: &'a str) -> impl Iterator<Item = &'a str> {
        let sorted = self.sorted.get_or_init(|| self.keys.iter().cloned().collect());
        sorted
            .range::<str, _>((Bound::Included(start), Bound::Unbounded))
            .map(String::as_str)
            .take_while(move |key| key.starts_with(start))
    }

    /// The modules that have parameters of their own.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.all_modules().iter().map(String::as_str)
    }

    fn all_modules(&self) -> &BTreeSet<String> {
        self.modules.get_or_init(|| {
            let own = self.keys.iter().filter_map(|key| key.rsplit_once('.')).map(|(module, _)| module.to_owned());
            own.chain(self.shared.iter().cloned()).collect()
        })
    }

    /// Whether the base holds a parameter of this module or of one below it.
    pub fn has_module(&self, module: &str) -> bool {
        let below = format!("{module}.");
        let modules = self.all_modules();
        modules.contains(module) || modules.range(below.clone()..).next().is_some_and(|m| m.starts_with(&below))
    }

    /// The module `path` as the base calls it: by this name, or by another that the same module has in other versions of its
    /// class.
    pub fn located(&self, path: &str) -> Option<String> {
        if self.has_module(path) {
            return Some(path.to_owned());
        }
        renamed::others(path).find(|other| self.has_module(other))
    }

    /// The modules of `paths` as the base calls them, if it has all of them ([`Names::located`]).
    pub fn all_located(&self, paths: &[&str]) -> Option<Vec<String>> {
        paths.iter().map(|path| self.located(path)).collect()
    }

    /// The names most like `wanted`, best first, at most `most`.
    pub fn nearest(&self, wanted: &str, most: usize) -> Vec<&str> {
        if wanted.len() > MAX_COMPARED_LENGTH {
            return Vec::new();
        }
        let last = wanted.rsplit('.').take(2).last();
        let mut scored: Vec<(usize, &str)> = self
            .keys
            .iter()
            .filter(|key| self.keys.len() <= MAX_COMPARED || last.is_none_or(|last| key.contains(last)))
            .filter(|key| key.len().abs_diff(wanted.len()) <= key.len().max(wanted.len()) / 2)
            .take(MAX_COMPARED)
            .map(|key| (strsim::levenshtein(key, wanted), key.as_str()))
            .filter(|(distance, key)| *distance <= key.len().max(wanted.len()) / 2)
            .collect();
        scored.sort_unstable();
        scored.into_iter().take(most).map(|(_, key)| key).collect()
    }

    /// The changes of prefix under which every one of `modules` is a module of the base; the identity alone where some
    /// module is found as it is.
    ///
    /// More than one answer means that the paths are ambiguous.
    pub fn shifts(&self, modules: &[&str]) -> Vec<Shift> {
        if modules.is_empty() || modules.iter().any(|module| self.has_module(module)) {
            return vec![Shift::default()];
        }
        let first: Vec<&str> = modules[0].split('.').collect();
        let candidates: BTreeSet<Shift> =
            self.all_modules().iter().filter_map(|base| shift_between(&first, base)).collect();
        let fits = |shift: &Shift| modules.iter().all(|module| self.has_module(&shift.apply(module)));
        candidates.into_iter().filter(fits).collect()
    }
}

/// The change of prefix that turns the path `module` into `base`, if they end alike.
fn shift_between(module: &[&str], base: &str) -> Option<Shift> {
    let base: Vec<&str> = base.split('.').collect();
    let common = module.iter().rev().zip(base.iter().rev()).take_while(|(left, right)| left == right).count();
    let (strip, add) = (&module[..module.len() - common], &base[..base.len() - common]);
    let dotted = |prefix: &[&str]| prefix.iter().map(|part| format!("{part}.")).collect::<String>();
    (common > 0 && is_wrapper(strip) && is_wrapper(add)).then(|| Shift { strip: dotted(strip), add: dotted(add) })
}

/// Whether such components may stand in front of a path.
fn is_wrapper(prefix: &[&str]) -> bool {
    prefix.len() <= MAX_SHIFT_COMPONENTS && prefix.iter().all(|part| !part.chars().all(|c| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(keys: &[&str]) -> Names {
        Names::new(keys.iter().map(|key| (*key).to_owned()))
    }

    #[test]
    fn paths_that_are_there_need_no_shift() {
        let base = names(&["model.layers.0.q.weight", "model.layers.1.q.weight"]);
        assert_eq!(base.shifts(&["model.layers.1.q"]), [Shift::default()]);
    }

    #[test]
    fn a_missing_wrapper_is_found() {
        let base = names(&["model.layers.0.q.weight", "model.layers.1.q.weight"]);
        let shifts = base.shifts(&["layers.0.q", "layers.1.q"]);
        assert_eq!(shifts, [Shift { strip: String::new(), add: "model.".into() }]);
        assert_eq!(shifts[0].apply("layers.1.q"), "model.layers.1.q");
    }

    #[test]
    fn a_renamed_wrapper_is_found() {
        let base = names(&["language_model.model.layers.0.q.weight"]);
        let shifts = base.shifts(&["model.language_model.layers.0.q"]);
        assert_eq!(shifts[0].apply("model.language_model.layers.0.q"), "language_model.model.layers.0.q");
    }

    #[test]
    fn a_module_is_found_by_a_name_it_had_before() {
        let base = names(&["language_model.model.layers.0.q.weight", "vision_tower.vision_model.layers.0.q.weight"]);
        let located = |path: &str| base.located(path);
        assert_eq!(located("model.language_model.layers.0.q").unwrap(), "language_model.model.layers.0.q");
        assert_eq!(located("model.vision_tower.layers.0.q").unwrap(), "vision_tower.vision_model.layers.0.q");
        assert_eq!(located("language_model.model.layers.0.q").unwrap(), "language_model.model.layers.0.q");
        assert_eq!(located("model.language_model.layers.1.q"), None);
    }

    #[test]
    fn two_ways_are_both_reported() {
        let base = names(&["vision.layers.0.q.weight", "text.layers.0.q.weight"]);
        assert_eq!(base.shifts(&["layers.0.q"]).len(), 2);
    }

    #[test]
    fn a_shift_must_serve_every_module() {
        let base = names(&["model.layers.0.q.weight"]);
        assert!(base.shifts(&["layers.0.q", "layers.1.q"]).is_empty());
    }

    #[test]
    fn another_layer_number_is_not_a_wrapper() {
        let base = names(&["model.layers.5.q.weight"]);
        assert!(base.shifts(&["model.layers.7.q"]).is_empty());
    }

    #[test]
    fn the_nearest_names_come_first() {
        let base = names(&["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "x"]);
        assert_eq!(base.nearest("model.layers.0.attn.q_proj.weight", 1), ["model.layers.0.self_attn.q_proj.weight"]);
    }
}
