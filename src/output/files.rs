//! A planned output on disk: written whole and committed, or in parts that `finish` puts together.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::Value;

use super::fingerprint::{Fingerprint, of_copied};
use super::options::{Part, WriteOptions, check_name};
use super::part_note::{NotedFile, PartNote, note_name, part_name};
use super::recipe::{SIDECAR, is_record_beside, sidecar_beside};
use crate::error::{Error, Result};
use crate::formats::gguf::looks_like_gguf;
use crate::formats::json;
use crate::interrupt;
use crate::io::{
    Form, Inputs, PartsDir, PositionalFile, RECORDED_FILES, Staging, available_bytes, check_parent, check_place,
    unwatched,
};
use crate::plan::{Executor, Plan, Progress, Quiet};

/// Everything an output consists of.
pub struct Output {
    /// The weights.
    pub plan: Plan,
    /// Small files that are written: path below the output, contents.
    pub written: Vec<(PathBuf, Vec<u8>)>,
    /// Small files that are copied: path below the output, source.
    pub copied: Vec<(PathBuf, PathBuf)>,
    /// How it was made: `lorakit.json` in its directory, or beside the file; `None` where the header says it alone.
    pub record: Option<Value>,
    /// The output is one file: the record goes beside it.
    pub single_file: bool,
    /// The inputs whose contents the headers and small files do not tell, where it is written in parts.
    pub inputs: Vec<Fingerprint>,
}

/// Who watches and stops a run.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// # let out = folder.path().join("merged");
/// use lorakit::{Merge, Run, error::Blame, plan::Quiet};
/// use std::sync::atomic::AtomicBool;
///
/// let stopped = AtomicBool::new(true);
/// let merge = Merge::new("fixtures/tiny/base").adapter("fixtures/tiny/adapter", 1.0).out(&out);
/// let error = merge.run_with(&Run { cancel: &stopped, progress: &Quiet }).unwrap_err();
/// assert!(matches!(error.blame(), Blame::Interrupted) && !out.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Run<'a> {
    /// Set from outside to stop.
    pub cancel: &'a AtomicBool,
    /// Hears of bytes done.
    pub progress: &'a dyn Progress,
}

/// What nobody sets.
static NEVER: AtomicBool = AtomicBool::new(false);

impl Default for Run<'_> {
    /// Runs to its end, and nobody hears of it.
    fn default() -> Self {
        Self { cancel: &NEVER, progress: &Quiet }
    }
}

impl Output {
    /// Bytes that will be written.
    pub fn bytes(&self) -> u64 {
        let recorded = self.record(Path::new("")).map_or(0, |(_, contents)| contents.len() as u64);
        self.plan.bytes() + self.written.iter().map(|(_, contents)| contents.len() as u64).sum::<u64>() + recorded
    }

    /// Bytes that the copied files will take; holes in them stay holes.
    fn copied_bytes(&self) -> u64 {
        /// Bytes of a block, as stat(2) counts them.
        const STAT_BLOCK: u64 = 512;
        let found = self.copied.iter().filter_map(|(_, source)| std::fs::metadata(source).ok());
        found.map(|found| found.len().min(found.blocks().saturating_mul(STAT_BLOCK))).sum()
    }

    /// Writes everything, or one part of it; in a dry run looks only whether that could be done. Nothing appears under the final
    /// name before it is complete, and nothing at all if one of the `inputs` has changed by then.
    ///
    /// # Errors
    /// When the disk is too small, the output exists and may not be replaced, an input is in its place or has changed, or a job
    /// fails; nothing is left behind then.
    pub fn write(&self, options: &WriteOptions, run: &Run<'_>, inputs: &Inputs) -> Result<()> {
        self.check(options, inputs)?;
        if options.dry_run {
            return Ok(());
        }
        let others: u64 = options.part.map_or(0, |part| {
            let mine = self.plan.slice(part.part, part.parts);
            self.plan.bytes() - self.plan.files[mine].iter().map(|file| file.bytes).sum::<u64>()
        });
        self.check_space(&options.out, self.bytes() - others + self.copied_bytes())?;
        let executor = Executor { budget: options.budget, cancel: run.cancel, progress: run.progress };
        match options.part {
            None => self.write_whole(options, &executor, inputs),
            Some(part) => self.write_part(options, part, &executor, inputs),
        }
    }

    /// Looks whether the output can be put in its place, before any work.
    fn check(&self, options: &WriteOptions, inputs: &Inputs) -> Result<()> {
        let out = options.out.as_path();
        let is_gguf = self.plan.files.first().is_some_and(|file| looks_like_gguf(&file.header));
        check_name(out, self.single_file, if is_gguf { "gguf" } else { "safetensors" })?;
        check_parent(out)?;
        let copied = self.copied(out);
        copied.iter().try_for_each(|(_, source)| inputs.add(source))?;
        inputs.check_apart(out)?;
        if self.single_file {
            if self.record.is_some() {
                inputs.check_apart(&out.with_file_name(sidecar_beside(out)))?;
            }
            return check_place(out, options.force, Form::File);
        }
        let files: HashSet<&Path> = self.files(&copied).collect();
        check_place(out, options.force, Form::Directory(&|path| files.contains(path)))
    }

