//! `lorakit stack`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args as Group, ValueEnum};

use super::options::{Talk, Weights};
use super::progress::Bar;
use super::said::Said;
use super::sum::{Sum, selection};
use super::write_adapter::WriteAdapter;
use super::{notice, place, watch};

use crate::error::{Error, Result};
use crate::inserted::{step_of, weights_of_run};
use crate::ops::Run;
use crate::ops::merge::Selection;
use crate::ops::sum::{Majority, Method, Operation, Pruning, Rule, SumOptions, sum};
use crate::report;

/// The words after `stack`.
#[derive(Debug, Group)]
pub struct Stack {
    /// Adapters, each with a weight after a colon if it is not 1
    #[arg(required = true, value_name = "ADAPTER[:W]")]
    pub adapters: Vec<OsString>,
    #[command(flatten)]
    pub sum: Sum,
    #[command(flatten)]
    pub write: WriteAdapter,
    #[command(flatten)]
    pub weights: Weights,
    /// How adapters become one; ties, dare, dare-ties and magnitude need ranks
    #[arg(long, value_enum, default_value_t = MethodName::Concat, value_name = "METHOD")]
    pub method: MethodName,
    /// Share of the elements of each ΔW that ties, dare, dare-ties and magnitude keep
    #[arg(long, value_name = "SHARE")]
    pub density: Option<f64>,
    /// Seed of dare and dare-ties
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Average checkpoints of one run with the weights of an exponential moving average of this width, as 0.1
    #[arg(long, value_name = "SIGMA_REL")]
    pub ema: Option<f64>,
    /// How ties and dare-ties elect a sign
    #[arg(long, value_enum, default_value_t = MajorityName::Total, value_name = "RULE")]
    pub majority: MajorityName,
}

/// How adapters become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MethodName {
    /// Σ wᵢ·ΔWᵢ, exactly
    Concat,
    /// The largest elements of each, of the sign that prevails
    Ties,
    /// A random share of the elements
    Dare,
    /// A random share of the elements, of the sign that prevails
    DareTies,
    /// The largest elements of each
    Magnitude,
    /// A and B averaged apart, which is no sum of the ΔW (PEFT's `linear`)
    FactorAverage,
    /// Tensors of one name averaged, of adapters of any kind and one structure
    Average,
}

/// How a sign is elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MajorityName {
    /// The sign of the sum
    Total,
    /// The sign that is more frequent
    Frequency,
}

/// Stacks, and gives the report.
pub fn run(args: &Stack) -> Result<Said> {
    let mut adapters = args.adapters.iter().map(|written| place::adapter(written)).collect::<Result<Vec<_>>>()?;
    if let Some(sigma) = args.ema {
        weigh(&mut adapters, sigma)?;
    }
    let (weights, blocks) = (args.weights.patterns()?, args.weights.blocks()?);
    let selection = Selection { weights, blocks, ..selection(&args.write)? };
    let mut options = args.sum.options(Operation::Stack, adapters, selection, args.write.options()?)?;
    options.method = args.method()?;
    perform(&options, args.write.talk)
}

/// Does what `options` say, and gives the report.
pub fn perform(options: &SumOptions, talk: Talk) -> Result<Said> {
    let cancel = watch::interruptible()?;
    let bar = Bar::new("stacking", talk.quiet);
    let mut result = sum(options, &Run { cancel: &cancel, progress: &bar })?;
    result.peak_resident_bytes = watch::peak_resident_bytes();
    if !talk.json && !talk.quiet && options.method == Method::FactorAverage {
        notice("warning: an average of factors is no sum of the changes; `--method concat` gives that");
    }
    let bad = super::sum::vanished(&result.made);
    Ok(Said::of(talk, &result, |result| report::sum(result, talk.verbose)).bad(bad))
}

/// Gives checkpoints of one run the weights of a moving average.
fn weigh(adapters: &mut [(PathBuf, f64)], sigma: f64) -> Result<()> {
    if let Some((path, weight)) = adapters.iter().find(|(_, weight)| *weight != 1.0) {
        let problem = format!("gives the weights itself, and `{}` has the weight {weight}", path.display());
        return Err(Error::invalid("--ema", problem));
    }
    let steps = adapters.iter().map(|(path, _)| step_of(path)).collect::<Result<Vec<u64>>>()?;
    let weights = weights_of_run(&steps, sigma)?;
    adapters.iter_mut().zip(weights).for_each(|((_, own), weight)| *own = weight);
    Ok(())
}

impl Stack {
    fn method(&self) -> Result<Method> {
        let majority = match self.majority {
            MajorityName::Total => Majority::Total,
            MajorityName::Frequency => Majority::Frequency,
        };
        let rule = match self.method {
            MethodName::Concat | MethodName::FactorAverage | MethodName::Average => None,
            MethodName::Ties => Some(Rule::Ties(majority)),
            MethodName::Dare => Some(Rule::Dare),
            MethodName::DareTies => Some(Rule::DareTies(majority)),
            MethodName::Magnitude => Some(Rule::Magnitude),
        };
        match (rule, self.density) {
            (Some(rule), Some(density)) => Ok(Method::Elementwise(Pruning { rule, density, seed: self.seed })),
            (Some(_), _) if self.ema.is_some() => {
                Err(Error::invalid("--ema", "is an average: it goes with `--method average`"))
            }
            (Some(_), None) => Err(Error::invalid("--density", "is needed: the share of elements that is kept")),
            (None, Some(_)) => Err(Error::invalid("--density", "belongs to ties, dare, dare-ties and magnitude")),
            (None, None) => match (self.method, self.ema) {
                (MethodName::Average, _) | (MethodName::Concat, Some(_)) => Ok(Method::Average),
                (_, Some(_)) => Err(Error::invalid("--ema", "is an average: it goes with `--method average`")),
                (MethodName::FactorAverage, None) => Ok(Method::FactorAverage),
                (_, None) => Ok(Method::Concat),
            },
        }
    }
}
