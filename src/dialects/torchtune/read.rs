//! torchtune's own names. Its queries and keys keep the rows of a head in pairs, `[head_dim/2, 2]`; transformers keeps them in
//! halves, `[2, head_dim/2]`. Row `b·d/2 + a` of a head in transformers is row `2a + b` in torchtune (d rows per head), and so
//! the rows of B and of DoRA's magnitudes are put in order here; read as they are, the adapter would be plausible and wrong.
//!
//! Source: torchtune 0.6 `models/convert_weights.py`. Rank and α are those of `adapter_config.json`, the numbers of heads those
//! of the model's `config.json`, which torchtune lays beside what it saves.

use std::path::Path;

use super::{MODEL, TORCHTUNE};
use crate::adapters::gather;
use crate::adapters::peft_keys;
use crate::dialects::opened::{Opened, Source};
use crate::dialects::turn;
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, Stored, side};
use crate::llama::interleaved;
use crate::model::ModelConfig;
use crate::naming::arch::{Arch, Spelling, arch};
use crate::naming::scheme::{Scheme, scheme};
use crate::naming::{Key, Role};

/// Models whose heads torchtune keeps as transformers does.
const AS_TRANSFORMERS: [&str; 4] = ["qwen2", "qwen3", "qwen2_moe", "phi3"];

/// Whether the file is in these names.
pub(super) fn is_ours(tensors: &Checkpoint) -> bool {
    let table = table();
    tensors.tensors().any(|info| table.parse(&info.name).is_some())
}

pub(super) fn open(source: Source<'_>) -> Result<Opened> {
    let config = source.config()?;
    let Source { root, tensors, .. } = source;
    let table = table();
    let names = arch("torchtune").expect("the table is part of the program");
    let mut keyed = Vec::new();
    for stored in tensors.all() {
        keyed.push(match table.parse(&stored.info.name) {
            Some(key) => renamed(root, names, key, stored)?,
            None => (peft_keys::parse(&stored.info.name), stored),
        });
    }
    let modules = gather(keyed.into_iter(), &config, TORCHTUNE.name, false).map(|gathered| gathered.modules);
    Ok(Opened::new(root, &TORCHTUNE, config, tensors, modules))
}

fn table() -> &'static Scheme {
    scheme("torchtune").expect("the table is part of the program")
}

/// The tensor under the name transformers gives its module, its rows in transformers' order.
fn renamed(root: &Path, names: &Arch, key: Key, stored: Stored) -> Result<(Key, Stored)> {
    let Some((module, heads)) = names.renamed(&key.module, Spelling::Diffusers) else { return Ok((key, stored)) };
    let per_row = matches!(key.role, Role::Up | Role::Magnitude | Role::UpBias);
    let stored = if heads && per_row { in_halves(root, &module, &stored)? } else { stored };
    Ok((Key { module, ..key }, stored))
}

fn in_halves(root: &Path, module: &str, stored: &Stored) -> Result<Stored> {
    let path = root.join(MODEL);
    let Some(model) = side::look_up(&path)? else {
        let problem = format!(
            "tensor `{}` has its rows in the order of torchtune's heads, whose number `{MODEL}` tells, and there is none",
            stored.info.name
        );
        return Err(Error::unsupported(&path, problem).hint(
            "copy the base model's `config.json` beside the adapter, or let torchtune save it in PEFT's format",
        ));
    };
    let rows = stored.info.shape.as_slice().first().copied().unwrap_or(0);
    let Some(head) = head_of(&path, &ModelConfig::of(model), module, rows)
        .map_err(|problem| problem.hint(format!("it is tensor `{}`", stored.info.name)))?
    else {
        return Ok(stored.clone());
    };
    if stored.info.bytes == 0 {
        return Ok(stored.clone());
    }
    let narrow = |count: u64| usize::try_from(count).expect("a mapped tensor has fewer rows than the address space");
    let order = interleaved(narrow(rows), narrow(rows / head)).expect("heads have an even number of rows");
    Ok(turn::scattered(stored, order))
}

/// How many rows a head of queries or keys has of so many; `None` where torchtune keeps them as transformers does. `model` is what
/// the config at `path` says.
///
/// # Errors
/// When the heads are not known, or the rows are not theirs.
pub(super) fn head_of(path: &Path, model: &ModelConfig, module: &str, rows: u64) -> Result<Option<u64>> {
    let kind = model.model_type.as_deref().unwrap_or_default();
    if AS_TRANSFORMERS.contains(&kind) {
        return Ok(None);
    }
    let heads = heads(path, model, module.ends_with("k_proj"))?;
    let head = rows / heads;
    if rows == 0 || !rows.is_multiple_of(heads) || !head.is_multiple_of(2) {
        let problem = format!("{rows} rows do not make {heads} heads of an even number of rows");
        return Err(Error::malformed(path, format!("`{module}`"), problem));
    }
    Ok(Some(head))
}

/// How many heads of queries or keys the model has.
fn heads(path: &Path, model: &ModelConfig, of_keys: bool) -> Result<u64> {
    let above_zero = |count: Option<u64>| count.filter(|count| *count > 0);
    let keys = above_zero(model.kv_heads.filter(|_| of_keys));
    let missing = || Error::malformed(path, "`num_attention_heads`", "is missing, so the order of the rows is unknown");
    keys.or(above_zero(model.heads)).ok_or_else(missing)
}
