//! A new adapter on disk, in any dialect: the files of a writer → an output.
//!
//! What a verb makes is PEFT's; for another dialect it is read as it lies in memory and given to that dialect's writer. What comes out
//! is what the same verb and `convert` after it would give.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::options::{check_name, named_like};
use super::recipe::{PROVENANCE, SIDECAR};
use super::{Expected, Output, Run, WriteOptions, tensors};
use crate::adapters::ReadOptions;
use crate::dialects::files::{Files, Wishes};
use crate::dialects::gguf::rows;
use crate::dialects::translate::{Asked, translate};
use crate::dialects::{Dialect, Form, Target, hashes, made};
use crate::error::{Error, Result};
use crate::io::{Inputs, MappedFile};
use crate::model::base::config_of;
use crate::naming::components;

/// The option that says which of several denoisers is meant.
const COMPONENT: &str = "--component";

/// Key under which the header of a safetensors file tells how it was made.
pub const RECIPE: &str = "lorakit";

/// The dialect that a new adapter is written in.
#[derive(Debug, Clone, Default)]
pub struct ToDialect {
    /// `None` is PEFT's.
    pub to: Option<Target>,
    /// The architecture, where the names of modules do not tell.
    pub arch: Option<String>,
}

/// Where the adapter that is written comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// An input it was made of, by which messages name it.
    pub input: &'a Path,
    /// A file of that input.
    pub file: &'a Arc<MappedFile>,
    /// The model it is for, where it is at hand.
    pub base: Option<&'a Path>,
    /// Whether the verb can be told which denoiser is meant.
    pub component: bool,
}

/// What was written.
pub struct Written {
    /// Bytes of the output.
    pub bytes: u64,
    /// Bytes of its weight file.
    pub weights: u64,
    /// Notes.
    pub notes: Vec<String>,
}

impl ToDialect {
    /// What is written if it is not PEFT's own form.
    pub fn foreign(&self) -> Option<&'static Dialect> {
        self.to.filter(|target| ![Target::PEFT, Target::SAFETENSORS].contains(target)).map(Target::dialect)
    }

    fn dialect(&self) -> &'static Dialect {
        self.foreign().unwrap_or(Target::PEFT.dialect())
    }

    /// As on the command line.
    pub fn name(&self) -> &'static str {
        self.dialect().name
    }

    /// What an output called `name` is called as a file or directory.
    pub fn file_name(&self, name: &str) -> String {
        self.dialect().file_name(name)
    }

    /// The same; where the dialect leaves it open, a file if `is_file`.
    pub fn file_name_of(&self, name: &str, is_file: bool) -> String {
        match self.dialect().form {
            Form::Either if is_file => format!("{name}.safetensors"),
            _ => self.file_name(name),
        }
    }

    /// What is known of the output `out` before it is made; `copied` files may lie in it as well.
    pub fn expected(&self, out: &Path, copied: impl Iterator<Item = PathBuf>) -> Expected {
        if self.dialect().is_file(out) {
            return Expected::File;
        }
        let files = Target::dialects().flat_map(|target| target.dialect().files).chain([&SIDECAR]);
        Expected::Directory(files.map(PathBuf::from).chain(copied).collect())
    }

    /// Records the choice among the `options` of a recipe, where it is one.
    pub fn note(&self, options: &mut Map<String, Value>) {
        options.extend(self.foreign().map(|dialect| ("to".to_owned(), dialect.name.into())));
        options.extend(self.arch.as_ref().map(|arch| ("arch".to_owned(), arch.as_str().into())));
    }

    /// Finds out before the work whether the output has a name that fits.
    ///
    /// # Errors
    /// When a directory is named like a file, or a file like one of another format.
    pub fn check_out(&self, out: &Path) -> Result<()> {
        match self.dialect().form {
            Form::Directory => refuse_file_name(out),
            Form::Either => check_name(out, self.dialect().is_file(out), "safetensors"),
            Form::File(format) => check_name(out, true, format),
        }
    }

    /// Finds out before the work whether adapters of the model at `root` can be written at all; `tensors` are its names.
    ///
    /// # Errors
    /// When they cannot.
    pub fn check<'a>(&self, root: &Path, mut tensors: impl Iterator<Item = &'a str>) -> Result<()> {
        let is_diffusion = |name: &str| components::is_diffusion(&components::with_component(name));
        if self.dialect().pipelines && !tensors.any(is_diffusion) {
            let what = format!("is no part of a diffusion pipeline, and adapters of {} are for those", self.name());
            return Err(Error::unsupported(root, what));
        }
        Ok(())
    }

    /// Writes the adapter that PEFT's `files` are, which was made by `recipe`.
    ///
    /// # Errors
    /// When the dialect cannot express it, or it cannot be written; nothing is left behind then.
    pub fn write(
        &self,
        files: Files,
        recipe: &Value,
        origin: Origin<'_>,
        options: &WriteOptions,
        run: &Run<'_>,
        inputs: &Inputs,
    ) -> Result<Written> {
        let (files, notes) = match self.foreign() {
            None => (files, Vec::new()),
            Some(dialect) => self.translated(files, dialect, origin, &options.out).map_err(|error| {
                let way = error.way_out().filter(|way| !origin.component && way.contains(COMPONENT)).map(|way| {
                    format!("without `--to` it is written; then `lorakit convert --to {}`, {way}", dialect.name)
                });
                match way {
                    Some(way) => error.hint(way),
                    None => error,
                }
            })?,
        };
        let output = lay_out(files, recipe, options, |_| true)?;
        output.write(options, run, inputs)?;
        Ok(Written { bytes: output.bytes(), weights: output.plan.bytes(), notes })
    }

    fn translated(
        &self,
        files: Files,
        dialect: &'static Dialect,
        origin: Origin<'_>,
        out: &Path,
    ) -> Result<(Files, Vec<String>)> {
        let mut adapter = made(files, origin.input, origin.file)?;
        let model = origin.base.filter(|_| dialect.wants_config).map(config_of).transpose()?;
        let near = || origin.base.and_then(|base| config_of(base).ok());
        let of_experts = model.clone().or_else(|| near().filter(|_| !adapter.config.target_parameters.is_empty()));
        // The file says how they lie, and it is ours.
        adapter.read_stacks(of_experts.as_ref(), &ReadOptions::default(), false)?;
        let asked = Asked {
            dialect,
            base: origin.base,
            wishes: Wishes { config: model.as_ref(), arch: self.arch.as_deref(), quant: None },
            component: None,
            as_lora: false,
            experts: None,
            model: of_experts.as_ref(),
            takes: &|_| true,
            float: None,
            out,
        };
        let (files, account) = translate(&adapter, &asked)?;
        Ok((files, account.notes.into_iter().chain(adapter.notes()).collect()))
    }
}

