//! `stack --method ties|dare|dare-ties|magnitude`: at full rank nothing is cut, so the result is the merged ΔW itself, and is held
//! against the definition.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::delta::{Deltas, content, distance, sum};
use crate::stack::stack;
use crate::support::{Bench, Tensor, noise, read_json, reference, snapshot};

const SHAPE: (usize, usize) = (60, 50);
const MODULE: &str = "layers.0.q_proj";

/// Adapters of different ranks and scales over one module; the last one has another besides.
fn three(bench: &Bench) -> [PathBuf; 3] {
    let (rows, cols) = SHAPE;
    let pair = |seed: u64, rank: usize, module: &str| {
        [
            (format!("{module}.lora_A.weight"), Tensor::f32(&[rank, cols], &noise(seed, rank * cols, 0.5))),
            (format!("{module}.lora_B.weight"), Tensor::f32(&[rows, rank], &noise(seed + 1, rows * rank, 0.5))),
        ]
    };
    let mut at = 0;
    [(4, 8.0, false), (2, 1.0, true), (7, 7.0, false)].map(|(rank, alpha, rslora)| {
        at += 10;
        let mut tensors = pair(at, rank, MODULE).to_vec();
        if at == 30 {
            tensors.extend(pair(at + 5, rank, "layers.1.q_proj"));
        }
        let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
        bench.adapter(&format!("{at}"), json!({"r": rank, "lora_alpha": alpha, "use_rslora": rslora}), &tensors)
    })
}

const WEIGHTS: [f64; 3] = [0.7, -0.4, 1.5];

fn merged(adapters: &[PathBuf], out: &Path, words: &[&str]) -> Deltas {
    let weighted: Vec<(&Path, f64)> = adapters.iter().map(PathBuf::as_path).zip(WEIGHTS).collect();
    let words: Vec<&str> = words.iter().copied().chain(["--rank", "50"]).collect();
    stack(&weighted, out, &words).ok();
    content(out).deltas
}

fn values_of(adapters: &[PathBuf]) -> Vec<Vec<f64>> {
    adapters.iter().map(|adapter| content(adapter).deltas[MODULE].values.clone()).collect()
}

/// The ⌊density · n⌋ largest; the others zero.
fn trimmed(values: &[f64], density: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|left, right| values[*right].abs().total_cmp(&values[*left].abs()));
    let mut kept = vec![0.0; values.len()];
    order[..(density * values.len() as f64) as usize].iter().for_each(|at| kept[*at] = values[*at]);
    kept
}

#[track_caller]
fn check(got: &[f64], expected: &[f64]) {
    let size = expected.iter().map(|value| value * value).sum::<f64>().sqrt();
    let error = got.iter().zip(expected).map(|(got, expected)| (got - expected).powi(2)).sum::<f64>().sqrt();
    assert!(error <= 1e-5 * size, "{:e}", error / size);
}

/// From every adapter's element and weight to the result's element.
type Merge<'a> = &'a dyn Fn(&[(f64, f64)]) -> f64;

#[test]
fn the_largest_elements_are_summed_or_merged_by_sign() {
    let bench = Bench::new();
    let adapters = three(&bench);
    for density in [0.05, 0.37, 1.0] {
        let kept: Vec<Vec<f64>> = values_of(&adapters).iter().map(|values| trimmed(values, density)).collect();
        let each = |merge: Merge<'_>| -> Vec<f64> {
            let pairs =
                |at: usize| kept.iter().zip(WEIGHTS).map(|(kept, weight)| (kept[at], weight)).collect::<Vec<_>>();
            (0..SHAPE.0 * SHAPE.1).map(|at| merge(&pairs(at))).collect()
        };
        let of_sign = |pairs: &[(f64, f64)], positive: bool| {
            let chosen = pairs.iter().filter(|(value, _)| *value != 0.0 && (*value > 0.0) == positive);
            let (sum, count) = chosen.fold((0.0, 0), |(sum, count), (value, weight)| (sum + value * weight, count + 1));
            sum / f64::from(count.max(1))
        };
        let magnitude = each(&|pairs| pairs.iter().map(|(value, weight)| value * weight).sum());
        let total = each(&|pairs| of_sign(pairs, pairs.iter().map(|(value, _)| value).sum::<f64>() >= 0.0));
        let frequency = each(&|pairs| {
            let signs = pairs.iter().filter(|(value, _)| *value != 0.0).map(|(value, _)| value.signum());
            of_sign(pairs, signs.sum::<f64>() >= 0.0)
        });
        let text = density.to_string();
        for (name, words, expected) in [
            ("magnitude", &["--method", "magnitude"][..], magnitude),
            ("total", &["--method", "ties"], total),
            ("frequency", &["--method", "ties", "--majority", "frequency"], frequency),
        ] {
            let words: Vec<&str> = words.iter().copied().chain(["--density", &text]).collect();
            let got = merged(&adapters, &bench.path(&format!("{name}-{text}")), &words);
            check(&got[MODULE].values, &expected);
        }
    }
}

