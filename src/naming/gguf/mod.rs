//! Modules of language models ↔ tensors of a GGUF file, and the order that the rows have there.
//!
//! llama.cpp turns pairs of neighbouring rows by rotary embedding where Hugging Face turns the two halves of a head: in the
//! models of the table's `rotary` the rows of q and k are interleaved. Row `h d + 2 j + k` of a head of d rows is row
//! `h d + k d/2 + j` of the checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use serde::Deserialize;

#[derive(Deserialize)]
struct Tables {
    common: BTreeMap<String, String>,
    arch: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    name: String,
    kinds: Vec<String>,
    #[serde(default)]
    rotary: BTreeMap<String, Heads>,
    #[serde(default)]
    modules: BTreeMap<String, String>,
    #[serde(default)]
    absent: Vec<String>,
    #[serde(default)]
    norms_plus_one: bool,
}

/// Which number of heads the rows of a module are divided into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Heads {
    /// `num_attention_heads`.
    Heads,
    /// `num_key_value_heads`.
    KvHeads,
}

/// An architecture of llama.cpp.
#[derive(Debug)]
pub struct GgufArch {
    name: String,
    kinds: Vec<String>,
    rotary: BTreeMap<String, Heads>,
    to_gguf: HashMap<String, String>,
    from_gguf: HashMap<String, String>,
    norms_plus_one: bool,
}

/// Where a module lies in a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The tensor without `.weight`, as `blk.0.attn_q`.
    pub tensor: String,
    /// The slice of it, for experts.
    pub expert: Option<u64>,
    /// Whether its rows stand in another order.
    pub rotary: Option<Heads>,
}

static ARCHS: LazyLock<Vec<GgufArch>> = LazyLock::new(|| {
    let tables: Tables =
        toml::from_str(include_str!("models.toml")).expect("the table is part of the program; a test reads it");
    let Tables { common, arch } = tables;
    arch.into_iter().map(|row| row.over(&common)).collect()
});

impl Row {
    /// The architecture with what all have in common.
    fn over(self, common: &BTreeMap<String, String>) -> GgufArch {
        let mut to_gguf: HashMap<String, String> =
            common.iter().map(|(module, tensor)| (module.clone(), tensor.clone())).collect();
        to_gguf.retain(|module, _| !self.absent.contains(module));
        to_gguf.extend(self.modules);
        let from_gguf = to_gguf.iter().map(|(module, tensor)| (tensor.clone(), module.clone())).collect();
        let Self { name, kinds, rotary, norms_plus_one, .. } = self;
        GgufArch { name, kinds, rotary, to_gguf, from_gguf, norms_plus_one }
    }
}

/// The architectures with a table.
pub fn gguf_archs() -> &'static [GgufArch] {
    &ARCHS
}

/// The architecture that llama.cpp calls so (`general.architecture`).
pub fn gguf_arch(name: &str) -> Option<&'static GgufArch> {
    ARCHS.iter().find(|arch| arch.name == name)
}

/// The architecture of a `model_type` of config.json.
pub fn gguf_arch_of(model_type: &str) -> Option<&'static GgufArch> {
    ARCHS.iter().find(|arch| arch.kinds.iter().any(|kind| kind == model_type))
}

/// A name with its numbers taken out: `model.layers.3.mlp` → (`model.layers.{i}.mlp`, [3]).
fn template(name: &str) -> (String, Vec<u64>) {
    let mut numbers = Vec::new();
    let parts: Vec<&str> = name
        .split('.')
        .map(|part| match part.parse() {
            Ok(number) if part.bytes().all(|byte| byte.is_ascii_digit()) => {
                numbers.push(number);
                if numbers.len() == 1 { "{i}" } else { "{e}" }
            }
            _ => part,
        })
        .collect();
    (parts.join("."), numbers)
}

impl GgufArch {
    /// llama.cpp's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The `model_type`s it stands for, the usual one first.
    pub fn model_types(&self) -> impl Iterator<Item = &str> {
        self.kinds.iter().map(String::as_str)
    }

