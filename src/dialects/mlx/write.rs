//! mlx-lm: factors the other way round, one rank and one scale for all. Source: mlx-lm 0.32 `tuner/{lora,dora,utils}.py`.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::MLX;
use crate::adapters::config::CONFIG_NAME;
use crate::dialects::evened::Evened;
use crate::dialects::files::{Facts, Files, column, matrix};
use crate::dialects::pieces::{Pieces, most_frequent};
use crate::dialects::spell::is_of_pipeline;
use crate::error::Result;
use crate::formats::json;
use crate::naming::Role;
use crate::naming::scheme::scheme;

/// The files.
///
/// # Errors
/// When mlx-lm cannot express a change.
pub(super) fn write(pieces: Pieces, facts: &Facts<'_>) -> Result<Files> {
    let scheme = scheme("mlx").expect("the tables are part of the program");
    let mut files = Files::of(&MLX, &[("format", "mlx")]);
    refuse(&pieces, facts)?;
    let scale = most_frequent(&pieces.pairs);
    let mut evened = Evened::new(&pieces.pairs, scale);
    let rank = evened.rank;
    let dora = pieces.pairs.iter().any(|pair| pair.magnitude.is_some());
    let keys: Vec<Value> = pieces.pairs.iter().map(|pair| pair.path.as_str().into()).collect();
    for pair in pieces.pairs {
        let key = |role: &Role| scheme.print(&pair.path, role).expect("mlx-lm has the roles of LoRA");
        let magnitude = facts.magnitude(&pair, "mlx-lm")?;
        let (down, up) = evened.factors(&pair, &mut files);
        files.tensors.push(matrix(key(&Role::Down), down.turned(), facts.float));
        files.tensors.push(matrix(key(&Role::Up), up.turned(), facts.float));
        if let Some(magnitude) = magnitude {
            files.tensors.push(column(key(&Role::Magnitude), magnitude, &[pair.up.size.0], facts.float));
        }
    }
    evened.tell(&mut files);
    let mut config = json!({
        "fine_tune_type": if dora { "dora" } else { "lora" },
        "num_layers": -1,
        "lora_parameters": { "rank": rank, "scale": scale, "dropout": 0.0, "keys": keys },
    });
    if let Some(model) = &facts.adapter.config.base_model {
        config["model"] = model.as_str().into();
    }
    files.beside.push((PathBuf::from(CONFIG_NAME), json::render(&config)));
    Ok(files)
}

fn refuse(pieces: &Pieces, facts: &Facts<'_>) -> Result<()> {
    for path in pieces.paths() {
        if is_of_pipeline(facts.adapter, path) {
            return Err(facts.refuse(format!(
                "`{path}` belongs to a diffusion pipeline; mlx-lm loads adapters of language models"
            )));
        }
    }
    if let Some(other) = pieces.methods.first() {
        let what = format!("`{}` is changed by {}, and mlx-lm knows LoRA and DoRA", other.path, other.method.kind());
        return Err(facts.refuse(what).hint("make it LoRA: --as lora"));
    }
    if let Some(whole) = pieces.whole.first() {
        let what =
            format!("`{}.{}` is stored whole, and mlx-lm takes nothing beside factors", whole.path, whole.parameter);
        return Err(facts.refuse(what));
    }
    for pair in &pieces.pairs {
        if pair.is_conv() {
            return Err(facts.refuse(format!("`{}` is a convolution, which mlx-lm does not adapt", pair.path)));
        }
        if pair.bias.is_some() {
            return Err(facts.refuse(format!("`{}` has a bias in its B, which mlx-lm does not have", pair.path)));
        }
        if pair.embedding && pair.magnitude.is_some() {
            return Err(facts.refuse(format!(
                "`{}`: magnitudes of a table are per column in PEFT and per row in mlx-lm",
                pair.path
            )));
        }
    }
    let dora = pieces.pairs.iter().filter(|pair| pair.magnitude.is_some()).count();
    if dora > 0 && dora < pieces.pairs.len() {
        return Err(
            facts.refuse("some modules have magnitudes of DoRA and others none; mlx-lm has them everywhere or nowhere")
        );
    }
    Ok(())
}