#[test]
fn a_module_of_one_adapter_alone_keeps_its_largest() {
    let bench = Bench::new();
    let adapters = three(&bench);
    let alone = content(&adapters[2]).deltas["layers.1.q_proj"].values.clone();
    let expected: Vec<f64> = trimmed(&alone, 0.5).iter().map(|value| WEIGHTS[2] * value).collect();
    let got = merged(&adapters, &bench.path("out"), &["--method", "ties", "--density", "0.5"]);
    check(&got["layers.1.q_proj"].values, &expected);
}

/// Share of `got` that is there, and the mean of got ∕ exact over all.
fn statistics(got: &[f64], exact: &[f64]) -> (f64, f64) {
    let count = got.len() as f64;
    let large = 1e-3 * exact.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    // Elements that are nearly zero cannot be told from the rounding of the factors.
    let sizeable: Vec<(f64, f64)> =
        got.iter().zip(exact).filter(|(_, exact)| exact.abs() > large).map(|(got, exact)| (*got, *exact)).collect();
    assert!(sizeable.len() as f64 > 0.95 * count);
    let kept = sizeable.iter().filter(|(got, exact)| got.abs() > 0.1 * exact.abs()).count() as f64;
    let mean = sizeable.iter().map(|(got, exact)| got / exact).sum::<f64>() / sizeable.len() as f64;
    (kept / sizeable.len() as f64, mean)
}

#[test]
fn dare_keeps_its_share_by_chance_and_the_mean_of_every_element() {
    const DENSITY: f64 = 0.3;
    let bench = Bench::new();
    let adapters = three(&bench);
    let exact = &content(&adapters[0]).deltas[MODULE].values;
    let count = exact.len() as f64;
    // Each element is x ∕ d with probability d, else 0: the mean of got ∕ x is 1, its variance (1 − d) ∕ d.
    let (spread_of_share, spread_of_mean) =
        ((DENSITY * (1.0 - DENSITY) / count).sqrt(), ((1.0 - DENSITY) / DENSITY / count).sqrt());
    let mut sum = vec![0.0; exact.len()];
    let mut squares = 0.0;
    const SEEDS: usize = 40;
    for seed in 0..SEEDS {
        let out = bench.path(&format!("seed-{seed}"));
        let words = ["--method", "dare", "--density", "0.3", "--seed", &seed.to_string(), "--rank", "50"];
        stack(&[(&adapters[0], 1.0)], &out, &words).ok();
        let got = &content(&out).deltas[MODULE].values;
        let (share, mean) = statistics(got, exact);
        assert!((share - DENSITY).abs() < 5.0 * spread_of_share, "seed {seed}: {share}");
        assert!((mean - 1.0).abs() < 5.0 * spread_of_mean, "seed {seed}: {mean}");
        // Whatever stays is divided by the density.
        let kept = got.iter().zip(exact).filter(|(got, exact)| got.abs() > 0.5 * exact.abs() && exact.abs() > 0.1);
        kept.for_each(|(got, exact)| assert!((got / exact * DENSITY - 1.0).abs() < 1e-3, "{got} of {exact}"));
        sum.iter_mut().zip(got).for_each(|(sum, got)| *sum += got);
        squares += got.iter().zip(exact).map(|(got, exact)| (got - exact).powi(2)).sum::<f64>();
    }
    let norm_squared: f64 = exact.iter().map(|value| value * value).sum();
    let variance = squares / SEEDS as f64 / norm_squared;
    let expected = (1.0 - DENSITY) / DENSITY;
    assert!((variance / expected - 1.0).abs() < 0.05, "{variance}, expected {expected}");
    // The mean over seeds comes closer as their root.
    let mean_error: f64 = sum.iter().zip(exact).map(|(sum, exact)| (sum / SEEDS as f64 - exact).powi(2)).sum();
    let ratio = mean_error / norm_squared / (expected / SEEDS as f64);
    assert!((ratio - 1.0).abs() < 0.1, "{ratio}");
}