/// Files as they will lie on disk, made by `recipe`; `keeps` tells which entries of the header's text are kept.
///
/// # Errors
/// When a tensor cannot be computed, or the header has no room for one.
pub fn lay_out(files: Files, recipe: &Value, options: &WriteOptions, keeps: impl Fn(&str) -> bool) -> Result<Output> {
    let Files { weights, mut tensors, mut metadata, gguf, beside, copied, single, hashed, .. } = files;
    let job_bytes = options.budget.job_bytes();
    let plan = if let Some((mut metadata, tensors)) = gguf {
        metadata.retain(|key| keeps(key));
        metadata.set(PROVENANCE, recipe.to_string().as_str().into());
        rows::lay_out(&weights, &metadata, tensors, job_bytes)?
    } else {
        metadata.retain(|(key, _)| keeps(key) && key != RECIPE);
        metadata.push((RECIPE.into(), recipe.to_string()));
        if hashed {
            hashes::refresh(&mut tensors, &mut metadata)?;
        }
        tensors::lay_out(&weights, tensors, &metadata, job_bytes)
    };
    // A file of its own says it in its header.
    let record = (!single).then(|| recipe.clone());
    Ok(Output { plan, written: beside, copied, record, single_file: single, inputs: Vec::new() })
}

/// A PEFT adapter is a directory.
///
/// # Errors
/// When `out` is named like a file.
pub fn refuse_file_name(out: &Path) -> Result<()> {
    if named_like(out).is_some() {
        let problem = format!("`{}` is named like a file, a PEFT adapter is a directory", out.display());
        return Err(Error::invalid("--out", problem).hint(
            "name a directory; of an adapter of an image pipeline `--to kohya`, `--to comfyui` and `--to diffusers` write a file",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::{Adapter, Change};
    use crate::dialects::peft::new_adapter::NewAdapter;
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
        let recipe = serde_json::json!({"operation": "test"});
        let output = lay_out(adapter.into_files(), &recipe, &options, |_| true).expect("laid out");
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
