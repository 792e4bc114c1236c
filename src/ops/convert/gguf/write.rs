//! The files of a GGUF checkpoint: laid out, planned and written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::packed::{Packed, summarise};
use super::{Made, Source};
use crate::error::{Error, Result};
use crate::formats::Checkpoint;
use crate::formats::gguf::{Layout, cut, is_gguf_name, split_name};
use crate::formats::layout::OutputFile;
use crate::io::Inputs;
use crate::ops::convert::{CheckpointReport, ConvertOptions};
use crate::output::WriteOptions;
use crate::output::fingerprint::fingerprints;
use crate::output::provenance::checkpoint_entry;
use crate::output::{Output, Run};
use crate::plan::{Compute, Plan};

/// Writes what was made, and tells of it.
pub fn write(
    options: &ConvertOptions,
    input: &Checkpoint,
    made: Made,
    inputs: &Inputs,
    run: &Run<'_>,
    started: Instant,
) -> Result<CheckpointReport> {
    let write = &options.write;
    let single = is_file(write)?;
    let mut dtypes = BTreeMap::new();
    made.infos.iter().for_each(|info| *dtypes.entry(info.dtype.name().to_owned()).or_insert(0) += 1);
    let packed: Vec<Arc<Packed>> = made
        .tensors
        .iter()
        .filter_map(|source| if let Source::Packed(packed) = source { Some(Arc::clone(packed)) } else { None })
        .collect();
    let (count, notes) = (made.infos.len(), made.notes.clone());
    let plan = schedule(write, single, made, &packed)?;
    let chosen = json!({
        "to": "gguf",
        "quant": options.quant.map(|mix| mix.name),
        "dtype": write.dtype.map(|float| float.dtype().name().to_owned()),
    });
    let recipe = json!({
        "lorakit": env!("CARGO_PKG_VERSION"),
        "operation": "convert",
        "input": checkpoint_entry(input, false)?,
        "options": chosen,
    });
    let (written, copied) = (Vec::new(), Vec::new());
    let fingerprints = fingerprints(write.part, [input])?;
    let output = Output { plan, written, copied, record: Some(recipe), single_file: single, inputs: fingerprints };
    let mut report = CheckpointReport {
        input: options.input.clone(),
        out: write.out.clone(),
        format: input.files().first().map_or("", |file| file.format.name).into(),
        dry_run: write.dry_run,
        part: write.part.map(|part| format!("{}/{}", part.part, part.parts)),
        copied: count - packed.len(),
        cast: packed.len(),
        dtypes,
        input_files: input.files().len(),
        files: output.plan.files.len(),
        jobs: output.plan.jobs.len(),
        input_bytes: input.tensors().map(|tensor| tensor.bytes).sum(),
        bytes: output.bytes(),
        rounding: None,
        worst: None,
        config_changes: Vec::new(),
        notes: input.notes().cloned().chain(notes).collect(),
        seconds: 0.0,
        peak_resident_bytes: None,
    };
    output.write(write, run, inputs)?;
    if !write.dry_run {
        (report.rounding, report.worst) = summarise(packed.iter().map(Arc::as_ref)).unzip();
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Whether the output is one file, not a directory.
fn is_file(write: &WriteOptions) -> Result<bool> {
    if write.out.extension().is_some_and(|extension| extension == "safetensors") {
        return Err(Error::invalid("--out", "the output is GGUF, and the path ends in `.safetensors`"));
    }
    let single = is_gguf_name(&write.out);
    if single {
        write.fits_one_file()?;
    }
    Ok(single)
}

fn schedule(write: &WriteOptions, single: bool, made: Made, packed: &[Arc<Packed>]) -> Result<Plan> {
    let name = write.out.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    let most = write.max_shard_bytes.unwrap_or(u64::MAX);
    let parts = cut(&write.out, &made.metadata, &made.infos, most)?;
    let count = parts.len() as u64;
    let mut plan = Plan::default();
    let mut sources = made.tensors.into_iter();
    for (number, (metadata, range)) in (0_u64..).zip(parts) {
        let name = match (single, count) {
            (true, _) => name.clone(),
            (false, 1) => format!("{stem}.gguf"),
            (false, _) => split_name(stem, number, count),
        };
        let path = if single { write.out.clone() } else { write.out.join(&name) };
        let Layout { head: header, tensors, bytes, .. } = Layout::new(&path, &metadata, made.infos[range].to_vec())?;
        let file = OutputFile { name, header, tensors, bytes };
        let at = plan.files.len();
        for info in &file.tensors {
            let source = sources.next().expect("there is a source for every tensor");
            let mut offset = file.start_of(info);
            match source {
                Source::Copied(pieces) => {
                    for stored in pieces.iter().filter(|stored| stored.info.bytes > 0) {
                        plan.copy(at, offset, &stored.map, stored.start, stored.info.bytes);
                        offset += stored.info.bytes;
                    }
                }
                Source::Packed(_) if info.bytes == 0 => {}
                Source::Packed(packed) => {
                    let (rows, row_bytes) = packed.rows_of();
                    let compute = packed as Arc<dyn Compute>;
                    plan.compute(at, offset, &compute, rows, row_bytes, write.budget.job_bytes());
                }
            }
        }
        plan.files.push(file);
    }
    plan.computed = packed.iter().map(|packed| Arc::clone(packed) as Arc<dyn Compute>).collect();
    Ok(plan)
}
