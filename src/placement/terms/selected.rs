//! Which modules a selection takes where inputs have several names for one: each of them counts.

use crate::placement::Selection;

/// Whether the module of these names is among those that are changed.
pub fn takes<'a>(selection: &Selection, names: impl Iterator<Item = &'a str> + Clone) -> bool {
    let any =
        |patterns: &[regex::Regex]| patterns.iter().any(|pattern| names.clone().any(|name| pattern.is_match(name)));
    (selection.include.is_empty() || any(&selection.include)) && !any(&selection.exclude)
}

/// The further weight of the module of these names.
pub fn strength<'a>(selection: &Selection, names: impl Iterator<Item = &'a str> + Clone) -> f64 {
    let matching = selection.weights.iter().filter(|(pattern, _)| names.clone().any(|name| pattern.is_match(name)));
    let of_block = selection.blocks.as_ref().and_then(|blocks| names.clone().find_map(|name| blocks.of(name).ok()));
    matching.map(|(_, weight)| weight).product::<f64>() * of_block.unwrap_or(1.0)
}
