//! One budget for the ranks of many matrices: the ranks that keep most of Σ‖Aⱼ‖² at a given total cost.
//!
//! Keeping one more singular value σ of matrix j gains σ² and costs cⱼ, the same for every value of that matrix. Gains fall
//! within a matrix, so some best choice takes the first values of each: what is left is a 0-1 knapsack over all values. By
//! gain per cost the greedy choice is the best one but for the last few units; those are settled exactly by dynamic programming
//! over an expanding core around the break (Pisinger 1997, "A minimal algorithm for the 0-1 knapsack problem"), with the linear
//! relaxation as bound.

use std::cmp::Ordering;

/// States that are looked at before the search is given up: seconds of work. The result then says how far it can be from the
/// best.
const MAX_STEPS: usize = 1 << 26;

/// Choices that are remembered at once, at 8 bytes each.
const MAX_CHOICES: usize = 1 << 22;

/// Relative size below which a gain is rounding of the sums.
const ROUNDING: f64 = 1e-14;

/// The leading singular values of one matrix, and what one unit of its rank costs.
#[derive(Debug, Clone, Copy)]
pub struct Spectrum<'a> {
    /// Largest first.
    pub values: &'a [f64],
    /// In the unit of the budget: parameters or bytes of one row of A and one column of B.
    pub unit_cost: u64,
}

/// Ranks, one for each spectrum in the order given.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// At most the number of values of the spectrum.
    pub ranks: Vec<usize>,
    /// Σ rank · unit cost; never above the budget.
    pub cost: u64,
    /// Σσ² over the values kept.
    pub kept: f64,
    /// No choice within the budget keeps more than `kept` and this. Zero unless the search was given up.
    pub short_at_most: f64,
}

