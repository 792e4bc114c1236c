//! `merge`: W′ = W + Σ wᵢ ΔWᵢ, and replacements, streamed in the base's own layout.

mod applied;
mod assemble;
mod fit;
mod landable;
mod landing;
mod merged;
mod prepared;
mod provenance;
mod scaled;
mod stacks;
mod summary;
mod ties;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::adapters::Factor;
use crate::error::{Error, Result};
use crate::formats::{Container, Stored, companions, json, layout};
use crate::io::MappedFile;
use crate::ops::WriteOptions;
use crate::ops::base::Base;
use crate::ops::output::{Output, Run};
use crate::ops::recipe::SIDECAR;
use applied::Applied;
use assemble::{Assembled, assemble};
use landing::Lander;

pub use assemble::Counts;
pub use landing::{Fate, Selection};
pub use summary::{AdapterSummary, MergeReport, TensorSurvival};

/// Elements that are compared at once.
const COMPARED: usize = 1 << 16;

/// What is merged, and how.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// The model.
    pub base: PathBuf,
    /// Adapters with their weights, in order.
    pub adapters: Vec<(PathBuf, f64)>,
    /// Untrained factors for the adapters that need them, in order.
    pub init_adapters: Vec<PathBuf>,
    /// The model that PiSSA or OLoRA started from: gives the untrained factors of adapters that lost them.
    pub original: Option<PathBuf>,
    /// The base is the one an adapter's initialiser left behind.
    pub residual_base: bool,
    /// Which modules.
    pub selection: Selection,
    /// Patterns of adapter tensors that may stay unused.
    pub allow_unused: Vec<String>,
    /// Hash the base's files as well.
    pub hash_base: bool,
    /// How the result is written.
    pub write: WriteOptions,
}

/// Merges adapters into a model.
///
/// # Errors
/// When an input is malformed, an adapter does not belong to the base, or the result cannot be written. Nothing is left
/// behind then.
pub fn merge(options: &MergeOptions, run: &Run<'_>) -> Result<MergeReport> {
    let started = Instant::now();
    let base = Base::open(&options.base)?;
    let applied = applied::open(options)?;
    check_out(options, &base, &applied)?;
    let unused = provenance::globs(&options.allow_unused)?;
    let mut lander = Lander::new(&base, &options.selection, &unused);
    applied.iter().try_for_each(|applied| lander.land(applied))?;
    options.selection.check(&lander.paths)?;
    let untied = ties::untie(&mut lander, &applied)?;
    let landed = lander.landed;

    let recipe = provenance::recipe(options, &base, &applied)?;
    let assembled = assemble(&base, &landed, &options.write, &provenance::metadata(&recipe))?;
    let mut report = summary::begin(options, &applied, &landed, &assembled)?;
    let Assembled { plan, merged, .. } = assembled;
    let mut output =
        Output { plan, written: Vec::new(), copied: Vec::new(), single_file: is_file(&options.write.out, &base) };
    side_files(&mut output, options, &base, untied, &recipe, &mut report)?;
    report.bytes = output.bytes();
    if !options.write.dry_run {
        output.write(&options.write, run)?;
        summary::complete(&mut report, &merged, started.elapsed());
    }
    Ok(report)
}

/// The output must be none of the inputs, nor hold one, nor lie where its kind does not fit.
fn check_out(options: &MergeOptions, base: &Base, applied: &[Applied]) -> Result<()> {
    let out = &options.write.out;
    if base.checkpoint.container() != &Container::File && has_weight_name(out) {
        return Err(Error::invalid(
            "--out",
            format!("`{}` is named like a file, the base is a directory", out.display()),
        )
        .hint("the output has the layout of the base: name a directory"));
    }
    let Ok(place) = std::fs::canonicalize(out) else { return Ok(()) };
    let inputs = std::iter::once(base.checkpoint.root()).chain(
        applied
            .iter()
            .flat_map(|applied| {
                let original = applied.original.as_ref().map(|(original, _)| original.base.checkpoint.root());
                [Some(applied.adapter.root.as_path()), applied.init.as_ref().map(|init| init.root.as_path()), original]
            })
            .flatten(),
    );
    for input in inputs {
        let Ok(input_place) = std::fs::canonicalize(input) else { continue };
        if input_place.starts_with(&place) {
            let what = format!("the output would take the place of the input `{}`", input.display());
            return Err(Error::unsupported(out, what).hint("name another output"));
        }
    }
    let held = base.checkpoint.files().iter().map(|file| &file.map);
    let held = held.chain(applied.iter().flat_map(|applied| applied.adapter.tensors.files()).map(|file| &file.map));
    if out.is_file()
        && let Ok(existing) = MappedFile::open(out)
        && let Some(same) = held.into_iter().find(|map| map.identity() == existing.identity())
    {
        let what = format!("the output is the input `{}` under another name", same.path().display());
        return Err(Error::unsupported(out, what).hint("name another output"));
    }
    Ok(())
}

