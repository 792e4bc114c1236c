//! `lorakit subtract`.

use clap::Args as Group;
use lorakit::adapters::is_adapter;
use lorakit::error::{Error, Result};
use lorakit::ops::Run;
use lorakit::ops::unmerge::{UnmergeOptions, Unmerged, unmerge};
use lorakit::report;

use super::args::Write;
use super::progress::Bar;
use super::{merge, notice, place, watch};

#[derive(Debug, Group)]
pub struct Subtract {
    /// What is subtracted from: a merged model
    #[arg(value_name = "A")]
    pub from: String,
    /// Adapters that are subtracted, each with the weight it was merged with after a colon if it is not 1
    #[arg(required = true, value_name = "ADAPTER[:W]")]
    pub adapters: Vec<String>,
    #[command(flatten)]
    pub write: Write,
    /// The model they were merged into: proves the merge, and gives its weights back bit for bit
    #[arg(long, value_name = "PATH")]
    pub base: Option<String>,
    /// Multiply the weight of the modules that match: REGEX=W
    #[arg(long, value_name = "REGEX=W", allow_hyphen_values = true)]
    pub weight_for: Vec<String>,
    /// The adapter as it was before training, for PiSSA, OLoRA, CorDA and LoRA-GA (one for each such adapter)
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Vec<String>,
    /// The model was merged from the residual model that the adapter's initialiser left behind
    #[arg(long, conflicts_with = "init_adapter")]
    pub residual_base: bool,
    /// Record the hashes of the models' files as well
    #[arg(long)]
    pub hash_base: bool,
}

/// Takes adapters out of a model, and gives the report.
pub fn run(args: &Subtract) -> Result<Vec<u8>> {
    let from = place::path(&args.from)?;
    if is_adapter(&from) {
        return Err(Error::unsupported(&from, "is an adapter; so far adapters are subtracted from merged models only"));
    }
    let options = UnmergeOptions {
        merged: from,
        adapters: args.adapters.iter().map(|written| place::adapter(written)).collect::<Result<_>>()?,
        base: args.base.as_deref().map(place::path).transpose()?,
        init_adapters: args.init_adapter.iter().map(|written| place::path(written)).collect::<Result<_>>()?,
        residual_base: args.residual_base,
        selection: merge::selection(&args.write, &args.weight_for)?,
        allow_unused: args.write.allow_unused.clone(),
        hash_base: args.hash_base,
        write: merge::write_options(&args.write)?,
    };
    let cancel = watch::interruptible()?;
    let talk = args.write.talk;
    let bar = Bar::new(talk.quiet);
    let result = unmerge(&options, &Run { cancel: &cancel, progress: &bar })?;
    let peak = watch::peak_resident_bytes();
    let (json, text) = match result {
        Unmerged::Subtracted(mut result) => {
            result.peak_resident_bytes = peak;
            if result.changes_nothing {
                notice("warning: nothing is taken out: the result equals the merged model");
            }
            (report::json(&result), report::subtracted(&result, talk.verbose))
        }
        Unmerged::Compared(mut result) => {
            result.peak_resident_bytes = peak;
            (report::json(&result), report::unmerge(&result, talk.verbose))
        }
    };
    Ok(match (talk.json, talk.quiet) {
        (true, _) => json,
        (false, true) => Vec::new(),
        (false, false) => text.into_bytes(),
    })
}
