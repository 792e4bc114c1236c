//! What the values and the base show: zeros, what is not finite, modules without a place, a head that is tied.

use super::super::adapter::AdapterFacts;
use super::super::{counted, named};

/// Everything of that kind that was looked for.
pub fn find(facts: &AdapterFacts) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(values) = &facts.values {
        if !values.not_finite.is_empty() {
            let (count, names) = (counted(values.not_finite.len(), "tensor"), list(&values.not_finite));
            problems.push(format!("{count} with values that are not finite: {names}"));
        }
        if !values.zero.is_empty() {
            let (count, names) = (counted(values.zero.len(), "tensor"), list(&values.zero));
            problems.push(format!("{count} of zeros only: {names}"));
        }
        if !values.block_sparse.is_empty() {
            let (count, names) = (counted(values.block_sparse.len(), "fused module"), list(&values.block_sparse));
            problems.push(format!(
                "{count} made of parts that share no rank (sd-scripts' `split_qkv`): trained with alpha / rank of one part, read \
                 with alpha / rank of all, so the change is weaker than it was trained: {names}"
            ));
        }
    }
    if let Some(spectra) = facts.spectrum.as_ref().filter(|spectra| !spectra.zero.is_empty()) {
        let count = counted(spectra.zero.len(), "module");
        problems.push(format!("{count} whose change is zero, as before training: {}", list(&spectra.zero)));
    }
    let Some(base) = &facts.base else { return problems };
    // What is inserted has its own problem already, and no place to fit.
    let misfit = base.misfit.iter().filter(|_| facts.inserted.is_empty());
    problems.extend(misfit.map(|misfit| format!("does not fit `{}`: {misfit}", base.path.display())));
    if !base.unplaced.is_empty() {
        let count = counted(base.unplaced.len(), "tensor");
        problems.push(format!("{count} without a place in `{}`: {}", base.path.display(), list(&base.unplaced)));
    }
    problems.extend(base.tied_change.iter().map(|embedding| {
        format!(
            "head and embedding of the base share `{embedding}`, and the adapter changes one of them or both: `merge` stores them \
             apart"
        )
    }));
    problems
}

fn list(names: &[String]) -> String {
    named(names.iter().map(String::as_str))
}
