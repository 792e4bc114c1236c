//! Quantised weights that are known by name and not read: who packs like that, why it is not read, and the way out.

use serde_json::{Map, Value};

use super::files::Files;
use crate::error::{Error, Result};

/// A way of packing.
#[derive(Debug, Clone, Copy)]
pub struct Refused {
    /// Who packs so.
    pub who: &'static str,
    /// Why it is not read, behind "which".
    pub why: &'static str,
    /// The ends of the names of tensors that show it, behind the module's path.
    ends: &'static [&'static str],
    /// What `quant_method` says then.
    methods: &'static [&'static str],
}

/// All of them.
const REFUSED: &[Refused] = &[
    Refused {
        who: "HQQ",
        why: "packs along an axis that differs from file to file",
        ends: &[".W_q"],
        methods: &["hqq"],
    },
    Refused {
        who: "quanto",
        why: "packs its codes for the device it ran on",
        ends: &[".weight._data", ".weight._scale"],
        methods: &["quanto"],
    },
    Refused {
        who: "torchao",
        why: "has a layout of its own for every kind of weight",
        ends: &["._weight_qdata", ".weight.qdata", "._weight_scale", ".scale_and_zero", ".scales_and_zeros"],
        methods: &["torchao"],
    },
    Refused { who: "AQLM", why: "sums entries of learned codebooks", ends: &[".codebooks"], methods: &["aqlm"] },
    Refused {
        who: "VPTQ",
        why: "stores vectors of learned codebooks",
        ends: &[".res_centroids.weight"],
        methods: &["vptq"],
    },
    Refused { who: "HIGGS", why: "rotates weights before it packs them", ends: &[".tables2"], methods: &["higgs"] },
    Refused {
        who: "SpQR",
        why: "keeps its outliers apart in a sparse form",
        ends: &[".dense_weights"],
        methods: &["spqr"],
    },
    Refused {
        who: "EXL2",
        why: "mixes widths in the rows of one weight",
        ends: &[".q_weight", ".q_invperm"],
        methods: &["exl2"],
    },
    Refused { who: "EXL3", why: "codes a path through a trellis", ends: &[".trellis"], methods: &["exl3"] },
    Refused { who: "QuIP#", why: "rotates weights and codes them by a lattice", ends: &[".Qidxs"], methods: &["quip"] },
    Refused {
        who: "marlin",
        why: "is ordered for the lanes of a GPU",
        ends: &[".marlin_qweight"],
        methods: &["marlin"],
    },
    Refused {
        who: "BitNet",
        why: "scales its three values in ways that differ by version",
        ends: &[],
        methods: &["bitnet"],
    },
    Refused { who: "EETQ", why: "is ordered for the lanes of a GPU", ends: &[], methods: &["eetq"] },
    Refused {
        who: "FP-Quant",
        why: "rotates weights before it packs them",
        ends: &[".dqweight"],
        methods: &["fp_quant"],
    },
    Refused { who: "SINQ", why: "scales both axes of a weight", ends: &[], methods: &["sinq"] },
    Refused {
        who: "Gemma QAT",
        why: "has widths and offsets that only its config knows",
        ends: &[".embedding_quantized"],
        methods: &["gemma"],
    },
    Refused { who: "Quark", why: "is not read yet", ends: &[], methods: &["quark"] },
];

/// Ends of names of codes that are read, for messages about one that could not be.
const CODES: [(&str, &str); 6] = [
    (".weight.quant_state.bitsandbytes__nf4", "bitsandbytes NF4"),
    (".weight.quant_state.bitsandbytes__fp4", "bitsandbytes FP4"),
    (".weight.absmax", "bitsandbytes 4-bit"),
    (".SCB", "bitsandbytes LLM.int8"),
    (".qweight", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
];

/// What betrays that the weight of `module` is packed in a way that is not read: the tensor, who packs so, and why it is not read.
pub fn of_module(module: &str, has: impl Fn(&str) -> bool) -> Option<(String, &'static str, Option<&'static str>)> {
    let known =
        REFUSED.iter().flat_map(|refused| refused.ends.iter().map(|end| (*end, refused.who, Some(refused.why))));
    let codes = CODES.iter().map(|(end, who)| (*end, *who, None));
    known.chain(codes).find_map(|(end, who, why)| {
        let name = format!("{module}{end}");
        has(&name).then_some((name, who, why))
    })
}

/// Every end of a name that betrays packed codes, with who packs so.
pub fn ends() -> impl Iterator<Item = (&'static str, &'static str)> {
    ends_and_reasons().map(|(end, who, _)| (end, who))
}

/// The same with why such codes are not read, where they never are.
pub fn ends_and_reasons() -> impl Iterator<Item = (&'static str, &'static str, Option<&'static str>)> {
    let known =
        REFUSED.iter().flat_map(|refused| refused.ends.iter().map(|end| (*end, refused.who, Some(refused.why))));
    known.chain(CODES.iter().map(|(end, who)| (*end, *who, None)))
}

/// What the config says of all weights that would make their values wrong.
///
/// # Errors
/// When it says so.
pub fn check(files: &Files<'_>) -> Result<()> {
    let settings = files.settings();
    if let Some(Refused { who, why, .. }) = of_settings(settings) {
        let what = format!("is quantised by {who} (`quant_method` of its config), which {why}");
        return Err(Error::unsupported(files.root(), what).hint("take the model the quantised one was made from"));
    }
    let text = |key: &str| settings.get(key).and_then(Value::as_str).map(str::to_lowercase);
    let refuse = |what: String, way_out: &str| Err(Error::unsupported(files.root(), what).hint(way_out));
    if settings.get("transform_config").is_some_and(|said| !is_empty(said)) {
        let what =
            "has rotated weights (`transform_config` in its quantisation config), which are not those of the model";
        return refuse(what.into(), "take the model the quantised one was made from");
    }
    let awq = files.method().as_deref() == Some("awq");
    let layout = text("version").filter(|_| awq).or_else(|| text("checkpoint_format")).or_else(|| text("format"));
    match layout.as_deref() {
        Some(name @ ("gemv" | "gemv_fast" | "llm-awq" | "marlin")) => {
            let what = format!("is packed as `{name}`, which is ordered for the lanes of a GPU");
            refuse(what, "take a file packed as `gemm`, or the model the quantised one was made from")
        }
        _ => Ok(()),
    }
}

/// The method a config names, where weights of it are not read.
pub fn of_settings(settings: &Map<String, Value>) -> Option<&'static Refused> {
    let method = settings.get("quant_method").and_then(Value::as_str)?.to_lowercase();
    REFUSED.iter().find(|refused| refused.methods.contains(&method.as_str()))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(entries) => entries.is_empty() || entries.get("config_groups").is_some_and(is_empty),
        Value::Array(entries) => entries.is_empty(),
        _ => false,
    }
}
