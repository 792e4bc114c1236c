//! Mixture-of-experts: adapters of stacks and of single experts into bases of either layout give the same model.

use serde_json::json;

use crate::support::{Bench, Tensor, Tensors, assert_close, dense, merge, noise, read};

const EXPERTS: usize = 3;
const DIM: usize = 6;
const HIDDEN: usize = 4;
const RANK: usize = 2;

/// Weights of gate, up and down of one expert, `[out, in]`.
fn weight(expert: usize, part: usize) -> Vec<f32> {
    noise((expert * 3 + part + 1) as u64, DIM * HIDDEN, 1.0)
}

fn split(names: [&str; 3], list: &str) -> Vec<(String, Tensor)> {
    let shape = |part: usize| if part == 2 { [DIM, HIDDEN] } else { [HIDDEN, DIM] };
    let one = |expert: usize, part: usize| {
        (format!("l.{list}.{expert}.{}.weight", names[part]), Tensor::f32(&shape(part), &weight(expert, part)))
    };
    (0..EXPERTS)
        .flat_map(|expert| (0..3).map(move |part| (expert, part)))
        .map(|(expert, part)| one(expert, part))
        .collect()
}

fn transpose(values: &[f32], rows: usize) -> Vec<f32> {
    let cols = values.len() / rows;
    (0..values.len()).map(|at| values[at % rows * cols + at / rows]).collect()
}

/// `[E, 2·ff, d]` and `[E, d, ff]`, or transposed.
fn fused(module: &str, transposed: bool) -> Vec<(String, Tensor)> {
    let stack = |make: &dyn Fn(usize) -> Vec<f32>, rows: usize, cols: usize| {
        let each = (0..EXPERTS).map(|expert| if transposed { transpose(&make(expert), rows) } else { make(expert) });
        let shape = if transposed { [EXPERTS, cols, rows] } else { [EXPERTS, rows, cols] };
        Tensor::f32(&shape, &each.collect::<Vec<_>>().concat())
    };
    let gate_up = stack(&|expert| [weight(expert, 0), weight(expert, 1)].concat(), 2 * HIDDEN, DIM);
    let down = stack(&|expert| weight(expert, 2), DIM, HIDDEN);
    vec![(format!("l.{module}.gate_up_proj"), gate_up), (format!("l.{module}.down_proj"), down)]
}

/// All experts as one list of matrices `[out, in]`, whatever the layout.
fn experts(tensors: &Tensors, transposed: bool) -> Vec<Vec<f64>> {
    let mut all = Vec::new();
    let find =
        |ending: &str| tensors.iter().find(|(name, _)| name.ends_with(ending)).map(|(_, tensor)| tensor.values());
    if let (Some(gate_up), Some(down)) = (find("gate_up_proj"), find("down_proj")) {
        let turn = |values: &[f64], rows: usize| -> Vec<f64> {
            let cols = values.len() / rows;
            if !transposed {
                return values.to_vec();
            }
            (0..values.len()).map(|at| values[at % cols * rows + at / cols]).collect()
        };
        for (gate_up, down) in gate_up.chunks(2 * HIDDEN * DIM).zip(down.chunks(DIM * HIDDEN)) {
            let gate_up = turn(gate_up, 2 * HIDDEN);
            all.extend([gate_up[..HIDDEN * DIM].to_vec(), gate_up[HIDDEN * DIM..].to_vec(), turn(down, DIM)]);
        }
        return all;
    }
    for expert in 0..EXPERTS {
        for names in [["gate_proj", "w1"], ["up_proj", "w3"], ["down_proj", "w2"]] {
            all.push(names.iter().find_map(|name| find(&format!("experts.{expert}.{name}.weight"))).unwrap());
        }
    }
    all
}

/// PEFT's interleaved pair for a stack of `[out, in]`: A `[E·r, in]`, B `[out, r·E]`.
fn stacked_pair(seed: u64, out: usize, inputs: usize) -> (Tensor, Tensor) {
    let down = Tensor::f32(&[EXPERTS * RANK, inputs], &noise(seed, EXPERTS * RANK * inputs, 1.0));
    let up = Tensor::f32(&[out, RANK * EXPERTS], &noise(seed + 1, out * RANK * EXPERTS, 1.0));
    (down, up)
}

