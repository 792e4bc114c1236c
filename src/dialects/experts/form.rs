//! The forms in which adapters of experts are written, and what the layers of a family are called in each.

use std::str::FromStr;

use super::sides::Family;
use crate::error::{Error, Result};
use crate::naming::experts::{INTERLEAVED_MODELS, SPLIT, Split, layer_of_stack};

/// A form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertForm {
    /// One pair for every projection of every expert: PEFT under transformers 4, SGLang, llama.cpp's converter.
    PerExpert,
    /// One pair for a parameter with all experts: PEFT under transformers 5.
    Fused,
    /// As [`PerExpert`](Self::PerExpert), every expert with all projections, one rank for a projection of a layer.
    Vllm2d,
    /// As [`Fused`](Self::Fused), both parameters of every layer.
    Vllm3d,
}

/// As they are called on the command line.
const NAMES: [(&str, ExpertForm); 4] = [
    ("per-expert", ExpertForm::PerExpert),
    ("fused", ExpertForm::Fused),
    ("vllm-2d", ExpertForm::Vllm2d),
    ("vllm-3d", ExpertForm::Vllm3d),
];

impl ExpertForm {
    /// As it is called on the command line.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, form)| *form == self).map_or("", |(name, _)| name)
    }

    /// Whether all experts of a layer are one.
    pub fn is_fused(self) -> bool {
        matches!(self, Self::Fused | Self::Vllm3d)
    }

    /// Whether what is missing is filled up with zeros.
    pub fn is_complete(self) -> bool {
        matches!(self, Self::Vllm2d | Self::Vllm3d)
    }
}

impl FromStr for ExpertForm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let listed = || NAMES.map(|(name, _)| name).join(", ");
        let unknown = || Error::invalid("--experts", format!("`{text}` is not one of {}", listed()));
        NAMES.iter().find(|(name, _)| *name == text).map(|(_, form)| *form).ok_or_else(unknown)
    }
}

/// Families whose checkpoints have `block_sparse_moe` and w1, w2, w3, and whose modules transformers 5 calls otherwise.
const MIXTRAL: [&str; 4] = ["mixtral", "minimax", "minimax_m2", "phimoe"];

/// The one whose router transformers 5 calls so.
const ROUTER: &str = "phimoe";

/// Families whose routers are linear layers in transformers 4, and classes of their own in 5.
const LINEAR_ROUTERS: [&str; 9] =
    ["mixtral", "minimax", "minimax_m2", "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe", "qwen3_5_moe"];

/// The family with w1, w2, w3 below `feed_forward`.
const LFM2: &str = "lfm2_moe";

impl Family {
    fn is_one_of(&self, types: &[&str]) -> bool {
        self.types.iter().any(|name| types.contains(&name.strip_suffix("_text").unwrap_or(name)))
    }

    /// Whether nothing is known of it.
    pub fn is_unknown(&self) -> bool {
        self.types.is_empty()
    }

    /// Whether gate and up alternate where they are one.
    pub fn is_interleaved(&self) -> bool {
        self.is_one_of(&INTERLEAVED_MODELS)
    }

    /// The layer of the stacks `module`, and what its experts are called one by one.
    pub fn split<'m>(&self, module: &'m str, parameter: &str) -> Option<(&'m str, &'static Split)> {
        let layer = layer_of_stack(module)?;
        let list = match self.is_one_of(&MIXTRAL) {
            true => "block_sparse_moe.experts",
            false => module.get(layer.len()..)?,
        };
        let mut rows = SPLIT.iter().filter(|split| split.experts == list && split.parts_of(parameter).is_some());
        let first = rows.next()?;
        // Jamba and LFM2 differ in nothing else.
        let other = rows.next().filter(|_| self.is_one_of(&[LFM2]));
        Some((layer, other.unwrap_or(first)))
    }

    /// The module of transformers 5 that holds the experts of the list `list`.
    pub fn fused(&self, list: &str) -> String {
        match list.strip_suffix("block_sparse_moe.experts") {
            Some(layer) => format!("{layer}mlp.experts"),
            None => list.to_owned(),
        }
    }

    /// What transformers 5 calls the linear router `path` of transformers 4; `None` where it is no such router, or that is not known.
    pub fn fused_router(&self, path: &str) -> Option<String> {
        let block = path.strip_suffix(".gate")?;
        if let Some(layer) = block.strip_suffix("block_sparse_moe") {
            let name = if self.is_one_of(&[ROUTER]) { "router" } else { "gate" };
            return self.is_one_of(&MIXTRAL).then(|| format!("{layer}mlp.{name}"));
        }
        let known = self.is_unknown() || self.is_one_of(&LINEAR_ROUTERS);
        (block.ends_with("mlp") && known).then(|| path.to_owned())
    }

    /// What transformers 4 calls the router `path`, if it is a linear layer there.
    pub fn split_router(&self, path: &str) -> Option<String> {
        let block = path.strip_suffix(".gate").or_else(|| path.strip_suffix(".router"))?;
        if !self.is_one_of(&LINEAR_ROUTERS) {
            return None;
        }
        match block.strip_suffix("mlp").filter(|_| self.is_one_of(&MIXTRAL)) {
            Some(layer) => Some(format!("{layer}block_sparse_moe.gate")),
            None => Some(path.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(name: &str) -> Family {
        Family { types: vec![name.into()], width: None }
    }

    #[test]
    fn every_form_is_found_by_its_name() {
        for (name, form) in NAMES {
            assert_eq!((form.name(), name.parse::<ExpertForm>().expect("a form")), (name, form));
        }
        assert!(
            "2d".parse::<ExpertForm>()
                .expect_err("unknown")
                .to_string()
                .contains("per-expert, fused, vllm-2d, vllm-3d")
        );
    }

    #[test]
    fn modules_have_the_names_of_their_family() {
        let split = |name: &str, module: &str| {
            let family = family(name);
            let (layer, split) = family.split(module, "down_proj").expect("known");
            split.tensor(layer, 1, crate::naming::experts::Part::Down)
        };
        assert_eq!(split("qwen3_moe", "l.0.mlp.experts"), "l.0.mlp.experts.1.down_proj.weight");
        assert_eq!(split("mixtral", "l.0.mlp.experts"), "l.0.block_sparse_moe.experts.1.w2.weight");
        assert_eq!(split("lfm2_moe", "l.0.feed_forward.experts"), "l.0.feed_forward.experts.1.w2.weight");
        assert_eq!(split("llama4", "l.0.feed_forward.experts"), "l.0.feed_forward.experts.1.down_proj.weight");
        assert_eq!(family("mixtral").fused("l.0.block_sparse_moe.experts"), "l.0.mlp.experts");
    }

    #[test]
    fn routers_are_renamed_where_the_family_tells() {
        assert_eq!(family("mixtral").fused_router("l.0.block_sparse_moe.gate").as_deref(), Some("l.0.mlp.gate"));
        assert_eq!(family("phimoe").fused_router("l.0.block_sparse_moe.gate").as_deref(), Some("l.0.mlp.router"));
        assert_eq!(family("qwen3_moe").fused_router("l.0.mlp.gate").as_deref(), Some("l.0.mlp.gate"));
        assert_eq!(Family { types: vec![], width: None }.fused_router("l.0.block_sparse_moe.gate"), None);
        assert_eq!(family("phimoe").split_router("l.0.mlp.router").as_deref(), Some("l.0.block_sparse_moe.gate"));
        assert_eq!(family("gpt_oss").split_router("l.0.mlp.router"), None);
    }
}
