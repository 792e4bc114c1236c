//! Denoisers that are built alike (`transformer` and `transformer_2` of Wan 2.2): dialects whose names say only that a module is
//! one of a denoiser hold one of them.

use std::collections::BTreeSet;
use std::path::Path;

use super::pieces::Pieces;
use crate::error::{Error, Result};
use crate::naming::components;

/// The denoisers that the paths of `pieces` name.
pub fn named(pieces: &Pieces) -> BTreeSet<String> {
    let component = |path: &String| {
        let (component, _) = components::split(path)?;
        components::kind_of_denoiser(component).map(|_| component.to_owned())
    };
    pieces.paths().filter_map(component).collect()
}

/// Puts what is below a denoiser below the one of its kind that is meant. Where several are named and that is one of them, it is
/// the one that is kept; what is left out is told.
///
/// # Errors
/// When it is no denoiser.
pub fn mean(pieces: &mut Pieces, meant: &str) -> Result<Option<String>> {
    let Some(kind) = components::kind_of_denoiser(meant).filter(|_| components::ADAPTED.contains(&meant)) else {
        return Err(Error::invalid("--component", format!("`{meant}` is no denoiser of a pipeline"))
            .hint("transformer, transformer_2, unet or unet_2"));
    };
    let alike = |component: &str| components::kind_of_denoiser(component) == Some(kind);
    let mut named = named(pieces);
    named.retain(|component| alike(component));
    let is_one = named.remove(meant);
    if let (true, Some(other)) = (is_one, named.first()) {
        pieces.retain(|path| components::split(path).is_none_or(|(own, _)| own == meant || !alike(own)));
        return Ok(Some(format!("what changes `{other}` is left out: `--component {meant}` asks for the other")));
    }
    for path in pieces.paths_mut() {
        let own = components::split(path).filter(|(component, _)| alike(component));
        let own = own.map(|(_, rest)| format!("{meant}.{rest}"));
        own.into_iter().for_each(|own| *path = own);
    }
    Ok(None)
}

/// The refusal of two modules that would get the name `name` in the dialect `to`; `denoisers` are those that the adapter changes.
pub fn same_name(root: &Path, name: &str, denoisers: &BTreeSet<String>, to: &str) -> Error {
    let kind = |component: &String| components::kind_of_denoiser(component);
    let alike: Vec<&String> = denoisers
        .iter()
        .filter(|one| denoisers.iter().any(|other| other != *one && kind(other) == kind(one)))
        .collect();
    if alike.is_empty() {
        return Error::unsupported(root, format!("two modules would both be called `{name}`"));
    }
    let names: Vec<String> = alike.iter().map(|name| format!("`{name}`")).collect();
    let ways: Vec<String> = alike.iter().map(|name| format!("--component {name}")).collect();
    let what = format!(
        "changes {}, which are built alike, and an adapter of {to} is for one denoiser: both would hold `{name}`",
        names.join(" and ")
    );
    Error::unsupported(root, what).hint(format!("one file for each: {}", ways.join(", or ")))
}
