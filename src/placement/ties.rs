//! Heads that share the embedding's tensor: when a change has to give them one of their own.
//!
//! PEFT writes one tensor for both in every case but `modules_to_save`, so its merged model can differ from base + adapter
//! (`docs/inside/decisions/0005`). Here the function of base + adapter decides: a change to the embedding alone leaves the head
//! as it was, a change to the head alone leaves the embedding.

use super::applied::Applied;
use super::placer::{Placement, Placer, Target};
use super::tile::Piece;
use crate::adapters::{Change, Factor, Lora};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::model::base::Base;
use crate::model::same_values;

/// Decoders of these types scale what goes into a tied head, and only into a tied one: untying changes more than a tensor.
/// Source: `model_dim**-0.5` in the classes of transformers.
const SCALED_BEFORE_HEAD: [&str; 8] =
    ["t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano", "udop", "gptsan-japanese"];

/// Gives the head its own tensor where it must differ; says whether head and embedding are two from now on.
///
/// # Errors
/// When tensors cannot be read, or the model cannot be untied.
pub fn untie(placer: &mut Placer<'_>, applied: &[Applied]) -> Result<bool> {
    let base: &Base = placer.base;
    let stored = base.tie.is_none();
    let Some(tie) = base.tie.as_ref().or(base.stored_tie.as_ref()) else {
        note_unnamed(placer);
        return Ok(false);
    };
    change_copies(base, &tie.embedding, &mut placer.placement)?;
    let tied = Tied { modules: &placer.tied, applied };
    let targets = &mut placer.placement.targets;
    let (head, embedding) = (targets.get(&tie.head).cloned(), targets.get(&tie.embedding).cloned());
    let (together, what) = match (&head, &embedding) {
        (None, None) => return Ok(false),
        // Trained rows serve both sides of the tie, and so does a vocabulary of another size.
        (None, Some(embedding)) => {
            let resized = !stored && placer.placement.resized.contains_key(&tie.embedding);
            let together = resized || tied.trained_as_one() || !changes_more_than_rows(embedding);
            (together, format!("`{}` is changed and `{}` is not", tie.embedding, tie.head))
        }
        (Some(_), None) => (false, format!("`{}` is changed and `{}` is not", tie.head, tie.embedding)),
        (Some(head), Some(embedding)) => {
            let together = changed_alike(head, embedding, &tied)?;
            let how = if together { "alike" } else { "differently" };
            (together, format!("`{}` and `{}` are changed {how}", tie.embedding, tie.head))
        }
    };
    if together {
        match (stored, head, embedding) {
            (true, None, Some(embedding)) => _ = targets.insert(tie.head.clone(), embedding),
            (false, Some(_), _) => {
                targets.remove(&tie.head);
                placer.placement.notes.push(format!("{what}: they stay one tensor"));
            }
            _ => {}
        }
        return Ok(false);
    }
    if base.is_one_of(&SCALED_BEFORE_HEAD) {
        let problem = format!(
            "{what}: models of this type scale what goes into a head that is tied, and only then, so with two tensors they would \
             compute something else"
        );
        return Err(Error::unsupported(base.checkpoint.root(), problem).hint(
            "an adapter that was trained with `ensure_weight_tying` changes both; a base with a head of its own takes either",
        ));
    }
    let rows: Vec<Piece> =
        embedding.iter().flat_map(|target| &target.pieces).filter(|piece| is_rows(piece)).cloned().collect();
    if !stored || !rows.is_empty() {
        let starts_from = (!stored).then(|| tie.embedding.clone());
        let target = targets.entry(tie.head.clone()).or_insert_with(|| Target { starts_from, ..Target::default() });
        if target.replacement.is_none() {
            target.pieces.extend(rows);
        }
    }
    placer.placement.notes.push(format!("{what}: the head is untied"));
    if let Some(prefix) = base.heads.lacking_prefix(&tie.embedding).filter(|_| !stored) {
        placer.placement.notes.push(format!(
            "the names of the base lack the `{prefix}` of its class: transformers 5 loads them beside `{}`, transformers 4 does not",
            tie.head
        ));
    }
    Ok(true)
}

/// Taking out of a model whose head and embedding are one: what was added to either was added to both. Says that nothing is
/// untied.
///
/// # Errors
/// When tensors cannot be read.
pub fn keep_together(placer: &mut Placer<'_>) -> Result<bool> {
    let base: &Base = placer.base;
    if let Some(tie) = base.tie.as_ref().or(base.stored_tie.as_ref()) {
        change_copies(base, &tie.embedding, &mut placer.placement)?;
    }
    let targets = &mut placer.placement.targets;
    if let Some(tie) = &base.tie
        && let Some(head) = targets.remove(&tie.head)
    {
        targets.entry(tie.embedding.clone()).or_insert(Target { starts_from: None, ..head });
        placer.placement.notes.push(format!("`{}` and `{}` are one tensor, and stay one", tie.embedding, tie.head));
    }
    if let Some(tie) = &base.stored_tie
        && same_values(&base.stored(&tie.head), &base.stored(&tie.embedding))?
    {
        for (one, other) in [(&tie.head, &tie.embedding), (&tie.embedding, &tie.head)] {
            if let (Some(target), false) = (targets.get(one).cloned(), targets.contains_key(other)) {
                targets.insert(other.clone(), target);
            }
        }
    }
    Ok(false)
}

