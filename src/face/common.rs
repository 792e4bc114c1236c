//! What the verbs are told alike, and how they run without anybody who watches.

use std::path::PathBuf;

use regex::Regex;

use crate::error::{Error, Result};
use crate::limits::MAX_RANK;
use crate::linalg::{RankPolicy, RankRule};
use crate::ops::{Budgeted, RankChoice, Ranking, Run, ToDialect, WriteOptions};
use crate::placement::{Selection, pattern};
use crate::plan::Budget;
use crate::tensor::Float;

/// What writing verbs are told alike.
#[derive(Debug, Clone, Default)]
pub struct Common {
    pub out: PathBuf,
    pub force: bool,
    pub dtype: Option<Float>,
    pub threads: Option<usize>,
    pub dry_run: bool,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub ranking: Option<Ranking>,
    pub dialect: ToDialect,
}

impl Common {
    /// How the result is written.
    pub fn write(&self) -> Result<WriteOptions> {
        if self.out.as_os_str().is_empty() {
            return Err(Error::invalid("--out", "no output is named"));
        }
        let Self { force, dtype, dry_run, .. } = *self;
        let budget = budget(self.threads)?;
        Ok(WriteOptions { force, dtype, budget, dry_run, ..WriteOptions::new(&self.out) })
    }

    /// The patterns of modules that are taken and left out.
    pub fn patterns(&self) -> Result<[Vec<Regex>; 2]> {
        let all = |option, written: &[String]| written.iter().map(|one| pattern(option, one)).collect::<Result<_>>();
        Ok([all("--include", &self.include)?, all("--exclude", &self.exclude)?])
    }

    /// Which modules.
    pub fn selection(&self) -> Result<Selection> {
        let [include, exclude] = self.patterns()?;
        Ok(Selection { include, exclude, ..Selection::default() })
    }

    /// How ranks are chosen, if anything was said of it.
    pub fn ranks(&self) -> Result<Option<RankChoice>> {
        let Some(ranking) = self.ranking else { return Ok(None) };
        match ranking {
            Ranking::Rule(RankRule { policy: RankPolicy::Rank(rank), .. }) if rank == 0 || rank > MAX_RANK => {
                Err(Error::invalid("--rank", format!("`{rank}` is not between 1 and {MAX_RANK}")))
            }
            Ranking::Rule(RankRule { policy: RankPolicy::Energy(share), .. }) if !(share > 0.0 && share <= 1.0) => {
                Err(Error::invalid("--energy", format!("`{share}` is not a share above 0 and up to 1")))
            }
            ranking => Ok(Some(RankChoice { ranking, conv_rank: None, max_rank: None })),
        }
    }

    /// The same, where it cannot be left open.
    pub fn some_ranks(&self) -> Result<RankChoice> {
        let open = || Error::invalid("--rank", "a way to choose ranks is needed: `rank`, `energy` or `max_bytes`");
        self.ranks()?.ok_or_else(open)
    }

    /// The lowest ranks that keep `share` of ‖ΔW‖².
    pub fn energy(share: f64) -> Ranking {
        Ranking::Rule(RankRule::new(RankPolicy::Energy(share)))
    }

    /// One budget of `bytes` for all modules.
    pub fn max_bytes(bytes: u64) -> Ranking {
        Ranking::Budget(Budgeted::Bytes(bytes))
    }
}

/// Threads as asked for, and the memory that is usual.
pub fn budget(threads: Option<usize>) -> Result<Budget> {
    match threads {
        Some(0) => Err(Error::invalid("--threads", "must be at least 1")),
        Some(threads) => Ok(Budget { threads, ..Budget::default() }),
        None => Ok(Budget::default()),
    }
}

/// Adapters with their weights, of which there has to be one.
pub fn weighted(adapters: &[(PathBuf, f64)]) -> Result<Vec<(PathBuf, f64)>> {
    let wrong = |problem: String| Err(Error::invalid("ADAPTER[:W]", problem));
    match adapters.iter().find(|(_, weight)| !weight.is_finite()) {
        _ if adapters.is_empty() => wrong("no adapter is named".to_owned()),
        Some((path, weight)) => wrong(format!("`{weight}` of `{}` is not a finite number", path.display())),
        None => Ok(adapters.to_vec()),
    }
}

