//! What the files of adapters leave open, and the command line says.

use clap::{Args as Group, ValueEnum};

use crate::adapters::ReadOptions;
use crate::error::{Error, Result};
use crate::naming::experts::peft::{Order, Sides};

/// For verbs without an alpha of their own.
#[derive(Debug, Group)]
pub struct Reading {
    /// Alpha of adapters that say none, such as those of PEFT without their config, or that say two
    #[arg(long, visible_alias = "input-alpha", value_name = "A")]
    pub alpha: Option<f64>,
    #[command(flatten)]
    pub rest: Rest,
}

/// For verbs whose --alpha is that of the result.
#[derive(Debug, Group)]
pub struct ReadingInputs {
    /// Alpha of adapters that say none, such as those of PEFT without their config, or that say two
    #[arg(long, value_name = "A")]
    pub input_alpha: Option<f64>,
    #[command(flatten)]
    pub rest: Rest,
}

/// What all verbs have.
#[derive(Debug, Group)]
pub struct Rest {
    /// Which adapter, where a file or a folder holds several
    #[arg(long, value_name = "NAME")]
    pub adapter_name: Option<String>,
    /// Which factor of stacked experts lies on the input, where the files do not tell: A (straight) or B (swapped)
    #[arg(long, value_enum, value_name = "SIDES")]
    pub expert_sides: Option<SidesWord>,
    /// How the columns of B of stacked experts are ordered: rank_major (PEFT), or grouped_by_expert (Unsloth until September 2026)
    #[arg(long, value_enum, value_name = "ORDER")]
    pub expert_order: Option<OrderWord>,
}

/// As [`Sides`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SidesWord {
    /// A lies on the input, B on the output
    Straight,
    /// A lies on the output, B on the input
    Swapped,
}

/// As [`Order`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum OrderWord {
    /// The expert runs fastest
    #[value(name = "rank_major", alias = "rank-major")]
    RankMajor,
    /// Expert after expert
    #[value(name = "grouped_by_expert", aliases = ["grouped-by-expert", "grouped"])]
    GroupedByExpert,
}

impl Reading {
    /// As the library takes it.
    pub fn options(&self) -> Result<ReadOptions> {
        options("--alpha", self.alpha, &self.rest)
    }
}

impl ReadingInputs {
    /// As the library takes it.
    pub fn options(&self) -> Result<ReadOptions> {
        options("--input-alpha", self.input_alpha, &self.rest)
    }
}

fn options(option: &str, alpha: Option<f64>, rest: &Rest) -> Result<ReadOptions> {
    if let Some(alpha) = alpha.filter(|alpha| !alpha.is_finite()) {
        return Err(Error::invalid(option, format!("`{alpha}` is not a finite number")));
    }
    let mut options = ReadOptions::default();
    (options.alpha, options.name) = (alpha, rest.adapter_name.clone());
    options.expert_sides = rest.expert_sides.map(|word| match word {
        SidesWord::Straight => Sides::Straight,
        SidesWord::Swapped => Sides::Swapped,
    });
    options.expert_order = rest.expert_order.map(|word| match word {
        OrderWord::RankMajor => Order::RankMajor,
        OrderWord::GroupedByExpert => Order::GroupedByExpert,
    });
    Ok(options)
}
