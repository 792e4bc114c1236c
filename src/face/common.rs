//! What the verbs are told alike, and how they run without anybody who watches.

use std::path::PathBuf;

use regex::Regex;

use crate::error::{Error, Result};
use crate::ops::{RankChoice, Run, ToDialect, WriteOptions};
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
    pub ranks: Option<RankChoice>,
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

            /// The dtype of the result; each tensor's own, if nothing is said.
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
                self.common.ranks = Some($crate::truncate::RankChoice::rank(rank));
                self
            }

            /// The lowest rank of each module that keeps this share of ‖ΔW‖², as 0.99.
            pub fn energy(mut self, share: f64) -> Self {
                let ranking = $crate::truncate::Ranking::Rule($crate::linalg::RankPolicy::Energy(share));
                self.common.ranks = Some($crate::truncate::RankChoice::new(ranking));
                self
            }

            /// A budget for the whole adapter in bytes, spent where it buys most.
            pub fn max_bytes(mut self, bytes: u64) -> Self {
                let ranking = $crate::truncate::Ranking::Budget($crate::truncate::Budgeted::Bytes(bytes));
                self.common.ranks = Some($crate::truncate::RankChoice::new(ranking));
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

/// How every verb runs.
macro_rules! runs {
    ($verb:ident, $report:ty) => {
        impl $verb {
            /// Does it.
            ///
            /// # Errors
            /// When options or inputs make no sense, or the result cannot be written. Nothing is left behind then.
            pub fn run(&self) -> $crate::error::Result<$report> {
                $crate::face::common::alone(|run| self.run_with(run))
            }
        }
    };
}

/// The methods of every verb with several adapters and weights.
macro_rules! sums {
    ($verb:ident, $base:literal) => {
        impl $verb {
            /// One more adapter, with its weight.
            pub fn adapter(mut self, path: impl Into<std::path::PathBuf>, weight: f64) -> Self {
                self.adapters.push((path.into(), weight));
                self
            }

            #[doc = $base]
            pub fn base(mut self, base: impl Into<std::path::PathBuf>) -> Self {
                self.base = Some(base.into());
                self
            }
        }
    };
}

pub(super) use {makes_adapters, runs, sums, writes};

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: std::fmt::Debug>(outcome: Result<T>) -> String {
        outcome.expect_err("refused").to_string()
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        assert_eq!(refused(Common::default().write()), "--out: no output is named");
        assert_eq!(refused(budget(Some(0))), "--threads: must be at least 1");
        assert_eq!(refused(weighted(&[])), "ADAPTER[:W]: no adapter is named");
        let endless = [("a".into(), f64::INFINITY)];
        assert_eq!(refused(weighted(&endless)), "ADAPTER[:W]: `inf` of `a` is not a finite number");
        let odd = Common { include: vec!["(".into()], ..Common::default() };
        assert!(refused(odd.selection()).starts_with("--include: `(` is not a regular expression: "));
    }
}
