//! Which type every tensor of a quantised file has: the mixes of llama.cpp.
//!
//! `q4_k_m` is mostly Q4_K, with more bits where errors weigh more: attn_v and ffn_down of the first and last layers, the head.
//! Source: llama.cpp `llama-quant.cpp` (`llama_tensor_get_type_impl`, without an importance matrix), for the types that can be
//! written here.

use std::cmp::Ordering;

use super::file_type::FileType;
use crate::formats::gguf::Metadata;
use crate::tensor::{GgmlType, TensorInfo};

/// A way to store a whole model, as `llama-quantize` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    /// Its name, in lower case.
    pub name: &'static str,
    /// `general.file_type`.
    pub file_type: u32,
    /// What most tensors become.
    pub ggml: GgmlType,
}

/// The mixes; all but the last, another name of the one before, are kinds of [`FileType`].
const MIXES: [&str; 20] = [
    "f32",
    "f16",
    "bf16",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "q2_k",
    "q3_k_s",
    "q3_k_m",
    "q3_k_l",
    "q4_k_s",
    "q4_k_m",
    "q5_k_s",
    "q5_k_m",
    "q6_k",
    "iq4_nl",
    "mxfp4_moe",
    "mxfp4",
];

/// What a tensor does in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Embedding,
    Output,
    Values,
    Keys,
    AttentionOutput,
    Down,
    Other,
}

/// By a part of the name; the first that fits.
const ROLES: [(&str, Role); 6] = [
    ("attn_qkv.weight", Role::Values),
    ("attn_kv_b.weight", Role::Values),
    ("attn_v.weight", Role::Values),
    ("attn_k.weight", Role::Keys),
    ("attn_output.weight", Role::AttentionOutput),
    ("ffn_down", Role::Down),
];

/// Parts of the names of tensors that are never quantised, beside vectors and norms.
const KEPT: [&str; 34] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "position_embd.weight",
    "token_types.weight",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// What the choice depends on beside names and shapes.
#[derive(Debug, Default)]
struct Model {
    falcon: bool,
    seventy: bool,
    layers: u64,
    queries_per_key: u64,
    experts: u64,
    tied: bool,
    /// Tensors of the role [`Role::Values`].
    values: u64,
}

impl Model {
    fn of(metadata: &Metadata, tensors: &[TensorInfo]) -> Self {
        let arch = metadata.text("general.architecture").unwrap_or_default();
        let number = |key: &str| metadata.number(&format!("{arch}.{key}")).unwrap_or(0);
        let (layers, heads) = (number("block_count"), number("attention.head_count"));
        let kv_heads = metadata.number(&format!("{arch}.attention.head_count_kv")).unwrap_or(heads);
        let count = |role: Role| tensors.iter().filter(|tensor| Role::of(&tensor.name) == role).count();
        Self {
            falcon: arch == "falcon",
            seventy: layers == 80 && (arch == "qwen2" || (arch == "llama" && heads != kv_heads)),
            layers,
            queries_per_key: heads.checked_div(kv_heads).unwrap_or(0),
            experts: number("expert_count"),
            tied: count(Role::Output) == 0,
            values: count(Role::Values) as u64,
        }
    }
}

impl Role {
    fn of(name: &str) -> Self {
        match name {
            "output.weight" => Self::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Self::Embedding,
            _ => ROLES.iter().find(|(part, _)| name.contains(part)).map_or(Self::Other, |(_, role)| *role),
        }
    }
}

/// The layer in a name, `blk.3.attn_q.weight`; −1 for what is in none.
fn layer(name: &str) -> i64 {
    let number = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    number.and_then(|(number, _)| number.parse().ok()).unwrap_or(-1)
}

/// The order in which llama.cpp goes over the tensors of a file: by layer, then by name.
fn by_layer(left: &str, right: &str) -> Ordering {
    layer(left).cmp(&layer(right)).then_with(|| left.cmp(right))
}