    /// What is added to the weight of a module before it is stored: 1 for norms that multiply by 1 + w.
    pub fn added(&self, module: &str) -> f32 {
        if self.norms_plus_one && module.ends_with("norm") { 1.0 } else { 0.0 }
    }

    /// Where a module of the checkpoint lies.
    pub fn place(&self, module: &str) -> Option<Place> {
        let (template, numbers) = template(module);
        let tensor = self.to_gguf.get(&template)?;
        let layer = numbers.first().map_or_else(String::new, u64::to_string);
        let expert = numbers.get(1).copied();
        Some(Place { tensor: tensor.replace("{i}", &layer), expert, rotary: self.rotary(module) })
    }

    /// The module that lies in a tensor (without `.weight`); `expert` says which, where it holds several.
    pub fn module(&self, tensor: &str, expert: Option<u64>) -> Option<String> {
        let (template, numbers) = template(tensor);
        let module = self.from_gguf.get(&template)?;
        if module.contains("{e}") != expert.is_some() {
            return None;
        }
        let layer = numbers.first().map_or_else(String::new, u64::to_string);
        let expert = expert.map_or_else(String::new, |expert| expert.to_string());
        Some(module.replace("{i}", &layer).replace("{e}", &expert))
    }

    fn rotary(&self, module: &str) -> Option<Heads> {
        self.rotary.iter().find(|(end, _)| module.ends_with(end.as_str())).map(|(_, heads)| *heads)
    }
}

/// For every row of a GGUF tensor the row of the checkpoint that stands there; `None` where `rows` are no whole number of
/// heads with an even number of rows.
pub fn interleaved(rows: usize, heads: usize) -> Option<Vec<usize>> {
    if heads == 0 || !rows.is_multiple_of(2 * heads) {
        return None;
    }
    let size = rows / heads;
    Some((0..rows).map(|row| row - row % size + row % 2 * (size / 2) + row % size / 2).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_of_every_architecture_comes_back() {
        for arch in gguf_archs() {
            assert_eq!(gguf_arch(arch.name()).unwrap().name(), arch.name());
            for kind in arch.model_types() {
                assert_eq!(gguf_arch_of(kind).unwrap().name(), arch.name());
            }
            assert_eq!(arch.to_gguf.len(), arch.from_gguf.len(), "{}: two modules in one tensor", arch.name());
            for module in arch.to_gguf.keys() {
                let module = module.replace("{i}", "12").replace("{e}", "7");
                let place = arch.place(&module).unwrap();
                assert_eq!(arch.module(&place.tensor, place.expert).as_ref(), Some(&module), "{}", arch.name());
            }
        }
    }

    #[test]
    fn places_are_those_of_llama_cpp() {
        let place = |arch: &str, module: &str| gguf_arch(arch).unwrap().place(module);
        let q = place("llama", "model.layers.3.self_attn.q_proj").unwrap();
        assert_eq!((q.tensor.as_str(), q.expert, q.rotary), ("blk.3.attn_q", None, Some(Heads::Heads)));
        let expert = place("llama", "model.layers.1.block_sparse_moe.experts.5.w2").unwrap();
        assert_eq!((expert.tensor.as_str(), expert.expert, expert.rotary), ("blk.1.ffn_down_exps", Some(5), None));
        assert_eq!(place("qwen2", "model.layers.0.self_attn.k_proj").unwrap().rotary, None);
        assert_eq!(place("phi3", "model.layers.0.mlp.gate_up_proj").unwrap().tensor, "blk.0.ffn_up");
        assert_eq!(place("gemma2", "lm_head"), None);
        assert_eq!(place("llama", "model.layers.0.self_attn.rotary_emb"), None);
        assert!(gguf_arch_of("bert").is_none());
    }

    #[test]
    fn rows_are_interleaved_head_by_head() {
        assert_eq!(interleaved(8, 2), Some(vec![0, 2, 1, 3, 4, 6, 5, 7]));
        assert_eq!(interleaved(6, 1), Some(vec![0, 3, 1, 4, 2, 5]));
        assert_eq!(interleaved(6, 2), None);
        assert_eq!(interleaved(6, 0), None);
    }
}
