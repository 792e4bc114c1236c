//! Factors of three dimensions: A `[E, r, in]`, B `[E, out, r]`, either with one matrix for all (`E` = 1). mlx-lm (`switch_mlp`,
//! for gpt-oss `experts`), Tinker, and the shared outer factors of vLLM and SGLang. Every expert's matrix lies as PEFT keeps
//! that of a layer, so they are slices of the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::limits::MAX_EXPERTS;
use crate::naming::{Key, Role};
use crate::tensor::{Shape, TensorInfo};

/// Names of the projections of a list of experts.
const NAMES: [&str; 8] = ["gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "fc1", "fc2"];

/// What the lists are called.
const LISTS: [&str; 2] = ["switch_mlp", "experts"];

/// Tensors of single experts, and what their modules were called where all were one.
pub struct Apart {
    /// All tensors.
    pub keyed: Vec<(Key, Stored)>,
    /// Path of an expert's layer → the path that the file has.
    pub origins: BTreeMap<String, String>,
}

/// The tensors, with those of stacks taken apart into those of single experts.
///
/// # Errors
/// When the factors of a stack do not fit each other.
pub fn take_apart(keyed: Vec<(Key, Stored)>) -> Result<Apart> {
    let is_stack = |key: &Key, stored: &Stored| {
        let dimensions = stored.info.shape.as_slice().len();
        matches!(key.role, Role::Down | Role::Up)
            && dimensions == 3
            && stored.info.bytes > 0
            && list_of(&key.module).is_some()
    };
    if !keyed.iter().any(|(key, stored)| is_stack(key, stored)) {
        return Ok(Apart { keyed, origins: BTreeMap::new() });
    }
    let mut counts: BTreeMap<String, (u64, Stored)> = BTreeMap::new();
    for (key, stored) in keyed.iter().filter(|(key, stored)| is_stack(key, stored)) {
        let own = stored.info.shape.as_slice()[0];
        let (known, first) = counts.entry(key.module.clone()).or_insert_with(|| (own, stored.clone()));
        if *known != own && *known != 1 && own != 1 {
            let describe = |tensor: &Stored| crate::adapters::describe(tensor);
            return Err(Error::mismatch(
                describe(first),
                describe(stored),
                format!("one has {known} experts, the other {own}"),
            ));
        }
        *known = own.max(*known);
        if *known > MAX_EXPERTS {
            return Err(Error::limit(stored.path(), "experts of a layer", *known, MAX_EXPERTS));
        }
    }
    let mut apart = Apart { keyed: Vec::new(), origins: BTreeMap::new() };
    for (key, stored) in keyed {
        let count = counts.get(&key.module).map_or(1, |(count, _)| *count);
        if !is_stack(&key, &stored) {
            apart.keyed.push((key, stored));
            continue;
        }
        let list = list_of(&key.module).expect("a stack is of a list");
        for expert in 0..count {
            let module = list.module(expert);
            apart.origins.entry(module.clone()).or_insert_with(|| key.module.clone());
            let key = Key { module, nesting: key.nesting, role: key.role.clone() };
            apart.keyed.push((key, slice(&stored, expert)));
        }
    }
    Ok(apart)
}

/// A list of experts and one of its projections.
struct List<'a> {
    /// What holds the list, with its dot.
    block: &'a str,
    name: &'a str,
}

fn list_of(module: &str) -> Option<List<'_>> {
    let (path, name) = module.rsplit_once('.')?;
    let block = LISTS
        .iter()
        .find_map(|list| path.strip_suffix(list))
        .filter(|block| block.is_empty() || block.ends_with('.'))?;
    NAMES.contains(&name).then_some(List { block, name })
}

impl List<'_> {
    /// The path of one expert's projection as the model has it on disk.
    fn module(&self, expert: u64) -> String {
        let mixtral = self.block.ends_with("block_sparse_moe.");
        let name = match self.name {
            // Servers call the projections so whatever the model does.
            "w1" if self.block.ends_with("mlp.") => "gate_proj",
            "w3" if self.block.ends_with("mlp.") => "up_proj",
            "w2" if self.block.ends_with("mlp.") => "down_proj",
            "gate_proj" if mixtral => "w1",
            "up_proj" if mixtral => "w3",
            "down_proj" if mixtral => "w2",
            "fc1" => "up_proj",
            "fc2" => "down_proj",
            own => own,
        };
        format!("{}experts.{expert}.{name}", self.block)
    }
}

/// One expert's matrix, or the one for all.
fn slice(stack: &Stored, expert: u64) -> Stored {
    let &[count, rows, cols] = stack.info.shape.as_slice() else { unreachable!("a stack has three dimensions") };
    let bytes = stack.info.bytes / count.max(1);
    let at = if count > 1 { expert } else { 0 };
    let info = TensorInfo { shape: Shape::from([rows, cols]), bytes, ..stack.info.clone() };
    Stored { info, start: stack.start + at * bytes, map: Arc::clone(&stack.map) }
}