/// What one expert gets of it, by the definition: rows e·r + k of A, columns k·E + e of B.
fn share(down: &Tensor, up: &Tensor, expert: usize) -> (Vec<f64>, Vec<f64>) {
    let inputs = down.shape[1];
    let a = down.values()[expert * RANK * inputs..(expert + 1) * RANK * inputs].to_vec();
    let b = up
        .values()
        .chunks(RANK * EXPERTS)
        .flat_map(|row| (0..RANK).map(|k| row[k * EXPERTS + expert]).collect::<Vec<_>>())
        .collect();
    (a, b)
}

fn wide(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

fn wanted_of_stacks(gate_up: &(Tensor, Tensor), down: &(Tensor, Tensor)) -> Vec<Vec<f64>> {
    let mut all = Vec::new();
    for expert in 0..EXPERTS {
        let both = wide([weight(expert, 0), weight(expert, 1)].concat());
        let (a, b) = share(&gate_up.0, &gate_up.1, expert);
        let merged = dense(&both, &b, &a, RANK, 2.0);
        all.extend([merged[..HIDDEN * DIM].to_vec(), merged[HIDDEN * DIM..].to_vec()]);
        let (a, b) = share(&down.0, &down.1, expert);
        all.push(dense(&wide(weight(expert, 2)), &b, &a, RANK, 2.0));
    }
    all
}

fn borrowed(tensors: &[(String, Tensor)]) -> Vec<(&str, Tensor)> {
    tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect()
}

/// Name, tensors, and whether the stacks are transposed.
type Layout = (&'static str, Vec<(String, Tensor)>, bool);

fn bases() -> Vec<Layout> {
    vec![
        ("qwen", split(["gate_proj", "up_proj", "down_proj"], "mlp.experts"), false),
        ("mixtral", split(["w1", "w3", "w2"], "block_sparse_moe.experts"), false),
        ("fused", fused("mlp.experts", false), false),
        ("fused, transposed", fused("mlp.experts", true), true),
    ]
}

#[test]
fn an_adapter_of_stacks_merges_into_every_layout() {
    let (gate_up, down) = (stacked_pair(50, 2 * HIDDEN, DIM), stacked_pair(60, DIM, HIDDEN));
    let wanted = wanted_of_stacks(&gate_up, &down);
    for (name, tensors, transposed) in bases() {
        let bench = Bench::new();
        let base = bench.base(&borrowed(&tensors), &json!({}));
        let adapter = bench.adapter(
            "a",
            json!({"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
            &[
                ("l.mlp.experts.base_layer.lora_A.weight", gate_up.0.clone()),
                ("l.mlp.experts.base_layer.lora_B.weight", gate_up.1.clone()),
                ("l.mlp.experts.lora_A.weight", down.0.clone()),
                ("l.mlp.experts.lora_B.weight", down.1.clone()),
            ],
        );
        merge(&base, &adapter, &bench.path("out"), &[]).ok();
        let got = experts(&read(&bench.path("out/model.safetensors")), transposed);
        for (got, wanted) in got.iter().zip(&wanted) {
            assert_close(got, wanted, 1e-6);
        }
        assert_eq!(got.len(), wanted.len(), "{name}");
    }
}

#[test]
fn an_adapter_of_single_experts_merges_into_every_layout() {
    let pairs: Vec<(Tensor, Tensor)> = (0..EXPERTS * 3)
        .map(|at| {
            let (out, inputs) = if at % 3 == 2 { (DIM, HIDDEN) } else { (HIDDEN, DIM) };
            let seed = 100 + 2 * at as u64;
            (
                Tensor::f32(&[RANK, inputs], &noise(seed, RANK * inputs, 1.0)),
                Tensor::f32(&[out, RANK], &noise(seed + 1, out * RANK, 1.0)),
            )
        })
        .collect();
    for (name, tensors, transposed) in bases() {
        let bench = Bench::new();
        let base = bench.base(&borrowed(&tensors), &json!({}));
        let keys = |at: usize| format!("l.mlp.experts.{}.{}", at / 3, ["gate_proj", "up_proj", "down_proj"][at % 3]);
        let factors: Vec<(String, Tensor)> = pairs
            .iter()
            .enumerate()
            .flat_map(|(at, (a, b))| {
                [(format!("{}.lora_A.weight", keys(at)), a.clone()), (format!("{}.lora_B.weight", keys(at)), b.clone())]
            })
            .collect();
        let adapter = bench.adapter("a", json!({}), &borrowed(&factors));
        merge(&base, &adapter, &bench.path("out"), &[]).ok();
        let got = experts(&read(&bench.path("out/model.safetensors")), transposed);
        for (at, got) in got.iter().enumerate() {
            let (a, b) = &pairs[at];
            assert_close(got, &dense(&wide(weight(at / 3, at % 3)), &b.values(), &a.values(), RANK, 2.0), 1e-6);
        }
        assert_eq!(got.len(), EXPERTS * 3, "{name}");
    }
}

#[test]
fn one_adapted_stack_alone_finds_its_parameter() {
    let down = stacked_pair(60, DIM, HIDDEN);
    let bench = Bench::new();
    let base = bench.base(&borrowed(&fused("mlp.experts", false)), &json!({}));
    let adapter = bench.adapter(
        "a",
        json!({"target_modules": [], "target_parameters": ["experts.down_proj"]}),
        &[("l.mlp.experts.lora_A.weight", down.0.clone()), ("l.mlp.experts.lora_B.weight", down.1.clone())],
    );
    merge(&base, &adapter, &bench.path("out"), &[]).ok();
    let got = experts(&read(&bench.path("out/model.safetensors")), false);
    let (a, b) = share(&down.0, &down.1, 1);
    assert_close(&got[5], &dense(&wide(weight(1, 2)), &b, &a, RANK, 2.0), 1e-6);
    assert_close(&got[3], &wide(weight(1, 0)), 0.0);
}

#[test]
fn an_expert_the_base_does_not_have_is_refused() {
    let bench = Bench::new();
    let base = bench.base(&borrowed(&split(["w1", "w3", "w2"], "block_sparse_moe.experts")), &json!({}));
    let adapter = bench.adapter(
        "a",
        json!({}),
        &[
            ("l.block_sparse_moe.experts.9.w1.lora_A.weight", Tensor::f32(&[RANK, DIM], &noise(1, RANK * DIM, 1.0))),
            (
                "l.block_sparse_moe.experts.9.w1.lora_B.weight",
                Tensor::f32(&[HIDDEN, RANK], &noise(2, RANK * HIDDEN, 1.0)),
            ),
        ],
    );
    merge(&base, &adapter, &bench.path("out"), &[]).refused(1, &["experts.9.w1"]);
}

#[test]
fn interleaved_halves_go_to_every_second_column() {
    let bench = Bench::new();
    let base = bench.base(&borrowed(&fused("mlp.experts", true)), &json!({"model_type": "gpt_oss"}));
    let adapter = bench.adapter(
        "a",
        json!({}),
        &[
            ("l.mlp.experts.0.gate_proj.lora_A.weight", Tensor::f32(&[RANK, DIM], &noise(1, RANK * DIM, 1.0))),
            ("l.mlp.experts.0.gate_proj.lora_B.weight", Tensor::f32(&[HIDDEN, RANK], &noise(2, RANK * HIDDEN, 1.0))),
        ],
    );
    merge(&base, &adapter, &bench.path("out"), &["--dtype", "f32"]).ok();
    let name = "l.mlp.experts.gate_up_proj";
    let (before, after) = (read(&base.join("model.safetensors")), read(&bench.path("out").join("model.safetensors")));
    let (before, after) = (before[name].values(), after[name].values());
    let changed = |at: &usize| before[*at] != after[*at];
    let columns: Vec<usize> = (0..before.len()).filter(changed).map(|at| at % (2 * HIDDEN)).collect();
    assert_eq!(columns.len(), DIM * HIDDEN, "of one expert");
    assert!(columns.iter().all(|column| column % 2 == 0), "gates");
}
