//! What can be written on the command line. Names here are a contract (`docs/cli.md`).

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args as Group, Parser, ValueEnum};

use super::Verb;
use super::reading::Reading;

/// Transforms model files: merges LoRA adapters into weights, inspects checkpoints and adapters.
#[derive(Debug, Parser)]
#[command(name = "lorakit", version, max_term_width = 100, propagate_version = true)]
pub struct Args {
    /// When to colour: a terminal's wish and `NO_COLOR` are honoured by `auto`
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,
    #[command(subcommand)]
    pub verb: Verb,
}

/// When output is coloured.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

impl Color {
    /// Decides for the whole process.
    pub fn apply(self) {
        match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::Always,
            Self::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }

    /// A bold style in `color`.
    pub fn style(color: anstyle::AnsiColor) -> anstyle::Style {
        color.on_default().bold()
    }
}

#[derive(Debug, Group)]
pub struct Merge {
    /// The model: a directory, a safetensors file, or org/name[@rev] in the Hugging Face cache
    pub base: OsString,
    /// Adapters, each with a weight after a colon if it is not 1
    #[arg(required = true, value_name = "ADAPTER[:W]")]
    pub adapters: Vec<OsString>,
    #[command(flatten)]
    pub write: Write,
    #[command(flatten)]
    pub weights: Weights,
    #[command(flatten)]
    pub read: Reading,
    /// The adapter as it was before training, for PiSSA, OLoRA, CorDA and LoRA-GA (one for each such adapter)
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Vec<OsString>,
    /// The model that PiSSA or OLoRA training started from, usually BASE itself: finds the untrained factors again
    #[arg(long = "base", value_name = "PATH", conflicts_with_all = ["init_adapter", "residual_base"])]
    pub original: Option<OsString>,
    /// BASE is the residual model that the adapter's initialiser left behind
    #[arg(long, conflicts_with = "init_adapter")]
    pub residual_base: bool,
    /// Which denoiser of a pipeline is meant where two are built alike: transformer, transformer_2
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// Let embedding and head that the adapter holds whole change the size of the vocabulary
    #[arg(long)]
    pub resize_vocab: bool,
    /// What the weights that change are written as in a GGUF file: keep, f16, bf16, f32, q8_0, q4_k …
    #[arg(long, default_value = "keep", value_name = "TYPE")]
    pub quant: String,
    /// Record the hashes of the base's files as well
    #[arg(long)]
    pub hash_base: bool,
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

/// Options that all writing verbs share.
#[derive(Debug, Group)]
pub struct Write {
    /// Output file or directory
    #[arg(short, long, value_name = "PATH")]
    pub out: PathBuf,
    /// Replace an output that exists
    #[arg(long)]
    pub force: bool,
    /// Dtype of what is computed: keep, f32, f16, bf16, f64, f8_e4m3, f8_e5m2
    #[arg(long, visible_alias = "save-precision", default_value = "keep", value_name = "DTYPE")]
    pub dtype: String,
    /// Cast untouched tensors to --dtype as well
    #[arg(long)]
    pub cast_all: bool,
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
    /// No report and no notices
    #[arg(short, long)]
    pub quiet: bool,
    /// List every tensor
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoundingMode {
    /// To nearest, once: as PEFT's `merge_and_unload()`
    Nearest,
    /// By chance, so that small changes survive on average
    Stochastic,
    /// The delta first, then the sum: as PEFT's `safe_merge=True`
    PeftSafe,
}

#[derive(Debug, Group)]
pub struct Inspect {
    /// Files, directories, folders of them, patterns, or org/name[@rev] in the Hugging Face cache
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<OsString>,
    /// List every tensor, and every module of an adapter
    #[arg(long)]
    pub tensors: bool,
    /// Singular values of what adapters add, effective ranks, norms; with --base against the weights
    #[arg(long)]
    pub spectrum: bool,
    /// The model that the adapters are for: their share of it, and whether every module has a place
    #[arg(long, value_name = "PATH")]
    pub base: Option<OsString>,
    #[command(flatten)]
    pub read: Reading,
    /// The component of the pipeline that is meant: of --base where that is given, else of PATH
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// Read the values too: zeros, what is not finite, hashes
    #[arg(long)]
    pub check: bool,
    /// Worker threads; all processors if not given
    #[arg(short = 'j', long, value_name = "N")]
    pub threads: Option<usize>,
    /// Memory the workers may hold together
    #[arg(long, default_value = "2GiB", value_name = "SIZE")]
    pub max_memory: String,
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
    /// A page for each of several, and every module of an adapter
    #[arg(short, long)]
    pub verbose: bool,
}

#[derive(Debug, Group)]
pub struct Finish {
    /// The output that was given to the runs with --part
    pub dir: PathBuf,
    /// Replace an output that exists
    #[arg(long)]
    pub force: bool,
    /// Throw away the parts that were written, and put nothing together
    #[arg(long, conflicts_with_all = ["force", "sync"])]
    pub discard: bool,
    /// Return only when the output has reached the disk itself
    #[arg(long)]
    pub sync: bool,
    #[command(flatten)]
    pub talk: Talk,
}
