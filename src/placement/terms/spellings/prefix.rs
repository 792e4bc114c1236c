//! Paths that differ by what stands in front of a list of layers: wrappers of a model class, or parts of a model.

use std::collections::{BTreeMap, BTreeSet};

use crate::naming::components::{ADAPTED, split};

/// Names of attributes under which model classes and trainers keep the same layers.
const WRAPPERS: [&str; 11] = [
    "model",
    "base_model",
    "language_model",
    "text_model",
    "llm",
    "lm",
    "module",
    "transformer",
    "backbone",
    "_orig_mod",
    "_fsdp_wrapped_module",
];

/// Words in the names of parts of a model, of which one model has several.
const PARTS: [&str; 16] = [
    "vision",
    "visual",
    "image",
    "audio",
    "speech",
    "video",
    "encoder",
    "decoder",
    "talker",
    "thinker",
    "draft",
    "mtp",
    "resampler",
    "projector",
    "tower",
    "expert",
];

/// What two paths with the same end are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The same module.
    Same,
    /// Modules of different parts.
    Apart,
    /// Either.
    Unclear,
}

/// The paths in front of lists of layers, by the name of the list.
#[derive(Debug, Default)]
pub struct Prefixes<'a>(BTreeMap<&'a str, BTreeSet<&'a str>>);

impl<'a> Prefixes<'a> {
    /// Those of `paths`.
    pub fn of(paths: impl Iterator<Item = &'a str>) -> Self {
        let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for path in paths {
            let (front, list) = apart(path);
            found.entry(list).or_default().insert(front);
        }
        Self(found)
    }

    /// The paths that `path` has in the lists of these that `others`, whose path it is, do not have, and what each is to it.
    /// None where the list it lies in is here itself.
    pub fn beside(&self, path: &str, others: &Prefixes<'_>) -> Vec<(String, Relation)> {
        let (front, list) = apart(path);
        let Some(here) = self.0.get(list) else { return Vec::new() };
        if here.contains(front) {
            return Vec::new();
        }
        let own = others.0.get(list);
        let candidates = here.iter().filter(|prefix| own.is_none_or(|own| !own.contains(**prefix)));
        let rest = &path[front.len()..];
        candidates.map(|prefix| (format!("{prefix}{rest}"), relation(front, prefix))).collect()
    }
}

/// What stands in front of the list that `path` lies in, with its dot.
pub fn front(path: &str) -> &str {
    apart(path).0
}

/// What stands in front of the first list of layers (with its dot), and the name of the list; of a path without a number
/// what stands in front of its last name.
fn apart(path: &str) -> (&str, &str) {
    let mut before = 0;
    let mut start = 0;
    for segment in path.split('.') {
        if start > 0 && !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit()) {
            return (&path[..before], &path[before..start - 1]);
        }
        before = start;
        start += segment.len() + 1;
    }
    (&path[..before], &path[before..])
}

/// What modules are to each other whose paths differ by these prefixes.
fn relation(left: &str, right: &str) -> Relation {
    match (split(left), split(right)) {
        (Some((one, _)), Some((other, _))) if one != other => return Relation::Apart,
        _ => {}
    }
    let words = |prefix: &'_ str| prefix.split('.').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let (mut left, mut right): (Vec<String>, Vec<String>) = (words(left), words(right));
    while let (Some(one), Some(other)) = (left.last(), right.last())
        && one == other
    {
        left.pop();
        right.pop();
    }
    let wraps = |words: &[String]| words.iter().all(|word| WRAPPERS.contains(&word.as_str()));
    let (rest, other) = match (wraps(&left), wraps(&right)) {
        (true, true) => return Relation::Same,
        (false, false) => return Relation::Apart,
        (true, false) => (right, left),
        (false, true) => (left, right),
    };
    // A component of a pipeline on one side, and none on the other.
    let component = rest.first().is_some_and(|word| ADAPTED.contains(&word.as_str())) && rest.len() == 1;
    let part = |word: &String| PARTS.iter().any(|part| word.contains(part));
    if component && other.is_empty() {
        Relation::Unclear
    } else if rest.iter().any(part) {
        Relation::Apart
    } else {
        Relation::Unclear
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_ends_before_a_list_of_layers() {
        for (path, front, list) in [
            ("model.layers.0.self_attn.q_proj", "model.", "layers"),
            ("layers.0.q", "", "layers"),
            ("model.language_model.layers.3.mlp.experts.7.w1", "model.language_model.", "layers"),
            ("lm_head", "", "lm_head"),
            ("language_model.lm_head", "language_model.", "lm_head"),
            ("0.weight", "0.", "weight"),
        ] {
            assert_eq!(apart(path), (front, list), "{path}");
        }
    }

    #[test]
    fn wrappers_are_told_from_parts() {
        for (left, right, wanted) in [
            ("model.", "", Relation::Same),
            ("model.", "model.language_model.", Relation::Same),
            ("language_model.model.", "model.language_model.", Relation::Same),
            ("_orig_mod.model.", "model.", Relation::Same),
            ("model.vision_tower.", "model.", Relation::Apart),
            ("model.encoder.", "model.decoder.", Relation::Apart),
            ("model.decoder.", "decoder.", Relation::Same),
            ("text_encoder.text_model.encoder.", "text_encoder_2.text_model.encoder.", Relation::Apart),
            ("text_encoder.text_model.encoder.", "text_model.encoder.", Relation::Unclear),
            ("transformer.", "transformer_2.", Relation::Apart),
            ("foo.model.", "model.", Relation::Unclear),
        ] {
            assert_eq!(relation(left, right), wanted, "{left} {right}");
            assert_eq!(relation(right, left), wanted, "{right} {left}");
        }
    }

    #[test]
    fn only_lists_that_the_other_side_lacks_are_beside() {
        let theirs = Prefixes::of(["model.layers.0.q", "visual.layers.0.q"].into_iter());
        let ours = Prefixes::of(["language_model.layers.0.v", "visual.layers.1.q"].into_iter());
        let found = theirs.beside("language_model.layers.0.v", &ours);
        assert_eq!(found, [("model.layers.0.v".to_owned(), Relation::Same)]);
        assert!(theirs.beside("visual.layers.1.q", &ours).is_empty());
    }
}
