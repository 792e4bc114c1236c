//! Options that say how the pairs of a new adapter are made, shared by `extract`, `stack`, `subtract` and `resize`.

use clap::{Args as Group, ValueEnum};

use super::place;

use crate::error::{Error, Result};
use crate::linalg::{Compute, RankPolicy};
use crate::ops::{Budgeted, RankChoice, Ranking};

/// The options.
#[derive(Debug, Clone, Default, Group)]
pub struct Rank {
    /// The same rank for every module
    #[arg(long, short_alias = 'r', value_name = "N", help_heading = "Rank", group = "policy")]
    pub rank: Option<usize>,
    /// Another rank for convolutions whose kernel is larger than 1
    #[arg(long, value_name = "N", help_heading = "Rank", requires = "policy")]
    pub conv_rank: Option<usize>,
    /// The lowest rank that keeps this share of ‖ΔW‖², as 0.99
    #[arg(long, value_name = "SHARE", help_heading = "Rank", group = "policy")]
    pub energy: Option<f64>,
    /// The lowest rank with this relative error at most, as 0.05
    #[arg(long, value_name = "ERROR", help_heading = "Rank", group = "policy")]
    pub max_error: Option<f64>,
    /// A budget for the whole adapter, as 200MB, spent where it buys most
    #[arg(long, value_name = "SIZE", help_heading = "Rank", group = "policy")]
    pub max_size: Option<String>,
    /// A budget for the whole adapter in parameters
    #[arg(long, value_name = "N", help_heading = "Rank", group = "policy")]
    pub max_params: Option<u64>,
    /// A rule of kohya's resize_lora.py; takes --rank-param
    #[arg(long, value_enum, value_name = "RULE", help_heading = "Rank", group = "policy", requires = "rank_param")]
    pub rank_method: Option<RankMethod>,
    /// The number of --rank-method
    #[arg(long, value_name = "X", help_heading = "Rank", requires = "rank_method")]
    pub rank_param: Option<f64>,
    /// Drop what rounding noise explains
    #[arg(long, help_heading = "Rank", group = "policy")]
    pub noise: bool,
    /// Never a rank above this
    #[arg(long, value_name = "N", help_heading = "Rank")]
    pub max_rank: Option<usize>,
    /// Fill all pairs with zeros up to the largest rank: one rank and one alpha
    #[arg(long, help_heading = "Rank", requires = "policy")]
    pub uniform_rank: bool,
    /// Choose ranks as another tool does: kohya's --rank-method keeps one more
    #[arg(long, value_enum, value_name = "TOOL", help_heading = "Rank", requires = "policy")]
    pub compat: Option<Compat>,
    /// Alpha of what is computed, the scale folded into the factors; its rank if not given, so that the scale is 1
    #[arg(long, value_name = "A")]
    pub alpha: Option<f64>,
    /// How close to the best possible the error comes where an iteration is needed
    #[arg(long, value_enum, default_value_t = Effort::Accurate, value_name = "EFFORT")]
    pub compute: Effort,
}

/// kohya's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RankMethod {
    /// Singular values above the largest ∕ X
    #[value(name = "sv_ratio")]
    Ratio,
    /// The share X of ‖ΔW‖
    #[value(name = "sv_fro")]
    Frobenius,
    /// The share X of the sum of singular values
    #[value(name = "sv_cumulative")]
    Cumulative,
}

/// Tools whose choices can be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compat {
    /// sd-scripts' resize_lora.py
    Kohya,
}

/// How close to the optimum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Effort {
    /// Within 1 %
    Fast,
    /// Within 0.1 %
    #[default]
    Accurate,
}

impl From<Effort> for Compute {
    fn from(effort: Effort) -> Self {
        match effort {
            Effort::Fast => Self::Fast,
            Effort::Accurate => Self::Accurate,
        }
    }
}

