//! Sums and averages that are no sums of ΔW: of adapters that are inserted into a model, and of tensors of one name.

use std::path::PathBuf;

use super::{Method, Operation, SumOptions};
use crate::adapters::Adapter;
use crate::dialects::files::Files;
use crate::error::{Error, Result};
use crate::inserted::{Asked, average, is_inserted, sum};
use crate::placement::Applied;
use crate::truncate::NewAdapterReport;

/// The adapters, if they are inserted ones, or are to be averaged.
///
/// # Errors
/// When one cannot be read, or only some are inserted.
pub fn open(options: &SumOptions) -> Result<Option<Vec<Applied>>> {
    let averages = options.method == Method::Average;
    let opened = |path: &PathBuf| Adapter::open_for(path, None, &options.read);
    // Whatever is wrong with another adapter is told where it is read as one that changes weights.
    let first = match opened(&options.adapters[0].0) {
        Ok(adapter) if averages || is_inserted(&adapter) => adapter,
        Err(error) if averages => return Err(error),
        _ => return Ok(None),
    };
    let others = options.adapters[1..].iter().map(|(path, _)| opened(path)).collect::<Result<Vec<_>>>()?;
    let mut sources = Vec::new();
    for (adapter, (_, weight)) in std::iter::once(first).chain(others).zip(&options.adapters) {
        if !averages && !is_inserted(&adapter) {
            let root = options.adapters[0].0.display().to_string();
            let problem = "one is inserted into the model, the other changes its weights: they have no sum";
            return Err(Error::mismatch(adapter.root.display().to_string(), root, problem)
                .hint("load both beside each other, or merge the one that changes weights"));
        }
        adapter.check_values()?;
        sources.push(Applied { adapter, init: None, original: None, strength: *weight });
    }
    Ok(Some(sources))
}

/// The files of the result, and what is said of it.
///
/// # Errors
/// When the adapters have no sum or average, with the reason.
pub fn make(sources: &[Applied], options: &SumOptions) -> Result<(Files, NewAdapterReport)> {
    let adapters: Vec<(&Adapter, f64)> = sources.iter().map(|source| (&source.adapter, source.strength)).collect();
    let dtype = options.write.dtype;
    if options.method == Method::Average {
        let files = average(&adapters, dtype)?;
        let averaged = Some(files.tensors.len());
        let notes = foreign_bases(sources).into_iter().collect();
        return Ok((files, NewAdapterReport { notes, averaged, ..NewAdapterReport::default() }));
    }
    let keeps = options.keeps_the_rest();
    if !keeps {
        let modules = adapters.iter().flat_map(|(adapter, _)| &adapter.modules).map(|module| module.path.clone());
        options.selection.check(&modules.collect())?;
    }
    if options.alpha.is_some() {
        return Err(Error::invalid("--alpha", "a bottleneck has none"));
    }
    let asked = Asked {
        selection: &options.selection,
        keeps,
        rank: options.rank.as_ref(),
        cancels: options.operation == Operation::Subtract,
        dtype,
    };
    sum(&adapters, &asked)
}

/// What to say where adapters name different bases.
fn foreign_bases(sources: &[Applied]) -> Option<String> {
    let base = |source: &Applied| source.adapter.config.base_model.clone();
    let first = base(&sources[0]);
    let other = sources.iter().map(base).find(|other| *other != first);
    let shown = |base: &Option<String>| base.as_deref().map_or("no base".to_owned(), |base| format!("`{base}`"));
    other.map(|other| format!("the first adapter names {}, another {}", shown(&first), shown(&other)))
}
