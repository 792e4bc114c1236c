//! How the ranks of an adapter are chosen: by a rule for every matrix, or by one budget for all.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::limits::MAX_RANK;
use crate::linalg::{Compute, RankPolicy, RankRule};
use crate::tensor::Float;

/// One budget for a whole adapter, spent where it buys most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budgeted {
    /// Bytes of the weight file.
    Bytes(u64),
    /// Numbers in it.
    Parameters(u64),
}

/// What decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ranking {
    /// Each matrix on its own.
    Rule(RankPolicy),
    /// All of them together.
    Budget(Budgeted),
    /// What is above the noise that rounding makes.
    Noise,
    /// Each matrix has the rank it had.
    Own,
}

/// What the rank options say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankChoice {
    /// For all matrices.
    pub ranking: Ranking,
    /// A rank for convolutions with a kernel larger than 1, whatever the others get.
    pub conv_rank: Option<usize>,
    /// Never more than this.
    pub max_rank: Option<usize>,
    /// All pairs are filled up with zeros to the largest rank, and have one α.
    pub uniform: bool,
    /// The `sv_*` rules keep one more, and a convolution of any kernel is one, as in kohya's `resize_lora.py`.
    pub kohya: bool,
}

impl Budgeted {
    /// The option that gives it.
    pub fn option(self) -> &'static str {
        match self {
            Self::Bytes(_) => "--max-size",
            Self::Parameters(_) => "--max-params",
        }
    }

    /// What is left of it beside `taken`.
    ///
    /// # Errors
    /// When nothing is.
    pub fn left_of(self, taken: u64) -> Result<u64> {
        let (total, unit) = match self {
            Self::Bytes(bytes) => (bytes, "bytes"),
            Self::Parameters(count) => (count, "parameters"),
        };
        total.checked_sub(taken).ok_or_else(|| {
            let problem = format!("{total} {unit} are not enough: what keeps its size takes {taken}");
            Error::invalid(self.option(), problem).hint("a larger budget has room for it")
        })
    }
}

impl RankChoice {
    /// Two ways to choose ranks, as a hint.
    pub const WAYS: &str =
        "`--rank 16` gives every module one rank, `--energy 0.95` each the lowest that keeps so much of it";

    /// All matrices by `ranking`.
    pub fn new(ranking: Ranking) -> Self {
        Self { ranking, conv_rank: None, max_rank: None, uniform: false, kohya: false }
    }

    /// The same rank for every matrix.
    pub fn rank(rank: usize) -> Self {
        Self::new(Ranking::Rule(RankPolicy::Rank(rank)))
    }

    /// `choice`, for verbs that cannot do without.
    ///
    /// # Errors
    /// When nothing was chosen.
    pub fn required(choice: Option<Self>) -> Result<Self> {
        choice.ok_or_else(|| {
            let problem = "a way to choose ranks is needed: --rank, --energy, --max-error, --max-size, --max-params, \
                           --rank-method or --noise";
            Error::invalid("--rank", problem).hint(Self::WAYS)
        })
    }

    /// The rule for one matrix, with the cap in it; `None` where it takes more than the matrix to decide.
    /// `kernel` is the number of positions of a convolution's kernel.
    pub fn rule(&self, kernel: Option<u64>) -> Option<RankRule> {
        let is_conv = kernel.is_some_and(|positions| positions > 1 || self.kohya);
        let policy = match (self.conv_rank, self.ranking) {
            (Some(rank), _) if is_conv => RankPolicy::Rank(rank),
            (_, Ranking::Rule(policy)) => policy,
            _ => return None,
        };
        Some(RankRule { policy, max_rank: self.max_rank, kohya: self.kohya })
    }

    /// Refuses numbers that make no sense.
    ///
    /// # Errors
    /// By the name of the option.
    pub fn check(&self) -> Result<()> {
        let (mut fixed, mut share) = (None, None);
        match self.ranking {
            Ranking::Rule(RankPolicy::Rank(rank)) => fixed = Some(rank),
            Ranking::Rule(RankPolicy::Energy(kept)) => share = Some(("--energy", kept)),
            Ranking::Rule(RankPolicy::MaxError(error)) => share = Some(("--max-error", error)),
            Ranking::Rule(RankPolicy::Frobenius(kept) | RankPolicy::Cumulative(kept)) => {
                share = Some(("--rank-param", kept));
            }
            Ranking::Rule(RankPolicy::Ratio(ratio)) if !(ratio >= 1.0 && ratio.is_finite()) => {
                return Err(Error::invalid("--rank-param", format!("`{ratio}` is not a ratio of at least 1")));
            }
            _ => {}
        }
        for (option, rank) in [("--rank", fixed), ("--conv-rank", self.conv_rank), ("--max-rank", self.max_rank)] {
            if rank == Some(0) {
                return Err(Error::invalid(option, "must be at least 1"));
            }
            if let Some(rank) = rank.filter(|rank| *rank > MAX_RANK && option != "--max-rank") {
                return Err(Error::invalid(option, format!("`{rank}` is more than the accepted {MAX_RANK}")));
            }
        }
        match share.filter(|(_, share)| !(*share > 0.0 && *share <= 1.0)) {
            Some((option, share)) => {
                Err(Error::invalid(option, format!("`{share}` is not a share above 0 and up to 1")))
            }
            None => Ok(()),
        }
    }