/// Whether a tensor is one of those that are quantised.
fn is_quantised(tensor: &TensorInfo) -> bool {
    let shape = tensor.shape.as_slice();
    // Leading ones are no dimensions to ggml.
    let dimensions = shape.iter().skip_while(|size| **size == 1).count();
    dimensions >= 2 && tensor.name.ends_with("weight") && !KEPT.iter().any(|part| tensor.name.contains(part))
}

/// What has been counted on the way.
#[derive(Default)]
struct Seen {
    values: u64,
    down: u64,
}

impl Mix {
    /// The mix of that name, in any case; `q4_k` and the like mean the middle one.
    pub fn named(name: &str) -> Option<Self> {
        let lower = name.to_lowercase();
        let middle = ["q3_k", "q4_k", "q5_k"].contains(&lower.as_str()).then(|| format!("{lower}_m"));
        let wanted = middle.unwrap_or(lower);
        MIXES.into_iter().find(|name| *name == wanted).and_then(Self::of_kind)
    }

    fn of_kind(name: &'static str) -> Option<Self> {
        let kind = FileType::named(if name == "mxfp4" { "mxfp4_moe" } else { name })?;
        Some(Self { name, file_type: kind.0, ggml: kind.ggml()? })
    }

    /// The names of all.
    pub fn names() -> impl Iterator<Item = &'static str> {
        MIXES.into_iter()
    }

    /// The plain type of that name: `f32`, `f16` or `bf16`.
    pub fn plain(ggml: GgmlType) -> Option<Self> {
        ggml.float().and_then(|_| Self::named(ggml.name()))
    }

    /// The type of every tensor of a file, in its order; `None` for those that stay what they are.
    pub fn types(self, metadata: &Metadata, tensors: &[TensorInfo]) -> Vec<Option<GgmlType>> {
        let model = Model::of(metadata, tensors);
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by(|left, right| by_layer(&tensors[*left].name, &tensors[*right].name));
        let mut types = vec![None; tensors.len()];
        let mut seen = Seen::default();
        for at in order {
            let tensor = &tensors[at];
            if is_quantised(tensor) {
                types[at] = Some(match self.ggml.float() {
                    Some(_) => self.ggml,
                    None => fitting(tensor, self.of(&model, tensor, &mut seen)),
                });
            }
        }
        types
    }

    fn of(self, model: &Model, tensor: &TensorInfo, seen: &mut Seen) -> GgmlType {
        let role = Role::of(&tensor.name);
        let row = tensor.shape.as_slice().last().copied().unwrap_or(0);
        if role == Role::Output || (role == Role::Embedding && model.tied) {
            let wide =
                self.name.starts_with("mxfp4") || model.falcon || !row.is_multiple_of(self.ggml.block().0 as u64);
            return if wide || self.ggml == GgmlType::Q8_0 { GgmlType::Q8_0 } else { GgmlType::Q6K };
        }
        if self.name.starts_with("mxfp4") {
            let stacked = tensor.shape.as_slice().len() > 2;
            return if stacked { GgmlType::Mxfp4 } else { GgmlType::Q8_0 };
        }
        match role {
            Role::Values => {
                seen.values += 1;
                self.of_values(model, seen.values - 1)
            }
            Role::Keys if model.experts == 8 => GgmlType::Q8_0,
            Role::Down => {
                seen.down += 1;
                let counted = seen.down - 1;
                let named = u64::try_from(layer(&tensor.name)).unwrap_or(counted);
                self.of_down(model, if model.experts > 1 { named } else { counted })
            }
            Role::AttentionOutput => self.of_attention_output(model),
            _ => self.ggml,
        }
    }

    fn of_values(self, model: &Model, at: u64) -> GgmlType {
        let grouped = model.queries_per_key >= 4;
        let ggml = match self.name {
            "q2_k" if grouped => GgmlType::Q4K,
            "q2_k" => GgmlType::Q3K,
            "q3_k_m" if at < 2 => GgmlType::Q5K,
            "q3_k_m" => GgmlType::Q4K,
            "q3_k_l" => GgmlType::Q5K,
            "iq4_nl" if grouped => GgmlType::Q5K,
            "q4_k_m" | "q5_k_m" if needs_more(at, model.values) => GgmlType::Q6K,
            "q4_k_s" if at < 4 => GgmlType::Q5K,
            _ => self.ggml,
        };
        // Eight heads share the values of a model with 70 B, so more bits cost little there.
        match ggml {
            _ if model.experts == 8 => GgmlType::Q8_0,
            GgmlType::Q3K | GgmlType::Q4K if model.seventy => GgmlType::Q5K,
            other => other,
        }
    }

    fn of_down(self, model: &Model, at: u64) -> GgmlType {
        let layers = model.layers;
        match (self.name, model.falcon) {
            ("q2_k", _) => GgmlType::Q3K,
            ("q3_k_m", _) if at < layers / 16 => GgmlType::Q5K,
            ("q3_k_m", true) if !needs_more(at, layers) => GgmlType::Q3K,
            ("q3_k_m", _) | ("q3_k_l", true) => GgmlType::Q4K,
            ("q3_k_l", false) => GgmlType::Q5K,
            ("q4_k_m", true) if at < layers / 16 => GgmlType::Q6K,
            ("q4_k_m", true) if needs_more(at, layers) => GgmlType::Q5K,
            ("q4_k_m", false) | ("q5_k_m", _) if needs_more(at, layers) => GgmlType::Q6K,
            ("iq4_nl", _) | ("q4_k_s", false) if at < layers / 8 => GgmlType::Q5K,
            _ => self.ggml,
        }
    }

    fn of_attention_output(self, model: &Model) -> GgmlType {
        match (self.name, model.falcon, model.experts == 8) {
            ("q3_k_l", true, _) => GgmlType::Q4K,
            (_, true, _) => self.ggml,
            ("q2_k" | "q3_k_s" | "q3_k_m" | "iq4_nl" | "q4_k_s" | "q4_k_m", _, true) => GgmlType::Q5K,
            ("q2_k", _, false) => GgmlType::Q3K,
            ("q3_k_m", _, false) => GgmlType::Q4K,
            ("q3_k_l", _, false) => GgmlType::Q5K,
            _ => self.ggml,
        }
    }
}

