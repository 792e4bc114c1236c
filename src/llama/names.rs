//! Modules of language models ↔ tensors of a GGUF file, and the order that the rows have there.
//!
//! llama.cpp turns pairs of neighbouring rows by rotary embedding where Hugging Face turns the two halves of a head: in the
//! models of the table's `rotary` the rows of q and k are interleaved. Row `h d + 2 j + k` of a head of d rows is row
//! `h d + k d/2 + j` of the checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    sets: BTreeMap<String, BTreeMap<String, String>>,
    arch: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    kinds: Vec<String>,
    #[serde(default)]
    uses: Vec<String>,
    #[serde(default)]
    rotary: BTreeMap<String, Heads>,
    #[serde(default)]
    grouped: Vec<String>,
    #[serde(default)]
    fused: Vec<String>,
    #[serde(default)]
    modules: BTreeMap<String, String>,
    #[serde(default)]
    absent: Vec<String>,
    #[serde(default)]
    norms_plus_one: bool,
    #[serde(default)]
    turned: bool,
    #[serde(default)]
    refused: BTreeMap<String, String>,
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

/// How many heads a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadCounts {
    /// `num_attention_heads`.
    pub heads: usize,
    /// `num_key_value_heads`, or the same.
    pub kv_heads: usize,
}

/// The order in which the rows of a module lie in a GGUF file, where it is not that of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// Interleaved head by head, as rotary embedding wants them.
    Rotary(Heads),
    /// All queries, then all keys, then all values; in the checkpoint they lie group by group.
    Grouped,
}

/// An architecture of llama.cpp.
#[derive(Debug)]
pub struct GgufArch {
    name: String,
    kinds: Vec<String>,
    orders: Vec<(String, RowOrder)>,
    fused: Vec<String>,
    refused: BTreeMap<String, String>,
    to_gguf: HashMap<String, String>,
    from_gguf: HashMap<String, String>,
    norms_plus_one: bool,
    turned: bool,
}

/// Where a module lies in a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The tensor without `.weight`, as `blk.0.attn_q`.
    pub tensor: String,
    /// The slice of it, for experts.
    pub expert: Option<u64>,
    /// The order of its rows, where it is another one.
    pub order: Option<RowOrder>,
}

static ARCHS: LazyLock<Vec<GgufArch>> = LazyLock::new(|| {
    let tables: Tables =
        toml::from_str(include_str!("models.toml")).expect("the table is part of the program; a test reads it");
    let Tables { sets, arch } = tables;
    arch.into_iter().map(|row| row.expand(&sets)).collect()
});

