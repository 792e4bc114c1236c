//! A plan: the files of an output, known before anything is computed, and a flat list of independent jobs that fill them.
//!
//! Every job owns a byte range of one file, so jobs run in any order on any number of threads and the bytes are the same.
//! What is computed is not known here: a job either copies bytes or asks a [`Compute`] for rows.

mod executor;
mod pool;
mod progress;
mod workers;

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::formats::layout::OutputFile;
use crate::io::MappedFile;

pub use executor::{Budget, Executor};
pub use pool::{each_within, map_within};
pub use progress::{Progress, Quiet};

/// Most bytes one copy job moves: small enough to keep all workers busy to the end.
const MAX_COPY_BYTES: u64 = 64 << 20;

/// Something that gives the bytes of a tensor row by row.
pub trait Compute: Send + Sync {
    /// What has to be known before the first row: runs once, before all jobs.
    ///
    /// # Errors
    /// When an input cannot be used.
    fn prepare(&self) -> Result<()> {
        Ok(())
    }

    /// Fills `out` with the bytes of `rows`.
    ///
    /// # Errors
    /// When an input cannot be used or a result cannot be stored.
    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()>;

    /// The tensor whose values were not all zero, where nothing but zeros was left of them: known when all rows are filled.
    fn vanished(&self) -> Option<String> {
        None
    }
}

/// Where the bytes of a job come from.
#[derive(Clone)]
pub enum Work {
    /// Bytes of an input, as they are.
    Copy {
        /// The input.
        source: Arc<MappedFile>,
        /// First byte in it.
        start: u64,
    },
    /// Rows that are computed.
    Rows {
        /// Who computes them.
        compute: Arc<dyn Compute>,
        /// Which rows.
        rows: Range<usize>,
    },
}

/// A byte range of one output file and where it comes from.
#[derive(Clone)]
pub struct Job {
    /// Index into [`Plan::files`].
    pub file: usize,
    /// First byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
    /// Where they come from.
    pub work: Work,
}

/// Files and the jobs that fill them.
#[derive(Default)]
pub struct Plan {
    /// The weight files, in order.
    pub files: Vec<OutputFile>,
    /// What is computed, each once: asked to prepare before any job runs.
    pub computed: Vec<Arc<dyn Compute>>,
    /// In file and offset order.
    pub jobs: Vec<Job>,
}

impl Plan {
    /// Adds a copy of `bytes` bytes; neighbours in source and target become one job.
    pub fn copy(&mut self, file: usize, offset: u64, source: &Arc<MappedFile>, start: u64, bytes: u64) {
        if let Some(Job {
            file: last_file,
            offset: last_offset,
            bytes: last_bytes,
            work: Work::Copy { source: last, start: from },
        }) = self.jobs.last_mut()
        {
            let neighbours = Arc::ptr_eq(last, source) && *from + *last_bytes == start;
            let adjoining = *last_file == file && *last_offset + *last_bytes == offset;
            if neighbours && adjoining && *last_bytes + bytes <= MAX_COPY_BYTES {
                *last_bytes += bytes;
                return;
            }
        }
        let mut done = 0;
        while done < bytes {
            let piece = (bytes - done).min(MAX_COPY_BYTES);
            let work = Work::Copy { source: Arc::clone(source), start: start + done };
            self.jobs.push(Job { file, offset: offset + done, bytes: piece, work });
            done += piece;
        }
    }

    /// Adds the computation of `rows` rows of `row_bytes` bytes each, in jobs of about `job_bytes`.
    pub fn compute(
        &mut self,
        file: usize,
        offset: u64,
        compute: &Arc<dyn Compute>,
        rows: Range<usize>,
        row_bytes: u64,
        job_bytes: u64,
    ) {
        let step = usize::try_from((job_bytes / row_bytes.max(1)).max(1)).unwrap_or(usize::MAX);
        let mut first = rows.start;
        while first < rows.end {
            let last = rows.end.min(first.saturating_add(step));
            let bytes = (last - first) as u64 * row_bytes;
            let work = Work::Rows { compute: Arc::clone(compute), rows: first..last };
            self.jobs.push(Job { file, offset: offset + (first - rows.start) as u64 * row_bytes, bytes, work });
            first = last;
        }
    }

    /// Which files the `part`-th of `parts` slices writes (from 1): contiguous, about equal in bytes.
    pub fn slice(&self, part: u32, parts: u32) -> Range<usize> {
        let total: u64 = self.files.iter().map(|file| file.bytes).sum();
        let mut middle_of = Vec::with_capacity(self.files.len());
        let mut before = 0_u64;
        for file in &self.files {
            middle_of.push(u128::from(before) * 2 + u128::from(file.bytes));
            before += file.bytes;
        }
        // A file belongs to the slice its middle lies in.
        let slice_of =
            |middle: &u128| u32::try_from(middle * u128::from(parts) / (u128::from(total.max(1)) * 2)).unwrap_or(parts);
        let slices: Vec<u32> = middle_of.iter().map(|middle| slice_of(middle).min(parts - 1)).collect();
        let first = slices.partition_point(|slice| *slice < part - 1);
        let end = slices.partition_point(|slice| *slice < part);
        first..end
    }

    /// The tensors of which nothing but zeros was written, although they held something.
    pub fn vanished(&self) -> Vec<String> {
        self.computed.iter().filter_map(|compute| compute.vanished()).collect()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::layout::OutputFile;
    use crate::tensor::{Dtype, Shape, TensorInfo};

    fn plan(sizes: &[u64]) -> Plan {
        let file = |(at, bytes): (usize, &u64)| {
            let info = TensorInfo {
                name: "t".into(),
                dtype: Dtype::U8,
                shape: Shape::from(vec![*bytes]),
                offset: 0,
                bytes: *bytes,
            };
            OutputFile::new(format!("{at}"), &[], vec![info])
        };
        Plan { files: sizes.iter().enumerate().map(file).collect(), ..Plan::default() }
    }

    #[test]
    fn every_file_is_in_exactly_one_slice() {
        for sizes in [&[10_000_u64, 10_000, 10_000][..], &[1], &[50_000, 10, 10, 10], &[5; 17]] {
            for parts in 1..8 {
                let plan = plan(sizes);
                let covered: Vec<usize> = (1..=parts).flat_map(|part| plan.slice(part, parts)).collect();
                assert_eq!(covered, (0..sizes.len()).collect::<Vec<_>>(), "{sizes:?} in {parts}");
            }
        }
    }

    #[test]
    fn equal_files_are_spread_evenly() {
        let plan = plan(&[10_000; 6]);
        assert!((1..=3).all(|part| plan.slice(part, 3).len() == 2));
    }
}
