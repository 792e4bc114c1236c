//! Bottleneck adapters of AdapterHub: sums whose output is the sum of the outputs, averages, fewer units. What the library itself gives
//! stands in `fixtures/adapterhub`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Bench, Outcome, Tensors, fixtures, lorakit, read, read_json};

const KINDS: [(&str, &str); 9] = [
    ("pfeiffer", "relu"),
    ("houlsby", "swish"),
    ("parallel", "relu"),
    ("compacter", "gelu"),
    ("compacter++", "gelu"),
    ("learned", "gelu"),
    ("norm", "gelu"),
    ("places", "relu"),
    ("map", "relu"),
];

fn adapter(kind: &str, which: &str) -> PathBuf {
    fixtures().join("adapterhub").join(kind).join(which)
}

fn run(words: &[&str]) -> Outcome {
    let words: Vec<&dyn AsRef<std::ffi::OsStr>> =
        words.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>).collect();
    lorakit(&words)
}

fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn activated(name: &str, x: f64) -> f64 {
    match name {
        "relu" => x.max(0.0),
        "swish" => x / (1.0 + (-x).exp()),
        "gelu" => x * 0.5 * (1.0 + erf(x / 2.0_f64.sqrt())),
        other => panic!("{other}"),
    }
}

/// What the bottleneck at `place` adds for the rows of `x`.
fn outputs(tensors: &Tensors, place: &str, scaling: f64, activation: &str, x: &[Vec<f64>]) -> Vec<f64> {
    let get = |role: &str| {
        let key = tensors
            .keys()
            .find(|key| key.starts_with(&format!("{place}.adapters.")) && key.ends_with(&format!(".{role}")));
        key.map(|key| tensors[key].values())
    };
    let norm = get("adapter_norm_before.weight").zip(get("adapter_norm_before.bias"));
    let down = if norm.is_some() { "adapter_down.1" } else { "adapter_down.0" };
    let part = |role: &str| get(role).unwrap_or_else(|| panic!("no {role} at {place}"));
    let (weight, bias) = (part(&format!("{down}.weight")), part(&format!("{down}.bias")));
    let (up, up_bias) = (part("adapter_up.weight"), part("adapter_up.bias"));
    let units = bias.len();
    let mut all = Vec::new();
    for x in x {
        let x: Vec<f64> = match &norm {
            None => x.clone(),
            Some((gain, shift)) => {
                let mean = x.iter().sum::<f64>() / x.len() as f64;
                let variance = x.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / x.len() as f64;
                let root = (variance + 1e-5).sqrt();
                x.iter().zip(gain).zip(shift).map(|((x, gain), shift)| (x - mean) / root * gain + shift).collect()
            }
        };
        let hidden: Vec<f64> = (0..units)
            .map(|unit| {
                let row = &weight[unit * x.len()..(unit + 1) * x.len()];
                activated(activation, row.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>() + bias[unit])
            })
            .collect();
        for (row, bias) in up_bias.iter().enumerate() {
            let sum: f64 = up[row * units..(row + 1) * units].iter().zip(&hidden).map(|(up, hidden)| up * hidden).sum();
            all.push(scaling * (sum + bias));
        }
    }
    all
}

/// The settings of the bottlenecks.
fn settings(adapter: &Path) -> Value {
    read_json(&adapter.join("adapter_config.json"))["config"].clone()
}

/// The places of an adapter, with the number of units.
fn places(adapter: &Path) -> BTreeMap<String, usize> {
    let tensors = read(&adapter.join("adapter.safetensors"));
    let biases = tensors.iter().filter(|(key, _)| key.contains(".adapter_down.") && key.ends_with(".bias"));
    biases
        .filter(|(key, _)| {
            !(key.contains("adapter_down.0") && tensors.contains_key(&key.replace("adapter_down.0", "adapter_down.1")))
        })
        .map(|(key, bias)| (key.split_once(".adapters.").unwrap().0.to_owned(), bias.values().len()))
        .collect()
}

