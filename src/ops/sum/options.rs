//! What is summed, and how.

use std::path::PathBuf;

use super::elementwise::{Pruning, Rule};
use super::intruders::Intruders;
use crate::adapters::ReadOptions;
use crate::error::{Error, Result};
use crate::linalg::Compute;
use crate::output::WriteOptions;
use crate::output::new_adapter::ToDialect;
use crate::placement::Selection;
use crate::truncate::{RankChoice, Ranking, check_alpha};

/// Which verb is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A sum becomes a new adapter.
    Stack,
    /// The same, of a difference.
    Subtract,
    /// Each adapter on its own gets other ranks, and everything else of it is kept.
    Resize,
}

/// How adapters become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// Their sum.
    Concat,
    /// Element by element.
    Elementwise(Pruning),
    /// A and B apart.
    FactorAverage,
    /// Tensor by tensor, of any kind whose structure agrees.
    Average,
}

/// What is summed, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SumOptions {
    /// Which verb.
    pub operation: Operation,
    /// Adapters with their weights, in order; for `resize` adapters or folders of adapters, without weights.
    pub adapters: Vec<(PathBuf, f64)>,
    /// What the adapters' files leave open.
    pub read: ReadOptions,
    /// Untrained factors for the adapters that need them, in order.
    pub init_adapters: Vec<PathBuf>,
    /// The model the adapters were trained on: for tensors they hold whole, methods that need it, and what PiSSA or OLoRA took out of
    /// it.
    pub base: Option<PathBuf>,
    /// How they become one.
    pub method: Method,
    /// How ranks are chosen; `None` keeps the sum as it is.
    pub rank: Option<RankChoice>,
    /// How close to the optimum an iteration has to come, where one is needed.
    pub compute: Compute,
    /// What of `resize` is taken out beside ranks; it needs the base.
    pub intruders: Option<Intruders>,
    /// α of what is computed; `None` makes the scale 1.
    pub alpha: Option<f64>,
    /// Which modules; `resize` keeps the others as they are.
    pub selection: Selection,
    /// In which dialect.
    pub dialect: ToDialect,
    /// How the result is written: of several resized adapters, a folder of them.
    pub write: WriteOptions,
}

impl Operation {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stack => "stack",
            Self::Subtract => "subtract",
            Self::Resize => "resize",
        }
    }
}

impl Method {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Concat => "concat",
            Self::FactorAverage => "factor-average",
            Self::Average => "average",
            Self::Elementwise(pruning) => match pruning.rule {
                Rule::Magnitude => "magnitude",
                Rule::Ties(_) => "ties",
                Rule::Dare => "dare",
                Rule::DareTies(_) => "dare-ties",
            },
        }
    }
}

impl SumOptions {
    /// The exact sum of `adapters`; everything else is as on the command line without options.
    pub fn new(adapters: Vec<(PathBuf, f64)>, write: WriteOptions) -> Self {
        Self {
            operation: Operation::Stack,
            adapters,
            read: ReadOptions::default(),
            init_adapters: Vec::new(),
            base: None,
            method: Method::Concat,
            rank: None,
            compute: Compute::default(),
            intruders: None,
            alpha: None,
            selection: Selection::default(),
            dialect: ToDialect::default(),
            write,
        }
    }

    /// `adapters`, or folders of them, each with other ranks.
    pub fn resize(adapters: Vec<PathBuf>, ranks: RankChoice, write: WriteOptions) -> Self {
        let adapters = adapters.into_iter().map(|path| (path, 1.0)).collect();
        Self { operation: Operation::Resize, rank: Some(ranks), ..Self::new(adapters, write) }
    }

    /// Whether what is not touched stays as it is.
    pub(super) fn keeps_the_rest(&self) -> bool {
        self.operation == Operation::Resize
    }

    /// Whether it is a sum of one adapter.
    pub(super) fn is_of_one(&self) -> bool {
        self.adapters.len() == 1 && self.method == Method::Concat
    }

    /// Options that do not go together, and numbers that make no sense.
    pub(super) fn check(&self) -> Result<()> {
        if self.dialect.to.is_some() && !self.keeps_the_rest() {
            self.dialect.check_out(&self.write.out)?;
        }
        if self.keeps_the_rest() {
            RankChoice::required(self.rank)?;
        }
        if let Some(intruders) = &self.intruders {
            intruders.check(self)?;
        }
        if let Some(rank) = &self.rank {
            rank.check()?;
        }
        let noise = self.rank.is_some_and(|rank| rank.ranking == Ranking::Noise);
        let name = self.method.name();
        match (self.method, &self.rank) {
            (Method::Elementwise(pruning), rank) => {
                pruning.check()?;
                if rank.is_none() {
                    let needed = "needs a way to choose ranks: --rank, --energy, --max-error, --max-size, --max-params or --rank-method";
                    return Err(Error::invalid("--method", format!("`{name}` {needed}"))
                        .hint("what it makes of ΔW has full rank"));
                }
                if noise {
                    let problem = format!(
                        "what `{name}` makes of ΔW is no product of rounded factors: nothing says how much is noise"
                    );
                    return Err(Error::invalid("--noise", problem));
                }
            }
            (Method::FactorAverage | Method::Average, Some(_)) => {
                let problem = format!("`{name}` keeps the rank of its inputs");
                return Err(Error::invalid("--method", problem)
                    .hint("`--method concat` with the same options cuts the true sum"));
            }
            _ => {}
        }
        let Some(alpha) = self.alpha else { return Ok(()) };
        if self.method == Method::FactorAverage {
            return Err(Error::invalid("--alpha", "`factor-average` has alpha = rank"));
        }
        if self.method == Method::Average {
            return Err(Error::invalid("--alpha", "`average` keeps the alpha of its inputs"));
        }
        check_alpha(alpha)
    }
}
