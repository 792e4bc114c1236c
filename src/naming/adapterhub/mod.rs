//! Where AdapterHub's library can put LoRA: its config names locations (the queries of all layers, their intermediate
//! projections …), not modules. The table is `models.toml`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

/// Layers that are counted: more than any model has.
pub const MAX_LAYERS: u64 = 1 << 16;

/// What a config of AdapterHub can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    /// `q` of `attn_matrices`.
    Query,
    /// `k` of `attn_matrices`.
    Key,
    /// `v` of `attn_matrices`.
    Value,
    /// `intermediate_lora`.
    Intermediate,
    /// `output_lora`.
    Output,
}

/// A module of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place<'a> {
    /// What stands in front of its layers.
    pub prefix: &'a str,
    /// The stack of layers it belongs to.
    pub stack: usize,
    /// Its layer within the stack.
    pub layer: u64,
    /// Where in the layer it is.
    pub location: Location,
}

/// Models with the same names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    types: BTreeMap<String, String>,
    #[serde(default)]
    biases: bool,
    stack: Vec<Stack>,
}

/// Layers in a row.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stack {
    layers: String,
    count: Vec<String>,
    q: Vec<String>,
    k: Vec<String>,
    v: Vec<String>,
    intermediate: Vec<String>,
    output: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    layout: Vec<Layout>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    toml::from_str(include_str!("models.toml")).expect("the table is part of the program and a test reads it")
});

/// All layouts.
pub fn layouts() -> &'static [Layout] {
    &TABLE.layout
}

impl Layout {
    /// The model types that have it.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.types.keys().map(String::as_str)
    }

    /// The one type whose models with a head have `prefix` in front of their layers, if it is one.
    pub fn only_type(&self, prefix: &str) -> Option<&str> {
        let mut found = self.types.iter().filter(|(_, own)| *own == prefix).map(|(name, _)| name.as_str());
        found.next().filter(|_| found.next().is_none())
    }

    /// Whether the layers that can be adapted may have biases.
    pub fn has_biases(&self) -> bool {
        self.biases
    }

    /// Where `path` is; `None` if the library puts nothing there.
    pub fn place<'a>(&self, path: &'a str) -> Option<Place<'a>> {
        let prefixes = std::iter::once("").chain(self.types.values().map(String::as_str));
        prefixes.filter_map(|prefix| path.strip_prefix(prefix).map(|rest| (&path[..prefix.len()], rest))).find_map(
            |(prefix, rest)| {
                self.stack.iter().enumerate().find_map(|(stack, layers)| {
                    let (layer, module) = rest.strip_prefix(layers.layers.as_str())?.split_once('.')?;
                    let location = layers.slots().find(|(_, modules)| modules.iter().any(|own| own == module))?.0;
                    let layer = layer.parse().ok().filter(|layer| *layer < MAX_LAYERS)?;
                    Some(Place { prefix, stack, layer, location })
                })
            },
        )
    }

    /// The paths of all modules at a location of a layer.
    pub fn modules(&self, place: &Place<'_>) -> impl Iterator<Item = String> {
        let stack = &self.stack[place.stack];
        let start = format!("{}{}{}.", place.prefix, stack.layers, place.layer);
        let modules = stack.slots().find(|(location, _)| *location == place.location).map(|(_, modules)| modules);
        modules.into_iter().flatten().map(move |module| format!("{start}{module}"))
    }

    /// For every stack, how a config calls the number of its layers.
    pub fn counts(&self) -> impl Iterator<Item = &[String]> {
        self.stack.iter().map(|stack| stack.count.as_slice())
    }
}

impl Stack {
    fn slots(&self) -> impl Iterator<Item = (Location, &Vec<String>)> {
        [
            (Location::Query, &self.q),
            (Location::Key, &self.k),
            (Location::Value, &self.v),
            (Location::Intermediate, &self.intermediate),
            (Location::Output, &self.output),
        ]
        .into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_of_the_table_is_found_where_it_is() {
        let mut seen = 0;
        for layout in layouts() {
            for (stack, prefix) in (0..layout.stack.len()).flat_map(|at| layout.types.values().map(move |p| (at, p))) {
                for (location, modules) in layout.stack[stack].slots() {
                    let place = Place { prefix, stack, layer: 3, location };
                    let paths: Vec<String> = layout.modules(&place).collect();
                    assert_eq!(paths.len(), modules.len());
                    for path in paths {
                        assert_eq!(layout.place(&path), Some(place.clone()), "{path}");
                        seen += 1;
                    }
                }
            }
        }
        assert!(seen > 100, "{seen}");
    }

    #[test]
    fn what_the_library_leaves_alone_is_nowhere() {
        for path in [
            "model.layers.0.self_attn.o_proj",
            "model.layers.0.mlp.gate_proj",
            "lm_head",
            "bert.encoder.layer.0.attention.output.dense",
            "model.layers.x.self_attn.q_proj",
        ] {
            assert!(layouts().iter().all(|layout| layout.place(path).is_none()), "{path}");
        }
    }

    #[test]
    fn a_prefix_tells_the_type_where_it_belongs_to_one() {
        let of = |name: &str| layouts().iter().find(|layout| layout.types().any(|own| own == name)).unwrap();
        assert_eq!(of("electra").only_type("electra."), Some("electra"));
        assert_eq!(of("bert").only_type("roberta."), None);
        assert!(of("bert").has_biases() && !of("llama").has_biases());
    }
}