/// The library reads back a bottleneck of this many units.
fn read_back(settings: &Value, layer: &str, hidden: usize) -> usize {
    let factors = &settings["reduction_factor"];
    let factor = factors.as_f64().or_else(|| factors[layer].as_f64()).or_else(|| factors["default"].as_f64()).unwrap();
    (hidden as f64 / factor).floor() as usize
}

#[test]
fn the_output_of_a_stack_is_the_sum_of_the_outputs() {
    for (kind, activation) in KINDS {
        let bench = Bench::new();
        let out = bench.path("sum");
        let inputs = ["a0", "a1"].map(|which| adapter(kind, which));
        run(&[
            "stack",
            &format!("{}:0.7", shown(&inputs[0])),
            &format!("{}:-1.3", shown(&inputs[1])),
            "-o",
            &shown(&out),
        ])
        .ok();
        let truth = read(&adapter(kind, "outputs.safetensors"));
        let x = truth["x"].values();
        let x: Vec<Vec<f64>> = x.chunks(32).map(<[f64]>::to_vec).collect();
        let settings = settings(&out);
        let scaling = settings["scaling"].as_f64().unwrap();
        assert!(settings["scaling"].is_f64(), "{kind}: the library takes a number with a fraction alone");
        let (tensors, places) = (read(&out.join("adapter.safetensors")), places(&out));
        let mut summed = 0;
        for (place, units) in &places {
            let layer = place.split('.').find(|part| part.parse::<u32>().is_ok()).unwrap();
            assert_eq!(*units, read_back(&settings, layer, 32), "{kind}: {place}");
            let found = outputs(&tensors, place, scaling, activation, &x);
            let mut wanted = vec![0.0; found.len()];
            for (which, weight) in [("a0", 0.7), ("a1", -1.3)] {
                let Some(own) = truth.get(&format!("{which}:{place}")) else { continue };
                summed += 1;
                wanted.iter_mut().zip(own.values()).for_each(|(sum, value)| *sum += weight * value);
            }
            let largest = wanted.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
            let worst = found.iter().zip(&wanted).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max);
            assert!(worst <= 1e-6 * largest.max(1e-3), "{kind}: {place} is off by {worst:e} of {largest}");
        }
        assert_eq!(summed, truth.len() - 1, "{kind}: a place is missing");
    }
}

#[test]
fn an_average_is_the_librarys_bit_for_bit() {
    for kind in ["pfeiffer", "compacter", "prefix", "prompt", "lora", "ia3", "mam"] {
        let bench = Bench::new();
        let [first, second, mean] = ["a0", "a1", "mean"].map(|which| adapter(&format!("average/{kind}"), which));
        let (out, wanted) = (bench.path("out"), bench.path("wanted"));
        run(&["stack", &shown(&first), &format!("{}:2.5", shown(&second)), "--method", "average", "-o", &shown(&out)])
            .ok();
        run(&["convert", &shown(&mean), "--to", "adapterhub", "-o", &shown(&wanted)]).ok();
        let named = |folder: &Path, name: &str| -> BTreeMap<String, Vec<u8>> {
            let tensors = read(&folder.join("adapter.safetensors"));
            tensors.into_iter().map(|(key, tensor)| (key.replace(&format!(".{name}."), ".N."), tensor.data)).collect()
        };
        assert_eq!(named(&out, "a0"), named(&wanted, "mean"), "{kind}");
    }
}

