//! Heads that share the embedding's tensor: when a change has to give them one of their own.
//!
//! PEFT writes one tensor for both in every case but `modules_to_save`, so its merged model can differ from base + adapter
//! (`docs/decisions/0005`). Here the function of base + adapter decides: a change to the embedding alone leaves the head
//! as it was, a change to the head alone leaves the embedding.

use super::applied::Applied;
use super::placer::{Lander, Target};
use super::tile::Piece;
use crate::adapters::{Adapter, Change, Factor, Lora, Module};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::model::base::Base;
use crate::model::same_values;
use crate::naming::head::Tie;

/// Decoders of these types scale what goes into a tied head, and only into a tied one: untying changes more than a tensor.
const SCALED_BEFORE_HEAD: [&str; 5] = ["t5", "mt5", "umt5", "longt5", "switch_transformers"];

/// Gives the head its own tensor where it must differ; says whether head and embedding are two from now on.
///
/// # Errors
/// When tensors cannot be read, or the model cannot be untied.
pub fn untie(lander: &mut Lander<'_>, applied: &[Applied]) -> Result<bool> {
    let base: &Base = lander.base;
    let stored = base.tie.is_none();
    let Some(tie) = base.tie.as_ref().or(base.stored_tie.as_ref()) else { return Ok(false) };
    let targets = &mut lander.landed.targets;
    let (head, embedding) = (targets.get(&tie.head).cloned(), targets.get(&tie.embedding).cloned());
    let (together, what) = match (&head, &embedding) {
        (None, None) => return Ok(false),
        // Trained rows serve both sides of the tie, and so does a vocabulary of another size.
        (None, Some(embedding)) => {
            let resized = !stored && lander.landed.resized.contains_key(&tie.embedding);
            let together = resized || trained_as_one(applied, tie) || !changes_more_than_rows(embedding);
            (together, format!("`{}` is changed and `{}` is not", tie.embedding, tie.head))
        }
        (Some(_), None) => (false, format!("`{}` is changed and `{}` is not", tie.head, tie.embedding)),
        (Some(head), Some(embedding)) => {
            let together = changed_alike(head, embedding, applied, tie)?;
            let how = if together { "alike" } else { "differently" };
            (together, format!("`{}` and `{}` are changed {how}", tie.embedding, tie.head))
        }
    };
    if together {
        match (stored, head, embedding) {
            (true, None, Some(embedding)) => _ = targets.insert(tie.head.clone(), embedding),
            (false, Some(_), _) => {
                targets.remove(&tie.head);
                lander.landed.notes.push(format!("{what}: they stay one tensor"));
            }
            _ => {}
        }
        return Ok(false);
    }
    if base.is_one_of(&SCALED_BEFORE_HEAD) {
        let problem = format!("{what}, and models of this type cannot be untied without changing what they compute");
        return Err(
            Error::unsupported(base.checkpoint.root(), problem).hint("`--exclude` leaves one of the modules out")
        );
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
    lander.landed.notes.push(format!("{what}: the head is untied"));
    Ok(true)
}

/// Taking out of a model whose head and embedding are one: what was added to either was added to both. Says that nothing is
/// untied.
///
/// # Errors
/// When tensors cannot be read.
pub fn keep_together(lander: &mut Lander<'_>) -> Result<bool> {
    let base: &Base = lander.base;
    let targets = &mut lander.landed.targets;
    if let Some(tie) = &base.tie
        && let Some(head) = targets.remove(&tie.head)
    {
        targets.entry(tie.embedding.clone()).or_insert(Target { starts_from: None, ..head });
        lander.landed.notes.push(format!("`{}` and `{}` are one tensor, and stay one", tie.embedding, tie.head));
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
fn changed_alike(head: &Target, embedding: &Target, applied: &[Applied], tie: &Tie) -> Result<bool> {
    let others: Vec<&Piece> = embedding.pieces.iter().filter(|piece| !is_rows(piece)).collect();
    match (&head.replacement, &embedding.replacement) {
        (Some(left), Some(right)) => Ok(head.pieces.is_empty() && others.is_empty() && same_values(left, right)?),
        (None, None) => {
            let mut pairs = 0;
            for applied in applied {
                match mirrored(&applied.adapter, tie)? {
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

/// Whether all adapters that change head or embedding say that they were trained as one.
fn trained_as_one(applied: &[Applied], tie: &Tie) -> bool {
    let changes = |adapter: &Adapter| {
        adapter.modules.iter().any(|module| is_weight_of(module, &tie.head) || is_weight_of(module, &tie.embedding))
    };
    let mut changing = applied.iter().map(|applied| &applied.adapter).filter(|adapter| changes(adapter)).peekable();
    // A change whose adapter is not recognised by its paths was not seen to be trained as one.
    changing.peek().is_some() && changing.all(|adapter| adapter.config.ensure_weight_tying)
}

/// Whether `tensor` is the weight of `module`, wherever the model is wrapped.
fn is_weight_of(module: &Module, tensor: &str) -> bool {
    let weight = format!("{}.weight", module.path);
    tensor == weight || tensor.ends_with(&format!(".{weight}"))
}

/// Whether the adapter's change of the head is the one of the embedding, turned around; `None` if it has no pair for either.
fn mirrored(adapter: &Adapter, tie: &Tie) -> Result<Option<bool>> {
    let pair = |tensor: &str| -> Option<(&Lora, Option<f64>)> {
        adapter.modules.iter().find_map(|module| match &module.change {
            Change::Lora(lora) if is_weight_of(module, tensor) => {
                Some((lora.as_ref(), adapter.config.scaling.as_ref().map(|scaling| scaling.scale(&module.path))))
            }
            _ => None,
        })
    };
    match (pair(&tie.head), pair(&tie.embedding)) {
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

fn is_transpose(left: &Stored, right: &Stored) -> Result<bool> {
    let (left, right) = (Factor::new(left)?, Factor::new(right)?.transposed());
    Ok(left.shape() == right.shape() && left.to_vec()? == right.to_vec()?)
}