    /// Paths of all files below the output, but for its record.
    fn files<'a>(&'a self, copied: &[&'a (PathBuf, PathBuf)]) -> impl Iterator<Item = &'a Path> {
        let weights = self.plan.files.iter().map(|file| Path::new(&file.name));
        weights
            .chain(self.written.iter().map(|(path, _)| path.as_path()))
            .chain(copied.iter().map(|(path, _)| path.as_path()).collect::<Vec<_>>())
    }

    /// What is copied. Records, and an earlier output that lies in the directory of an input, are no companions of it.
    fn copied(&self, out: &Path) -> Vec<&(PathBuf, PathBuf)> {
        let place = std::fs::canonicalize(out).ok();
        let apart = |source: &Path| match (&place, source.parent().map(std::fs::canonicalize)) {
            (Some(place), Some(Ok(directory))) => !directory.starts_with(place),
            _ => true,
        };
        let is_record = |path: &Path| path == Path::new(SIDECAR) || is_record_beside(path);
        self.copied.iter().filter(|(path, source)| !is_record(path) && apart(source)).collect()
    }

    /// The record as a file: its path, and contents. That of a directory lists the files beside it, which makes them ours.
    fn record(&self, out: &Path) -> Option<(PathBuf, Vec<u8>)> {
        let mut record = self.record.clone()?;
        if self.single_file {
            return Some((sidecar_beside(out), json::render(&record)));
        }
        let copied = self.copied(out);
        let mut files: Vec<String> = self.files(&copied).map(|path| path.to_string_lossy().into_owned()).collect();
        files.sort();
        record[RECORDED_FILES] = files.into();
        Some((PathBuf::from(SIDECAR), json::render(&record)))
    }

    fn check_space(&self, out: &Path, needed: u64) -> Result<()> {
        let parent = parent_of(out);
        let free = available_bytes(parent)?;
        if needed <= free {
            return Ok(());
        }
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        Err(Error::io(parent, format!("the output needs {needed} bytes, {free} are free"), full))
    }

    /// Writes everything into a directory beside the output that vanishes with what is returned.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn stage(&self, options: &WriteOptions, run: &Run<'_>) -> Result<Staging> {
        self.check_space(&options.out, self.bytes() + self.copied_bytes())?;
        let staging = Staging::begin(&options.out, options.force || options.dry_run)?;
        let executor = Executor { budget: options.budget, cancel: run.cancel, progress: run.progress };
        self.fill(&staging, options, &executor)?;
        Ok(staging)
    }

    fn write_whole(&self, options: &WriteOptions, executor: &Executor<'_>, inputs: &Inputs) -> Result<()> {
        let staging = Staging::begin(&options.out, options.force)?.open_to(inputs.permissions());
        self.fill(&staging, options, executor)?;
        inputs.check_unchanged()?;
        if !self.single_file {
            return staging.commit_directory(options.durable);
        }
        let parent = parent_of(&options.out);
        let name = options.out.file_name().unwrap_or_default();
        let weights = (PathBuf::from(&self.plan.files[0].name), parent.join(name));
        // The weights first: a record never stands alone.
        let recorded = self.record(&options.out).map(|(path, _)| path);
        let beside = self.written.iter().map(|(path, _)| path.clone()).chain(recorded);
        let moves: Vec<_> =
            std::iter::once(weights).chain(beside.map(|path| (path.clone(), parent.join(path)))).collect();
        staging.commit_files(&moves, options.durable)
    }

    fn fill(&self, staging: &Staging, options: &WriteOptions, executor: &Executor<'_>) -> Result<()> {
        let files = self.create(0..self.plan.files.len(), |path, bytes| staging.create(path, bytes))?;
        executor.run(&self.plan, 0..files.len(), &files)?;
        files.iter().try_for_each(|file| file.finish(options.durable))?;
        for (path, contents) in self.written.iter().chain(&self.record(&options.out)) {
            staging.write(path, contents)?;
        }
        self.copy(&options.out, executor, |path, source| staging.copy_in(path, source))
    }

    /// Copies the files that are copied whole. An interrupt is seen in the middle of one, and after the last.
    fn copy(&self, out: &Path, executor: &Executor<'_>, copy: impl Fn(&Path, &Path) -> Result<u64>) -> Result<()> {
        interrupt::watching(executor.cancel, || {
            self.copied(out).into_iter().try_for_each(|(path, source)| copy(path, source).map(drop))?;
            interrupt::check()
        })
    }