#[test]
fn what_does_not_add_up_is_refused_with_the_reason() {
    let bench = Bench::new();
    let out = shown(&bench.path("out"));
    let [pfeiffer, houlsby, parallel] = ["pfeiffer", "houlsby", "parallel"].map(|kind| shown(&adapter(kind, "a0")));
    run(&["stack", &pfeiffer, &houlsby, "-o", &out])
        .refused(1, &["`non_linearity` is swish in one and relu in the other"]);
    run(&["stack", &pfeiffer, &parallel, "-o", &out])
        .refused(1, &["`is_parallel` is true in one and false in the other"]);
    let prompt = shown(&adapter("average/prompt", "a0"));
    run(&["stack", &prompt, &prompt, "-o", &out]).refused(1, &["is prompt tuning", "`lorakit stack --method average`"]);
    let lora = shown(&adapter("average/lora", "a0"));
    run(&["stack", &pfeiffer, &lora, "-o", &out])
        .refused(1, &["one is inserted into the model, the other changes its weights"]);
    let mam = shown(&adapter("average/mam", "a0"));
    run(&["stack", &mam, &mam, "-o", &out]).refused(1, &["prefix tuning", "only one of the adapters can have it"]);
    run(&["stack", &pfeiffer, &shown(&adapter("average/pfeiffer", "a0")), "--method", "average", "-o", &out]).ok();
    run(&["stack", &pfeiffer, &houlsby, "--method", "average", "-o", &shown(&bench.path("no"))])
        .refused(1, &["`config.mh_adapter` is true in one and false in the other", "--method concat"]);
    run(&["stack", &pfeiffer, &pfeiffer, "--to", "peft", "-o", &shown(&bench.path("no"))])
        .refused(1, &["is written as what it is"]);
    assert_eq!(bench.listing(), ["out"]);
}

#[test]
fn a_difference_takes_its_units_out_again() {
    for kind in ["pfeiffer", "houlsby"] {
        let bench = Bench::new();
        let [first, second] = ["a0", "a1"].map(|which| shown(&adapter(kind, which)));
        let [sum, back, straight] = ["sum", "back", "straight"].map(|name| shown(&bench.path(name)));
        run(&["stack", &first, &second, "-o", &sum]).ok();
        run(&["subtract", &sum, &second, "-o", &back]).ok();
        run(&["convert", &first, "--to", "adapterhub", "-o", &straight]).ok();
        let (found, wanted) = (
            read(&Path::new(&back).join("adapter.safetensors")),
            read(&Path::new(&straight).join("adapter.safetensors")),
        );
        for (key, tensor) in wanted {
            // Biases of the up projection are sums.
            if key.ends_with("adapter_up.bias") {
                let off =
                    found[&key].values().iter().zip(tensor.values()).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max);
                assert!(off < 1e-6, "{kind}: {key} is off by {off:e}");
            } else {
                assert_eq!(found[&key].data, tensor.data, "{kind}: {key}");
            }
        }
    }
}

#[test]
fn the_largest_units_are_kept_and_nothing_else_changes() {
    let bench = Bench::new();
    let input = adapter("parallel", "a0");
    let (out, whole) = (bench.path("out"), bench.path("whole"));
    let report = run(&["resize", &shown(&input), "--rank", "3", "-o", &shown(&out), "--json"]).ok().json();
    let module = &report["adapters"][0]["modules"][0];
    assert_eq!(
        (&module["kind"], &module["rank"], &module["ranks_before"][0]),
        (&"bottleneck".into(), &3.into(), &8.into())
    );
    let (before, after) = (read(&input.join("adapter.safetensors")), read(&out.join("adapter.safetensors")));
    let key = before.keys().find(|key| key.ends_with("adapter_down.0.weight")).unwrap();
    let up = key.replace("adapter_down.0", "adapter_up");
    let (down, ups) = (before[key].values(), before[&up].values());
    let size = |unit: usize| {
        let one: f64 = down[unit * 32..(unit + 1) * 32].iter().map(|x| x * x).sum();
        one * ups.iter().skip(unit).step_by(8).map(|x| x * x).sum::<f64>()
    };
    let mut order: Vec<usize> = (0..8).collect();
    order.sort_by(|left, right| size(*right).total_cmp(&size(*left)));
    let mut kept = order[..3].to_vec();
    kept.sort_unstable();
    let wanted: Vec<f64> = kept.iter().flat_map(|unit| down[unit * 32..(unit + 1) * 32].to_vec()).collect();
    assert_eq!(after[key].values(), wanted);
    let share = kept.iter().map(|unit| size(*unit)).sum::<f64>() / (0..8).map(size).sum::<f64>();
    assert!((module["kept_energy"].as_f64().unwrap() - share).abs() < 1e-6);
    assert_eq!(read_back(&settings(&out), "0", 32), 3);
    // As many units as there are: bit for bit what it was.
    run(&["resize", &shown(&input), "--rank", "8", "-o", &shown(&whole)]).ok();
    for (key, tensor) in &before {
        assert_eq!(read(&whole.join("adapter.safetensors"))[key].data, tensor.data, "{key}");
    }
    run(&["resize", &shown(&input), "--max-size", "1kB", "-o", &shown(&bench.path("no"))])
        .refused(2, &["the units of bottlenecks are chosen place by place"]);
}

