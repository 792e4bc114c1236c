//! What `stack`, `subtract` and `resize` are told alike.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args as Group;

use super::place;
use super::rank::Rank;
use super::reading::ReadingInputs;
use super::words;
use super::write_adapter::{To, WriteAdapter};

use crate::error::Result;
use crate::ops::WriteOptions;
use crate::ops::merge::Selection;
use crate::ops::sum::{Operation, SumOptions};
use crate::truncate::NewAdapterReport;

/// The options.
#[derive(Debug, Group)]
pub struct Sum {
    #[command(flatten)]
    pub rank: Rank,
    #[command(flatten)]
    pub to: To,
    #[command(flatten)]
    pub read: ReadingInputs,
    /// The model the adapters were trained on: for tensors they hold whole, methods that need its weights, names and heads with --to,
    /// and what PiSSA or OLoRA took out of it. Of a merged model the one A was merged into: proves the merge, and gives its weights back
    /// bit for bit
    #[arg(long, value_name = "PATH")]
    pub base: Option<OsString>,
    /// The adapter as it was before training, for PiSSA, OLoRA, CorDA and LoRA-GA (one for each such adapter)
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Vec<OsString>,
}

impl Sum {
    /// What the library is told.
    pub fn options(
        &self,
        operation: Operation,
        adapters: Vec<(PathBuf, f64)>,
        selection: Selection,
        write: WriteOptions,
    ) -> Result<SumOptions> {
        let mut options = SumOptions::new(adapters, write);
        options.operation = operation;
        options.read = self.read.options()?;
        options.init_adapters = self.init_adapters()?;
        options.base = self.base()?;
        options.rank = self.rank.choice()?;
        options.compute = self.rank.compute.into();
        options.alpha = self.rank.alpha;
        options.selection = selection;
        options.dialect = self.to.dialect()?;
        Ok(options)
    }

    /// `--base`.
    pub fn base(&self) -> Result<Option<PathBuf>> {
        self.base.as_deref().map(place::path).transpose()
    }

    /// `--init-adapter`.
    pub fn init_adapters(&self) -> Result<Vec<PathBuf>> {
        self.init_adapter.iter().map(|written| place::path(written)).collect()
    }
}

/// `--include` and `--exclude`.
pub fn selection(write: &WriteAdapter) -> Result<Selection> {
    Ok(Selection {
        include: words::patterns("--include", &write.include)?,
        exclude: words::patterns("--exclude", &write.exclude)?,
        ..Selection::default()
    })
}

/// Why a strict caller does not like a new adapter.
pub fn vanished(made: &NewAdapterReport) -> Option<String> {
    let count = made.vanished.len();
    (count > 0).then(|| format!("nothing is left of {count} modules"))
}
