//! Options that say how ranks are chosen, shared by `extract`, `stack` and `resize`.

use clap::{Args as Group, ValueEnum};
use lorakit::error::{Error, Result};
use lorakit::limits::MAX_RANK;
use lorakit::linalg::{RankPolicy, RankRule};
use lorakit::ops::{Budgeted, RankChoice, Ranking};

use super::place;

/// The options.
#[derive(Debug, Clone, Default, Group)]
pub struct Rank {
    /// The same rank for every module
    #[arg(long, value_name = "N", help_heading = "Rank", group = "policy")]
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

impl Rank {
    /// What was chosen, or `None` if nothing was.
    ///
    /// # Errors
    /// When a number makes no sense, or there is a limit and nothing to limit.
    pub fn choice(&self) -> Result<Option<RankChoice>> {
        for (option, rank) in [("--rank", self.rank), ("--conv-rank", self.conv_rank), ("--max-rank", self.max_rank)] {
            if rank == Some(0) {
                return Err(Error::invalid(option, "must be at least 1"));
            }
            if let Some(rank) = rank.filter(|rank| *rank > MAX_RANK && option != "--max-rank") {
                return Err(Error::invalid(option, format!("`{rank}` is more than the accepted {MAX_RANK}")));
            }
        }
        let Some(ranking) = self.ranking()? else {
            return match self.max_rank {
                Some(_) => Err(Error::invalid("--max-rank", "caps another choice, and none is made")
                    .hint("`--rank N` gives every module one rank")),
                None => Ok(None),
            };
        };
        Ok(Some(RankChoice { ranking, conv_rank: self.conv_rank, max_rank: self.max_rank }))
    }

    /// What was chosen; for verbs that cannot do without.
    ///
    /// # Errors
    /// As [`Rank::choice`], and when nothing was chosen.
    #[allow(dead_code, reason = "extract and resize are what cannot do without")]
    pub fn required(&self) -> Result<RankChoice> {
        self.choice()?.ok_or_else(|| {
            let problem = "a way to choose ranks is needed: --rank, --energy, --max-error, --max-size, --max-params, \
                           --rank-method or --noise";
            Error::invalid("--rank", problem)
        })
    }

    fn ranking(&self) -> Result<Option<Ranking>> {
        let rule = |policy| Ok(Some(Ranking::Rule(RankRule::new(policy))));
        if let Some(rank) = self.rank {
            return rule(RankPolicy::Rank(rank));
        }
        if let Some(share) = self.energy {
            return rule(RankPolicy::Energy(within("--energy", share)?));
        }
        if let Some(error) = self.max_error {
            return rule(RankPolicy::MaxError(within("--max-error", error)?));
        }
        if let Some(size) = &self.max_size {
            return Ok(Some(Ranking::Budget(Budgeted::Bytes(place::size("--max-size", size)?))));
        }
        if let Some(parameters) = self.max_params {
            return Ok(Some(Ranking::Budget(Budgeted::Parameters(parameters))));
        }
        if let Some((method, number)) = self.rank_method.zip(self.rank_param) {
            return match method {
                RankMethod::Ratio if number >= 1.0 && number.is_finite() => rule(RankPolicy::Ratio(number)),
                RankMethod::Ratio => {
                    Err(Error::invalid("--rank-param", format!("`{number}` is not a ratio of at least 1")))
                }
                RankMethod::Frobenius => rule(RankPolicy::Frobenius(within("--rank-param", number)?)),
                RankMethod::Cumulative => rule(RankPolicy::Cumulative(within("--rank-param", number)?)),
            };
        }
        Ok(self.noise.then_some(Ranking::Noise))
    }
}

fn within(option: &str, share: f64) -> Result<f64> {
    if share > 0.0 && share <= 1.0 {
        Ok(share)
    } else {
        Err(Error::invalid(option, format!("`{share}` is not a share above 0 and up to 1")))
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
        let rule = |policy| Some(Ranking::Rule(RankRule::new(policy)));
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
        let capped = choice("--energy 0.9 --max-rank 16 --conv-rank 4").expect("a choice").expect("one");
        assert_eq!((capped.max_rank, capped.conv_rank), (Some(16), Some(4)));
    }

    #[test]
    fn there_is_one_policy_at_most() {
        for words in [
            "--rank 8 --energy 0.9",
            "--noise --max-size 1MB",
            "--rank-method sv_fro",
            "--rank-param 1",
            "--conv-rank 1",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused_by_name() {
        for (words, message) in [
            ("--rank 0", "--rank: must be at least 1"),
            ("--rank 1000000000", "--rank: `1000000000` is more than the accepted 65536"),
            ("--energy 1.5", "--energy: `1.5` is not a share above 0 and up to 1"),
            ("--max-error 0", "--max-error: `0` is not a share above 0 and up to 1"),
            ("--max-rank 4", "--max-rank: caps another choice, and none is made"),
            ("--rank-method sv_ratio --rank-param 0.5", "--rank-param: `0.5` is not a ratio of at least 1"),
        ] {
            assert_eq!(choice(words).expect_err(words).to_string(), message);
        }
        assert!(parse("").expect("nothing").required().expect_err("refused").to_string().contains("--energy"));
    }
}