/// Runs where nobody watches and nobody stops it.
pub fn alone<T>(work: impl FnOnce(&Run<'_>) -> Result<T>) -> Result<T> {
    work(&Run::default())
}

/// The methods of every verb that writes.
macro_rules! writes {
    ($verb:ident) => {
        impl $verb {
            /// Where the result goes.
            pub fn out(mut self, out: impl Into<std::path::PathBuf>) -> Self {
                self.common.out = out.into();
                self
            }

            /// Replaces an output of lorakit that is there.
            pub fn force(mut self) -> Self {
                self.common.force = true;
                self
            }

            /// The dtype of what is computed; each tensor's own, if nothing is said.
            pub fn dtype(mut self, dtype: $crate::tensor::Float) -> Self {
                self.common.dtype = Some(dtype);
                self
            }

            /// Worker threads; all processors, if nothing is said.
            pub fn threads(mut self, threads: usize) -> Self {
                self.common.threads = Some(threads);
                self
            }

            /// Computes and reports, writes nothing.
            pub fn dry_run(mut self) -> Self {
                self.common.dry_run = true;
                self
            }

            /// Takes only modules whose path matches this regular expression, or another that is included.
            pub fn include(mut self, pattern: impl Into<String>) -> Self {
                self.common.include.push(pattern.into());
                self
            }

            /// Leaves out modules whose path matches this regular expression.
            pub fn exclude(mut self, pattern: impl Into<String>) -> Self {
                self.common.exclude.push(pattern.into());
                self
            }
        }
    };
}

/// The methods of every verb that makes a new adapter.
macro_rules! makes_adapters {
    ($verb:ident) => {
        impl $verb {
            /// The same rank for every module.
            pub fn rank(mut self, rank: usize) -> Self {
                self.common.ranking = Some($crate::ops::RankChoice::rank(rank).ranking);
                self
            }

            /// The lowest rank of each module that keeps this share of ‖ΔW‖², as 0.99.
            pub fn energy(mut self, share: f64) -> Self {
                self.common.ranking = Some($crate::face::common::Common::energy(share));
                self
            }

            /// A budget for the whole adapter in bytes, spent where it buys most.
            pub fn max_bytes(mut self, bytes: u64) -> Self {
                self.common.ranking = Some($crate::face::common::Common::max_bytes(bytes));
                self
            }

            /// The dialect the adapter is written in; PEFT's, if nothing is said.
            pub fn to(mut self, dialect: $crate::dialects::Target) -> Self {
                self.common.dialect.to = Some(dialect);
                self
            }
        }
    };
}

pub(super) use {makes_adapters, writes};

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: std::fmt::Debug>(outcome: Result<T>) -> String {
        outcome.expect_err("refused").to_string()
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let ranked = |ranking| Common { ranking: Some(ranking), ..Common::default() }.ranks();
        assert_eq!(refused(Common::default().write()), "--out: no output is named");
        assert_eq!(refused(ranked(RankChoice::rank(0).ranking)), "--rank: `0` is not between 1 and 65536");
        assert_eq!(refused(ranked(Common::energy(1.5))), "--energy: `1.5` is not a share above 0 and up to 1");
        let open = "--rank: a way to choose ranks is needed: `rank`, `energy` or `max_bytes`";
        assert_eq!(refused(Common::default().some_ranks()), open);
        assert_eq!(refused(budget(Some(0))), "--threads: must be at least 1");
        assert_eq!(refused(weighted(&[])), "ADAPTER[:W]: no adapter is named");
        let endless = [("a".into(), f64::INFINITY)];
        assert_eq!(refused(weighted(&endless)), "ADAPTER[:W]: `inf` of `a` is not a finite number");
        let odd = Common { include: vec!["(".into()], ..Common::default() };
        assert!(refused(odd.selection()).starts_with("--include: `(` is not a regular expression: "));
    }
}
