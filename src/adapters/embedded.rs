//! Embeddings of new tokens that trainers put into the file of an adapter (LyCORIS' and OneTrainer's `bundle_emb`): textual
//! inversions, which no weight of a model holds.

use std::collections::BTreeSet;

use super::adapter::Module;

/// What stands in front of the name of the tokens.
const BUNDLE: &str = "bundle_emb.";

/// The name of the tokens whose embedding `module` is.
pub fn embedding_of(module: &Module) -> Option<String> {
    let tensors = module.change.tensors();
    let name = &tensors.first()?.info.name;
    let at = name.find(BUNDLE).filter(|at| *at == 0 || name[..*at].ends_with('.'))?;
    let rest = &name[at + BUNDLE.len()..];
    Some(rest.rsplit_once('.').map_or(rest, |(name, _)| name).to_owned())
}

/// What is said of such embeddings, where there are any: `names` are their tokens, `who` has no place for them.
pub fn embeddings_note(names: &BTreeSet<String>, who: &str) -> Option<String> {
    const SHOWN: usize = 3;
    if names.is_empty() {
        return None;
    }
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = if names.len() > SHOWN { " …" } else { "" };
    let count = names.len();
    Some(format!(
        "{count} embeddings of tokens ({}{more}) lie beside the weights: {who} has no place for them, they are loaded as textual \
         inversion",
        shown.join(", ")
    ))
}
