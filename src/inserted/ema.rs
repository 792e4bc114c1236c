//! The weights of an exponential moving average over the checkpoints of one run, found after training.
//!
//! The power-function average of Karras et al. 2024 (2312.02696) weighs the parameters at step t of T with t^γ. A checkpoint stands for
//! the steps since the one before it, so its weight is ∫ t^γ dt over those. The width σ_rel of the profile, as a share of the training,
//! gives γ: σ_rel² = (γ + 1) ∕ ((γ + 2)² · (γ + 3)) (their equation 5).

use std::path::Path;

use crate::error::{Error, Result};
use crate::formats::side;

/// σ_rel of γ = 0, an average of all steps alike.
const WIDEST: f64 = 0.288_675_134_594_812_9;

/// How folders of checkpoints are called.
const FOLDER: &str = "checkpoint-";

/// What a trainer keeps beside a checkpoint.
const STATE: &str = "trainer_state.json";

/// The step at which a checkpoint was saved: as its folder says, or the state of its trainer.
///
/// # Errors
/// When neither tells.
pub fn step_of(path: &Path) -> Result<u64> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(step) = name.strip_prefix(FOLDER).and_then(|step| step.parse().ok()) {
        return Ok(step);
    }
    let state = if path.is_dir() { side::read(path, STATE)? } else { None };
    state.and_then(|state| state.get("global_step")?.as_u64()).ok_or_else(|| {
        Error::invalid("--ema", format!("`{}` does not tell its step", path.display()))
            .hint("a folder called `checkpoint-STEP`, or a `trainer_state.json` in it, does; or give weights: `--method average A:0.2 B:0.8`")
    })
}

/// The weights of checkpoints at `steps` for the width `sigma`.
///
/// # Errors
/// When there is no such width, or a step is 0 or stands there twice.
pub fn weights_of_run(steps: &[u64], sigma: f64) -> Result<Vec<f64>> {
    if !(sigma > 0.0 && sigma < WIDEST) {
        let problem = format!("{sigma} is no width of an average: it lies between 0 and {WIDEST:.4}, as 0.1");
        return Err(Error::invalid("--ema", problem));
    }
    let mut order: Vec<usize> = (0..steps.len()).collect();
    order.sort_by_key(|at| steps[*at]);
    if let Some(pair) = order.windows(2).find(|pair| steps[pair[0]] == steps[pair[1]]) {
        return Err(Error::invalid("--ema", format!("two checkpoints are of step {}", steps[pair[0]])));
    }
    let power = exponent(sigma) + 1.0;
    let last = order.last().map_or(1, |at| steps[*at]) as f64;
    let (mut weights, mut before) = (vec![0.0; steps.len()], 0.0);
    for at in order {
        let until = (steps[at] as f64 / last).powf(power);
        weights[at] = until - before;
        before = until;
    }
    if let Some(at) = weights.iter().position(|weight| *weight <= 0.0) {
        let problem = format!("the checkpoint of step {} gets no weight", steps[at]);
        return Err(Error::invalid("--ema", problem).hint("leave it out, or take a wider average"));
    }
    Ok(weights)
}

/// γ of a width, by halving: the width falls as γ rises.
fn exponent(sigma: f64) -> f64 {
    let width = |gamma: f64| (gamma + 1.0).sqrt() / ((gamma + 2.0) * (gamma + 3.0).sqrt());
    let (mut low, mut high) = (0.0, 1.0);
    while width(high) > sigma {
        high *= 2.0;
    }
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if width(middle) > sigma { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_those_of_the_paper() {
        // σ_rel = 0.05 and 0.1 are γ = 16.97 and 6.94 there.
        assert!((exponent(0.05) - 16.97).abs() < 0.01, "{}", exponent(0.05));
        assert!((exponent(0.10) - 6.94).abs() < 0.01, "{}", exponent(0.10));
    }

    #[test]
    fn later_checkpoints_weigh_more_and_all_weigh_one() {
        let weights = weights_of_run(&[300, 100, 200], 0.2).expect("a run");
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(weights[0] > weights[2] && weights[2] > weights[1], "{weights:?}");
        for (steps, sigma) in [(&[1, 1][..], 0.1), (&[0, 1], 0.1), (&[1, 2], 0.3), (&[1, 2], 0.0), (&[1, 2], f64::NAN)]
        {
            assert!(weights_of_run(steps, sigma).is_err(), "{steps:?} {sigma}");
        }
    }
}
