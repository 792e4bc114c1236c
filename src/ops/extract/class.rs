//! What becomes of a tensor that changed: factors, a tensor stored whole, a bias, or a refusal. Decided by name and shape; no
//! model class is known.

use super::pairing::module_of;
use crate::naming::experts::{DEFINITION_ORDER, FUSED, TRANSPOSED_MODELS, is_router};
use crate::naming::{conv1d, embeddings};

/// The layer a change in factors belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// `[out, in]`.
    Linear,
    /// `[in, out]`.
    Conv1d,
    /// `[out, in, k …]`.
    Conv(Vec<u64>),
    /// `[vocabulary, dim]`.
    Embedding,
    /// `[out, in]`, or `[experts, out, in]` with every expert decomposed on its own: a parameter, not a layer.
    Parameter {
        /// Its name in the module.
        name: String,
        /// Experts, 1 for a matrix.
        experts: u64,
        /// `[in, out]` within an expert.
        transposed: bool,
    },
}

/// What becomes of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// Low-rank factors.
    Factors(Layer),
    /// Stored whole with all parameters of its module, and why.
    Whole(&'static str),
    /// Stored as the bias of a frozen layer.
    Bias,
    /// A vector that belongs to a module with others below it: PEFT has no place for it.
    Loose,
}

/// The class of the tensor `name` with the dimensions `shape`. `has_children` tells whether modules lie below its own,
/// `is_one_of` whether the model is of one of some types; `turned` whether a stack is to be turned, where that is known.
pub fn classify(
    name: &str,
    shape: &[u64],
    has_children: bool,
    turned: Option<bool>,
    is_one_of: impl Fn(&[&str]) -> bool,
) -> Class {
    let turned = turned.unwrap_or_else(|| is_one_of(&TRANSPOSED_MODELS));
    let (module, parameter) = (module_of(name), name.rsplit('.').next().unwrap_or(name));
    let named_weight = parameter == "weight";
    if parameter != "weight" && parameter.contains("bias") {
        // Of a layer whose weight is a vector it is stored with that; see `whole`.
        return Class::Bias;
    }
    let layer = match shape {
        [] | [_] if named_weight || !has_children => return Class::Whole("has one dimension"),
        [] | [_] => return Class::Loose,
        [_, _] if !named_weight || is_router(module) => parameter_of(parameter, shape, turned),
        [_, _] if embeddings::is_table(module) => Layer::Embedding,
        [_, _] if is_one_of(&conv1d::MODELS) && conv1d::is_layer(module) => Layer::Conv1d,
        [_, _] => Layer::Linear,
        [_, _, _] if !named_weight || is_stack(name) => parameter_of(parameter, shape, turned),
        [out, 1, kernel @ ..] if *out > 1 && kernel.iter().product::<u64>() > 1 => {
            return Class::Whole("may be a convolution in groups, of which PEFT has no low-rank form");
        }
        [_, _, kernel @ ..] if kernel.len() <= 3 && named_weight => Layer::Conv(kernel.to_vec()),
        _ if has_children => return Class::Loose,
        _ => return Class::Whole("has a shape that no layer is known for"),
    };
    Class::Factors(layer)
}

fn parameter_of(name: &str, shape: &[u64], turned: bool) -> Layer {
    let experts = if shape.len() == 3 { shape[0] } else { 1 };
    Layer::Parameter { name: name.into(), experts, transposed: shape.len() == 3 && turned }
}

/// Whether a `weight` of three dimensions is a stack of experts, not a convolution.
fn is_stack(name: &str) -> bool {
    FUSED.iter().any(|fused| fused.stacks.iter().any(|stack| name.ends_with(&format!("{}.{stack}", fused.module))))
}

impl Layer {
    /// Whether the stored weight is `[in, out]`: the factors change places.
    pub fn is_turned(&self) -> bool {
        match self {
            Self::Linear | Self::Conv(_) => false,
            Self::Conv1d | Self::Embedding => true,
            Self::Parameter { transposed, .. } => *transposed,
        }
    }

    /// Where it stands among the parameters of its module: PEFT wraps them in this order, the last one outermost.
    pub fn definition_order(&self) -> usize {
        match self {
            Self::Parameter { name, .. } => {
                DEFINITION_ORDER.iter().position(|known| known == name).unwrap_or(DEFINITION_ORDER.len())
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_tensor_has_its_class() {
        let parameter = |name: &str, experts, transposed| {
            Class::Factors(Layer::Parameter { name: name.into(), experts, transposed })
        };
        for (model, name, shape, children, class) in [
            ("llama", "l.0.q_proj.weight", &[4_u64, 8][..], false, Class::Factors(Layer::Linear)),
            ("llama", "model.embed_tokens.weight", &[9, 4], false, Class::Factors(Layer::Embedding)),
            ("llama", "h.0.attn.c_attn.weight", &[4, 12], false, Class::Factors(Layer::Linear)),
            ("gpt2", "h.0.attn.c_attn.weight", &[4, 12], false, Class::Factors(Layer::Conv1d)),
            ("gpt2", "lm_head.weight", &[9, 4], false, Class::Factors(Layer::Linear)),
            ("llama", "conv.weight", &[8, 4, 3, 3], false, Class::Factors(Layer::Conv(vec![3, 3]))),
            ("llama", "conv.weight", &[8, 4, 3], false, Class::Factors(Layer::Conv(vec![3]))),
            ("llama", "norm.weight", &[8], false, Class::Whole("has one dimension")),
            ("llama", "norm.gamma", &[8], false, Class::Whole("has one dimension")),
            ("llama", "mixer.A_log", &[8], true, Class::Loose),
            ("llama", "q_proj.bias", &[8], false, Class::Bias),
            ("llama", "l.0.mlp.router.weight", &[4, 8], false, parameter("weight", 1, false)),
            ("llama", "attn.in_proj_bias", &[8], true, Class::Bias),
            ("llama", "attn.in_proj_weight", &[12, 4], true, parameter("in_proj_weight", 1, false)),
            ("llama", "mlp.experts.down_proj", &[5, 8, 4], false, parameter("down_proj", 5, false)),
            ("aria", "mlp.experts.down_proj", &[5, 8, 4], false, parameter("down_proj", 5, true)),
            ("llama", "l.0.block_sparse_moe.input_linear.weight", &[5, 8, 4], false, parameter("weight", 5, false)),
        ] {
            assert_eq!(classify(name, shape, children, None, |types| types.contains(&model)), class, "{name}");
        }
        let grouped = classify("conv.weight", &[8, 1, 4], false, None, |_| false);
        assert!(matches!(grouped, Class::Whole(why) if why.contains("groups")));
    }
}
