//! Pipelines with two denoisers that are built alike (`transformer` for much noise and `transformer_2` for little in Wan 2.2): an
//! adapter's names fit both, so it takes a word which is meant. A denoiser that is given alone is the one that is meant.

use std::collections::BTreeSet;

use super::placer::Placer;
use crate::adapters::Adapter;
use crate::error::{Error, Result};
use crate::formats::Container;
use crate::naming::Shift;
use crate::naming::arch::flattened;
use crate::naming::components::{kind_of_denoiser, split, with_component};

/// The option that says which is meant.
const OPTION: &str = "--component";

/// What stands in front of the names of an adapter of PEFT's.
const PEFTS: &str = "base_model.model.";

impl Placer<'_> {
    /// Finds out which denoiser the names of `adapter` mean that fit several.
    ///
    /// # Errors
    /// When nothing says which, or what is said contradicts the names.
    pub(crate) fn choose_denoiser(&mut self, adapter: &Adapter) -> Result<()> {
        self.places.mean(None);
        let named = named(adapter);
        let both = |name: &str| {
            let of_kind = named.iter().filter(|other| kind_of_denoiser(other) == kind_of_denoiser(name));
            of_kind.count() > 1
        };
        if let Some(alone) = self.places.alone.clone() {
            if let Some(component) = self.component.filter(|component| *component != alone) {
                return Err(self.no_such(component, &[]));
            }
            if kind_of_denoiser(&alone).is_some() && !both(&alone) {
                self.places.mean(Some(alone));
            }
            return Ok(());
        }
        let alike = self.alike();
        if let Some(component) = self.component {
            if !alike.iter().any(|name| name == component) {
                return Err(self.no_such(component, &alike));
            }
            let others: Vec<&String> = named
                .iter()
                .filter(|name| *name != component && kind_of_denoiser(name) == kind_of_denoiser(component))
                .collect();
            // The name without a number stands for any of them, but beside one with a number.
            let contradicts =
                others.iter().any(|name| kind_of_denoiser(name) != Some(name.as_str())) || both(component);
            if contradicts {
                let others: Vec<String> = others.iter().map(|name| format!("`{name}`")).collect();
                let problem = format!("`{component}` is asked for, and its tensors name {}", others.join(", "));
                return Err(Error::mismatch(adapter.root.display().to_string(), self.base_name(), problem)
                    .hint(format!("leave `{OPTION}` away: the tensors say where they belong")));
            }
            self.places.mean(Some(component.to_owned()));
            return Ok(());
        }
        let kinds: BTreeSet<&str> = adapter.modules.iter().filter_map(|module| kind_of(&module.path)).collect();
        let meant = |name: &&String| kind_of_denoiser(name).is_some_and(|kind| kinds.contains(kind));
        let meant: Vec<&String> = alike.iter().filter(meant).collect();
        if meant.is_empty() || named.iter().any(|name| alike.contains(name)) {
            return Ok(());
        }
        let names: Vec<String> = meant.iter().map(|name| format!("`{name}`")).collect();
        let problem =
            format!("its names fit {} alike, and do not say which of them it was trained for", names.join(" and "));
        Err(Error::mismatch(adapter.root.display().to_string(), self.base_name(), problem).hint(ways(&meant)))
    }

    /// The components of the base that are denoisers built alike: none where there is one of its kind only.
    fn alike(&self) -> Vec<String> {
        let Container::Pipeline(folders) = self.base.checkpoint.container() else { return Vec::new() };
        let of_kind =
            |kind: Option<&str>| folders.iter().filter(|folder| kind_of_denoiser(&folder.name) == kind).count();
        let alike = folders.iter().map(|folder| &folder.name).filter(|name| {
            let kind = kind_of_denoiser(name);
            kind.is_some() && of_kind(kind) > 1
        });
        alike.cloned().collect()
    }

    fn no_such(&self, component: &str, alike: &[String]) -> Error {
        if alike.is_empty() {
            let problem =
                format!("`{component}` is asked for, and `{}` is no pipeline of several denoisers", self.base_name());
            return Error::invalid(OPTION, problem).hint(format!("leave `{OPTION}` away"));
        }
        let names: Vec<String> = alike.iter().map(|name| format!("`{name}`")).collect();
        Error::invalid(OPTION, format!("`{component}` is not one of {}", names.join(", ")))
    }

    /// What to say where some of the denoisers that are built alike change, and others do not.
    pub(crate) fn tell_of_denoisers(&mut self) {
        let alike = self.alike();
        let changes = |name: &&String| {
            let front = format!("{name}.");
            self.placement.targets.keys().any(|target| target.starts_with(&front))
        };
        let (changed, kept): (Vec<&String>, Vec<&String>) = alike.iter().partition(changes);
        if let (Some(first), Some(_)) = (changed.first(), kept.first()) {
            let kept: Vec<String> = kept.iter().map(|name| format!("`{name}`")).collect();
            self.placement.notes.push(format!(
                "only `{first}` changes: {}, which is built alike, stays as it is; an adapter for it goes by itself, with \
                 `{OPTION}`",
                kept.join(", ")
            ));
        }
    }
}

/// `--component transformer, or --component transformer_2`.
fn ways(names: &[&String]) -> String {
    let ways: Vec<String> = names.iter().map(|name| format!("{OPTION} {name}")).collect();
    format!("say which: {}", ways.join(", or "))
}

/// The denoisers that the tensors of the adapter begin with, by the name of their component.
fn named(adapter: &Adapter) -> BTreeSet<String> {
    let component = |name: &str| {
        let name = name.strip_prefix(PEFTS).unwrap_or(name);
        let (first, _) = name.split_once('.')?;
        (kind_of_denoiser(first).is_some() && split(name).is_some()).then(|| first.to_owned())
    };
    adapter.tensors.tensors().filter_map(|info| component(&info.name)).collect()
}

/// The kind of denoiser that a module is part of.
fn kind_of(path: &str) -> Option<&'static str> {
    if let Some((rest, components)) = flattened(path) {
        let kind = components.iter().find_map(|component| kind_of_denoiser(component))?;
        // The names below tell what `lora_unet_` leaves open.
        let several = components.iter().filter(|component| kind_of_denoiser(component).is_some()).count() > 1;
        let unet = ["down_blocks", "up_blocks", "mid_block", "input_blocks", "output_blocks", "middle_block"];
        return Some(if several && !unet.iter().any(|block| rest.starts_with(block)) { "transformer" } else { kind });
    }
    let path = with_component(path);
    split(&path).and_then(|(component, _)| kind_of_denoiser(component))
}

/// The one of `shifts` that leads `module` below the component `name`.
pub fn in_component<'s>(shifts: &'s [Shift], module: &str, name: &str) -> Option<&'s Shift> {
    let front = format!("{name}.");
    shifts.iter().find(|shift| shift.apply(module).starts_with(&front))
}