fn has_weight_name(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

/// Whether the output is a single file, as the base is.
fn is_file(out: &Path, base: &Base) -> bool {
    base.checkpoint.container() == &Container::File && has_weight_name(out)
}

/// Config, companions, index and sidecar.
fn side_files(
    output: &mut Output,
    options: &MergeOptions,
    base: &Base,
    untied: bool,
    recipe: &serde_json::Value,
    report: &mut MergeReport,
) -> Result<()> {
    let sidecar = json::render(recipe);
    if output.single_file {
        if options.write.part.is_some() || options.write.max_shard_bytes.is_some_and(|_| output.plan.files.len() > 1) {
            let problem = "the output is one file; parts and shards need a directory";
            return Err(Error::invalid("--out", problem).hint("name a directory"));
        }
        let name = options.write.out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = name.trim_end_matches(".safetensors");
        output.written.push((PathBuf::from(format!("{stem}.lorakit.json")), sidecar));
        if untied {
            report.notes.push(
                "the head has its own tensor now: `tie_word_embeddings` must be false in the config of the model"
                    .into(),
            );
        }
        return Ok(());
    }
    let sharded = matches!(base.checkpoint.container(), Container::Sharded { .. });
    if output.plan.files.len() > 1 || sharded && options.write.max_shard_bytes.is_none() {
        let inherited = match base.checkpoint.container() {
            Container::Sharded { metadata, .. } => metadata.clone(),
            _ => serde_json::Map::new(),
        };
        let index = layout::index(inherited, &output.plan.files);
        output.written.push((PathBuf::from(layout::index_name(&assemble::stem(base))), json::render(&index)));
    }
    output.written.push((PathBuf::from(SIDECAR), sidecar));
    if base.checkpoint.container() == &Container::File {
        return Ok(());
    }
    let found = companions::list(base.checkpoint.directory())?;
    let config = provenance::edited_config(base, options, untied, report);
    for path in found.copied {
        let written = output.written.iter().any(|(other, _)| *other == path);
        if path == Path::new("config.json") && config.is_some() || written {
            continue;
        }
        let source = base.checkpoint.directory().join(&path);
        output.copied.push((path, source));
    }
    output.written.extend(config.map(|contents| (PathBuf::from("config.json"), contents)));
    let own: Vec<PathBuf> = base.checkpoint.files().iter().map(|file| PathBuf::from(&file.name)).collect();
    let left: Vec<String> = found
        .left
        .iter()
        .filter(|path| !own.contains(path) && !path.to_string_lossy().ends_with(".index.json"))
        .map(|path| format!("`{}`", path.display()))
        .collect();
    if !left.is_empty() {
        report
            .notes
            .push(format!("not copied, since they are other weights that would not be merged: {}", left.join(", ")));
    }
    Ok(())
}

/// Whether two tensors hold the same numbers once the left one is stored as the right one is.
fn same_values(left: &Stored, right: &Stored) -> Result<bool> {
    if left.info.dtype == right.info.dtype {
        let same = left.view()?.data == right.view()?.data;
        release(&[left, right]);
        return Ok(same);
    }
    let Some(float) = right.info.dtype.float() else { return Ok(false) };
    let ((left_rows, left_cols), wide) = (Factor::new(left)?.shape(), left.info.dtype.float());
    let Some(wide) = wide else { return Ok(false) };
    let (left_data, right_data) = (left.view()?.data, right.view()?.data);
    let mut values = vec![0.0; COMPARED.min(left_rows * left_cols)];
    let mut stored = vec![0; values.len() * float.bytes()];
    let pieces = left_data.chunks(COMPARED * wide.bytes()).zip(right_data.chunks(COMPARED * float.bytes()));
    for (piece, wanted) in pieces {
        let count = piece.len() / wide.bytes();
        wide.decode(piece, &mut values[..count]);
        float.encode(&values[..count], crate::tensor::Rounding::Nearest, &mut stored[..wanted.len()]);
        if stored[..wanted.len()] != *wanted {
            return Ok(false);
        }
    }
    release(&[left, right]);
    Ok(true)
}

fn release(tensors: &[&Stored]) {
    tensors.iter().for_each(|tensor| tensor.map.release(tensor.start, tensor.info.bytes));
}
