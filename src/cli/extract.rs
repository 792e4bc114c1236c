//! `lorakit extract`.

use std::ffi::OsString;

use clap::Args as Group;

use super::place;
use super::progress::Bar;
use super::rank::Rank;
use super::said::Said;
use super::watch::{interruptible, peak_resident_bytes};
use super::words::patterns;
use super::write_adapter::{To, WriteAdapter};

use crate::error::Result;
use crate::ops::Run;
use crate::ops::extract::{Choice, ExtractOptions, extract};
use crate::report;

#[derive(Debug, Group)]
pub struct Extract {
    /// The model that was tuned: a directory, a safetensors file, or org/name[@rev] in the Hugging Face cache
    pub base: OsString,
    /// What it became
    pub tuned: OsString,
    #[command(flatten)]
    pub rank: Rank,
    #[command(flatten)]
    pub to: To,
    #[command(flatten)]
    pub write: WriteAdapter,
    /// The component of two pipelines that is compared, all if not given
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// What the config of the adapter calls its base, as org/name
    #[arg(long, value_name = "NAME")]
    pub base_name: Option<String>,
    /// Store modules whose path matches whole (repeatable)
    #[arg(long, value_name = "REGEX")]
    pub full: Vec<String>,
    /// Leave out modules whose path matches, as --exclude does (repeatable)
    #[arg(long, value_name = "REGEX")]
    pub skip: Vec<String>,
}

/// Extracts, and gives the report.
pub fn run(args: &Extract) -> Result<Said> {
    let (write, talk) = (&args.write, args.write.talk);
    let skip = patterns("--skip", &args.skip)?.into_iter().chain(patterns("--exclude", &write.exclude)?);
    let mut options = ExtractOptions::new(
        place::model(&args.base, args.component.as_deref())?,
        place::model(&args.tuned, args.component.as_deref())?,
        write.options()?,
    );
    options.choice = Choice {
        include: patterns("--include", &write.include)?,
        skip: skip.collect(),
        full: patterns("--full", &args.full)?,
    };
    options.ranks = args.rank.choice()?;
    options.alpha = args.rank.alpha;
    options.base_name = args.base_name.clone();
    options.compute = args.rank.compute.into();
    options.dialect = args.to.dialect()?;
    let cancel = interruptible()?;
    let bar = Bar::new("extracting", talk.quiet);
    let mut result = extract(&options, &Run { cancel: &cancel, progress: &bar })?;
    result.peak_resident_bytes = peak_resident_bytes();
    let bad = super::sum::vanished(&result.made);
    Ok(Said::of(talk, &result, |result| report::extract(result, talk.verbose)).bad(bad))
}
