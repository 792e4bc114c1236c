//! `lorakit extract`.

use std::ffi::OsString;

use clap::{Args as Group, ValueEnum};
use lorakit::error::{Error, Result};
use lorakit::linalg::Compute;
use lorakit::ops::Run;
use lorakit::ops::extract::{Choice, ExtractOptions, extract};
use lorakit::report;

use super::place;
use super::progress::Bar;
use super::rank::Rank;
use super::watch::{interruptible, peak_resident_bytes};
use super::words::patterns;
use super::write_adapter::{To, WriteAdapter};

#[derive(Debug, Group)]
pub struct Extract {
    /// The model that was tuned: a directory, a safetensors file, or org/name[@rev] in the Hugging Face cache
    pub base: OsString,
    /// What it became
    pub tuned: OsString,
    #[command(flatten)]
    pub write: WriteAdapter,
    #[command(flatten)]
    pub to: To,
    #[command(flatten)]
    pub rank: Rank,
    /// Fill all pairs with zeros up to the largest rank: one rank and one alpha, as vLLM wants them
    #[arg(long, help_heading = "Rank", conflicts_with = "alpha")]
    pub uniform_rank: bool,
    /// Alpha of all modules, the scale folded into the factors; each module's rank if not given
    #[arg(long, value_name = "A")]
    pub alpha: Option<f64>,
    /// The component of two pipelines that is compared, all if not given
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// How close the error comes to the best possible
    #[arg(long, value_enum, default_value_t = Effort::Accurate, value_name = "EFFORT")]
    pub compute: Effort,
    /// Store modules whose path matches whole (repeatable)
    #[arg(long, value_name = "REGEX")]
    pub full: Vec<String>,
    /// Leave out modules whose path matches, as --exclude does (repeatable)
    #[arg(long, value_name = "REGEX")]
    pub skip: Vec<String>,
}

/// How close the error comes to the best possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Effort {
    /// Within 1 %
    Fast,
    /// Within 0.1 %
    Accurate,
}

impl Effort {
    /// As the library calls it.
    pub fn compute(self) -> Compute {
        match self {
            Self::Fast => Compute::Fast,
            Self::Accurate => Compute::Accurate,
        }
    }
}

/// Extracts, and gives the report.
pub fn run(args: &Extract) -> Result<Vec<u8>> {
    if let Some(alpha) = args.alpha.filter(|alpha| !(alpha.is_finite() && *alpha > 0.0)) {
        return Err(Error::invalid("--alpha", format!("`{alpha}` is not a finite number above 0")));
    }
    let (write, talk) = (&args.write, args.write.talk);
    let skip = patterns("--skip", &args.skip)?.into_iter().chain(patterns("--exclude", &write.exclude)?);
    let mut options = ExtractOptions::new(
        place::model(&args.base, args.component.as_deref())?,
        place::model(&args.tuned, args.component.as_deref())?,
        args.rank.required()?,
        write.options()?,
    );
    options.choice = Choice {
        include: patterns("--include", &write.include)?,
        skip: skip.collect(),
        full: patterns("--full", &args.full)?,
    };
    options.uniform_rank = args.uniform_rank;
    options.alpha = args.alpha;
    options.compute = args.compute.compute();
    options.dialect = args.to.dialect()?;
    let cancel = interruptible()?;
    let bar = Bar::new(talk.quiet);
    let mut result = extract(&options, &Run { cancel: &cancel, progress: &bar })?;
    result.peak_resident_bytes = peak_resident_bytes();
    Ok(match (talk.json, talk.quiet) {
        (true, _) => report::json(&result),
        (false, true) => Vec::new(),
        (false, false) => report::extract(&result, talk.verbose).into_bytes(),
    })
}
