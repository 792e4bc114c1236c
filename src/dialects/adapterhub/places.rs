//! The locations and layers that a config of AdapterHub has to name for the modules of an adapter.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::write::is_own;
use crate::dialects::files::Facts;
use crate::dialects::pieces::Pieces;
use crate::error::{Error, Result};
use crate::naming::adapterhub::{Layout, Location, MAX_LAYERS, Place, layouts};

/// What of a model is adapted.
#[derive(Debug, PartialEq)]
pub struct Planned {
    /// Which of `q`, `k` and `v`.
    pub attention: Vec<&'static str>,
    /// Intermediate projections.
    pub intermediate: bool,
    /// Output projections.
    pub output: bool,
    /// Layers without any change.
    pub left_out: Vec<u64>,
    /// Modules that the library adapts along with those that are changed, and an index of one that has their shape.
    pub filled: Vec<(String, usize)>,
    /// The layers may have biases.
    pub biases: bool,
    /// The type of the model, where it is known.
    pub model_type: Option<String>,
    /// There may be layers behind the last one.
    pub open_end: bool,
    /// An index of a module of attention, whose inputs are as wide as the model.
    wide: Option<usize>,
}

/// What the config has to say of the modules `paths`.
///
/// # Errors
/// When the library has no location for a module, or the type of the model decides and is not known.
pub fn plan(paths: &[&str], facts: &Facts<'_>) -> Result<Planned> {
    let wishes = &facts.wishes;
    let own = facts.adapter.config.raw.get("model_type").filter(|_| is_own(facts));
    let of_config = wishes.config.and_then(|config| config.model_type.as_deref()).or(own.and_then(Value::as_str));
    let named = wishes.arch.or(of_config);
    let known: Vec<&str> = layouts().iter().flat_map(Layout::types).collect();
    if let Some(arch) = wishes.arch.filter(|arch| !known.contains(arch)) {
        let names: BTreeSet<&str> = known.into_iter().collect();
        let names: Vec<&str> = names.into_iter().collect();
        return Err(Error::invalid("--arch", format!("`{arch}` is not one of {}", names.join(", "))));
    }
    let fits = |layout: &&Layout| named.is_none_or(|name| layout.types().any(|own| own == name));
    let layouts: Vec<&Layout> = layouts().iter().filter(fits).collect();
    if layouts.is_empty() {
        let what =
            format!("belongs to a `{}`, of which it is not known where AdapterHub adapts it", named.unwrap_or(""));
        return Err(facts.refuse(what));
    }
    let mut found: Vec<Planned> = Vec::new();
    for layout in &layouts {
        let places: Option<Vec<Place<'_>>> = paths.iter().map(|path| layout.place(path)).collect();
        let Some(places) = places else { continue };
        let planned = of_layout(layout, &places, paths, named, wishes.config.map(|config| &config.raw));
        let same = |other: &&mut Planned| {
            (other.attention.as_slice(), other.intermediate, other.output, &other.left_out, &other.filled)
                == (
                    planned.attention.as_slice(),
                    planned.intermediate,
                    planned.output,
                    &planned.left_out,
                    &planned.filled,
                )
        };
        match found.iter_mut().find(same) {
            // Several families say the same, and what holds of one of them only is not known.
            Some(other) => {
                other.biases |= planned.biases;
                other.model_type = other.model_type.take().filter(|own| Some(own) == planned.model_type.as_ref());
            }
            None => found.push(planned),
        }
    }
    match found.len() {
        0 => Err(unplaced(paths, &layouts, facts)),
        1 => Ok(found.remove(0)),
        _ => {
            let what = "can belong to models of several families, whose locations AdapterHub calls differently";
            Err(facts
                .refuse(what)
                .hint("give the model, of which `config.json` is enough: --base PATH; or --arch llama"))
        }
    }
}

/// No layout has a place for all modules: the reason is the first one that no layout knows.
fn unplaced(paths: &[&str], layouts: &[&Layout], facts: &Facts<'_>) -> Error {
    let most = layouts.iter().max_by_key(|layout| paths.iter().filter(|path| layout.place(path).is_some()).count());
    let lost = most.and_then(|layout| paths.iter().find(|path| layout.place(path).is_none())).unwrap_or(&"");
    let what = format!(
        "`{lost}` is nothing AdapterHub puts LoRA on: it adapts queries, keys, values and one intermediate and one output \
         projection of a layer"
    );
    facts.refuse(what).hint("--to peft has a place for every module")
}

fn of_layout(
    layout: &Layout,
    places: &[Place<'_>],
    paths: &[&str],
    named: Option<&str>,
    config: Option<&Map<String, Value>>,
) -> Planned {
    let locations: BTreeSet<Location> = places.iter().map(|place| place.location).collect();
    let taken: BTreeSet<&str> = paths.iter().copied().collect();
    let touched: BTreeSet<(usize, u64)> = places.iter().map(|place| (place.stack, place.layer)).collect();
    let counts: Vec<Option<u64>> = layout
        .counts()
        .map(|names| {
            names.iter().find_map(|name| config?.get(name.as_str())?.as_u64()).map(|count| count.min(MAX_LAYERS))
        })
        .collect();
    let prefix = places.first().map_or("", |place| place.prefix);
    // The layers of a second stack are counted on, for which the length of the first has to be known.
    let numbered = counts.len() == 1 || counts.iter().all(Option::is_some);
    let (mut left_out, mut filled, mut first) = (Vec::new(), Vec::new(), 0);
    for (stack, count) in counts.iter().enumerate() {
        let own = touched.iter().filter(|(other, _)| *other == stack).map(|(_, layer)| *layer);
        let end = own.max().map_or(0, |last| last + 1).max(count.unwrap_or(0));
        for layer in 0..end {
            if numbered && !touched.contains(&(stack, layer)) {
                left_out.push(first + layer);
                continue;
            }
            for location in &locations {
                let place = Place { prefix, stack, layer, location: *location };
                let missing = layout.modules(&place).filter(|module| !taken.contains(module.as_str()));
                let like = places.iter().position(|place| place.location == *location);
                filled.extend(missing.filter_map(|module| Some((module, like?))));
            }
        }
        first += end;
    }
    let letters = [(Location::Query, "q"), (Location::Key, "k"), (Location::Value, "v")];
    let has = |location: Location| locations.contains(&location);
    Planned {
        attention: letters.into_iter().filter(|(own, _)| has(*own)).map(|(_, letter)| letter).collect(),
        intermediate: has(Location::Intermediate),
        output: has(Location::Output),
        left_out,
        filled,
        biases: layout.has_biases() || config.is_some_and(biased),
        model_type: named.or_else(|| layout.only_type(prefix)).map(str::to_owned),
        open_end: counts.iter().any(Option::is_none),
        wide: places.iter().position(|place| place.location <= Location::Value),
    }
}

/// Whether the config asks for biases where the family has none by default.
fn biased(config: &Map<String, Value>) -> bool {
    ["attention_bias", "mlp_bias"].iter().any(|key| config.get(*key).and_then(Value::as_bool) == Some(true))
}

impl Planned {
    /// The width of the model: that of the inputs of attention, or the smaller one of a projection.
    pub fn hidden(&self, pieces: &Pieces) -> Option<Value> {
        let size = |at: usize| pieces.pairs.get(at).map(|pair| (pair.down.size.1, pair.up.size.0));
        let width = match self.wide {
            Some(at) => size(at).map(|(inputs, _)| inputs),
            None => size(0).map(|(inputs, outputs)| inputs.min(outputs)),
        };
        width.map(Value::from)
    }
}