#[test]
fn dare_ties_elects_among_what_stayed() {
    let bench = Bench::new();
    let adapters = three(&bench);
    let words = |method| ["--method", method, "--density", "0.5", "--seed", "3"];
    let linear = merged(&adapters, &bench.path("dare"), &words("dare"))[MODULE].values.clone();
    let elected = merged(&adapters, &bench.path("ties"), &words("dare-ties"))[MODULE].values.clone();
    // Both draw the same numbers, so where no adapter's element stayed, or only one's, they agree: 1/8 + 3/8 of
    // the elements.
    let size = linear.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    let same = linear.iter().zip(&elected).filter(|(l, e)| (*l - *e).abs() < 1e-5 * size).count() as f64;
    let share = same / linear.len() as f64;
    assert!((share - 0.5).abs() < 0.05, "{share}");
}

#[test]
fn random_numbers_depend_on_the_seed_and_not_on_threads_memory_or_neighbours() {
    let bench = Bench::new();
    let adapters = three(&bench);
    let run = |name: &str, more: &[&str]| {
        let words: Vec<&str> = ["--method", "dare-ties", "--density", "0.4"].iter().chain(more).copied().collect();
        merged(&adapters, &bench.path(name), &words);
        snapshot(&bench.path(name)).remove(Path::new("adapter_model.safetensors")).unwrap()
    };
    let first = run("first", &["-j", "1"]);
    assert_eq!(first, run("second", &["-j", "4", "--max-memory", "1MiB"]));
    assert_ne!(first, run("third", &["--seed", "1"]));
    let alone = merged(&adapters, &bench.path("alone"), &["--method", "dare", "--density", "0.4", "-i", "layers.0"]);
    let both = merged(&adapters, &bench.path("both"), &["--method", "dare", "--density", "0.4"]);
    assert_eq!(alone[MODULE], both[MODULE]);
}

#[test]
fn ranks_and_a_density_are_needed() {
    let bench = Bench::new();
    let adapters = three(&bench);
    let out = bench.path("out");
    for method in ["ties", "dare", "dare-ties", "magnitude"] {
        let pair = [(adapters[0].as_path(), 1.0), (adapters[1].as_path(), 1.0)];
        let refused = |words: &[&str], parts: &[&str]| {
            let words: Vec<&str> = ["--method", method].iter().chain(words).copied().collect();
            stack(&pair, &out, &words).refused(2, parts);
        };
        refused(&["--density", "0.5"], &["--rank", "--energy", "--max-size"]);
        refused(&["--rank", "2"], &["--density"]);
        refused(&["--rank", "2", "--density", "1.5"], &["--density", "1.5"]);
        refused(&["--rank", "2", "--density", "0"], &["--density", "0"]);
    }
    assert!(!out.exists());
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn dare_is_as_far_from_the_sum_as_pefts() {
    let root = reference();
    let bench = Bench::new();
    for (name, method) in [("dare_linear_svd-density0.5", "dare"), ("dare_ties_svd-density0.5", "dare-ties")] {
        let facts = read_json(&root.join("combos").join(name).join("case.json"));
        let inputs: Vec<PathBuf> = facts["inputs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|input| root.join(input.as_str().unwrap()).join("adapter"))
            .collect();
        let weights: Vec<f64> =
            facts["weights"].as_array().unwrap().iter().map(|weight| weight.as_f64().unwrap()).collect();
        let weighted: Vec<(&Path, f64)> = inputs.iter().map(PathBuf::as_path).zip(weights.iter().copied()).collect();
        let rank = facts["out_r"].to_string();
        stack(&weighted, &bench.path(name), &["--method", method, "--density", "0.5", "--rank", &rank]).ok();
        let contents: Vec<Deltas> = inputs.iter().map(|input| content(input).deltas).collect();
        let parts: Vec<(f64, &Deltas)> = weights.iter().copied().zip(&contents).collect();
        let ours = distance(&content(&bench.path(name)).deltas, &sum(&parts));
        let theirs = facts["rel_err_of_stored_result"].as_f64().unwrap();
        // Other numbers, the same law: 14 modules leave a spread of about one percent.
        assert!((ours / theirs - 1.0).abs() < 0.03, "{name}: {ours}, PEFT {theirs}");
    }
}