impl Row {
    /// The architecture with the names of its sets.
    fn expand(self, sets: &BTreeMap<String, BTreeMap<String, String>>) -> GgufArch {
        let names = self.uses.iter().flat_map(|name| &sets[name]);
        let mut to_gguf: HashMap<String, String> =
            names.map(|(module, tensor)| (module.clone(), tensor.clone())).collect();
        to_gguf.retain(|module, _| !self.absent.contains(module));
        to_gguf.extend(self.modules);
        let from_gguf = to_gguf.iter().map(|(module, tensor)| (tensor.clone(), module.clone())).collect();
        let Self { name, kinds, rotary, grouped, fused, norms_plus_one, turned, refused, .. } = self;
        let rotary = rotary.into_iter().map(|(end, heads)| (end, RowOrder::Rotary(heads)));
        let orders = rotary.chain(grouped.into_iter().map(|end| (end, RowOrder::Grouped))).collect();
        GgufArch { name, kinds, orders, fused, refused, to_gguf, from_gguf, norms_plus_one, turned }
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

/// The tensors that belong to a module: `blk.0.attn_q.weight` → (`blk.0.attn_q`, `.weight`), here and in the checkpoint.
pub fn split_parameter(name: &str) -> Option<(&str, &'static str)> {
    [".weight", ".bias"].into_iter().find_map(|parameter| Some((name.strip_suffix(parameter)?, parameter)))
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

    /// Whether the checkpoint keeps weights as `[in, out]`, and the file as `[out, in]`.
    pub fn is_turned(&self) -> bool {
        self.turned
    }

    /// Where a module of the checkpoint lies.
    pub fn place(&self, module: &str) -> Option<Place> {
        let (template, numbers) = template(module);
        let tensor = self.to_gguf.get(&template)?;
        let layer = numbers.first().map_or_else(String::new, u64::to_string);
        let expert = numbers.get(1).copied();
        Some(Place { tensor: tensor.replace("{i}", &layer), expert, order: self.order(module) })
    }

    /// Whether a module is one in the checkpoint and several in a file.
    pub fn fuses(&self, module: &str) -> bool {
        self.fused.iter().any(|end| module.ends_with(end.as_str()))
    }

    /// What `transformers` calls its models, where that is one type.
    pub fn only_kind(&self) -> Option<&str> {
        match self.kinds.as_slice() {
            [kind] => Some(kind),
            _ => None,
        }
    }

    /// Why a module has no place, where there is more to say than that.
    pub fn refusal(&self, module: &str) -> Option<&str> {
        self.refused.iter().find(|(part, _)| module.contains(part.as_str())).map(|(_, reason)| reason.as_str())
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

    fn order(&self, module: &str) -> Option<RowOrder> {
        self.orders.iter().find(|(end, _)| module.ends_with(end.as_str())).map(|(_, order)| *order)
    }
}

impl RowOrder {
    /// For every row in the file the one of the checkpoint.
    ///
    /// # Errors
    /// When `rows` are not those of so many heads.
    pub fn rows(self, rows: usize, counts: HeadCounts) -> Result<Vec<usize>, String> {
        let HeadCounts { heads, kv_heads } = counts;
        match self {
            Self::Rotary(which) => {
                let heads = if which == Heads::Heads { heads } else { kv_heads };
                let order = interleaved(rows, heads);
                order.ok_or_else(|| format!("{rows} outputs are not {heads} heads of an even number of rows"))
            }
            Self::Grouped => {
                let order = ungrouped(rows, heads, kv_heads);
                order.ok_or_else(|| format!("{rows} outputs are not {heads} heads of queries and {kv_heads} of keys"))
            }
        }
    }
}

/// For every row of a fused tensor in the file the one of the checkpoint, where every head of keys lies between its queries and
/// its values.
fn ungrouped(rows: usize, heads: usize, kv_heads: usize) -> Option<Vec<usize>> {
    let all = kv_heads.checked_mul(2)?.checked_add(heads)?;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || rows == 0 || !rows.is_multiple_of(all) {
        return None;
    }
    let (queries, size) = (heads / kv_heads, rows / all);
    let head = |group: usize, at: usize| (0..size).map(move |row| (group * (queries + 2) + at) * size + row);
    let groups = || 0..kv_heads;
    let asking = groups().flat_map(|group| (0..queries).flat_map(move |at| head(group, at)));
    let others = (queries..queries + 2).flat_map(|at| groups().flat_map(move |group| head(group, at)));
    Some(asking.chain(others).collect())
}

/// For every row of a GGUF tensor, and of torchtune's, the row of the checkpoint that stands there; `None` where `rows` are no
/// whole number of heads with an even number of rows.
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
        assert_eq!(
            (q.tensor.as_str(), q.expert, q.order),
            ("blk.3.attn_q", None, Some(RowOrder::Rotary(Heads::Heads)))
        );
        let expert = place("llama", "model.layers.1.block_sparse_moe.experts.5.w2").unwrap();
        assert_eq!((expert.tensor.as_str(), expert.expert, expert.order), ("blk.1.ffn_down_exps", Some(5), None));
        assert_eq!(place("qwen2", "model.layers.0.self_attn.k_proj").unwrap().order, None);
        assert_eq!(place("phi3", "model.layers.0.mlp.gate_up_proj").unwrap().tensor, "blk.0.ffn_up");
        assert_eq!(place("gemma2", "lm_head"), None);
        assert_eq!(place("llama", "model.layers.0.self_attn.rotary_emb"), None);
        assert!(gguf_arch_of("bert").is_none());
    }

    #[test]
    fn grouped_rows_are_put_together() {
        // Two groups of two queries, a key and a value, one row each.
        assert_eq!(ungrouped(8, 4, 2), Some(vec![0, 1, 4, 5, 2, 6, 3, 7]));
        // GPT-NeoX: a group for every head; heads of two rows.
        assert_eq!(ungrouped(12, 2, 2), Some(vec![0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]));
        assert_eq!(ungrouped(9, 4, 2), None);
        assert_eq!(ungrouped(8, 3, 2), None);
        assert_eq!(ungrouped(8, 4, 0), None);
    }

    #[test]
    fn rows_are_interleaved_head_by_head() {
        assert_eq!(interleaved(8, 2), Some(vec![0, 2, 1, 3, 4, 6, 5, 7]));
        assert_eq!(interleaved(6, 1), Some(vec![0, 3, 1, 4, 2, 5]));
        assert_eq!(interleaved(6, 2), None);
        assert_eq!(interleaved(6, 0), None);
    }
}
