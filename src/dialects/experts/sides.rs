//! Which factor of a stack's pair lies on the input: the shapes tell, else those of another stack of the adapter, else the version
//! of PEFT that saved it together with the class of the experts.

use serde_json::Value;

use super::read::{Found, quoted};
use crate::adapters::AdapterConfig;
use crate::model::ModelConfig;
use crate::naming::experts::peft::{Class, Era, Sides};

/// Settings that came with a version of PEFT: they date a config from which the version was taken away.
const DATED: [(&str, Era); 4] = [
    ("kasa_config", Era::Today),
    ("monteclora_config", Era::Today),
    ("velora_config", Era::Today),
    ("lora_ga_config", Era::Inverted),
];

/// What is known of the model.
#[derive(Debug, Clone)]
pub struct Family {
    /// Types of the model, as `transformers` calls them.
    pub types: Vec<String>,
    /// Width of the model.
    pub width: Option<u64>,
}

impl Family {
    /// What the config of the model says, or the adapter's own.
    pub fn of(config: &AdapterConfig, model: Option<&ModelConfig>) -> Self {
        let width = model.and_then(|model| model.hidden);
        let said: Vec<String> = model.into_iter().flat_map(ModelConfig::types).map(str::to_owned).collect();
        let library = || library(config).or_else(|| Some(config.llama_cpp.as_ref()?.arch.only_kind()?.to_owned()));
        let types = if said.is_empty() { library().into_iter().collect() } else { said };
        Self { types, width }
    }

    /// The classes that the experts can have had.
    fn classes(&self) -> Vec<Class> {
        let mut all: Vec<Class> = Vec::new();
        for class in self.types.iter().flat_map(|name| Class::of(name)) {
            if !all.contains(class) {
                all.push(*class);
            }
        }
        // The type of a part says more than that of the whole: a class of its own counts.
        let special = self.types.iter().any(|name| Class::of(name) != [Class::Plain]);
        if special {
            all.retain(|class| {
                self.types.iter().any(|name| Class::of(name) != [Class::Plain] && Class::of(name).contains(class))
            });
        }
        all
    }

    /// Whether PEFT of today wants swapped factors: stacks of `[E, in, out]` whose class never says so.
    pub fn wants_swapped(&self) -> bool {
        self.classes() == [Class::Silent]
    }
}

/// The folder of the class that the adapter was trained on, where its config names it: `transformers.models.FAMILY.…`.
pub fn library(config: &AdapterConfig) -> Option<String> {
    let library = config.raw.get("auto_mapping")?.get("parent_library")?.as_str()?;
    library.strip_prefix("transformers.models.")?.split('.').next().map(str::to_owned)
}

/// What the shapes of a pair say where `width` is that of the model: `None` where it is square, or fits neither way.
pub fn by_width(found: &Found<'_>, width: u64) -> Option<Sides> {
    let (inputs, outputs) = (found.lora.inputs(), found.lora.outputs());
    let (straight, swapped) = if found.is_down() { (outputs, inputs) } else { (inputs, outputs) };
    match (straight == width, swapped == width) {
        (true, false) => Some(Sides::Straight),
        (false, true) => Some(Sides::Swapped),
        _ => None,
    }
}

/// The width of the model that two stacks of one module tell together.
pub fn width_of_both(first: &Found<'_>, second: &Found<'_>) -> Option<u64> {
    // Without a gate both are alike but for being turned.
    if first.name != "gate_up_proj" || !second.is_down() {
        return None;
    }
    let ((x, y), (u, v)) = ((first.lora.inputs(), first.lora.outputs()), (second.lora.inputs(), second.lora.outputs()));
    let straight = x == v && Some(y) == u.checked_mul(2);
    let swapped = y == u && Some(x) == v.checked_mul(2);
    match (straight, swapped) {
        (true, false) => Some(x),
        (false, true) => Some(y),
        _ => None,
    }
}

/// The version that saved the adapter, and what tells.
pub fn era(config: &AdapterConfig) -> (Option<Era>, String) {
    if let Some(version) = config.raw.get("peft_version").and_then(Value::as_str) {
        return (Era::of(version), format!("`peft_version` is {}", quoted(version)));
    }
    if let Some((key, era)) = DATED.iter().find(|(key, _)| config.raw.contains_key(*key)) {
        // 0.19.0 and 0.19.1 have the same settings.
        return (Some(*era).filter(|era| *era == Era::Today), format!("no `peft_version`, and `{key}` dates it"));
    }
    (Some(Era::Early), "no `peft_version`, as before PEFT 0.18".to_owned())
}

/// What the version says of a square stack of such a model: the sides, or why it says nothing.
pub fn by_version(era: Option<Era>, told: &str, family: &Family) -> Result<(Sides, String), String> {
    let Some(era) = era else { return Err(format!("{told}, and PEFT changed its rule about then")) };
    let classes = family.classes();
    let shown = family.types.first().map(|name| quoted(name)).unwrap_or_default();
    let mut sides: Vec<Sides> = classes.iter().map(|class| era.sides(*class)).collect();
    sides.dedup();
    match sides.as_slice() {
        [one] => Ok((*one, format!("{told} and the model is of type {shown}"))),
        [] => Err(format!("the matrix is square, {told}, and the type of the model is not known")),
        // PEFT 0.19.0 came when transformers 5 was current.
        _ if era == Era::Inverted && classes.contains(&Class::Says) => {
            Ok((Sides::Swapped, format!("{told} and the model is of type {shown}, under transformers 5")))
        }
        _ => Err(format!("the matrix is square, {told}, and transformers 4 and 5 differ for {shown}")),
    }
}
