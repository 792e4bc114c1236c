//! `lorakit resize`.

use std::ffi::OsString;

use clap::Args as Group;

use super::progress::Bar;
use super::said::Said;
use super::sum::{Sum, selection, vanished};
use super::write_adapter::WriteAdapter;
use super::{notice, place, watch};

use crate::error::{Error, Result};
use crate::ops::sum::{Intruders, Operation, Outcome, resize};
use crate::ops::{RankChoice, Ranking, Run};
use crate::report;

/// Options of `resize`.
#[derive(Debug, Group)]
pub struct Resize {
    /// Adapters, or folders of adapters; with several, OUT is a folder
    #[arg(required = true, value_name = "ADAPTER")]
    pub adapters: Vec<OsString>,
    #[command(flatten)]
    pub sum: Sum,
    #[command(flatten)]
    pub write: WriteAdapter,
    #[command(flatten)]
    pub intruders: IntruderArgs,
}

/// Options of PEFT's `reduce_intruder_dimension`, by its names.
#[derive(Debug, Group)]
pub struct IntruderArgs {
    /// Weaken directions that the base does not have (PEFT's reduce_intruder_dimension), which keeps more of what it knew; needs --base,
    /// and ranks stay if none are chosen
    #[arg(long, help_heading = "Intruders")]
    pub remove_intruders: bool,
    /// How many of the largest singular vectors of W + ΔW are looked at
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Intruders", requires = "remove_intruders")]
    pub top_k: usize,
    /// An intruder's |cos| with every left singular vector of W is below this
    #[arg(long, value_name = "COS", default_value_t = 0.5, help_heading = "Intruders", requires = "remove_intruders")]
    pub threshold_epsilon: f64,
    /// The share of an intruder that stays; 0 removes it
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.75,
        help_heading = "Intruders",
        requires = "remove_intruders"
    )]
    pub mitigation_lambda: f64,
}

impl IntruderArgs {
    fn chosen(&self) -> Option<Intruders> {
        self.remove_intruders.then_some(Intruders {
            top_k: self.top_k,
            threshold: self.threshold_epsilon,
            lambda: self.mitigation_lambda,
        })
    }
}

/// Resizes, and gives the report.
pub fn run(args: &Resize) -> Result<Said> {
    let adapters = args.adapters.iter().map(|written| Ok((place::path(written)?, 1.0))).collect::<Result<_>>()?;
    let mut options = args.sum.options(Operation::Resize, adapters, selection(&args.write)?, args.write.options()?)?;
    options.intruders = args.intruders.chosen();
    if options.intruders.is_some() {
        options.rank = options.rank.or(Some(RankChoice::new(Ranking::Own)));
    }
    let cancel = watch::interruptible()?;
    let talk = args.write.talk;
    let bar = Bar::new("resizing", talk.quiet);
    let mut result = resize(&options, &Run { cancel: &cancel, progress: &bar })?;
    result.peak_resident_bytes = watch::peak_resident_bytes();
    let mut said = Said::of(talk, &result, |result| report::resize(result, talk.verbose));
    if result.failed == 0 {
        let made = result.adapters.iter().filter_map(|adapter| match &adapter.outcome {
            Outcome::Resized(resized) => vanished(&resized.made),
            _ => None,
        });
        return Ok(said.bad(made.into_iter().next()));
    }
    for adapter in &result.adapters {
        if let Outcome::Failed { problem, hint } = &adapter.outcome {
            notice(problem);
            hint.iter().for_each(|hint| notice(&format!("  hint: {hint}")));
        }
    }
    let what = format!("{} of {} adapters could not be resized", result.failed, result.adapters.len());
    let error = Error::unsupported(&result.out, what);
    said.failed = Some(match result.failed < result.adapters.len() {
        true => error.hint("the others are done; a second run does only what is missing"),
        false => error,
    });
    Ok(said)
}