#[test]
fn checkpoints_of_one_run_are_averaged_by_their_steps() {
    let bench = Bench::new();
    let names: Vec<String> = [("checkpoint-100", "a0"), ("checkpoint-300", "a1")]
        .iter()
        .map(|(name, which)| {
            let folder = bench.path(name);
            std::fs::create_dir(&folder).unwrap();
            for file in ["adapter_config.json", "adapter.safetensors"] {
                std::fs::copy(adapter("pfeiffer", which).join(file), folder.join(file)).unwrap();
            }
            shown(&folder)
        })
        .collect();
    let [out, same] = ["out", "same"].map(|name| shown(&bench.path(name)));
    run(&["stack", &names[0], &names[1], "--ema", "0.2", "-o", &out]).ok();
    // γ + 1 of σ_rel 0.2 by the formula, so the first weighs (1 ∕ 3)^(γ + 1).
    let record = read_json(&Path::new(&out).join("lorakit.json"));
    let weights: Vec<f64> =
        record["adapters"].as_array().unwrap().iter().map(|one| one["weight"].as_f64().unwrap()).collect();
    let power = weights[0].ln() / (1.0_f64 / 3.0).ln();
    let width = power.sqrt() / ((power + 1.0) * (power + 2.0).sqrt());
    assert!((width - 0.2).abs() < 1e-9 && (weights[0] + weights[1] - 1.0).abs() < 1e-12, "{weights:?}");
    let given = [format!("{}:{}", names[0], weights[0]), format!("{}:{}", names[1], weights[1])];
    run(&["stack", &given[0], &given[1], "--method", "average", "-o", &same]).ok();
    let file = |folder: &str| read(&Path::new(folder).join("adapter.safetensors"));
    assert!(file(&out).iter().all(|(key, tensor)| tensor.data == file(&same)[key].data));
    let no = shown(&bench.path("no"));
    run(&["stack", &given[0], &names[1], "--ema", "0.2", "-o", &no]).refused(2, &["--ema: gives the weights itself"]);
    run(&["stack", &shown(&adapter("pfeiffer", "a0")), &names[1], "--ema", "0.2", "-o", &no])
        .refused(2, &["does not tell its step"]);
    run(&["stack", &names[0], &names[1], "--ema", "0.4", "-o", &no]).refused(2, &["lies between 0 and 0.2887"]);
}

