//! mlx-lm: factors the other way round, one rank and one scale for all. Source: mlx-lm 0.32 `tuner/{lora,dora,utils}.py`.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{MLX, stacks};
use crate::adapters::config::CONFIG_NAME;
use crate::dialects::evened::Evened;
use crate::dialects::files::{Facts, Files, column};
use crate::dialects::pieces::{Pieces, most_frequent};
use crate::error::Result;
use crate::formats::json;
use crate::naming::Role;
use crate::naming::scheme::scheme;

/// The files.
///
/// # Errors
/// When mlx-lm cannot express a change.
pub(super) fn write(mut pieces: Pieces, facts: &Facts<'_>) -> Result<Files> {
    let scheme = scheme("mlx").expect("the tables are part of the program");
    let mut files = Files::of(&MLX, &[("format", "mlx")]);
    refuse(&pieces, facts)?;
    let dora = facts.dora(&pieces.pairs, "mlx-lm")?;
    let scale = most_frequent(pieces.pairs.iter().map(|pair| pair.scale));
    let mut evened = Evened::new(&pieces.pairs, scale);
    let rank = evened.rank;
    let stacks = stacks::write(&mut pieces, facts, scheme, &mut evened, &mut files)?;
    let keys = pieces.pairs.iter().map(|pair| &pair.path).chain(&stacks);
    let keys: Vec<Value> = keys.map(|path| path.as_str().into()).collect();
    for pair in pieces.pairs {
        let magnitude = facts.magnitude(&pair, "mlx-lm")?;
        let (down, up) = evened.factors(&pair, &mut files);
        files.add(scheme, &pair.path, (down.turned(), up.turned()), facts.float);
        if let Some(magnitude) = magnitude {
            let key = scheme.print(&pair.path, &Role::Magnitude).expect("mlx-lm has the roles of DoRA");
            files.tensors.push(column(key, magnitude, &[pair.up.size.0], facts.float));
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
    facts.no_pipeline(pieces, "mlx-lm loads adapters of language models")?;
    facts.only_pairs(pieces, "and mlx-lm knows LoRA and DoRA", "and mlx-lm takes nothing beside factors")?;
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
    Ok(())
}
