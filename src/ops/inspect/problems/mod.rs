//! What is wrong with an adapter, as far as its headers and its config tell.

mod header;
mod values;

use std::collections::BTreeSet;

use foldhash::HashSet;

use super::adapter::{parameter_name, trains_biases};
use super::pairs::Pair;
use super::targets::Targets;
use super::weights;
use super::{counted, named};
use crate::adapters::config::saves;
use crate::adapters::{Adapter, AdapterConfig, Change, Init};
use crate::dialects::Dialect;
use crate::error::Error;
use crate::naming::ends;
use crate::tensor::TensorInfo;

pub use header::find as of_header;
pub use values::find as of_values;

/// Everything that is wrong; `refused` is what [`Adapter::open`] stops at.
pub fn find(adapter: &Adapter, pairs: &[Pair<'_>], targets: &Targets, refused: Option<Error>) -> Vec<String> {
    let config = &adapter.config;
    let mut problems = weights::problems(&adapter.tensors, |info| is_without_rank(config, info));
    problems.extend(refused.iter().map(|error| format!("cannot be used: {error}")));
    let refusal = config.refusal();
    let is_refused = refusal.is_some();
    problems.extend(refusal.map(|error| format!("cannot be merged: {error}")));
    if !is_refused {
        problems.extend(inserted_problem(adapter));
    }
    problems.extend(changed_base(config));
    if config.scaling.is_some() {
        problems.extend(rank_problem(pairs));
        problems.extend(target_problems(adapter, pairs, targets));
        problems.extend(variant_problems(config, pairs));
        // Only PEFT's config has to declare them.
        if Dialect::of(adapter.dialect).declares {
            problems.extend(whole_problems(adapter));
        }
    }
    problems.extend(token_problems(adapter));
    let unknown: Vec<&str> = adapter
        .modules
        .iter()
        .filter_map(|module| match &module.change {
            Change::Unknown(tensor) => Some(tensor.info.name.as_str()),
            _ => None,
        })
        .collect();
    // Where the whole method is refused, that says it all.
    if !unknown.is_empty() && !is_refused {
        problems.push(format!("{} of unknown meaning: {}", counted(unknown.len(), "tensor"), named(unknown)));
    }
    let dtypes: BTreeSet<&str> =
        pairs.iter().flat_map(|pair| pair.lora.tensors()).map(|tensor| tensor.info.dtype.name()).collect();
    if dtypes.len() > 1 {
        problems.push(format!("the pairs mix dtypes: {}", dtypes.into_iter().collect::<Vec<_>>().join(", ")));
    }
    problems.extend(config.base_model.as_deref().filter(|name| is_local(name)).map(|name| {
        format!("`base_model_name_or_path` is a path on somebody's machine, which tells more than it should: `{name}`")
    }));
    problems
}

/// Whether a tensor is empty because its method left its module no rank: it keeps both dimensions, and what ZeRO-3 leaves has one.
fn is_without_rank(config: &AdapterConfig, info: &TensorInfo) -> bool {
    let is_factor = ["lora_A", "lora_B", "lora_E"].iter().any(|part| info.name.contains(part));
    config.kind.is_some_and(|kind| kind.drops_ranks) && is_factor && info.shape.as_slice().len() == 2
}

/// What no weight can hold, where the config does not say so already.
fn inserted_problem(adapter: &Adapter) -> Option<String> {
    adapter.modules.iter().find_map(|module| match &module.change {
        Change::Inserted(inserted) => Some(format!("cannot be merged: {}", inserted.reason)),
        _ => None,
    })
}

fn changed_base(config: &AdapterConfig) -> Option<String> {
    let (init, name) = &config.init;
    let way_out = match init {
        Init::Plain => return None,
        Init::Subtracted if config.initialiser().is_some() => {
            "`merge` needs `--base`, `--init-adapter` or `--residual-base`"
        }
        Init::Subtracted => "`merge` needs `--init-adapter` or `--residual-base`",
        Init::Quantised => "`merge` needs that base and `--residual-base`",
    };
    Some(format!("`init_lora_weights` is `{name}`: it belongs to a base that its initialiser changed; {way_out}"))
}

/// The rank of the tensors against that of the config, on which the scale stands.
fn rank_problem(pairs: &[Pair<'_>]) -> Option<String> {
    let said = |pair: &Pair<'_>| pair.configured.map_or(pair.rank, |(rank, ..)| rank);
    let whole = pairs.iter().filter(|pair| pair.lora.tensors().all(|tensor| tensor.info.bytes > 0));
    let differs: Vec<&Pair<'_>> = whole.filter(|pair| said(pair) != pair.rank).collect();
    let first = differs.first()?;
    Some(format!(
        "{} of another rank than the config says, so the scale is ambiguous: `{}` has {}, the config says {}",
        counted(differs.len(), "pair"),
        first.path,
        first.rank,
        said(first)
    ))
}

fn target_problems(adapter: &Adapter, pairs: &[Pair<'_>], targets: &Targets) -> Vec<String> {
    let config = &adapter.config;
    let mut problems = Vec::new();
    let layers: Vec<&str> = pairs.iter().filter(|pair| !pair.parameter).map(|pair| pair.module).collect();
    let by_method = adapter.modules.iter().filter(|module| matches!(module.change, Change::Method(_)));
    let changed: Vec<&str> = layers.iter().copied().chain(by_method.map(|module| module.path.as_str())).collect();
    let absent = targets.without(&changed);
    if !absent.is_empty() {
        problems.push(format!("`target_modules` names modules the file has no pair for: {}", named(absent)));
    }
    let extra: Vec<&str> = layers.into_iter().filter(|module| targets.take(module) == Some(false)).collect();
    if !extra.is_empty() {
        let count = counted(extra.len(), "pair");
        problems.push(format!(
            "{count} that `target_modules` does not name, so PEFT would leave them out: {}",
            named(extra)
        ));
    }
    let parameters = pairs.iter().filter(|pair| pair.parameter);
    let there: HashSet<&str> = parameters.flat_map(|pair| ends(&pair.path)).collect();
    let is_there = |target: &&String| there.contains(target.as_str());
    let absent: Vec<&str> =
        config.target_parameters.iter().filter(|target| !is_there(target)).map(String::as_str).collect();
    if !absent.is_empty() {
        problems.push(format!("`target_parameters` names parameters the file has no pair for: {}", named(absent)));
    }
    problems
}

fn variant_problems(config: &AdapterConfig, pairs: &[Pair<'_>]) -> Option<String> {
    // Pairs of parameters cannot have magnitudes.
    let layers = pairs.iter().filter(|pair| !pair.parameter);
    let differs: Vec<&str> =
        layers.filter(|pair| pair.lora.magnitude.is_some() != config.dora).map(|pair| pair.module).collect();
    let count = counted(differs.len(), "pair");
    match (differs.is_empty(), config.dora) {
        (true, _) => None,
        (false, true) => Some(format!("`use_dora` is set, {count} without magnitudes: {}", named(differs))),
        (false, false) => Some(format!("`use_dora` is not set, {count} with magnitudes: {}", named(differs))),
    }
}

/// Tensors saved whole against `modules_to_save` and `bias`.
fn whole_problems(adapter: &Adapter) -> Vec<String> {
    let config = &adapter.config;
    let biases = trains_biases(config);
    let whole: Vec<String> = adapter
        .modules
        .iter()
        .filter_map(|module| match &module.change {
            Change::Whole(parameter, _) => Some(parameter_name(&module.path, parameter)),
            _ => None,
        })
        .collect();
    let mut problems = Vec::new();
    let declared = |name: &str| {
        config.modules_to_save.iter().any(|saved| saves(saved, name)) || (biases && name.ends_with("bias"))
    };
    let undeclared: Vec<&str> = whole.iter().map(String::as_str).filter(|name| !declared(name)).collect();
    if !undeclared.is_empty() {
        let count = counted(undeclared.len(), "tensor");
        problems.push(format!(
            "{count} saved whole without being declared (`modules_to_save`, `bias`): {}",
            named(undeclared)
        ));
    }
    let is_absent = |saved: &&String| !whole.iter().any(|name| saves(saved, name));
    let absent: Vec<&str> = config.modules_to_save.iter().filter(is_absent).map(String::as_str).collect();
    if !absent.is_empty() {
        problems.push(format!("`modules_to_save` names modules that are not in the file: {}", named(absent)));
    }
    problems
}

/// Rows of tokens against the list of tokens.
fn token_problems(adapter: &Adapter) -> Option<String> {
    let listed: usize = adapter.config.token_indices.iter().map(|(_, ids)| ids.len()).sum();
    let rows = adapter.modules.iter().filter_map(|module| match &module.change {
        Change::TokenRows(tensor) => Some(tensor.info.shape.rows_cols().0),
        _ => None,
    });
    let rows: u64 = rows.sum();
    (u64::try_from(listed) != Ok(rows))
        .then(|| format!("the config lists {listed} trained tokens, the file has {rows} rows"))
}

/// Whether a base is named by a place on one machine.
fn is_local(name: &str) -> bool {
    let drive = name.as_bytes().get(1) == Some(&b':');
    name.starts_with(['/', '~', '\\']) || drive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_machine_are_told_from_names() {
        for name in ["/home/me/llama", "~/llama", "C:\\models\\llama", "\\\\server\\llama"] {
            assert!(is_local(name), "{name}");
        }
        for name in ["org/name", "tiny-llama-bf16", ""] {
            assert!(!is_local(name), "{name}");
        }
    }
}
