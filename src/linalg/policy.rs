//! How many singular values are kept.
//!
//! The `sv_*` rules are those of kohya's `resize_lora.py` (sd-scripts 48d368fa); [`RankRule::kohya`] repeats that it keeps one
//! more than its rule says.

/// What decides about the rank of one matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RankPolicy {
    /// So many.
    Rank(usize),
    /// The fewest that keep this share of ‖A‖².
    Energy(f64),
    /// The fewest whose relative Frobenius error is not above this.
    MaxError(f64),
    /// Those above σ₁ ∕ x (kohya `sv_ratio`).
    Ratio(f64),
    /// The fewest that keep this share of ‖A‖ (kohya `sv_fro`).
    Frobenius(f64),
    /// The fewest that keep this share of Σσ (kohya `sv_cumulative`).
    Cumulative(f64),
    /// Those above this value: what the noise in A explains goes.
    Above(f64),
    /// Every one that is not zero.
    All,
}

/// A policy with its limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankRule {
    /// What decides.
    pub policy: RankPolicy,
    /// Never more than this.
    pub max_rank: Option<usize>,
    /// The dynamic `sv_*` rules keep one more, at least two, as `resize_lora.py` does.
    pub kohya: bool,
}

/// kohya treats matrices below this as zero and keeps rank 1 (`MIN_SV` in `resize_lora.py`).
const KOHYA_MIN_VALUE: f64 = 1e-6;

impl RankRule {
    /// A policy without limits.
    pub fn new(policy: RankPolicy) -> Self {
        Self { policy, max_rank: None, kohya: false }
    }

    /// The number of `values` (largest first) to keep, of a matrix with this ‖A‖². Where `values` are not all there are and
    /// the rule is not met by them, the answer is all of them.
    pub fn choose(&self, values: &[f64], norm_squared: f64) -> usize {
        let rank = self.wanted(values, norm_squared).unwrap_or(values.len());
        self.capped(rank, values)
    }

    /// Whether `values`, the largest ones of a matrix, are enough to decide.
    pub fn is_settled(&self, values: &[f64], norm_squared: f64) -> bool {
        let capped = self.max_rank.is_some_and(|max| values.len() >= max);
        capped || self.wanted(values, norm_squared).is_some()
    }

    /// The rank known beforehand, if the rule has one: the policy's own, or the cap.
    pub fn rank_at_most(&self) -> Option<usize> {
        match self.policy {
            RankPolicy::Rank(rank) => Some(self.max_rank.map_or(rank, |max| rank.min(max))),
            _ => self.max_rank,
        }
    }

    fn capped(&self, rank: usize, values: &[f64]) -> usize {
        let rank = rank.min(values.len());
        self.max_rank.map_or(rank, |max| rank.min(max))
    }

    fn wanted(&self, values: &[f64], norm_squared: f64) -> Option<usize> {
        let first = values.first().copied().unwrap_or(0.0);
        let squares = |value: &f64| value * value;
        let count = match self.policy {
            RankPolicy::Rank(rank) => return (values.len() >= rank).then_some(rank),
            RankPolicy::All => return None,
            RankPolicy::Energy(share) => return reach(values.iter().map(squares), share * norm_squared),
            RankPolicy::MaxError(error) => {
                return reach(values.iter().map(squares), (1.0 - error * error) * norm_squared);
            }
            RankPolicy::Above(floor) => count_above(values, floor)?,
            RankPolicy::Ratio(ratio) => count_above(values, first / ratio)?,
            RankPolicy::Frobenius(share) => reach(values.iter().map(squares), share * share * norm_squared)?,
            // Σσ is only known when all are: a caller that holds some of them is told so by `is_settled`.
            RankPolicy::Cumulative(share) => {
                reach(values.iter().copied(), share * values.iter().sum::<f64>()).filter(|_| !values.is_empty())?
            }
        };
        let dynamic = !matches!(self.policy, RankPolicy::Above(_));
        if !(self.kohya && dynamic) {
            return Some(count.max(usize::from(dynamic && first > 0.0)));
        }
        if first <= KOHYA_MIN_VALUE {
            return Some(1);
        }
        Some(count.clamp(1, values.len().saturating_sub(1).max(1)) + 1)
    }

