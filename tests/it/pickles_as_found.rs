//! Files of `torch.save` as trainers leave them: each is read as what it is, or refused with its name and what to do.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::containers::{View, archive, number, tensor, text, write_torch};
use crate::support::*;

const D: usize = 8;
const Q: &str = "model.layers.0.self_attn.q_proj";
const UP: &str = "model.layers.0.mlp.up_proj";

/// What a pickle holds.
enum Tree {
    Tensor(Tensor),
    Text(&'static str),
    Number(u32),
    List(Vec<Tree>),
    Tuple(Vec<Tree>),
    Dict(Vec<(Key, Tree)>),
    /// A call of a Python global without arguments.
    Call(&'static str),
}

enum Key {
    Text(String),
    Number(u32),
}

fn key(text: impl Into<String>) -> Key {
    Key::Text(text.into())
}

fn put(tree: &Tree, pickle: &mut Vec<u8>, storages: &mut Vec<Tensor>) {
    match tree {
        Tree::Tensor(one) => {
            storages.push(one.clone());
            let shape: Vec<u32> = one.shape.iter().map(|size| *size as u32).collect();
            let strides = (0..shape.len()).map(|at| shape[at + 1..].iter().product()).collect();
            let view = View { name: "", storage: storages.len() - 1, offset: 0, shape, strides };
            tensor(pickle, storages, &view);
        }
        Tree::Text(one) => text(pickle, one),
        Tree::Number(one) => number(pickle, *one),
        Tree::List(all) => {
            pickle.extend(b"](");
            all.iter().for_each(|one| put(one, pickle, storages));
            pickle.push(b'e');
        }
        Tree::Tuple(all) => {
            pickle.push(b'(');
            all.iter().for_each(|one| put(one, pickle, storages));
            pickle.push(b't');
        }
        Tree::Dict(all) => {
            pickle.extend(b"}(");
            for (key, one) in all {
                match key {
                    Key::Text(name) => text(pickle, name),
                    Key::Number(size) => number(pickle, *size),
                }
                put(one, pickle, storages);
            }
            pickle.push(b'u');
        }
        Tree::Call(global) => pickle.extend(format!("c{global}\n)R").bytes()),
    }
}

fn save(path: &Path, tree: &Tree) {
    let (mut pickle, mut storages) = (b"\x80\x02".to_vec(), Vec::new());
    put(tree, &mut pickle, &mut storages);
    pickle.push(b'.');
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, archive(pickle, &storages)).unwrap();
}

fn matrix(seed: u64, rows: usize, cols: usize) -> Tensor {
    Tensor::f32(&[rows, cols], &noise(seed, rows * cols, 0.1))
}

fn base(bench: &Bench) -> PathBuf {
    let tensors = [(format!("{Q}.weight"), matrix(1, D, D)), (format!("{UP}.weight"), matrix(2, D, D))];
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    bench.base(&tensors, &json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
}

/// The factors of both modules with `prefix` in front and the adapter's name behind.
fn lora(prefix: &str, name: &str) -> Vec<(Key, Tree)> {
    let pair = |module: &str, seed: u64| {
        let key = |factor: &str| key(format!("{prefix}{module}.lora_{factor}{name}.weight"));
        [(key("A"), Tree::Tensor(matrix(seed, 2, D))), (key("B"), Tree::Tensor(matrix(seed + 1, D, 2)))]
    };
    pair(Q, 10).into_iter().chain(pair(UP, 20)).collect()
}

fn dict(entries: impl IntoIterator<Item = (&'static str, Tree)>) -> Tree {
    Tree::Dict(entries.into_iter().map(|(name, tree)| (key(name), tree)).collect())
}

fn with_config(folder: &Path) {
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"]});
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}

#[test]
fn adapters_in_the_files_of_trainers_are_read() {
    let mut lightning = lora("model.base_model.model.", ".default");
    lightning.push((key(format!("model.base_model.model.{Q}.base_layer.weight")), Tree::Tensor(matrix(1, D, D))));
    let cases: [(&str, Tree); 5] = [
        (
            "model.ckpt",
            dict([
                ("state_dict", Tree::Dict(lightning)),
                ("epoch", Tree::Number(3)),
                ("pytorch-lightning_version", Tree::Text("2.1")),
                ("hyper_parameters", dict([("seed", Tree::Number(1))])),
            ]),
        ),
        (
            "mp_rank_00_model_states.pt",
            dict([
                ("module", Tree::Dict(lora("base_model.model.", ".default"))),
                ("buffer_names", Tree::List(Vec::new())),
                ("ds_config", dict([("zero", Tree::Number(2))])),
                ("ds_version", Tree::Text("0.14")),
                ("global_steps", Tree::Number(5)),
            ]),
        ),
        (
            "iter_500.pth",
            dict([
                ("state_dict", Tree::Dict(lora("llm.base_model.model.", ".default"))),
                ("meta", dict([("iter", Tree::Number(500))])),
            ]),
        ),
        ("pytorch_model.bin", Tree::Dict(lora("base_model.model.", ".default"))),
        ("adapter_model.bin", Tree::Dict(lora("base_model.model.", ""))),
    ];
    for (name, tree) in cases {
        let bench = Bench::new();
        let base = base(&bench);
        let folder = bench.path("adapter");
        save(&folder.join(name), &tree);
        with_config(&folder);
        for (path, out) in [(folder.clone(), "out"), (folder.join(name), "of-file")] {
            merge(&base, &path, &bench.path(out), &["-q"]).ok();
            let got = read_model(&bench.path(out));
            for (module, weight, seed) in [(Q, 1, 10), (UP, 2, 20)] {
                let (down, up) = (matrix(seed, 2, D).values(), matrix(seed + 1, D, 2).values());
                let wanted = dense(&matrix(weight, D, D).values(), &up, &down, 2, 2.0);
                assert_close(&got[&format!("{module}.weight")].values(), &wanted, 1e-6);
            }
        }
    }
}

#[test]
fn what_no_weight_can_hold_is_refused_by_its_name() {
    let qkv = "transformer.h.0.attn.qkv";
    let cases: [(&str, Tree, &[&str]); 6] = [
        (
            "cloneofsimo.pt",
            Tree::List(
                (0..4).map(|at| Tree::Tensor(if at % 2 == 0 { matrix(at, D, 2) } else { matrix(at, 2, D) })).collect(),
            ),
            &["list of tensors without names", "up, down"],
        ),
        (
            "inversion.pt",
            dict([
                ("string_to_token", dict([("*", Tree::Number(265))])),
                ("string_to_param", dict([("*", Tree::Tensor(matrix(1, 2, D)))])),
                ("name", Tree::Text("x")),
            ]),
            &["is a textual inversion"],
        ),
        (
            "hypernetwork.pt",
            Tree::Dict(vec![
                (
                    Key::Number(320),
                    Tree::Tuple(vec![
                        dict([("linear.0.weight", Tree::Tensor(matrix(1, D, D)))]),
                        dict([("linear.0.weight", Tree::Tensor(matrix(2, D, D)))]),
                    ]),
                ),
                (key("step"), Tree::Number(10)),
            ]),
            &["is a hypernetwork"],
        ),
        (
            "lit_model.pth.lora",
            dict([(
                "model",
                Tree::Dict(vec![
                    (key(format!("{qkv}.lora_A")), Tree::Tensor(matrix(1, 6, D))),
                    (key(format!("{qkv}.lora_B")), Tree::Tensor(matrix(2, 3 * D, 2))),
                ]),
            )]),
            &["is LitGPT's LoRA", "litgpt merge_lora"],
        ),
        (
            "model_world_size_2_rank_0.pt",
            Tree::Dict(vec![(key("a.lora_A.default.weight"), Tree::Call("torch.distributed.tensor\nDTensor"))]),
            &["DTensor", "distributed checkpoint (FSDP)"],
        ),
        (
            "quanto.pt",
            Tree::Dict(vec![(key("a.weight"), Tree::Call("optimum.quanto.tensor.weights.qbits\nWeightQBitsTensor"))]),
            &["quantised by quanto"],
        ),
    ];
    for (name, tree, parts) in cases {
        let bench = Bench::new();
        let (base, path) = (base(&bench), bench.path(name));
        save(&path, &tree);
        merge(&base, &path, &bench.path("out"), &[]).refused(1, parts);
        merge(&base, &path, &bench.path("out"), &["--alpha", "8"]).refused(1, parts);
        assert!(!bench.path("out").exists());
    }
}

#[test]
fn kohyas_file_of_torch_is_read_as_kohyas() {
    let bench = Bench::new();
    let path = bench.path("kohya.pt");
    let module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    let names = ["lora_down.weight", "lora_up.weight", "alpha"].map(|part| format!("{module}.{part}"));
    write_torch(
        &path,
        &[(&names[0], matrix(1, 2, D)), (&names[1], matrix(2, D, 2)), (&names[2], Tensor::f32(&[], &[1.0]))],
    );
    let facts = lorakit(&[&"inspect", &path, &"--json"]).ok().json();
    assert_eq!((&facts["dialect"], &facts["groups"][0]["scale"]), (&json!("kohya"), &json!(0.5)));
    assert_eq!(facts["alpha_from"], "tensors");
}
