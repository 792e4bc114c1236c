//! Vocabularies of other sizes: what is said of them, and matrices that take the base's place with another number of rows
//! (`--resize-vocab`).

use std::collections::BTreeMap;

use super::change::Placeable;
use super::placer::Placer;
use crate::adapters::describe;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::{Names, head};

/// Rows before and after, by tensor.
pub type Resized = BTreeMap<String, (u64, u64)>;

/// Whether a tensor of this name has a row for every token.
pub fn is_vocabulary(name: &str) -> bool {
    let is_head = || name.strip_suffix(".weight").is_some_and(head::is_head);
    ["embed", "wte", "lm_head", "emb.", "shared."].iter().any(|part| name.contains(part)) || is_head()
}

/// The way out where vocabularies differ.
pub fn hint(adapter: u64, base: u64) -> String {
    format!(
        "the adapter knows {adapter} tokens, the base {base}: resize the base first (`model.resize_token_embeddings({adapter})`, \
         then save it), or take the base the adapter was trained on"
    )
}

/// Whether `tensor` is `target` with another number of rows, one for every token.
pub fn is_resized(tensor: &Stored, target: &Stored) -> bool {
    let (new, old) = (tensor.info.shape.as_slice(), target.info.shape.as_slice());
    let rows_differ = new.first() != old.first() && new.get(1..) == old.get(1..) && !new.is_empty();
    rows_differ && is_vocabulary(&target.info.name)
}

impl Placer<'_> {
    /// Puts a matrix with another number of rows in the place of `name`.
    ///
    /// # Errors
    /// When it is not the only change, at full strength.
    pub(crate) fn resize(&mut self, job: &Placeable<'_>, name: &str, tensor: &Stored, target: &Stored) -> Result<()> {
        if job.strength != 1.0 {
            let problem =
                format!("its weight is {}: a matrix of another size can only be taken as it is", job.strength);
            return Err(Error::mismatch(describe(tensor), describe(target), problem));
        }
        let rows = |tensor: &Stored| tensor.info.shape.as_slice().first().copied().unwrap_or_default();
        self.placement.resized.insert(name.to_owned(), (rows(target), rows(tensor)));
        self.replace(job, name, tensor)
    }
}

/// What was resized is resized everywhere and changed by nothing else. Gives the new number of tokens.
///
/// # Errors
/// When it is not, naming the tensors.
pub fn check(placer: &mut Placer<'_>) -> Result<Option<u64>> {
    let (base, placement) = (placer.base, &mut placer.placement);
    let Some((first, (old, new))) = placement.resized.first_key_value() else { return Ok(None) };
    let (old, new) = (*old, *new);
    let refuse = |what: String| Err(Error::unsupported(base.checkpoint.root(), what));
    for (name, (_, rows)) in &placement.resized {
        // A head that changes as the embedding does is no tensor of its own.
        let Some(target) = placement.targets.get(name) else { continue };
        if target.replacement.is_none() || !target.pieces.is_empty() {
            return refuse(format!("`{name}` would get {rows} rows and is changed by something else as well"));
        }
        if *rows != new {
            return refuse(format!("`{first}` would get {new} rows, `{name}` {rows}: one vocabulary has one size"));
        }
    }
    let written = base.checkpoint.tensors().map(|tensor| &tensor.name).chain(placement.targets.keys());
    let pair = base.heads.stored(&Names::new(written.cloned()));
    let pair = pair.map(|tie| [tie.head, tie.embedding]).unwrap_or_default();
    let biases =
        placement.resized.keys().filter_map(|name| name.strip_suffix(".weight")).map(|module| format!("{module}.bias"));
    let biases = biases.filter(|name| base.names.has(name));
    if let Some(left) =
        pair.into_iter().chain(biases).find(|name| !name.is_empty() && !placement.resized.contains_key(name))
    {
        return refuse(format!("`{first}` would get {new} rows, `{left}` keeps {old}: one vocabulary has one size"));
    }
    let names: Vec<String> = placement.resized.keys().map(|name| format!("`{name}`")).collect();
    placement.notes.push(format!(
        "the vocabulary goes from {old} to {new} tokens ({}); the files of the tokenizer are the base's",
        names.join(", ")
    ));
    Ok(Some(new))
}
