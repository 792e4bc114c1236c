//! The tensors of a file → modules.

use std::collections::BTreeMap;

use super::{EMBEDDING, HeadCounts, Pair, row_order, transposed};
use crate::error::{Error, Result};
use crate::formats::gguf::Gguf;
use crate::naming::gguf::{GgufArch, gguf_arch};
use crate::tensor::GgmlType;

/// The pairs in an opened file. `counts` are needed where the rows of q and k stand in another order.
///
/// # Errors
/// When the file is no LoRA, a tensor of it has no known module or no partner, or shapes do not fit.
pub fn pairs_of(gguf: &Gguf, counts: Option<HeadCounts>) -> Result<Vec<Pair>> {
    let path = gguf.files()[0].map.path();
    let metadata = gguf.metadata();
    let kind = (metadata.text("general.type"), metadata.text("adapter.type"));
    if kind != (Some("adapter"), Some("lora")) {
        return Err(Error::unsupported(path, "is no LoRA: `general.type` must be adapter and `adapter.type` lora"));
    }
    let name = gguf.architecture().unwrap_or_default();
    let arch = gguf_arch(name).ok_or_else(|| {
        Error::unsupported(path, format!("has architecture `{name}`, and the names of its modules are not known"))
    })?;
    let alpha = metadata.get("adapter.lora.alpha").and_then(|alpha| alpha.as_f64()).unwrap_or(0.0);
    let mut halves: BTreeMap<&str, [Option<&str>; 2]> = BTreeMap::new();
    let mut order = Vec::new();
    for tensor in gguf.tensors() {
        let split = [(".weight.lora_a", 0), (".weight.lora_b", 1)];
        let found = split.iter().find_map(|(end, half)| Some((tensor.name.strip_suffix(end)?, *half)));
        let Some((base, half)) = found else {
            let what = format!("tensor `{}` is no factor; llama.cpp applies none of that kind", tensor.name);
            return Err(Error::unsupported(path, what));
        };
        let entry = halves.entry(base).or_insert_with(|| {
            order.push(base);
            [None; 2]
        });
        entry[half] = Some(&tensor.name);
    }
    let mut pairs = Vec::new();
    for base in order {
        let [Some(down), Some(up)] = halves[base] else {
            return Err(Error::malformed(
                path,
                format!("tensor `{base}`"),
                "has one factor, and needs `lora_a` and `lora_b`",
            ));
        };
        pairs.extend(split(gguf, arch, base, [down, up], alpha, counts)?);
    }
    Ok(pairs)
}

/// The values of a tensor and its shape.
fn values(gguf: &Gguf, name: &str) -> Result<(Vec<u64>, Vec<f32>)> {
    let path = gguf.files()[0].map.path();
    let stored = gguf.find(name).ok_or_else(|| Error::malformed(path, format!("tensor `{name}`"), "is missing"))??;
    let unknown = || Error::unsupported(path, format!("tensor `{name}`: {} cannot be unpacked", stored.info.dtype));
    let ggml = GgmlType::of(&stored.info.dtype).ok_or_else(unknown)?;
    let view = stored.view()?;
    let elements = view.shape.elements().and_then(|elements| usize::try_from(elements).ok()).ok_or_else(unknown)?;
    let mut out = vec![0.0; elements];
    ggml.decode(view.data, &mut out);
    Ok((view.shape.as_slice().to_vec(), out))
}

fn split(
    gguf: &Gguf,
    arch: &GgufArch,
    base: &str,
    [down, up]: [&str; 2],
    alpha: f64,
    counts: Option<HeadCounts>,
) -> Result<Vec<Pair>> {
    let path = gguf.files()[0].map.path();
    let wrong = |problem: String| Error::malformed(path, format!("tensor `{base}`"), problem);
    let ((down_shape, down), (up_shape, up)) = (values(gguf, down)?, values(gguf, up)?);
    let (experts, rank) = match (down_shape.as_slice(), up_shape.as_slice()) {
        ([_, a], [_, b]) if base == EMBEDDING && a == b => (None, *b),
        ([a, _], [_, b]) if base != EMBEDDING && a == b => (None, *b),
        ([e, a, _], [f, _, b]) if e == f && a == b => (Some(*e), *b),
        _ => return Err(wrong(format!("factors of shapes {down_shape:?} and {up_shape:?} do not fit each other"))),
    };
    let count = usize::try_from(experts.unwrap_or(1)).unwrap_or(0);
    let rank = usize::try_from(rank).unwrap_or(0);
    if count == 0 || rank == 0 || down.is_empty() || up.is_empty() {
        return Err(wrong(format!("factors of shapes {down_shape:?} and {up_shape:?} are empty")));
    }
    let scale = if alpha == 0.0 { 1.0 } else { alpha / rank as f64 };
    let parts = down.chunks_exact(down.len() / count).zip(up.chunks_exact(up.len() / count));
    let mut pairs = Vec::with_capacity(count);
    for (expert, (down, up)) in (0_u64..).zip(parts) {
        let module = arch.module(base, experts.map(|_| expert));
        let module = module.ok_or_else(|| {
            Error::unsupported(path, format!("tensor `{base}` is of no module known in architecture {}", arch.name()))
        })?;
        let place = arch.place(&module).ok_or_else(|| wrong("has no place".into()))?;
        let order = row_order(&place, counts, up.len() / rank).map_err(wrong)?;
        let mut rows = up.to_vec();
        for (from, to) in order.iter().flatten().enumerate() {
            rows[to * rank..(to + 1) * rank].copy_from_slice(&up[from * rank..(from + 1) * rank]);
        }
        let down = if base == EMBEDDING { transposed(down, down.len() / rank) } else { down.to_vec() };
        pairs.push(Pair { module, down, up: rows, rank, scale });
    }
    Ok(pairs)
}
