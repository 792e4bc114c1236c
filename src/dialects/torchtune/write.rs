//! torchtune's own names, with the rows of queries and keys in its order (`dialects/torchtune/read.rs`). Source: torchtune 0.6
//! `models/convert_weights.py`, `training/checkpointing/_utils.py`, `modules/peft/_utils.py`.
//!
//! torchtune saves a pickle, or PEFT's form, which it cannot load again; what it loads as `adapter_checkpoint` is a pickle or
//! safetensors with its own names, and rank and α stand in its recipe. Its recipes adapt all layers alike, and all projections of
//! an MLP or none, so that modules without a change are written as zeros.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::read::head_of;
use super::{MODEL, TORCHTUNE};
use crate::adapters::config::CONFIG_NAME;
use crate::dialects::evened::Evened;
use crate::dialects::files::{Facts, Files, column, matrix};
use crate::dialects::pieces::{Pieces, most_frequent};
use crate::error::Result;
use crate::formats::json;
use crate::llama::interleaved;
use crate::model::ModelConfig;
use crate::naming::Role;
use crate::naming::arch::{Spelling, arch};
use crate::naming::scheme::scheme;
use crate::pairs::Bytes;
use crate::pairs::matrix::Grid;
use crate::tensor::{Float, usize_of};

/// Models of torchtune whose layers have these names.
const MODELS: [&str; 6] = ["llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3"];

/// Layers that are written at most: more than any model has.
const MAX_LAYERS: u64 = 1 << 12;

/// The projections of an MLP.
const MLP: [&str; 3] = ["mlp.w1", "mlp.w2", "mlp.w3"];

/// The files.
///
/// # Errors
/// When torchtune cannot express a change, or the config of the model is not at hand.
pub(super) fn write(pieces: &Pieces, facts: &Facts<'_>) -> Result<Files> {
    let dora = refuse(pieces, facts)?;
    let Some(model) = facts.wishes.config else {
        let what = "torchtune puts the rows of queries and keys in the order of the model's heads, and there is no config of it";
        return Err(facts.refuse(what).hint("give the model, of which `config.json` is enough: --base PATH"));
    };
    let kind = model.model_type.as_deref().unwrap_or_default();
    if !MODELS.contains(&kind) {
        return Err(
            facts.refuse(format!("belongs to a `{kind}`, and torchtune's names are known for {}", MODELS.join(", ")))
        );
    }
    let scheme = scheme("torchtune").expect("the tables are part of the program");
    let names = arch("torchtune").expect("the tables are part of the program");
    let scale = most_frequent(pieces.pairs.iter().map(|pair| pair.scale));
    let mut evened = Evened::new(&pieces.pairs, scale);
    let rank = evened.rank;
    let mut files = Files::of(&TORCHTUNE, &[("format", "pt")]);
    let (mut sizes, mut present) = (BTreeMap::new(), BTreeSet::new());
    for pair in &pieces.pairs {
        let Some((module, turned)) = names.renamed(&pair.path, Spelling::Original) else {
            return Err(facts.refuse(format!("`{}` has no name in torchtune", pair.path)));
        };
        let (inputs, outputs) = (pair.down.size.1, pair.up.size.0);
        if let Some((_, below)) = below_layer(&module) {
            sizes.entry(below.to_owned()).or_insert((inputs, outputs));
        }
        present.insert(module.clone());
        let order = |grid: Grid, shape: &[u64], key: String| match heads(facts, model, &pair.path, outputs).transpose()
        {
            Some(head) if turned => alternating(&grid, head?, shape, key, facts.float),
            _ if shape.len() == 1 => Ok(column(key, grid, shape, facts.float)),
            _ => Ok(matrix(key, grid, facts.float)),
        };
        let key = |role: &Role| scheme.print(&module, role).expect("torchtune has the roles of LoRA");
        let (down, up) = evened.factors(pair, &mut files);
        files.tensors.push(matrix(key(&Role::Down), down, facts.float));
        files.tensors.push(order(up, &[outputs, rank], key(&Role::Up))?);
        if let Some(magnitude) = facts.magnitude(pair, "torchtune")? {
            files.tensors.push(order(magnitude, &[outputs], key(&Role::Magnitude))?);
        }
    }
    let missing = missing(model, &mut sizes, &present);
    if let Some((module, _)) = missing.first().filter(|_| dora) {
        let what = format!("is a DoRA that leaves out `{module}`, which torchtune adapts with the others");
        return Err(facts.refuse(what + " and whose magnitudes only the base knows"));
    }
    let float = facts.float.or_else(|| pieces.pairs.first().map(|pair| pair.up.float()));
    for (module, (inputs, outputs)) in &missing {
        files.add(scheme, module, evened.nothing(*inputs, *outputs), float);
    }
    if !missing.is_empty() {
        let what = "modules that are not changed and that torchtune adapts with the others were filled up with zeros";
        files.notes.push(format!("{} {what}", missing.len()));
    }
    evened.tell(&mut files);
    let alpha = scale * rank as f64;
    files.notes.push(format!("rank and α stand in torchtune's recipe: lora_rank {rank}, lora_alpha {alpha}"));
    let kinds: BTreeSet<&str> = present.iter().filter_map(|module| module.rsplit('.').next()).collect();
    let config = json!({
        "base_model_name_or_path": facts.adapter.config.base_model,
        "lora_alpha": alpha,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": kinds,
        "use_dora": dora,
    });
    files.beside.push((PathBuf::from(CONFIG_NAME), json::render(&config)));
    files.beside.push((PathBuf::from(MODEL), json::render(&Value::Object(model.raw.clone()))));
    Ok(files)
}