impl Rank {
    /// What was chosen, or `None` if nothing was.
    ///
    /// # Errors
    /// When a size is none, or there is a limit and nothing to limit.
    pub fn choice(&self) -> Result<Option<RankChoice>> {
        let Some(ranking) = self.ranking()? else {
            return match self.max_rank {
                Some(_) => Err(Error::invalid("--max-rank", "caps another choice, and none is made")
                    .hint("`--rank N` gives every module one rank")),
                None => Ok(None),
            };
        };
        let (conv_rank, max_rank, uniform) = (self.conv_rank, self.max_rank, self.uniform_rank);
        Ok(Some(RankChoice { ranking, conv_rank, max_rank, uniform, kohya: self.compat == Some(Compat::Kohya) }))
    }

    fn ranking(&self) -> Result<Option<Ranking>> {
        let by_method = self.rank_method.zip(self.rank_param).map(|(method, number)| match method {
            RankMethod::Ratio => RankPolicy::Ratio(number),
            RankMethod::Frobenius => RankPolicy::Frobenius(number),
            RankMethod::Cumulative => RankPolicy::Cumulative(number),
        });
        let policy = self.rank.map(RankPolicy::Rank).or(self.energy.map(RankPolicy::Energy));
        let policy = policy.or(self.max_error.map(RankPolicy::MaxError)).or(by_method).map(Ranking::Rule);
        let bytes = self.max_size.as_deref().map(|size| place::size("--max-size", size)).transpose()?;
        let budget = bytes.map(Budgeted::Bytes).or(self.max_params.map(Budgeted::Parameters)).map(Ranking::Budget);
        Ok(policy.or(budget).or(self.noise.then_some(Ranking::Noise)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        rank: Rank,
    }

    fn parse(words: &str) -> std::result::Result<Rank, String> {
        let words = std::iter::once("x").chain(words.split_whitespace());
        Line::try_parse_from(words).map(|line| line.rank).map_err(|error| error.to_string())
    }

    fn choice(words: &str) -> Result<Option<RankChoice>> {
        parse(words).expect(words).choice()
    }

    #[test]
    fn every_policy_is_understood() {
        let rule = |policy| Some(Ranking::Rule(policy));
        for (words, ranking) in [
            ("--rank 8", rule(RankPolicy::Rank(8))),
            ("--energy 0.99", rule(RankPolicy::Energy(0.99))),
            ("--max-error 0.05", rule(RankPolicy::MaxError(0.05))),
            ("--max-size 2MB", Some(Ranking::Budget(Budgeted::Bytes(2_000_000)))),
            ("--max-params 77", Some(Ranking::Budget(Budgeted::Parameters(77)))),
            ("--rank-method sv_ratio --rank-param 20", rule(RankPolicy::Ratio(20.0))),
            ("--rank-method sv_fro --rank-param 0.9", rule(RankPolicy::Frobenius(0.9))),
            ("--rank-method sv_cumulative --rank-param 0.9", rule(RankPolicy::Cumulative(0.9))),
            ("--noise", Some(Ranking::Noise)),
            ("", None),
        ] {
            assert_eq!(choice(words).expect(words).map(|choice| choice.ranking), ranking, "{words}");
        }
        let words = "--energy 0.9 --max-rank 16 --conv-rank 4 --uniform-rank --compat kohya";
        let capped = choice(words).expect("a choice").expect("one");
        assert_eq!((capped.max_rank, capped.conv_rank, capped.uniform, capped.kohya), (Some(16), Some(4), true, true));
    }

    #[test]
    fn there_is_one_policy_at_most_and_what_belongs_to_one_needs_it() {
        for words in [
            "--rank 8 --energy 0.9",
            "--noise --max-size 1MB",
            "--rank-method sv_fro",
            "--rank-param 1",
            "--conv-rank 1",
            "--uniform-rank",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
        let message = choice("--max-rank 4").expect_err("nothing to cap").to_string();
        assert_eq!(message, "--max-rank: caps another choice, and none is made");
    }
}
