//! Modules whose names changed between versions of transformers, or differ between memory and disk; table in `renamed.toml`.
//!
//! An adapter carries the names that the model had in memory when it was trained, a checkpoint those that it was saved under.

use std::sync::LazyLock;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    beginnings: Vec<Vec<String>>,
    layers: Vec<Layers>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layers {
    rows: Vec<[String; 2]>,
}

static TABLE: LazyLock<Table> =
    LazyLock::new(|| toml::from_str(include_str!("renamed.toml")).expect("the table is tested"));

/// Parameters that have had other names: TensorFlow's for those of a normalisation (BERT), and PyTorch's for a weight taken apart
/// into length and direction (`weight_norm`).
const PARAMETERS: [[&str; 2]; 4] = [
    ["weight", "gamma"],
    ["bias", "beta"],
    ["parametrizations.weight.original0", "weight_g"],
    ["parametrizations.weight.original1", "weight_v"],
];

/// Other names that the parameter `name`, a path below its module, may have.
pub fn parameters(name: &str) -> impl Iterator<Item = String> {
    let both = PARAMETERS.iter().flat_map(|[left, right]| [(*left, *right), (*right, *left)]);
    both.filter_map(move |(from, to)| {
        let before = name.strip_suffix(from).filter(|before| before.is_empty() || before.ends_with('.'))?;
        Some(format!("{before}{to}"))
    })
}

/// Other paths that the module `path` may have.
pub fn others(path: &str) -> impl Iterator<Item = String> {
    let path = format!("{path}.");
    let mut found = Vec::new();
    for set in &TABLE.beginnings {
        for from in set {
            let Some(rest) = path.strip_prefix(from.as_str()) else { continue };
            found.extend(set.iter().filter(|to| *to != from).map(|to| format!("{to}{rest}")));
        }
    }
    for family in &TABLE.layers {
        let rename = |from: usize, to: usize| {
            family.rows.iter().fold(path.clone(), |path, row| path.replacen(&row[from], &row[to], 1))
        };
        found.extend([rename(0, 1), rename(1, 0)].into_iter().filter(|other| *other != path));
    }
    found.into_iter().map(|mut other| {
        other.pop();
        other
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_beginning_stands_for_all_others_of_its_set() {
        for set in &TABLE.beginnings {
            for (from, to) in set.iter().flat_map(|from| set.iter().map(move |to| (from, to))) {
                assert!(
                    from.ends_with('.') && (from == to || others(&format!("{from}x")).any(|o| o == format!("{to}x")))
                );
            }
        }
    }

    #[test]
    fn parameters_are_renamed_both_ways() {
        for [left, right] in PARAMETERS {
            for (from, to) in [(left, right), (right, left)] {
                assert!(parameters(from).any(|other| other == to), "{from}");
                assert!(parameters(&format!("dense.{from}")).any(|other| other == format!("dense.{to}")), "{from}");
            }
        }
        assert_eq!(parameters("my_bias").count(), 0);
    }

    #[test]
    fn layers_are_renamed_both_ways() {
        for (now, before) in [
            ("vit.layers.3.attention.q_proj", "vit.encoder.layer.3.attention.attention.query"),
            ("vit.layers.3.attention.o_proj", "vit.encoder.layer.3.attention.output.dense"),
            ("vit.layers.3.mlp.fc2", "vit.encoder.layer.3.output.dense"),
            ("dinov2.encoder.layer.3.attention.v_proj", "dinov2.encoder.layer.3.attention.attention.value"),
            ("swin.encoder.layers.0.blocks.1.mlp.fc1", "swin.encoder.layers.0.blocks.1.intermediate.dense"),
        ] {
            assert!(others(now).any(|other| other == before), "{now}");
            assert!(others(before).any(|other| other == now), "{before}");
        }
    }
}