/// The layers whose errors weigh most: the first and last eighth, and every third between.
fn needs_more(layer: u64, layers: u64) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The type itself, or the one that llama.cpp takes where its blocks do not fit the rows.
fn fitting(tensor: &TensorInfo, ggml: GgmlType) -> GgmlType {
    let row = tensor.shape.as_slice().last().copied().unwrap_or(0);
    let fits = |ggml: GgmlType| row.is_multiple_of(ggml.block().0 as u64);
    let smaller = match ggml {
        _ if fits(ggml) => return ggml,
        GgmlType::Q2K | GgmlType::Q3K => GgmlType::Q4_0,
        GgmlType::Q4K => GgmlType::Q5_0,
        GgmlType::Q5K => GgmlType::Q5_1,
        GgmlType::Q6K => GgmlType::Q8_0,
        other => other,
    };
    if fits(smaller) { smaller } else { GgmlType::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::gguf::Value;
    use crate::tensor::Shape;

    fn tensor(name: &str, shape: &[u64]) -> TensorInfo {
        let shape = Shape::from(shape.to_vec());
        TensorInfo {
            name: name.into(),
            dtype: GgmlType::F32.dtype(),
            bytes: 4 * shape.elements().unwrap(),
            shape,
            offset: 0,
        }
    }

    fn metadata(layers: u32, experts: u32) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama".into());
        for (key, value) in [
            ("block_count", layers),
            ("attention.head_count", 8),
            ("attention.head_count_kv", 2),
            ("expert_count", experts),
        ] {
            metadata.set(&format!("llama.{key}"), Value::U32(value));
        }
        metadata
    }

    fn of(name: &str, metadata: &Metadata, tensors: &[TensorInfo]) -> Vec<Option<GgmlType>> {
        Mix::named(name).unwrap().types(metadata, tensors)
    }

    #[test]
    fn every_mix_can_be_written() {
        for name in MIXES {
            let mix = Mix::named(name).unwrap();
            assert!(mix.ggml.can_encode(), "{}", mix.name);
            assert_eq!(Mix::named(&mix.name.to_uppercase()), Some(mix));
        }
        assert_eq!(Mix::named("Q4_K"), Mix::named("q4_k_m"));
        assert_eq!(Mix::named("iq2_xxs"), None);
        assert_eq!(Mix::plain(GgmlType::Bf16).unwrap().file_type, 32);
        assert_eq!(Mix::plain(GgmlType::Q4_0), None);
    }

    #[test]
    fn more_bits_go_where_errors_weigh_more() {
        let values: Vec<TensorInfo> =
            (0..16).map(|at| tensor(&format!("blk.{at}.attn_v.weight"), &[256, 256])).collect();
        let wide = |types: Vec<Option<GgmlType>>, ggml| -> Vec<usize> {
            types.iter().enumerate().filter(|(_, found)| **found == Some(ggml)).map(|(at, _)| at).collect()
        };
        let q4_k_m = of("q4_k_m", &metadata(16, 0), &values);
        assert_eq!(wide(q4_k_m, GgmlType::Q6K), [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(wide(of("q4_k_s", &metadata(16, 0), &values), GgmlType::Q5K), [0, 1, 2, 3]);
        assert_eq!(wide(of("q3_k_m", &metadata(16, 0), &values), GgmlType::Q5K), [0, 1]);
        assert_eq!(of("q4_k_m", &metadata(16, 8), &values)[5], Some(GgmlType::Q8_0));
        assert_eq!(of("q4_k_m", &metadata(80, 0), &values)[5], Some(GgmlType::Q5K), "70 B");
    }

    #[test]
    fn the_head_has_six_bits_and_a_tied_embedding_is_one() {
        let (embedding, head) = (tensor("token_embd.weight", &[64, 256]), tensor("output.weight", &[64, 256]));
        let q4_0 = |tensors: &[TensorInfo]| of("q4_0", &metadata(1, 0), tensors);
        assert_eq!(q4_0(std::slice::from_ref(&embedding)), [Some(GgmlType::Q6K)]);
        assert_eq!(q4_0(&[embedding, head]), [Some(GgmlType::Q4_0), Some(GgmlType::Q6K)]);
        assert_eq!(q4_0(&[tensor("output.weight", &[64, 96])]), [Some(GgmlType::Q8_0)], "rows of no 256");
    }

    #[test]
    fn rows_that_do_not_fit_get_a_type_that_does() {
        for (mix, row, expected) in [
            ("q4_k_m", 288, GgmlType::Q5_0),
            ("q5_k_m", 288, GgmlType::Q5_1),
            ("q6_k", 288, GgmlType::Q8_0),
            ("q3_k_s", 288, GgmlType::Q4_0),
            ("q4_k_m", 40, GgmlType::F16),
            ("q4_0", 40, GgmlType::F16),
        ] {
            assert_eq!(
                of(mix, &metadata(1, 0), &[tensor("blk.0.attn_q.weight", &[4, row])]),
                [Some(expected)],
                "{mix}"
            );
        }
    }

    #[test]
    fn what_is_small_or_delicate_stays() {
        let kept = [
            tensor("blk.0.attn_norm.weight", &[256]),
            tensor("blk.0.attn_q.bias", &[2, 256]),
            tensor("blk.0.ffn_gate_inp.weight", &[4, 256]),
            tensor("blk.0.ffn_gate_inp_shexp.weight", &[1, 256]),
        ];
        assert_eq!(of("q8_0", &metadata(1, 4), &kept), [None; 4]);
        assert_eq!(of("f16", &metadata(1, 4), &kept), [None; 4]);
        let stack = [tensor("blk.0.ffn_up_exps.weight", &[4, 8, 32]), tensor("blk.0.attn_q.weight", &[8, 32])];
        assert_eq!(of("mxfp4_moe", &metadata(1, 4), &stack), [Some(GgmlType::Mxfp4), Some(GgmlType::Q8_0)]);
    }
}
