//! AdapterHub: `adapter_config.json` with the locations that are adapted, one rank and one α for all, and the adapter's name in
//! every key. Sources: adapters 1.3 `loading.py`, `methods/lora.py`, `configuration/adapter_config.py`.
//!
//! The library puts factors at a location of every layer that is not left out. Where the adapter has none, factors that change
//! nothing are written, so that nothing is missing when the file is loaded.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::ADAPTERHUB;
use super::places::{Planned, plan};
use crate::adapters::config::CONFIG_NAME;
use crate::dialects::evened::Evened;
use crate::dialects::files::{Facts, Files, column, matrix};
use crate::dialects::peft::write::cast;
use crate::dialects::pieces::{Other, Pieces, most_frequent};
use crate::error::Result;
use crate::formats::json;
use crate::pairs::Bytes;
use crate::tensor::{Float, Shape};

/// The version whose rules the file follows; scales were others before 1.1.
const VERSION: &str = "adapters.1.3.0";

/// How IA³ is called among the methods.
const IA3: &str = "IA³";

/// The files.
///
/// # Errors
/// When the library cannot express a change, or the family of the model decides and is not known.
pub(super) fn write(pieces: &Pieces, facts: &Facts<'_>) -> Result<Files> {
    refuse(pieces, facts)?;
    let paths: Vec<&str> = pieces.paths().map(String::as_str).collect();
    let planned = plan(&paths, facts)?;
    let mut files = Files::of(&ADAPTERHUB, &[("format", "pt")]);
    if planned.open_end {
        files.notes.push(
            "the number of layers is not known without the model (--base): layers behind the last one that is changed get \
             an adapter that changes nothing"
                .into(),
        );
    }
    let name = facts.adapter.config.raw.get("name").and_then(Value::as_str).filter(|_| is_own(facts));
    let config = if pieces.methods.is_empty() {
        loras(pieces, facts, &planned, name.unwrap_or("lora"), &mut files)?
    } else {
        vectors(pieces, facts, &planned, name.unwrap_or("ia3"), &mut files)?
    };
    let hidden = facts.wishes.config.map(|config| &config.raw);
    let hidden = hidden.and_then(|config| config.get("hidden_size").or_else(|| config.get("d_model"))).cloned();
    let mut whole = Map::new();
    whole.insert("config".into(), config);
    whole.insert("hidden_size".into(), hidden.or_else(|| planned.hidden(pieces)).unwrap_or_default());
    whole.insert("model_name".into(), facts.adapter.config.base_model.clone().into());
    whole.insert("model_type".into(), planned.model_type.clone().into());
    whole.insert("name".into(), name.unwrap_or(if pieces.methods.is_empty() { "lora" } else { "ia3" }).into());
    whole.insert("version".into(), VERSION.into());
    files.beside.push((PathBuf::from(CONFIG_NAME), json::render(&Value::Object(whole))));
    Ok(files)
}

/// Whether the adapter is AdapterHub's already, and says its own name and model.
pub(super) fn is_own(facts: &Facts<'_>) -> bool {
    facts.adapter.dialect == ADAPTERHUB.name
}

fn refuse(pieces: &Pieces, facts: &Facts<'_>) -> Result<()> {
    facts.no_pipeline(pieces, "AdapterHub's library loads adapters of language and vision models")?;
    if let Some(other) = pieces.methods.iter().find(|other| other.method.kind().title != IA3) {
        let what = format!(
            "`{}` is changed by {}, and AdapterHub is written for LoRA and IA³",
            other.path,
            other.method.kind()
        );
        return Err(facts.refuse(what).hint("make it LoRA: --as lora"));
    }
    if let (Some(other), Some(pair)) = (pieces.methods.first(), pieces.pairs.first()) {
        let what = format!("changes `{}` by {IA3} and `{}` by LoRA; AdapterHub has one of them", other.path, pair.path);
        return Err(facts.refuse(what));
    }
    if let Some(whole) = pieces.whole.first() {
        let what = format!(
            "`{}.{}` is stored whole, and an adapter of AdapterHub holds nothing beside its factors",
            whole.path, whole.parameter
        );
        return Err(facts.refuse(what));
    }
    for pair in &pieces.pairs {
        if pair.is_conv() {
            return Err(facts.refuse(format!("`{}` is a convolution, which AdapterHub does not adapt", pair.path)));
        }
        if pair.bias.is_some() {
            return Err(facts.refuse(format!("`{}` has a bias in its B, which AdapterHub does not have", pair.path)));
        }
    }
    Ok(())
}

