//! Groups of options that several verbs have.

use std::path::PathBuf;

use clap::{Args as Group, ValueEnum};
use regex::Regex;

use super::{place, values, words};

use crate::error::{Error, Result};
use crate::naming::blocks::BlockWeights;
use crate::ops::merge::Selection;
use crate::ops::{Rounding, WriteOptions};

/// Options that all writing verbs share.
#[derive(Debug, Group)]
pub struct Write {
    /// Output file or directory
    #[arg(short, long, alias = "output", value_name = "PATH")]
    pub out: PathBuf,
    /// Replace an output that lorakit made, and nobody added to
    #[arg(long)]
    pub force: bool,
    /// Dtype of the model: keep, f32, f16, bf16, f64, f8_e4m3, f8_e5m2
    #[arg(long, visible_alias = "save-precision", default_value = "keep", value_name = "DTYPE", value_parser = values::dtypes(), hide_possible_values = true)]
    pub dtype: String,
    /// Cast every floating point tensor to --dtype, also those that the model keeps in another precision
    #[arg(long)]
    pub cast_all: bool,
    /// Cast only the tensors that change to --dtype
    #[arg(long, conflicts_with = "cast_all")]
    pub changed_only: bool,
    /// How results are rounded to their dtype; nearest if not given
    #[arg(long, value_enum, value_name = "MODE")]
    pub rounding: Option<RoundingMode>,
    /// Seed of --rounding stochastic
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Largest weight file, as 5GB or 500MiB; `keep` keeps the base's files
    #[arg(long, default_value = "keep", value_name = "SIZE")]
    pub max_shard_size: String,
    /// Change only modules whose path matches (repeatable)
    #[arg(short, long, value_name = "REGEX")]
    pub include: Vec<String>,
    /// Leave out modules whose path matches (repeatable)
    #[arg(short, long, value_name = "REGEX")]
    pub exclude: Vec<String>,
    /// Adapter tensors that may have no place in the base (repeatable)
    #[arg(long, value_name = "GLOB")]
    pub allow_unused: Vec<String>,
    /// Worker threads; all processors if not given
    #[arg(short = 'j', long, value_name = "N")]
    pub threads: Option<usize>,
    /// Memory the workers may hold together
    #[arg(long, default_value = "2GiB", value_name = "SIZE")]
    pub max_memory: String,
    /// Print the plan and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do the I-th of N slices of the work; `finish` puts them together
    #[arg(long, value_name = "I/N", conflicts_with = "dry_run")]
    pub part: Option<String>,
    /// Return only when the output has reached the disk itself
    #[arg(long)]
    pub sync: bool,
    #[command(flatten)]
    pub talk: Talk,
}

/// How much is said, and how.
#[derive(Debug, Clone, Copy, Group)]
pub struct Talk {
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
    /// No report; errors and warnings only
    #[arg(short, long)]
    pub quiet: bool,
    /// More numbers: every tensor or module that changes
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Exit with 3 where the outcome is bad: nothing changed, lost to rounding, not what was claimed
    #[arg(long)]
    pub strict: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoundingMode {
    /// To nearest, once: as PEFT's `merge_and_unload()`
    Nearest,
    /// Up or down at random, so that small changes are kept on average
    Stochastic,
    /// The delta first, then the sum: as PEFT's `safe_merge=True`
    PeftSafe,
}

/// Further weights of modules.
#[derive(Debug, Group)]
pub struct Weights {
    /// Multiply the weight of the modules that match: REGEX=W
    #[arg(long, value_name = "REGEX=W", allow_hyphen_values = true)]
    pub weight_for: Vec<String>,
    /// Weights of blocks of a diffusion model: 12, 17, 20, 26 or 61 numbers, or a preset (INS, MIDD, OUTALL …)
    #[arg(long, value_name = "W,W…", allow_hyphen_values = true)]
    pub lbw: Option<String>,
}

impl Write {
    /// What the library is told.
    pub fn options(&self) -> Result<WriteOptions> {
        let dtype = words::dtype(&self.dtype)?;
        let limits = [(self.cast_all, "--cast-all"), (self.changed_only, "--changed-only")];
        if let Some((_, option)) = limits.iter().find(|(given, _)| *given && dtype.is_none()) {
            return Err(Error::invalid(*option, "needs a `--dtype` other than `keep`"));
        }
        let keep = self.max_shard_size == "keep";
        let mut options = WriteOptions::new(words::out(&self.out)?);
        options.force = self.force;
        options.dtype = dtype;
        options.cast_all = self.cast_all;
        options.changed_only = self.changed_only;
        options.rounding = match self.rounding.unwrap_or(RoundingMode::Nearest) {
            RoundingMode::Nearest => Rounding::Nearest,
            RoundingMode::Stochastic => Rounding::Stochastic { seed: self.seed },
            RoundingMode::PeftSafe => Rounding::PeftSafe,
        };
        options.max_shard_bytes =
            if keep { None } else { Some(place::size("--max-shard-size", &self.max_shard_size)?) };
        options.budget = words::budget(self.threads, &self.max_memory)?;
        options.dry_run = self.dry_run;
        options.part = self.part.as_deref().map(str::parse).transpose()?;
        options.durable = self.sync;
        Ok(options)
    }

    /// Which modules are changed, and how strongly.
    pub fn selection(&self, weights: &Weights) -> Result<Selection> {
        Ok(Selection {
            include: words::patterns("--include", &self.include)?,
            exclude: words::patterns("--exclude", &self.exclude)?,
            weights: weights.patterns()?,
            blocks: weights.blocks()?,
        })
    }
}

impl Weights {
    /// What `--weight-for` says.
    pub fn patterns(&self) -> Result<Vec<(Regex, f64)>> {
        self.weight_for.iter().map(|written| weight(written)).collect()
    }

    /// What `--lbw` says.
    pub fn blocks(&self) -> Result<Option<BlockWeights>> {
        self.lbw.as_deref().map(BlockWeights::read).transpose()
    }
}

/// `--weight-for`: a pattern and the weight of the modules that match.
fn weight(written: &str) -> Result<(Regex, f64)> {
    let wrong = || Error::invalid("--weight-for", format!("`{written}` is not REGEX=W with a finite number W"));
    let (pattern, weight) = written.rsplit_once('=').ok_or_else(wrong)?;
    let weight: f64 = weight.parse().map_err(|_| wrong())?;
    if weight.is_finite() { Ok((words::pattern("--weight-for", pattern)?, weight)) } else { Err(wrong()) }
}
