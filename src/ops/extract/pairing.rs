//! Which tensor of TUNED belongs to which of BASE: by name, where needed by another prefix, and with heads that share the
//! embedding's tensor.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::choice::Choice;
use crate::error::{Error, Result};
use crate::model::base::Base;
use crate::model::same_tensors;
use crate::naming::buffers::is_buffer;
use crate::naming::head::Tie;
use crate::naming::{Names, Shift, renamed};

/// Names that are listed in a message.
const LISTED: usize = 6;

/// One tensor, on both sides.
#[derive(Debug, Clone)]
pub struct Pair {
    /// As the base calls it, or would.
    pub name: String,
    /// Its name in the base; that of the embedding where the base's head has no tensor of its own.
    pub base: Option<String>,
    /// Its name in the tuned model.
    pub tuned: String,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Pairing {
    /// In the order of the base's files, what only the tuned model has at the end.
    pub pairs: Vec<Pair>,
    /// Head and embedding that are one tensor in both models.
    pub tie: Option<Tie>,
    /// Tensors that one side lacks and nothing is lost with, or that were left out by choice.
    pub skipped: Vec<String>,
    /// Notes.
    pub notes: Vec<String>,
}

/// Pairs the tensors of `base` and `tuned`.
///
/// # Errors
/// When a tensor has no partner and is neither left out nor kept whole by `choice`, naming it.
pub fn pair(base: &Base, tuned: &Base, choice: &Choice) -> Result<Pairing> {
    let (base_names, tuned_names) = (parameters(base), parameters(tuned));
    let mut pairing = Pairing::default();
    let mut partner = by_name(base, tuned, &base_names, &tuned_names, &mut pairing.notes)?;
    let mut heads = Vec::new();
    join_heads(base, tuned, &mut partner, &mut heads, &mut pairing)?;
    let mut lone = Vec::new();
    for name in &base_names {
        match partner.remove(name) {
            Some(Partner::Tensor(tuned)) => {
                pairing.pairs.push(Pair { name: name.clone(), base: Some(name.clone()), tuned });
            }
            Some(Partner::Tied) => {}
            None if is_left_out(base, name, choice) => pairing.skipped.push(name.clone()),
            None => lone.push(name.clone()),
        }
    }
    if !lone.is_empty() {
        return Err(unpaired(base, tuned, &lone, false));
    }
    pairing.pairs.append(&mut heads);
    // What is left stands under names that the base does not have.
    let found: HashSet<&str> = pairing.pairs.iter().map(|pair| pair.tuned.as_str()).collect();
    let tied = pairing.tie.as_ref().map(|tie| tie.head.as_str());
    let mut added = Vec::new();
    for name in tuned_names.iter().filter(|name| !found.contains(name.as_str()) && Some(name.as_str()) != tied) {
        let module = module_of(name);
        if choice.leaves_out(module, name) || is_buffer(name, dimensions(tuned, name)) {
            pairing.skipped.push(name.clone());
        } else if choice.keeps_whole(module, name) {
            added.push(Pair { name: name.clone(), base: None, tuned: name.clone() });
        } else {
            lone.push(name.clone());
        }
    }
    if !lone.is_empty() {
        return Err(unpaired(tuned, base, &lone, true));
    }
    pairing.pairs.append(&mut added);
    Ok(pairing)
}

/// What a tensor of the base is compared with.
enum Partner {
    Tensor(String),
    /// Nothing: it is the embedding's tensor over again.
    Tied,
}

/// The tensors of a model.
fn parameters(model: &Base) -> Vec<String> {
    model.checkpoint.tensors().map(|info| info.name.clone()).collect()
}

/// Name in the base → partner, by equal names and, for those that have none, by one change of prefix.
fn by_name(
    base: &Base,
    tuned: &Base,
    base_names: &[String],
    tuned_names: &[String],
    notes: &mut Vec<String>,
) -> Result<HashMap<String, Partner>> {
    let mut partner = HashMap::new();
    let mut rest = Vec::new();
    for name in tuned_names {
        if base.names.has(name) {
            partner.insert(name.clone(), Partner::Tensor(name.clone()));
        } else {
            rest.push(name);
        }
    }
    let free: Vec<String> = base_names.iter().filter(|name| !partner.contains_key(*name)).cloned().collect();
    let free = Names::new(free);
    // What transformers renames when it loads: `LayerNorm.gamma` is `LayerNorm.weight`.
    let renamed: HashMap<&str, String> = rest
        .iter()
        .filter_map(|name| Some((name.as_str(), renamed::parameters(name).find(|other| free.has(other))?)))
        .collect();
    if let Some((name, other)) = rest.iter().find_map(|name| Some((name, renamed.get(name.as_str())?))) {
        notes.push(format!("`{name}` of TUNED is `{other}` in BASE"));
    }
    rest.retain(|name| !renamed.contains_key(name.as_str()));
    partner.extend(renamed.into_iter().map(|(name, other)| (other, Partner::Tensor(name.to_owned()))));
    let head = tuned.tie.as_ref().or(tuned.stored_tie.as_ref()).map(|tie| module_of(&tie.head));
    let modules: BTreeSet<&str> = rest.iter().map(|name| module_of(name)).filter(|path| Some(*path) != head).collect();
    let modules: Vec<&str> = modules.into_iter().collect();
    let shifts: Vec<Shift> = free.shifts(&modules).into_iter().filter(|shift| !shift.is_identity()).collect();
    match shifts.as_slice() {
        [] => {}
        [shift] => {
            let moved = rest.iter().map(|name| (shift.apply(name), *name)).filter(|(moved, _)| free.has(moved));
            partner.extend(moved.map(|(moved, name)| (moved, Partner::Tensor(name.clone()))));
            notes.push(format!("names of TUNED: `{}…` is `{}…` in BASE", shift.strip, shift.add));
        }
        [first, second, ..] => {
            let name = &modules[0];
            let (left, right) = (first.apply(name), second.apply(name));
            let problem = format!("`{name}` could be `{left}` or `{right}`");
            return Err(Error::mismatch(place(tuned), place(base), problem));
        }
    }
    Ok(partner)
}

/// Heads: where one side keeps its own tensor and the other shares the embedding's, they are compared with that; where head
/// and embedding are one in both, they are compared once.
fn join_heads(
    base: &Base,
    tuned: &Base,
    partner: &mut HashMap<String, Partner>,
    heads: &mut Vec<Pair>,
    pairing: &mut Pairing,
) -> Result<()> {
    let Some(tie) = base.tie.clone().or_else(|| base.heads.stored(&base.names)) else { return Ok(()) };
    let Some(Partner::Tensor(embedding)) = partner.get(&tie.embedding) else { return Ok(()) };
    let embedding = embedding.clone();
    let own_in_base = base.names.has(&tie.head);
    // The tuned head under its own name, or under the base's.
    let own_in_tuned = match partner.get(&tie.head) {
        Some(Partner::Tensor(name)) => Some(name.clone()),
        _ => tuned.names.has(&tie.head).then(|| tie.head.clone()),
    };
    let base_is_one = !own_in_base || {
        base.stored_tie.is_some() && same_tensors(&base.stored(&tie.head), &base.stored(&tie.embedding))?
    };
    let tuned_is_one = match &own_in_tuned {
        None => tuned.tie.is_some() || !own_in_base,
        Some(head) => same_tensors(&tuned.stored(head), &tuned.stored(&embedding))?,
    };
    match own_in_tuned {
        _ if base_is_one && tuned_is_one => {
            if own_in_base {
                partner.insert(tie.head.clone(), Partner::Tied);
            }
            pairing.tie = Some(tie);
        }
        None if own_in_base && tuned_is_one => {
            pairing.notes.push(format!("TUNED shares one tensor for `{}` and `{}`", tie.head, tie.embedding));
            partner.insert(tie.head, Partner::Tensor(embedding));
        }
        Some(head) if !own_in_base => {
            pairing.notes.push(format!(
                "`{}` has its own tensor in TUNED and shares that of `{}` in BASE: merging the result unties them",
                tie.head, tie.embedding
            ));
            heads.push(Pair { name: tie.head, base: Some(tie.embedding), tuned: head });
        }
        _ => {}
    }
    Ok(())
}

fn is_left_out(model: &Base, name: &str, choice: &Choice) -> bool {
    choice.leaves_out(module_of(name), name) || is_buffer(name, dimensions(model, name))
}

fn dimensions(model: &Base, name: &str) -> usize {
    model.checkpoint.info(name).map_or(0, |info| info.shape.as_slice().len())
}

/// The module a tensor belongs to.
pub fn module_of(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(module, _)| module)
}

fn place(model: &Base) -> String {
    model.checkpoint.root().display().to_string()
}

fn unpaired(holder: &Base, other: &Base, names: &[String], holder_is_tuned: bool) -> Error {
    let mut listed: Vec<String> = names.iter().take(LISTED).map(|name| format!("`{name}`")).collect();
    if names.len() > LISTED {
        listed.push("…".into());
    }
    let problem = format!("{} tensors have no partner there: {}", names.len(), listed.join(", "));
    let nearest = other.names.nearest(&names[0], 2);
    let way = if holder_is_tuned {
        "`--full REGEX` keeps whole what only TUNED has"
    } else {
        "`--skip REGEX` leaves out what TUNED does not have"
    };
    let hint = if nearest.is_empty() {
        way.to_owned()
    } else {
        let nearest: Vec<String> = nearest.iter().map(|name| format!("`{name}`")).collect();
        format!("most like `{}`: {}; {way}", names[0], nearest.join(", "))
    };
    Error::mismatch(place(holder), place(other), problem).hint(hint)
}
