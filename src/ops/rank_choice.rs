//! How the ranks of an adapter are chosen: by a rule for every matrix, or by one budget for all.

use serde_json::{Map, Value, json};

use crate::linalg::{RankPolicy, RankRule};
use crate::output::new_adapter::ToDialect;

/// One budget for a whole adapter, spent where it buys most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budgeted {
    /// Bytes of the factors as they are stored.
    Bytes(u64),
    /// Numbers in the factors.
    Parameters(u64),
}

/// What decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ranking {
    /// Each matrix on its own.
    Rule(RankRule),
    /// All of them together.
    Budget(Budgeted),
    /// What is above the noise that rounding to the matrix's dtype makes.
    Noise,
}

/// What the rank options say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankChoice {
    /// For all matrices.
    pub ranking: Ranking,
    /// A rank for convolutions with a kernel larger than 1.
    pub conv_rank: Option<usize>,
    /// Never more than this.
    pub max_rank: Option<usize>,
}

impl RankChoice {
    /// The same rank for every matrix.
    pub fn rank(rank: usize) -> Self {
        Self { ranking: Ranking::Rule(RankRule::new(RankPolicy::Rank(rank))), conv_rank: None, max_rank: None }
    }

    /// The rule for one matrix, with the cap in it; `None` where it takes more than the matrix to decide.
    /// `positions` is the number of positions of a convolution's kernel, 1 for everything else.
    pub fn rule(&self, positions: u64) -> Option<RankRule> {
        let rule = match (self.conv_rank, self.ranking) {
            (Some(rank), _) if positions > 1 => RankRule::new(RankPolicy::Rank(rank)),
            (_, Ranking::Rule(rule)) => rule,
            _ => return None,
        };
        Some(RankRule { max_rank: self.max_rank, ..rule })
    }

    /// The choice as the options that make it, for the record of how an output was made.
    pub fn recipe(&self) -> Value {
        let mut options = Map::new();
        let (name, value) = match self.ranking {
            Ranking::Budget(Budgeted::Bytes(bytes)) => ("max_size", json!(bytes)),
            Ranking::Budget(Budgeted::Parameters(parameters)) => ("max_params", json!(parameters)),
            Ranking::Noise => ("noise", json!(true)),
            Ranking::Rule(rule) => match rule.policy {
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
        options.insert(name.into(), value);
        for (name, rank) in [("conv_rank", self.conv_rank), ("max_rank", self.max_rank)] {
            options.extend(rank.map(|rank| (name.to_owned(), json!(rank))));
        }
        options.into()
    }
}

/// What to say of an adapter that became larger than `ranks` allow, because another dialect needs more room.
pub(super) fn beyond_budget(ranks: &RankChoice, dialect: &ToDialect, bytes: u64) -> Option<String> {
    match ranks.ranking {
        Ranking::Budget(Budgeted::Bytes(most)) if bytes > most && dialect.foreign().is_some() => {
            Some(format!("{} takes {bytes} bytes where PEFT keeps to the {most} of the budget", dialect.name()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convolutions_have_a_rank_of_their_own() {
        let choice = RankChoice { conv_rank: Some(2), max_rank: Some(6), ..RankChoice::rank(8) };
        let policy = |positions| choice.rule(positions).map(|rule| (rule.policy, rule.max_rank));
        assert_eq!(policy(1), Some((RankPolicy::Rank(8), Some(6))));
        assert_eq!(policy(9), Some((RankPolicy::Rank(2), Some(6))));
    }

    #[test]
    fn a_budget_is_no_rule_for_one_matrix() {
        let choice = RankChoice { ranking: Ranking::Budget(Budgeted::Bytes(1)), conv_rank: None, max_rank: None };
        assert_eq!(choice.rule(1), None);
    }
}