#[test]
fn pefts_prompts_and_trainers_files_are_averaged_too() {
    let bench = Bench::new();
    let prompt = shown(&fixtures().join("dialects/peft-prompt-tuning"));
    run(&["stack", &prompt, &prompt, "--method", "average", "-o", &shown(&bench.path("prompt"))]).ok();
    let key = "prompt_embeddings";
    let [before, after] =
        [PathBuf::from(&prompt), bench.path("prompt")].map(|folder| read(&folder.join("adapter_model.safetensors")));
    assert_eq!(before[key].values(), after[key].values());
    let kohya = shown(&fixtures().join("dialects/kohya-lora-r4.safetensors"));
    let out = bench.path("mean.safetensors");
    run(&["stack", &kohya, &format!("{kohya}:3"), "--method", "average", "-o", &shown(&out)]).ok();
    let (before, after) = (read(Path::new(&kohya)), read(&out));
    assert!(before.keys().eq(after.keys()));
    let alphas = before.iter().filter(|(name, _)| name.ends_with(".alpha"));
    assert!(alphas.into_iter().all(|(name, tensor)| after[name].data == tensor.data));
}

#[test]
fn keys_of_older_versions_get_the_names_of_today() {
    let bench = Bench::new();
    let (input, old) = (adapter("pfeiffer", "a0"), bench.path("old"));
    std::fs::create_dir(&old).unwrap();
    std::fs::copy(input.join("adapter_config.json"), old.join("adapter_config.json")).unwrap();
    let tensors = read(&input.join("adapter.safetensors"));
    let renamed: Vec<(String, crate::support::Tensor)> = tensors
        .iter()
        .map(|(key, tensor)| (key.replace(".adapters.", ".layer_text_task_adapters."), tensor.clone()))
        .collect();
    let renamed: Vec<(&str, crate::support::Tensor)> =
        renamed.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
    crate::support::write(&old.join("adapter.safetensors"), &renamed);
    run(&["convert", &shown(&old), "--to", "adapterhub", "-o", &shown(&bench.path("new"))]).ok();
    let found = read(&bench.path("new").join("adapter.safetensors"));
    assert!(found.keys().eq(tensors.keys()), "{:?}", found.keys().collect::<Vec<_>>());
}

#[test]
fn what_is_left_out_adds_nothing_and_is_still_there() {
    let bench = Bench::new();
    let (input, out) = (adapter("houlsby", "a0"), bench.path("out"));
    run(&["stack", &shown(&input), "--exclude", "attention", "-o", &shown(&out)]).ok();
    assert_eq!(places(&out).keys().collect::<Vec<_>>(), places(&input).keys().collect::<Vec<_>>());
    let tensors = read(&out.join("adapter.safetensors"));
    let ups = tensors.iter().filter(|(key, _)| key.contains("attention") && key.contains("adapter_up"));
    assert!(ups.into_iter().all(|(_, tensor)| tensor.values().iter().all(|value| *value == 0.0)));
}

#[test]
fn a_tensor_that_is_no_part_of_a_sum_is_never_lost() {
    for (setting, role) in
        [("use_gating", "gate.weight"), ("ln_after", "adapter_norm_after.weight"), ("dropout", "odd.weight")]
    {
        let bench = Bench::new();
        let (input, folder) = (adapter("pfeiffer", "a0"), bench.path("gated"));
        std::fs::create_dir(&folder).unwrap();
        let mut config = read_json(&input.join("adapter_config.json"));
        config["config"][setting] = true.into();
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        let mut tensors: Vec<(String, crate::support::Tensor)> =
            read(&input.join("adapter.safetensors")).into_iter().collect();
        let place = tensors[0].0.split_once(".adapter_").unwrap().0.to_owned();
        tensors.push((format!("{place}.{role}"), crate::support::Tensor::f32(&[1, 32], &[0.5; 32])));
        let tensors: Vec<(&str, crate::support::Tensor)> =
            tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
        crate::support::write(&folder.join("adapter.safetensors"), &tensors);
        for words in [vec!["stack"], vec!["resize", "--rank", "2"]] {
            let part = if setting == "dropout" { "`odd.weight` of a bottleneck" } else { setting };
            let (folder, out) = (shown(&folder), shown(&bench.path("out")));
            let words: Vec<&str> = words.into_iter().chain([folder.as_str(), "-o", &out]).collect();
            run(&words).refused(1, &[part]);
        }
    }
}