/// The factors, and what the config says of them.
fn loras(pieces: &Pieces, facts: &Facts<'_>, planned: &Planned, name: &str, files: &mut Files) -> Result<Value> {
    let pairs = &pieces.pairs;
    let dora = refuse_dora(pieces, facts, planned)?;
    // Its forward pass takes the norms of DoRA without the scale, its merge both without: they agree where the scale is 1.
    let scale = if dora { 1.0 } else { most_frequent(pairs.iter().map(|pair| pair.scale)) };
    let mut evened = Evened::new(pairs, scale);
    let rank = evened.rank;
    for pair in pairs {
        let key = |part: &str| format!("{}.loras.{name}.{part}", pair.path);
        let (down, up) = evened.factors(pair, files);
        files.tensors.push(matrix(key("lora_A"), down, facts.float));
        files.tensors.push(matrix(key("lora_B"), up, facts.float));
        if let Some(magnitude) = facts.magnitude(pair, "AdapterHub")? {
            files.tensors.push(column(key("m.weight"), magnitude, &[pair.up.size.0, 1], facts.float));
        }
    }
    for (path, like) in &planned.filled {
        let like = &pairs[*like];
        let key = |part: &str| format!("{path}.loras.{name}.{part}");
        let float = facts.float.or(Some(like.up.float()));
        let (down, up) = evened.nothing(like.down.size.1, like.up.size.0);
        files.tensors.push(matrix(key("lora_A"), down, float));
        files.tensors.push(matrix(key("lora_B"), up, float));
    }
    evened.tell(files);
    filled(planned, "zeros", files);
    Ok(settings(planned, rank, scale * rank as f64, ("add", "lora"), dora))
}

/// Whether the adapter is DoRA.
fn refuse_dora(pieces: &Pieces, facts: &Facts<'_>, planned: &Planned) -> Result<bool> {
    let Some(pair) = pieces.pairs.iter().find(|pair| pair.magnitude.is_some()) else { return Ok(false) };
    if let Some(plain) = pieces.pairs.iter().find(|pair| pair.magnitude.is_none()) {
        let what = format!("`{}` has no magnitudes of DoRA and other modules have", plain.path);
        return Err(facts.refuse(what + "; AdapterHub has them everywhere or nowhere"));
    }
    if planned.biases {
        let what = format!(
            "`{}` is a DoRA, which AdapterHub lets scale the biases of a layer too, and those of this family may have some",
            pair.path
        );
        return Err(facts.refuse(what).hint("merge it, or extract a LoRA from the merged model"));
    }
    if let Some((path, _)) = planned.filled.first() {
        let what = format!(
            "is a DoRA that leaves out `{path}`, which AdapterHub adapts with the others and whose magnitudes only the base knows"
        );
        return Err(facts.refuse(what));
    }
    Ok(true)
}

/// The vectors of IA³, and what the config says of them.
fn vectors(pieces: &Pieces, facts: &Facts<'_>, planned: &Planned, name: &str, files: &mut Files) -> Result<Value> {
    let key = |path: &str| format!("{path}.loras.{name}.lora_B");
    let mut sizes = Vec::new();
    for Other { path, method } in &pieces.methods {
        for (_, tensor) in method.tensors() {
            let [outputs, 1] = tensor.info.shape.as_slice() else {
                let what = format!(
                    "`{path}` is changed by an {IA3} of shape {}, which scales inputs; AdapterHub scales the outputs of a layer",
                    tensor.info.shape
                );
                return Err(facts.refuse(what));
            };
            sizes.push((*outputs, tensor.info.dtype.float().unwrap_or(Float::F32)));
            files.tensors.push((key(path), Shape::from([*outputs, 1]), cast(tensor, facts.float)));
        }
    }
    for (path, like) in &planned.filled {
        let (outputs, float) = sizes[*like];
        let ones = vec![1.0; usize::try_from(outputs).unwrap_or(0)];
        let bytes = Bytes::held(&ones, facts.float.unwrap_or(float), (&facts.adapter.root, path))?;
        files.tensors.push((key(path), Shape::from([outputs, 1]), bytes));
    }
    filled(planned, "ones", files);
    Ok(settings(planned, 1, 1.0, ("scale", "ia3"), false))
}

fn filled(planned: &Planned, with: &str, files: &mut Files) {
    if !planned.filled.is_empty() {
        files.notes.push(format!(
            "{} modules that are not changed and that AdapterHub adapts with the others were filled up with {with}",
            planned.filled.len()
        ));
    }
}

fn settings(planned: &Planned, rank: u64, alpha: f64, (composition, initial): (&str, &str), dora: bool) -> Value {
    // The library's own α are whole numbers, and it takes others.
    let alpha = if alpha.fract() == 0.0 && alpha.abs() < 1e15 { json!(alpha as i64) } else { json!(alpha) };
    json!({
        "alpha": alpha,
        "architecture": "lora",
        "attn_matrices": planned.attention,
        "composition_mode": composition,
        "dropout": 0.0,
        "dtype": null,
        "init_weights": initial,
        "init_weights_seed": null,
        "intermediate_lora": planned.intermediate,
        "leave_out": planned.left_out,
        "output_lora": planned.output,
        "r": rank,
        "selfattn_lora": !planned.attention.is_empty(),
        "use_dora": dora,
        "use_gating": false,
        "vera_b": null,
        "vera_d": null,
    })
}
