//! Heads that share the embedding's tensor: when a change has to give them one of their own.
//!
//! PEFT writes one tensor for both in every case but `modules_to_save`, so its merged model can differ from base + adapter
//! (`docs/decisions/0005`). Here the function of base + adapter decides: a change to the embedding alone leaves the head
//! as it was, a change to the head alone leaves the embedding.

use super::base::Base;
use super::landing::{Applied, Lander, Target};
use super::same_values;
use crate::adapters::{Adapter, Change, Factor, Lora};
use crate::error::Result;
use crate::formats::Stored;

/// Gives the head its own tensor where it must differ; says whether it did.
///
/// # Errors
/// When tensors cannot be read.
pub fn untie(lander: &mut Lander<'_>, applied: &[Applied]) -> Result<bool> {
    let base: &Base = lander.base;
    let Some(tie) = &base.tie else { return Ok(false) };
    let landed = &mut lander.landed;
    let head = landed.targets.get(&tie.head).cloned();
    let Some(embedding) = landed.targets.get(&tie.embedding).cloned() else {
        if head.is_some() {
            landed.notes.push(format!("`{}` is changed and `{}` is not: the head is untied", tie.head, tie.embedding));
        }
        return Ok(head.is_some());
    };
    let together =
        applied.iter().all(|applied| trained_as_one(&applied.adapter, &tie.head, &tie.embedding).unwrap_or(false));
    let Some(head) = head else {
        // Trained rows serve both sides of the tie.
        if together || !changes_more_than_rows(&embedding) {
            return Ok(false);
        }
        let rows = embedding.pieces.iter().filter(|piece| is_rows(piece)).cloned().collect();
        let target = Target { pieces: rows, starts_from: Some(tie.embedding.clone()), ..Target::default() };
        landed.targets.insert(tie.head.clone(), target);
        landed.notes.push(format!("`{}` is changed and `{}` is not: the head is untied", tie.embedding, tie.head));
        return Ok(true);
    };
    let same_replacement = match (&head.replacement, &embedding.replacement) {
        (Some(head), Some(embedding)) => same_values(head, embedding)?,
        (None, None) => true,
        _ => false,
    };
    let mirrored = applied
        .iter()
        .map(|applied| mirrored(&applied.adapter, &tie.head, &tie.embedding))
        .collect::<Result<Vec<_>>>()?;
    if same_replacement && mirrored.into_iter().all(|same| same) {
        landed.targets.remove(&tie.head);
        landed.notes.push(format!("`{}` and `{}` are changed alike: they stay one tensor", tie.embedding, tie.head));
        return Ok(false);
    }
    landed.notes.push(format!("`{}` and `{}` are changed differently: the head is untied", tie.embedding, tie.head));
    Ok(true)
}

fn is_rows(piece: &super::merged::Piece) -> bool {
    !piece.delta.touches_all()
}

fn changes_more_than_rows(target: &Target) -> bool {
    target.replacement.is_some() || target.pieces.iter().any(|piece| !is_rows(piece))
}

/// Whether the adapter says that head and embedding were trained as one; `None` if it changes neither.
fn trained_as_one(adapter: &Adapter, head: &str, embedding: &str) -> Option<bool> {
    let changes = |tensor: &str| adapter.modules.iter().any(|module| tensor == format!("{}.weight", module.path));
    (changes(head) || changes(embedding)).then_some(adapter.config.ensure_weight_tying)
}

/// Whether the adapter's change of the head is the one of the embedding, turned around.
fn mirrored(adapter: &Adapter, head: &str, embedding: &str) -> Result<bool> {
    let pair = |tensor: &str| -> Option<(&Lora, Option<f64>)> {
        adapter.modules.iter().find_map(|module| match &module.change {
            Change::Lora(lora) if format!("{}.weight", module.path) == tensor => {
                Some((lora.as_ref(), adapter.config.scaling.as_ref().map(|scaling| scaling.scale(&module.path))))
            }
            _ => None,
        })
    };
    match (pair(head), pair(embedding)) {
        (None, None) => Ok(true),
        (Some((head, head_scale)), Some((embedding, embedding_scale))) => {
            let plain =
                head.magnitude.is_none() && embedding.magnitude.is_none() && !head.embedding && embedding.embedding;
            Ok(plain
                && head_scale == embedding_scale
                && is_transpose(&head.up, &embedding.down)?
                && is_transpose(&head.down, &embedding.up)?)
        }
        _ => Ok(false),
    }
}

fn is_transpose(left: &Stored, right: &Stored) -> Result<bool> {
    let (left, right) = (Factor::new(left)?, Factor::new(right)?.transposed());
    Ok(left.shape() == right.shape() && left.to_vec()? == right.to_vec()?)
}