    fn write_part(&self, options: &WriteOptions, part: Part, executor: &Executor<'_>, inputs: &Inputs) -> Result<()> {
        let parts = PartsDir::open(&options.out, &part_name(part), options.force)?.open_to(inputs.permissions());
        let note_path = PathBuf::from(note_name(part));
        // From here on the part is not done, until it is.
        parts.remove_note(&note_path)?;
        let mut note = interrupt::watching(executor.cancel, || self.note(part, &options.out))?;
        let range = self.plan.slice(part.part, part.parts);
        let files = self.create(range.clone(), |path, bytes| parts.create(path, bytes))?;
        executor.run(&self.plan, range.clone(), &files)?;
        inputs.check_unchanged()?;
        for (file, planned) in files.iter().zip(&self.plan.files[range]) {
            file.finish(options.durable)?;
            parts.publish(Path::new(&planned.name))?;
            note.weights.push(NotedFile::of(planned.name.clone(), planned.bytes, &planned.header));
        }
        // Every part knows the side files; whoever writes them writes the same bytes.
        for (path, contents) in self.written.iter().chain(&self.record(&options.out)) {
            parts.write(path, contents)?;
        }
        self.copy(&options.out, executor, |path, source| parts.copy_in(path, source))?;
        inputs.check_unchanged()?;
        parts.write_note(&note_path, &json::render(&note))
    }

    /// Creates the files of `range` with their headers.
    fn create(
        &self,
        range: std::ops::Range<usize>,
        create: impl Fn(&Path, u64) -> Result<PositionalFile>,
    ) -> Result<Vec<PositionalFile>> {
        let file = |planned: &crate::formats::layout::OutputFile| {
            let file = create(Path::new(&planned.name), planned.bytes)?;
            file.write_at(0, &planned.header)?;
            // Until somebody fills it: there may be more files than a process may have open.
            file.close();
            Ok(file)
        };
        self.plan.files[range].iter().map(file).collect()
    }

    /// The note of `part`, without weight files.
    fn note(&self, part: Part, out: &Path) -> Result<PartNote> {
        let name = |path: &Path| path.to_string_lossy().into_owned();
        let record = self.record(out);
        let written = self.written.iter().chain(&record);
        let written = written.map(|(path, contents)| NotedFile::of(name(path), contents.len() as u64, contents));
        let sources: Vec<(PathBuf, PathBuf)> = self.copied(out).into_iter().cloned().collect();
        let copied = of_copied(&sources)?.into_iter().zip(&sources);
        let copied =
            copied.map(|((bytes, blake3), (path, _))| NotedFile { name: name(path), bytes, hashed: bytes, blake3 });
        let beside: Vec<NotedFile> = written.chain(copied).collect();
        let inputs = self.inputs.clone();
        Ok(PartNote {
            plan: self.digest(&beside),
            part: part.part,
            parts: part.parts,
            weights: Vec::new(),
            beside,
            inputs,
        })
    }

    /// The digest of the plan: of everything that is written, and of the contents of the inputs. Where they lie and when they
    /// were written is not in it: parts may read copies.
    fn digest(&self, beside: &[NotedFile]) -> String {
        let mut hasher = blake3::Hasher::new();
        for file in &self.plan.files {
            hasher.update(file.name.as_bytes()).update(&file.bytes.to_le_bytes()).update(&file.header);
        }
        for file in beside {
            hasher.update(file.name.as_bytes()).update(&file.bytes.to_le_bytes()).update(file.blake3.as_bytes());
        }
        for input in &self.inputs {
            hasher.update(&input.bytes.to_le_bytes()).update(input.blake3.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// The directory a path lies in.
pub fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What is known of an output before the work.
pub enum Expected {
    /// Nothing: the plan comes before the work, and tells.
    Planned,
    /// It is one file.
    File,
    /// It is a directory, with files of these names at most.
    Directory(Vec<PathBuf>),
}

/// Looks, as soon as all inputs are open, whether the output can be put in its place: it is no input and holds none, its directory
/// is there, and what stands there may be replaced. [`Output::write`] looks again, knowing all files.
///
/// # Errors
/// When it cannot, naming what is in the way.
pub fn check_early(options: &WriteOptions, inputs: &Inputs, expected: &Expected) -> Result<()> {
    let (out, force) = (&options.out, options.force);
    check_parent(out)?;
    inputs.check_apart(out)?;
    match expected {
        // Whether it may be replaced is told when it is known what takes its place.
        Expected::Planned if !force => Ok(()),
        Expected::Planned => check_place(out, force, Form::Unknown),
        Expected::File => check_place(out, force, Form::File),
        Expected::Directory(names) => {
            check_place(out, force, Form::Directory(&|path| names.iter().any(|name| name == path)))
        }
    }
}

/// The record of the output at `out`, if there is one: how it was made, without the list of its files.
pub fn record_of(directory: &Path) -> Option<Value> {
    let mut record = unwatched(|| json::read_object(&directory.join(SIDECAR))).ok()?;
    record.shift_remove(RECORDED_FILES);
    Some(Value::Object(record))
}