    /// Whether the rule compares single singular values, and not what they have together.
    pub fn looks_at_single_values(&self) -> bool {
        matches!(self.policy, RankPolicy::Above(_) | RankPolicy::Ratio(_))
    }

    /// Whether the rule needs every singular value.
    pub fn needs_all(&self) -> bool {
        matches!(self.policy, RankPolicy::All | RankPolicy::Cumulative(_))
    }
}

/// How many are above `floor`; `None` if all of them are, for there may be more.
fn count_above(values: &[f64], floor: f64) -> Option<usize> {
    let count = values.iter().take_while(|value| **value > floor).count();
    (count < values.len() || values.is_empty()).then_some(count)
}

/// The fewest whose sum reaches `target`.
fn reach(values: impl Iterator<Item = f64>, target: f64) -> Option<usize> {
    if target <= 0.0 {
        return Some(0);
    }
    let mut sum = 0.0;
    values.enumerate().find_map(|(at, value)| {
        sum += value;
        (sum >= target).then_some(at + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: [f64; 4] = [4.0, 2.0, 1.0, 1.0];
    const NORM_SQUARED: f64 = 22.0;

    fn chosen(policy: RankPolicy) -> usize {
        RankRule::new(policy).choose(&VALUES, NORM_SQUARED)
    }

    #[test]
    fn every_policy_keeps_what_it_says() {
        assert_eq!(chosen(RankPolicy::Rank(3)), 3);
        assert_eq!(chosen(RankPolicy::Rank(9)), 4);
        assert_eq!(chosen(RankPolicy::Energy(20.0 / 22.0)), 2);
        assert_eq!(chosen(RankPolicy::Energy(0.95)), 3);
        assert_eq!(chosen(RankPolicy::MaxError((2.0_f64 / 22.0).sqrt())), 2);
        assert_eq!(chosen(RankPolicy::MaxError(0.2)), 4);
        assert_eq!(chosen(RankPolicy::Ratio(3.0)), 2);
        assert_eq!(chosen(RankPolicy::Frobenius((20.0_f64 / 22.0).sqrt())), 2);
        assert_eq!(chosen(RankPolicy::Cumulative(0.75)), 2);
        assert_eq!(chosen(RankPolicy::Above(1.5)), 2);
        assert_eq!(chosen(RankPolicy::All), 4);
    }

    #[test]
    fn a_cap_holds_for_every_policy() {
        for policy in [RankPolicy::All, RankPolicy::Rank(4), RankPolicy::Energy(1.0), RankPolicy::Ratio(100.0)] {
            assert_eq!(RankRule { max_rank: Some(2), ..RankRule::new(policy) }.choose(&VALUES, NORM_SQUARED), 2);
        }
    }

    #[test]
    fn kohya_keeps_one_more_and_never_all_that_its_own_rule_wants() {
        let kohya = |policy| RankRule { kohya: true, ..RankRule::new(policy) }.choose(&VALUES, NORM_SQUARED);
        assert_eq!(kohya(RankPolicy::Ratio(3.0)), 3);
        assert_eq!(kohya(RankPolicy::Ratio(1.0)), 2);
        assert_eq!(kohya(RankPolicy::Rank(2)), 2);
        let tiny = RankRule { kohya: true, ..RankRule::new(RankPolicy::Ratio(9.0)) };
        assert_eq!(tiny.choose(&[1e-7, 1e-8], 1e-14), 1);
    }

    #[test]
    fn what_is_known_may_not_be_enough() {
        assert!(!RankRule::new(RankPolicy::Energy(0.95)).is_settled(&VALUES[..2], NORM_SQUARED));
        assert!(RankRule::new(RankPolicy::Energy(0.9)).is_settled(&VALUES[..2], NORM_SQUARED));
        assert!(!RankRule::new(RankPolicy::Ratio(3.0)).is_settled(&VALUES[..2], NORM_SQUARED));
        assert!(
            RankRule { max_rank: Some(2), ..RankRule::new(RankPolicy::All) }.is_settled(&VALUES[..2], NORM_SQUARED)
        );
    }
}