/// Whether one tensor can serve both: replaced by the same values, or changed by the same pairs, turned around, with the
/// same weights.
fn changed_alike(head: &Target, embedding: &Target, tied: &Tied<'_>) -> Result<bool> {
    let others: Vec<&Piece> = embedding.pieces.iter().filter(|piece| !is_rows(piece)).collect();
    match (&head.replacement, &embedding.replacement) {
        (Some(left), Some(right)) => Ok(head.pieces.is_empty() && others.is_empty() && same_values(left, right)?),
        (None, None) => {
            let mut pairs = 0;
            for number in 0..tied.applied.len() {
                match tied.mirrored(number)? {
                    None => {}
                    Some(true) => pairs += 1,
                    Some(false) => return Ok(false),
                }
            }
            let same_weights = head.pieces.iter().zip(&others).all(|(left, right)| left.strength == right.strength);
            Ok(head.pieces.len() == pairs && others.len() == pairs && same_weights)
        }
        _ => Ok(false),
    }
}

fn is_rows(piece: &Piece) -> bool {
    !piece.delta.touches_all()
}

fn changes_more_than_rows(target: &Target) -> bool {
    target.replacement.is_some() || target.pieces.iter().any(|piece| !is_rows(piece))
}

/// Encoder and decoder of BART and its kin look up their tokens in the shared embedding; what is stored of theirs repeats it,
/// and is taken for their own where the tie is off. So it changes with the shared one.
fn change_copies(base: &Base, embedding: &str, placement: &mut Placement) -> Result<()> {
    const COPIES: [&str; 2] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
    let Some(prefix) = embedding.strip_suffix("shared.weight") else { return Ok(()) };
    for copy in COPIES.map(|copy| format!("{prefix}{copy}")).into_iter().filter(|copy| base.names.has(copy)) {
        let Some(target) = placement.targets.get(embedding).cloned() else { return Ok(()) };
        if !placement.targets.contains_key(&copy) && same_values(&base.stored(&copy), &base.stored(embedding))? {
            placement.notes.push(format!("`{copy}` repeats `{embedding}` and is changed with it"));
            placement.targets.insert(copy, target);
        }
    }
    Ok(())
}

/// Says that an embedding changes which a head of an unknown name may share.
fn note_unnamed(placer: &mut Placer<'_>) {
    let Some(embedding) = &placer.base.unnamed else { return };
    if !placer.placement.targets.get(embedding).is_some_and(changes_more_than_rows) {
        return;
    }
    let note = match &placer.base.config {
        Some(config) => format!(
            "`{embedding}` is changed, and how `{}` calls its output head is not known: a head that shares this tensor changes with it",
            config.shown()
        ),
        None => format!(
            "`{embedding}` is changed, and the base has no config: if the model's head shares its embedding, the head changes too"
        ),
    };
    placer.placement.notes.push(note);
}

/// The modules of the tie that adapters change.
struct Tied<'a> {
    /// Number of the adapter, position in it, whether it is the head.
    modules: &'a [(usize, usize, bool)],
    applied: &'a [Applied],
}

impl Tied<'_> {
    /// Whether all adapters that change head or embedding say that they were trained as one.
    fn trained_as_one(&self) -> bool {
        // A change whose adapter is not recognised by its paths was not seen to be trained as one.
        !self.modules.is_empty()
            && self.modules.iter().all(|(adapter, ..)| self.applied[*adapter].adapter.config.ensure_weight_tying)
    }

    /// Whether the change of the head by an adapter is the one of the embedding, turned around; `None` if it has no pair for
    /// either.
    fn mirrored(&self, number: usize) -> Result<Option<bool>> {
        let adapter = &self.applied[number].adapter;
        let pair = |of_head: bool| -> Option<(&Lora, Option<f64>)> {
            let own = self.modules.iter().filter(|(adapter, _, is_head)| *adapter == number && *is_head == of_head);
            own.map(|(_, at, _)| &adapter.modules[*at]).find_map(|module| match &module.change {
                Change::Lora(lora) => {
                    Some((lora.as_ref(), adapter.config.scaling.as_ref().map(|scaling| scaling.scale(&module.path))))
                }
                _ => None,
            })
        };
        match (pair(true), pair(false)) {
            (None, None) => Ok(None),
            (Some((head, head_scale)), Some((embedding, embedding_scale))) => {
                let plain =
                    head.magnitude.is_none() && embedding.magnitude.is_none() && !head.embedding && embedding.embedding;
                let same = plain
                    && head_scale == embedding_scale
                    && is_transpose(&head.up, &embedding.down)?
                    && is_transpose(&head.down, &embedding.up)?;
                Ok(Some(same))
            }
            _ => Ok(Some(false)),
        }
    }
}

fn is_transpose(left: &Stored, right: &Stored) -> Result<bool> {
    let (left, right) = (Factor::new(left)?, Factor::new(right)?.transposed());
    Ok(left.shape() == right.shape() && left.to_vec()? == right.to_vec()?)
}