/// The ranks that keep most within `budget`.
pub fn allocate(spectra: &[Spectrum<'_>], budget: u64) -> Allocation {
    allocate_in(spectra, budget, MAX_STEPS)
}

fn allocate_in(spectra: &[Spectrum<'_>], budget: u64, max_steps: usize) -> Allocation {
    let divisor = spectra.iter().map(|spectrum| spectrum.unit_cost).fold(0, greatest_common_divisor).max(1);
    let mut search = Search::new(items(spectra, divisor), budget / divisor);
    let gap = search.run(max_steps);
    let mut ranks = vec![0; spectra.len()];
    for unit in search.chosen() {
        ranks[search.items[unit].matrix] += 1;
    }
    let pairs = || spectra.iter().zip(&ranks);
    let kept = pairs().flat_map(|(spectrum, rank)| &spectrum.values[..*rank]).map(|value| value * value).sum();
    let cost = pairs().map(|(spectrum, rank)| spectrum.unit_cost * *rank as u64).sum();
    Allocation { ranks, cost, kept, short_at_most: gap }
}

fn greatest_common_divisor(left: u64, right: u64) -> u64 {
    if right == 0 { left } else { greatest_common_divisor(right, left % right) }
}

/// One singular value.
struct Item {
    matrix: usize,
    gain: f64,
    cost: u64,
}

impl Item {
    fn ratio(&self) -> f64 {
        self.gain / self.cost as f64
    }
}

/// All values that gain anything, by gain per cost.
fn items(spectra: &[Spectrum<'_>], divisor: u64) -> Vec<Item> {
    let mut items = Vec::new();
    for (matrix, spectrum) in spectra.iter().enumerate() {
        let cost = (spectrum.unit_cost / divisor).max(1);
        let gains = spectrum.values.iter().map(|value| value * value).take_while(|gain| *gain > 0.0);
        items.extend(gains.map(|gain| Item { matrix, gain, cost }));
    }
    // The sort is stable: what is equal stays in the order of the matrices, and of the values within them.
    items.sort_by(|left, right| right.ratio().total_cmp(&left.ratio()));
    items
}

/// A way to depart from the greedy choice: some items before the break given up, some after it taken.
#[derive(Clone, Copy)]
struct State {
    cost: u64,
    gain: f64,
    /// Index into [`Search::choices`].
    choice: u32,
}

/// An item whose side was changed, and the state that was changed by it. The first entry stands for no change.
type Choice = (u32, u32);

struct Search {
    items: Vec<Item>,
    budget: u64,
    /// The greedy choice is the items before this one.
    first_out: usize,
    choices: Vec<Choice>,
    /// The best that is known: its gain, and its departure from the greedy choice.
    best: (f64, u32),
    /// Items that fit behind the greedy choice; used unless something better is found.
    fill: Option<Vec<usize>>,
    /// Items not yet considered: `..left` before the break, `right..` after it.
    left: usize,
    right: usize,
}

impl Search {
    fn new(items: Vec<Item>, budget: u64) -> Self {
        let (mut cost, mut gain, mut first_out) = (0, 0.0, 0);
        while let Some(item) = items.get(first_out).filter(|item| cost + item.cost <= budget) {
            (cost, gain, first_out) = (cost + item.cost, gain + item.gain, first_out + 1);
        }
        let mut fill = Vec::new();
        for (at, item) in items.iter().enumerate().skip(first_out) {
            if cost + item.cost <= budget {
                (cost, gain) = (cost + item.cost, gain + item.gain);
                fill.push(at);
            }
        }
        let (left, right) = (first_out, first_out);
        Self { items, budget, first_out, choices: vec![(0, 0)], best: (gain, 0), fill: Some(fill), left, right }
    }

    /// Finds the best choice; gives what it can be short of it.
    fn run(&mut self, max_steps: usize) -> f64 {
        let greedy = &self.items[..self.first_out];
        let (cost, gain) = greedy.iter().fold((0, 0.0), |(cost, gain), item| (cost + item.cost, gain + item.gain));
        let mut states = vec![State { cost, gain, choice: 0 }];
        states.retain(|state| self.may_win(state));
        let mut steps = 0;
        while !states.is_empty() && (self.left > 0 || self.right < self.items.len()) {
            steps += states.len();
            if steps > max_steps || self.choices.len() + states.len() > MAX_CHOICES {
                let reach = states.iter().filter_map(|state| self.bound(state)).fold(0.0, f64::max);
                return (reach - self.best.0).max(0.0);
            }
            // Whichever side has the item nearer to the break.
            let nearer_left = self.first_out - self.left <= self.right - self.first_out;
            let take_left = self.left > 0 && (nearer_left || self.right == self.items.len());
            states = if take_left {
                self.left -= 1;
                self.extend(&states, self.left)
            } else {
                self.right += 1;
                self.extend(&states, self.right - 1)
            };
        }
        0.0
    }

    /// `states` as they are and with the side of `item` changed; dominated and hopeless ones left out.
    fn extend(&mut self, states: &[State], item: usize) -> Vec<State> {
        let Item { gain, cost, .. } = self.items[item];
        let inside = item < self.first_out;
        let change = |state: &State| {
            let (cost, gain) =
                if inside { (state.cost - cost, state.gain - gain) } else { (state.cost + cost, state.gain + gain) };
            State { cost, gain, ..*state }
        };
        let mut extended: Vec<State> = Vec::with_capacity(states.len() + states.len() / 2);
        let (mut kept, mut changed) = (states.iter().peekable(), states.iter().map(change).peekable());
        loop {
            // By cost; of equal costs the larger gain first, so that the other one is dominated.
            let order = match (kept.peek(), changed.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(left), Some(right)) => left.cost.cmp(&right.cost).then(right.gain.total_cmp(&left.gain)),
            };
            let is_new = order == Ordering::Greater;
            let next = if is_new { changed.next() } else { kept.next().copied() };
            let Some(mut state) = next else { break };
            if extended.last().is_some_and(|last| last.gain >= state.gain) {
                continue;
            }
            let fits = state.cost <= self.budget;
            let better = fits && state.gain > self.best.0 * (1.0 + ROUNDING);
            if !better && !self.may_win(&state) {
                continue;
            }
            if is_new {
                let place = u32::try_from(self.choices.len()).expect("choices are limited to fewer");
                self.choices.push((u32::try_from(item).unwrap_or(u32::MAX), state.choice));
                state.choice = place;
            }
            if better {
                self.best = (state.gain, state.choice);
                self.fill = None;
            }
            extended.push(state);
        }
        extended
    }

    /// The most that a state can come to, if it can come to anything: by the linear relaxation over the items to come.
    fn bound(&self, state: &State) -> Option<f64> {
        let room = self.budget as f64 - state.cost as f64;
        // Room is filled at the ratio of the next item after the break, excess given up at that of the next one before it.
        let ratio = if room >= 0.0 {
            self.items.get(self.right).map_or(0.0, Item::ratio)
        } else {
            self.items[..self.left].last()?.ratio()
        };
        Some(state.gain + room * ratio)
    }

    fn may_win(&self, state: &State) -> bool {
        self.bound(state).is_some_and(|bound| bound > self.best.0 * (1.0 + ROUNDING))
    }

    /// The items of the best choice.
    fn chosen(&self) -> Vec<usize> {
        let mut inside: Vec<bool> = (0..self.items.len()).map(|at| at < self.first_out).collect();
        match &self.fill {
            Some(fill) => fill.iter().for_each(|at| inside[*at] = true),
            None => {
                let mut at = self.best.1;
                while at != 0 {
                    let (item, before) = self.choices[at as usize];
                    inside[item as usize] ^= true;
                    at = before;
                }
            }
        }
        (0..self.items.len()).filter(|at| inside[*at]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random_bits;
    use proptest::prelude::*;

    fn spectra(raw: &[(Vec<f64>, u64)]) -> Vec<Spectrum<'_>> {
        raw.iter().map(|(values, unit_cost)| Spectrum { values, unit_cost: *unit_cost }).collect()
    }

    /// The most that any ranks within the budget keep, by trying all of them.
    fn brute_force(raw: &[(Vec<f64>, u64)], budget: u64) -> f64 {
        let Some(((values, cost), rest)) = raw.split_first() else { return 0.0 };
        let mut best = 0.0_f64;
        let mut kept = 0.0;
        for rank in 0..=values.len() {
            let spent = cost * rank as u64;
            if spent > budget {
                break;
            }
            if rank > 0 {
                kept += values[rank - 1].powi(2);
            }
            best = best.max(kept + brute_force(rest, budget - spent));
        }
        best
    }

    fn falling(mut values: Vec<f64>) -> Vec<f64> {
        values.sort_by(|left, right| right.total_cmp(left));
        values
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_choice_within_the_budget_keeps_more(
            raw in prop::collection::vec((prop::collection::vec(0.0..4.0_f64, 0..6).prop_map(falling), 1_u64..40), 0..6),
            budget in 0_u64..400,
        ) {
            let found = allocate(&spectra(&raw), budget);
            prop_assert!(found.cost <= budget && found.short_at_most == 0.0);
            let best = brute_force(&raw, budget);
            prop_assert!((found.kept - best).abs() <= 1e-12 * best, "{} instead of {best}", found.kept);
        }

        #[test]
        fn a_search_that_is_given_up_says_how_far_it_can_be_off(
            raw in prop::collection::vec((prop::collection::vec(0.0..4.0_f64, 0..6).prop_map(falling), 1_u64..40), 0..6),
            budget in 0_u64..400,
            max_steps in 0_usize..12,
        ) {
            let found = allocate_in(&spectra(&raw), budget, max_steps);
            let best = brute_force(&raw, budget);
            prop_assert!(found.cost <= budget && found.kept + found.short_at_most >= best * (1.0 - 1e-12));
        }

        #[test]
        fn equal_gains_and_equal_costs_are_no_trouble(
            raw in prop::collection::vec(
                (prop::collection::vec(1_u8..4, 0..5).prop_map(|v| falling(v.into_iter().map(f64::from).collect())), 2_u64..5),
                0..6,
            ),
            budget in 0_u64..60,
        ) {
            let found = allocate(&spectra(&raw), budget);
            let best = brute_force(&raw, budget);
            prop_assert!(found.cost <= budget && (found.kept - best).abs() <= 1e-12 * best);
        }
    }

    #[test]
    fn a_budget_for_everything_keeps_everything_but_zeros() {
        let raw = [(vec![2.0, 1.0, 0.0], 7), (vec![3.0], 5), (vec![], 9)];
        let found = allocate(&spectra(&raw), u64::MAX);
        assert_eq!(found, Allocation { ranks: vec![2, 1, 0], cost: 19, kept: 14.0, short_at_most: 0.0 });
    }

    #[test]
    fn greedy_is_not_enough_where_costs_differ() {
        // By gain per cost 10 ∕ 6 comes first and leaves no room; 9 + 9 fills the budget.
        let raw = [(vec![10.0_f64.sqrt()], 6), (vec![3.0, 3.0], 5)];
        assert_eq!(allocate(&spectra(&raw), 10).ranks, [0, 2]);
    }

    /// Falling spectra of a model with `modules` matrices of a few sizes.
    fn model(modules: usize, values: usize, costs: &[u64]) -> Vec<(Vec<f64>, u64)> {
        let one = |at: usize| {
            let noise = |k: usize| f64::from(random_bits(at as u64, k as u64)) / f64::from(u32::MAX);
            let decay = 0.3 + noise(0);
            let spectrum = (1..=values).map(|k| (1.0 + noise(k)) * (k as f64).powf(-decay)).collect();
            (falling(spectrum), costs[at % costs.len()])
        };
        (0..modules).map(one).collect()
    }

    #[test]
    fn a_large_model_is_settled_exactly() {
        for costs in [&[8192_u64, 5120, 15104, 36096][..], &[1153, 2304, 4097, 769, 36001]] {
            let raw = model(400, 128, costs);
            let all: u64 = raw.iter().map(|(values, cost)| values.len() as u64 * cost).sum();
            for budget in [all / 40, all / 7 + 1, all / 2 + 12_345] {
                let found = allocate(&spectra(&raw), budget);
                assert!(found.cost <= budget && found.short_at_most == 0.0, "{budget}: {}", found.short_at_most);
            }
        }
    }
}
