//! A new PEFT adapter on disk: `adapter_config.json`, `adapter_model.safetensors`, `lorakit.json`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::options::named_like;
use super::tensors::lay_out;
use super::{Output, WriteOptions};
use crate::adapters::config::CONFIG_NAME;
use crate::dialects::peft::new_adapter::{NewAdapter, WEIGHTS_NAME};
use crate::dialects::peft::new_config;
use crate::error::{Error, Result};
use crate::formats::json;

/// `adapter` in a directory. `recipe` tells how it was made.
pub fn peft_output(adapter: NewAdapter, options: &WriteOptions, recipe: &Value) -> Output {
    let config = json::render(&new_config::render(&adapter));
    let metadata = [("format".to_owned(), "pt".to_owned()), ("lorakit".to_owned(), recipe.to_string())];
    let plan = lay_out(WEIGHTS_NAME, adapter.into_tensors(), &metadata, options.budget.job_bytes());
    let written = vec![(PathBuf::from(CONFIG_NAME), config)];
    Output { plan, written, copied: Vec::new(), record: Some(recipe.clone()), single_file: false, inputs: Vec::new() }
}

/// A PEFT adapter is a directory.
///
/// # Errors
/// When `out` is named like a file.
pub fn refuse_file_name(out: &Path) -> Result<()> {
    if named_like(out).is_some() {
        let problem = format!("`{}` is named like a file, a PEFT adapter is a directory", out.display());
        return Err(Error::invalid("--out", problem).hint("name a directory"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::{Adapter, Change};
    use crate::io::Inputs;
    use crate::output::Run;
    use crate::pairs::{Bytes, NewPair, NewWhole, PairKind};
    use crate::plan::Budget;
    use crate::tensor::{Float, Shape};

    fn held(values: &[f32], float: Float) -> Bytes {
        Bytes::held(values, float, (Path::new("a"), "x")).expect("finite")
    }

    fn options(out: PathBuf) -> WriteOptions {
        WriteOptions { budget: Budget { threads: 2, max_bytes: 64 << 20 }, ..WriteOptions::new(out) }
    }

    fn pair(path: &str, kind: PairKind, rank: usize, outer: (u64, u64), per_input: u64) -> NewPair {
        let values = |count: u64| (0..count).map(|at| at as f32).collect::<Vec<f32>>();
        NewPair {
            path: path.into(),
            kind,
            rank,
            alpha: rank as f64,
            down: held(&values(rank as u64 * outer.1 * per_input), Float::Bf16),
            up: held(&values(rank as u64 * outer.0), Float::F32),
            outer,
            up_bias: None,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let place = tempfile::tempdir().expect("a directory");
        let out = place.path().join("new");
        let mut attention = pair("net.attn", PairKind::Linear, 2, (12, 4), 1);
        attention.up_bias = Some(held(&[1.0; 12], Float::F32));
        let adapter = NewAdapter {
            pairs: vec![
                attention,
                pair("net.attn.out_proj", PairKind::Linear, 2, (4, 4), 1),
                pair("net.conv", PairKind::Conv { kernel: vec![3, 3] }, 1, (5, 2), 9),
                pair("net.embed", PairKind::Embedding, 3, (4, 7), 1),
            ],
            whole: vec![NewWhole {
                module: "net.attn".into(),
                parameter: "bias".into(),
                shape: Shape::from([3]),
                bytes: held(&[1.0, 2.0, 3.0], Float::F16),
                frozen_bias: true,
            }],
            ..NewAdapter::default()
        };
        let options = options(out.clone());
        let output = peft_output(adapter, &options, &serde_json::json!({"operation": "test"}));
        let run = Run::default();
        output.write(&options, &run, &Inputs::watch()).expect("written");
        let read = Adapter::open(&out).expect("an adapter");
        let names: Vec<&str> = read.tensors.tensors().map(|info| info.name.as_str()).collect();
        assert!(names.contains(&"base_model.model.net.attn.base_layer.out_proj.lora_A.weight"), "{names:?}");
        assert!(names.contains(&"base_model.model.net.attn.base_layer.bias"), "{names:?}");
        let shapes: Vec<String> = read
            .modules
            .iter()
            .filter_map(|module| match &module.change {
                Change::Lora(lora) => Some(format!("{} {} {}", module.path, lora.down.info.shape, lora.up.info.shape)),
                _ => None,
            })
            .collect();
        assert_eq!(
            shapes,
            [
                "net.attn [2, 4] [12, 2]",
                "net.attn.out_proj [2, 4] [4, 2]",
                "net.conv [1, 2, 3, 3] [5, 1, 1, 1]",
                "net.embed [3, 7] [4, 3]",
            ]
        );
        let scaling = read.config.scaling.as_ref().expect("LoRA has a scale");
        assert!(read.modules.iter().all(|module| scaling.scale(&module.path) == 1.0));
    }

    #[test]
    fn a_file_is_no_place_for_an_adapter() {
        let message = refuse_file_name(Path::new("new.safetensors")).expect_err("refused").to_string();
        assert_eq!(message, "--out: `new.safetensors` is named like a file, a PEFT adapter is a directory");
    }
}
