//! Options of the verbs that write adapters.

use std::path::PathBuf;

use clap::Args as Group;

use super::options::Talk;
use super::{values, words};

use crate::Target;
use crate::error::Result;
use crate::ops::{ToDialect, WriteOptions};

/// The options.
#[derive(Debug, Group)]
pub struct WriteAdapter {
    /// Output: a directory, or a file where the dialect has one
    #[arg(short, long, alias = "output", value_name = "PATH")]
    pub out: PathBuf,
    /// Replace an output that lorakit made, and nobody added to
    #[arg(long)]
    pub force: bool,
    /// Dtype of the factors: keep (that of the input), f32, f16, bf16, f64
    #[arg(long, visible_alias = "save-precision", default_value = "keep", value_name = "DTYPE", value_parser = values::dtypes(), hide_possible_values = true)]
    pub dtype: String,
    /// Only modules whose path matches (repeatable)
    #[arg(short, long, value_name = "REGEX")]
    pub include: Vec<String>,
    /// Leave out modules whose path matches (repeatable)
    #[arg(short, long, value_name = "REGEX")]
    pub exclude: Vec<String>,
    /// Worker threads; all processors if not given
    #[arg(short = 'j', long, value_name = "N")]
    pub threads: Option<usize>,
    /// Memory the workers may hold together
    #[arg(long, default_value = "2GiB", value_name = "SIZE")]
    pub max_memory: String,
    /// Compute and report, write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Return only when the output has reached the disk itself
    #[arg(long)]
    pub sync: bool,
    #[command(flatten)]
    pub talk: Talk,
}

/// In which dialect an adapter is written.
#[derive(Debug, Group)]
pub struct To {
    #[arg(long, alias = "format", value_name = "FORMAT", help = to(), value_parser = values::dialects(), hide_possible_values = true)]
    pub to: Option<String>,
    /// The architecture the adapter is for, where names do not tell
    #[arg(long, value_name = "NAME", value_parser = values::families(), hide_possible_values = true)]
    pub arch: Option<String>,
}

fn to() -> String {
    format!("Dialect of the adapter: {}; as `convert` would write what is made", Target::listed(Target::dialects()))
}

impl To {
    /// What the library is told.
    pub fn dialect(&self) -> Result<ToDialect> {
        Ok(ToDialect { to: self.to.as_deref().map(str::parse).transpose()?, arch: self.arch.clone() })
    }
}

impl WriteAdapter {
    /// What the library is told. An adapter is one weight file, rounded to nearest, made in one piece.
    pub fn options(&self) -> Result<WriteOptions> {
        let mut options = WriteOptions::new(words::out(&self.out)?);
        options.force = self.force;
        options.dtype = words::dtype(&self.dtype)?;
        options.budget = words::budget(self.threads, &self.max_memory)?;
        options.dry_run = self.dry_run;
        options.durable = self.sync;
        Ok(options)
    }
}