/// Refuses what torchtune cannot express, and tells whether the rest is DoRA.
fn refuse(pieces: &Pieces, facts: &Facts<'_>) -> Result<bool> {
    facts.only_pairs(pieces, "and torchtune knows LoRA and DoRA", "and torchtune takes factors only")?;
    if let Some(pair) = pieces.pairs.iter().find(|pair| pair.is_conv() || pair.embedding || pair.bias.is_some()) {
        let what =
            format!("`{}` is a convolution, a table or has a bias in its B; torchtune adapts plain layers", pair.path);
        return Err(facts.refuse(what));
    }
    facts.dora(&pieces.pairs, "torchtune")
}

/// How many rows a head of the module has, where torchtune orders them in another way.
fn heads(facts: &Facts<'_>, model: &ModelConfig, path: &str, rows: u64) -> Result<Option<u64>> {
    head_of(Path::new(MODEL), model, path, rows).map_err(|problem| facts.refuse(problem.to_string()))
}

/// Layer and the module below it.
fn below_layer(module: &str) -> Option<(u64, &str)> {
    let (layer, below) = module.strip_prefix("layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, below))
}

/// The modules that the recipes adapt along with those that are `present`, with their inputs and outputs.
fn missing(
    model: &ModelConfig,
    sizes: &mut BTreeMap<String, (u64, u64)>,
    present: &BTreeSet<String>,
) -> Vec<(String, (u64, u64))> {
    let turned = |(inputs, outputs): (u64, u64)| (outputs, inputs);
    let get = |name: &str| sizes.get(name).copied();
    if let Some(first) = get(MLP[0]).or_else(|| get(MLP[2])).or_else(|| get(MLP[1]).map(turned)) {
        let all = [first, turned(first), first];
        sizes.extend(MLP.iter().zip(all).map(|(name, size)| ((*name).to_owned(), size)));
    }
    let last = present.iter().filter_map(|module| below_layer(module)).map(|(layer, _)| layer + 1).max().unwrap_or(0);
    let count = model.layers.unwrap_or(0);
    let layers = 0..last.max(count).min(MAX_LAYERS);
    let all =
        layers.flat_map(|layer| sizes.iter().map(move |(below, size)| (format!("layers.{layer}.{below}"), *size)));
    all.filter(|(module, _)| !present.contains(module)).collect()
}

/// The rows of heads that lie in halves, so that they alternate.
fn alternating(
    grid: &Grid,
    head: u64,
    shape: &[u64],
    key: String,
    float: Option<Float>,
) -> Result<crate::dialects::files::Tensor> {
    let (rows, width, head) = (usize_of(grid.size.0), usize_of(grid.size.1), usize_of(head));
    let mut values = vec![0.0; rows * width];
    grid.decode(0..rows, &mut values)?;
    let order = interleaved(rows, rows / head).expect("heads have an even number of rows");
    let ordered: Vec<f32> =
        order.into_iter().flat_map(|from| &values[from * width..(from + 1) * width]).copied().collect();
    let bytes = Bytes::held(&ordered, float.unwrap_or_else(|| grid.float()), grid.origin())?;
    Ok((key, shape.to_vec().into(), bytes))
}