    /// What to say of an adapter of `bytes` that became larger than its budget, because `dialect` needs more room.
    pub fn exceeded(&self, dialect: &str, bytes: u64) -> Option<String> {
        match self.ranking {
            Ranking::Budget(Budgeted::Bytes(most)) if bytes > most => {
                Some(format!("{dialect} takes {bytes} bytes where PEFT keeps to the {most} of the budget"))
            }
            _ => None,
        }
    }

    /// What of a budget goes to what is no factor: `bytes` or `parameters`; nothing where there is no budget.
    pub fn fixed(&self, bytes: impl FnOnce() -> u64, parameters: impl FnOnce() -> u64) -> u64 {
        match self.ranking {
            Ranking::Budget(Budgeted::Bytes(_)) => bytes(),
            Ranking::Budget(Budgeted::Parameters(_)) => parameters(),
            _ => 0,
        }
    }

    /// The ranks as the options that choose them, for the record of how an output was made.
    pub fn recipe(&self) -> Map<String, Value> {
        let (name, value) = match self.ranking {
            Ranking::Budget(Budgeted::Bytes(bytes)) => ("max_size", json!(bytes)),
            Ranking::Budget(Budgeted::Parameters(parameters)) => ("max_params", json!(parameters)),
            Ranking::Noise => ("noise", json!(true)),
            Ranking::Own => ("own", json!(true)),
            Ranking::Rule(policy) => match policy {
                RankPolicy::Rank(rank) => ("rank", json!(rank)),
                RankPolicy::Energy(share) => ("energy", json!(share)),
                RankPolicy::MaxError(error) => ("max_error", json!(error)),
                RankPolicy::Ratio(ratio) => ("sv_ratio", json!(ratio)),
                RankPolicy::Frobenius(share) => ("sv_fro", json!(share)),
                RankPolicy::Cumulative(share) => ("sv_cumulative", json!(share)),
                RankPolicy::Above(floor) => ("above", json!(floor)),
                RankPolicy::All => ("all", json!(true)),
            },
        };
        let caps = [("conv_rank", self.conv_rank), ("max_rank", self.max_rank)];
        let caps = caps.into_iter().filter_map(|(name, rank)| Some((name, json!(rank?))));
        std::iter::once((name, value)).chain(caps).map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The form of what is chosen, as [`recipe`](Self::recipe).
    pub fn recipe_of_form(&self, alpha: Option<f64>, compute: Compute, dtype: Option<Float>) -> Map<String, Value> {
        let known = [
            ("uniform_rank", self.uniform.then(|| json!(true))),
            ("alpha", alpha.map(|alpha| json!(alpha))),
            ("compat", self.kohya.then(|| json!("kohya"))),
            ("compute", (compute == Compute::Fast).then(|| json!("fast"))),
            ("dtype", dtype.map(|float| json!(float.dtype().name()))),
        ];
        known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

/// Refuses an alpha that is none.
///
/// # Errors
/// By the name of the option.
pub fn check_alpha(alpha: f64) -> Result<()> {
    if alpha.is_finite() && alpha > 0.0 {
        return Ok(());
    }
    Err(Error::invalid("--alpha", format!("`{alpha}` is not a finite number above 0")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convolutions_have_a_rank_of_their_own() {
        let choice = RankChoice { conv_rank: Some(2), max_rank: Some(6), ..RankChoice::rank(8) };
        let policy = |kernel| choice.rule(kernel).map(|rule| (rule.policy, rule.max_rank));
        assert_eq!(policy(None), Some((RankPolicy::Rank(8), Some(6))));
        assert_eq!(policy(Some(1)), Some((RankPolicy::Rank(8), Some(6))));
        assert_eq!(policy(Some(9)), Some((RankPolicy::Rank(2), Some(6))));
        let of_any_kernel = RankChoice { kohya: true, ..choice };
        assert_eq!(of_any_kernel.rule(Some(1)).map(|rule| rule.policy), Some(RankPolicy::Rank(2)));
    }

    #[test]
    fn a_budget_is_no_rule_for_one_matrix_but_leaves_convolutions_theirs() {
        let choice = RankChoice { conv_rank: Some(2), ..RankChoice::new(Ranking::Budget(Budgeted::Bytes(1))) };
        assert_eq!(choice.rule(None), None);
        assert_eq!(choice.rule(Some(9)).map(|rule| rule.policy), Some(RankPolicy::Rank(2)));
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused_by_name() {
        let by = |policy| RankChoice::new(Ranking::Rule(policy));
        for (choice, message) in [
            (RankChoice::rank(0), "--rank: must be at least 1"),
            (RankChoice::rank(1_000_000_000), "--rank: `1000000000` is more than the accepted 65536"),
            (RankChoice { conv_rank: Some(0), ..RankChoice::rank(1) }, "--conv-rank: must be at least 1"),
            (RankChoice { max_rank: Some(0), ..RankChoice::rank(1) }, "--max-rank: must be at least 1"),
            (by(RankPolicy::Energy(1.5)), "--energy: `1.5` is not a share above 0 and up to 1"),
            (by(RankPolicy::MaxError(0.0)), "--max-error: `0` is not a share above 0 and up to 1"),
            (by(RankPolicy::Frobenius(f64::NAN)), "--rank-param: `NaN` is not a share above 0 and up to 1"),
            (by(RankPolicy::Ratio(0.5)), "--rank-param: `0.5` is not a ratio of at least 1"),
        ] {
            assert_eq!(choice.check().expect_err(message).to_string(), message);
        }
        assert!(RankChoice { max_rank: Some(1_000_000), ..RankChoice::rank(1) }.check().is_ok());
    }
}
