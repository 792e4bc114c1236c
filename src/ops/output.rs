//! A planned output on disk: written whole and committed, or in parts that `finish` puts together.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::fingerprint::{Fingerprint, of_copied};
use super::part_note::{NotedFile, PartNote, note_name, part_name};
use super::writing::{Part, WriteOptions};
use crate::error::{Error, Result};
use crate::formats::json;
use crate::interrupt;
use crate::io::{PartsDir, PositionalFile, Staging, available_bytes};
use crate::plan::{Executor, Plan, Progress};

/// Everything an output consists of.
pub struct Output {
    /// The weights.
    pub plan: Plan,
    /// Small files that are written: path below the output, contents.
    pub written: Vec<(PathBuf, Vec<u8>)>,
    /// Small files that are copied: path below the output, source.
    pub copied: Vec<(PathBuf, PathBuf)>,
    /// The output is one file: the sidecar goes beside it.
    pub single_file: bool,
    /// The inputs whose contents the headers and small files do not tell, where it is written in parts.
    pub inputs: Vec<Fingerprint>,
}

/// Who watches and stops a run.
pub struct Run<'a> {
    /// Set from outside to stop.
    pub cancel: &'a AtomicBool,
    /// Hears of bytes done.
    pub progress: &'a dyn Progress,
}

impl Output {
    /// Bytes that will be written.
    pub fn bytes(&self) -> u64 {
        self.plan.bytes() + self.written.iter().map(|(_, contents)| contents.len() as u64).sum::<u64>()
    }

    /// Bytes that the copied files will take; holes in them stay holes.
    fn copied_bytes(&self) -> u64 {
        /// Bytes of a block, as stat(2) counts them.
        const STAT_BLOCK: u64 = 512;
        let found = self.copied.iter().filter_map(|(_, source)| std::fs::metadata(source).ok());
        found.map(|found| found.len().min(found.blocks().saturating_mul(STAT_BLOCK))).sum()
    }

    /// Writes everything, or one part of it. Nothing appears under the final name before it is complete.
    ///
    /// # Errors
    /// When the disk is too small, the output exists, or a job fails; nothing is left behind then.
    pub fn write(&self, options: &WriteOptions, run: &Run<'_>) -> Result<()> {
        let others: u64 = options.part.map_or(0, |part| {
            let mine = self.plan.slice(part.part, part.parts);
            self.plan.bytes() - self.plan.files[mine].iter().map(|file| file.bytes).sum::<u64>()
        });
        self.check_space(&options.out, self.bytes() - others + self.copied_bytes())?;
        let executor = Executor { budget: options.budget, cancel: run.cancel, progress: run.progress };
        match options.part {
            None => self.write_whole(options, &executor),
            Some(part) => self.write_part(options, part, &executor),
        }
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
        self.fill(&staging, false, &executor)?;
        Ok(staging)
    }

    fn write_whole(&self, options: &WriteOptions, executor: &Executor<'_>) -> Result<()> {
        let staging = Staging::begin(&options.out, options.force)?;
        self.fill(&staging, options.durable, executor)?;
        if !self.single_file {
            return staging.commit_directory(options.durable);
        }
        let parent = parent_of(&options.out);
        let weights = (PathBuf::from(&self.plan.files[0].name), options.out.clone());
        let beside = self.written.iter().map(|(path, _)| (path.clone(), parent.join(path)));
        let moves: Vec<_> = beside.chain(std::iter::once(weights)).collect();
        staging.commit_files(&moves, options.durable)
    }

    fn fill(&self, staging: &Staging, durable: bool, executor: &Executor<'_>) -> Result<()> {
        let files = self.create(0..self.plan.files.len(), |path, bytes| staging.create(path, bytes))?;
        executor.run(&self.plan, 0..files.len(), &files)?;
        files.iter().try_for_each(|file| file.finish(durable))?;
        for (path, contents) in &self.written {
            staging.write(path, contents)?;
        }
        self.copy(executor, |path, source| staging.copy_in(path, source))
    }

    /// Copies the files that are copied whole. An interrupt is seen in the middle of one, and after the last.
    fn copy(&self, executor: &Executor<'_>, copy: impl Fn(&Path, &Path) -> Result<u64>) -> Result<()> {
        interrupt::watching(executor.cancel, || {
            self.copied.iter().try_for_each(|(path, source)| copy(path, source).map(drop))?;
            interrupt::check()
        })
    }

    fn write_part(&self, options: &WriteOptions, part: Part, executor: &Executor<'_>) -> Result<()> {
        let parts = PartsDir::open(&options.out, &part_name(part), options.force)?;
        let note_path = PathBuf::from(note_name(part));
        // From here on the part is not done, until it is.
        parts.remove_note(&note_path)?;
        let mut note = interrupt::watching(executor.cancel, || self.note(part))?;
        let range = self.plan.slice(part.part, part.parts);
        let files = self.create(range.clone(), |path, bytes| parts.create(path, bytes))?;
        executor.run(&self.plan, range.clone(), &files)?;
        for (file, planned) in files.iter().zip(&self.plan.files[range]) {
            file.finish(options.durable)?;
            parts.publish(Path::new(&planned.name))?;
            note.weights.push(NotedFile::of(planned.name.clone(), planned.bytes, &planned.header));
        }
        // Every part knows the side files; whoever writes them writes the same bytes.
        for (path, contents) in &self.written {
            parts.write(path, contents)?;
        }
        self.copy(executor, |path, source| parts.copy_in(path, source))?;
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
    fn note(&self, part: Part) -> Result<PartNote> {
        let name = |path: &Path| path.to_string_lossy().into_owned();
        let written =
            self.written.iter().map(|(path, contents)| NotedFile::of(name(path), contents.len() as u64, contents));
        let copied = of_copied(&self.copied)?.into_iter().zip(&self.copied);
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

/// The output must be none of the inputs, nor hold one.
///
/// # Errors
/// `Unsupported`, naming both.
pub fn refuse_inputs<'a>(out: &Path, inputs: impl Iterator<Item = &'a Path>) -> Result<()> {
    let Ok(place) = std::fs::canonicalize(out) else { return Ok(()) };
    for input in inputs {
        let Ok(input_place) = std::fs::canonicalize(input) else { continue };
        if input_place.starts_with(&place) {
            let what = format!("the output would take the place of the input `{}`", input.display());
            return Err(Error::unsupported(out, what).hint("name another output"));
        }
    }
    Ok(())
}
