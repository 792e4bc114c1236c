//! Names that options take, for shells to complete. Whether a name is one is said by the room that knows it, with a way out; so nothing
//! is refused here.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use clap::builder::{PossibleValue, TypedValueParser};

use crate::dialects::Target;
use crate::llama::Mix;
use crate::naming::arch::archs;
use crate::tensor::GgmlType;

/// Dtypes that tensors are written in.
pub const DTYPES: [&str; 7] = ["keep", "f32", "f16", "bf16", "f64", "f8_e4m3", "f8_e5m2"];

/// Any text; some are offered for completion.
#[derive(Clone)]
pub struct Named(fn() -> Vec<&'static str>);

impl TypedValueParser for Named {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        clap::builder::StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new((self.0)().into_iter().map(PossibleValue::new)))
    }
}

/// `--dtype`.
pub fn dtypes() -> Named {
    Named(|| DTYPES.to_vec())
}

/// `--to` of a conversion.
pub fn targets() -> Named {
    Named(|| Target::all().map(Target::name).collect())
}

/// `--to` of a new adapter.
pub fn dialects() -> Named {
    Named(|| Target::dialects().map(Target::name).collect())
}

/// `--arch`: families of image and video models. Those of language models are names of their configs.
pub fn families() -> Named {
    Named(|| archs().iter().map(crate::naming::arch::Arch::name).collect())
}

/// `--quant` of a conversion.
pub fn mixes() -> Named {
    Named(|| Mix::names().collect())
}

/// `--quant` of a merge.
pub fn packings() -> Named {
    Named(|| {
        let types = GgmlType::all().filter(|ggml| ggml.can_encode());
        let names: BTreeSet<&'static str> =
            types.filter_map(|ggml| Mix::names().find(|name| ggml.name().eq_ignore_ascii_case(name))).collect();
        let k = ["q2_k", "q3_k", "q4_k", "q5_k"];
        ["keep"].into_iter().chain(names).chain(k).collect()
    })
}
