//! Merging into the GGUF files: the order of its rows, its types, its metadata, and what it cannot hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lorakit::formats::Checkpoint;
use lorakit::formats::gguf::{Gguf, Layout, Metadata, Value, cut, split_name, write as write_gguf};
use lorakit::llama::{FileType, View};
use lorakit::tensor::{Dtype, GgmlType, Packing, Shape, TensorInfo};

use super::support::{Bench, Tensor, assert_close, dense, lorakit, merge, noise, read, reference_part};

/// Tensors under the names and in the order of Hugging Face: how they are stored, and their values.
type Values = BTreeMap<String, (Packing, Vec<f64>)>;

fn values(path: &Path) -> Values {
    let (checkpoint, view) = View::of(Checkpoint::open(path).unwrap()).unwrap();
    let view = view.expect("a GGUF file");
    let one = |stored: lorakit::formats::Stored| {
        let (name, lie) = (stored.info.name.clone(), view.row_layout(&stored.info.name));
        let packing = Packing::of(&stored.info.dtype).unwrap();
        let mut flat = vec![0.0; usize::try_from(stored.info.shape.elements().unwrap()).unwrap()];
        packing.decode(stored.view().unwrap().data, &mut flat);
        let rows = usize::try_from(stored.info.shape.as_slice()[0]).unwrap();
        let cols = flat.len() / rows;
        let ordered = (0..rows).flat_map(|row| flat[lie.stored_row(row) * cols..][..cols].to_vec());
        (name, (packing, ordered.map(|value| f64::from(value - lie.added)).collect()))
    };
    checkpoint.all().map(one).collect()
}

/// The bytes of every tensor, by the name it has in the file.
fn stored(path: &Path) -> BTreeMap<String, (Dtype, Vec<u8>)> {
    let checkpoint = Checkpoint::open(path).unwrap();
    checkpoint.all().map(|t| (t.info.name.clone(), (t.info.dtype.clone(), t.view().unwrap().data.to_vec()))).collect()
}

fn metadata(path: &Path) -> Metadata {
    Gguf::open(path).unwrap().metadata().clone()
}

/// The types that the reference has the tiny model in, other than numbers one by one.
const QUANTISED: [&str; 10] =
    ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k_m", "q6_k", "iq4_nl", "q4_k_m-mixed"];

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_model_of_plain_numbers_gets_the_values_that_peft_gives() {
    let root = reference_part("gguf");
    let base = root.join("bases/tiny-f32.gguf");
    let before = values(&base);
    for case in ["lora-all", "lora-patterns", "rslora-all", "lora-embed", "lora-mts-norm"] {
        let bench = Bench::new();
        let out = bench.path("merged.gguf");
        merge(&base, &root.join(case).join("adapter"), &out, &[]).ok();
        let (after, expected) = (values(&out), read(&root.join(case).join("expected-f32.safetensors")));
        let mut compared = 0;
        for (name, (_, values)) in &after {
            match expected.get(name) {
                Some(wanted) => {
                    assert_close(values, &wanted.values(), 1e-6);
                    assert_ne!(Some(values), before.get(name).map(|(_, values)| values), "{case}: {name}");
                    compared += 1;
                }
                // The head that was the embedding stays what it was.
                None if name == "lm_head.weight" => assert_eq!(values, &before["model.embed_tokens.weight"].1),
                // Not all that changed is in the reference.
                None if name.contains("_proj") => {}
                None => assert_eq!(values, &before[name].1, "{case}: {name}"),
            }
        }
        assert_eq!(compared, expected.len(), "{case}");
        assert_eq!(metadata(&out), metadata(&base), "{case}");
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn quantised_weights_keep_their_types_and_the_others_their_bytes() {
    let root = reference_part("gguf");
    let delta = delta_of(&root, "lora-all");
    for kind in QUANTISED {
        let (bench, base) = (Bench::new(), root.join(format!("bases/tiny-{kind}.gguf")));
        let out = bench.path("merged.gguf");
        merge(&base, &root.join("lora-all/adapter"), &out, &["--rounding", "nearest"]).ok();
        assert!(fs::metadata(&out).unwrap().len() <= fs::metadata(&base).unwrap().len(), "{kind}: not larger");
        assert_eq!(metadata(&out), metadata(&base), "{kind}");
        let (before, after) = (stored(&base), stored(&out));
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        let changed = before.iter().filter(|(name, old)| after[*name].1 != old.1);
        assert_eq!(changed.count(), 7, "{kind}");
        assert!(before.iter().all(|(name, old)| after[name].0 == old.0), "{kind}: types");
        let (before, after) = (values(&base), values(&out));
        for (name, delta) in &delta {
            let (packing, was) = &before[name];
            let exact: Vec<f32> = was.iter().zip(delta).map(|(was, delta)| (was + delta) as f32).collect();
            let error =
                |got: &[f64]| got.iter().zip(&exact).map(|(got, exact)| (got - f64::from(*exact)).powi(2)).sum();
            // Rows change places whole, so blocks of the checkpoint's rows are those of the file.
            let mut direct = vec![0; packing.bytes_of(exact.len())];
            packing.encode(&exact, lorakit::tensor::Rounding::Nearest, &mut direct);
            let mut back = vec![0.0; exact.len()];
            packing.decode(&direct, &mut back);
            let back: Vec<f64> = back.into_iter().map(f64::from).collect();
            let (ours, best): (f64, f64) = (error(&after[name].1), error(&back));
            assert!(ours <= best * 1.001, "{kind}: {name}: squared error {ours:e}, {best:e} by one rounding");
        }
    }
}

/// ΔW of a case of the reference: what PEFT merged, minus the model.
fn delta_of(root: &Path, case: &str) -> BTreeMap<String, Vec<f64>> {
    let base = values(&root.join("bases/tiny-f32.gguf"));
    let expected = read(&root.join(case).join("expected-f32.safetensors"));
    let one = |(name, tensor): (&String, &Tensor)| {
        let delta = tensor.values().iter().zip(&base[name].1).map(|(after, before)| after - before).collect();
        (name.clone(), delta)
    };
    expected.iter().map(one).collect()
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn weights_that_change_are_written_as_another_type() {
    let root = reference_part("gguf");
    let (bench, base) = (Bench::new(), root.join("bases/tiny-q4_1.gguf"));
    let adapter = root.join("lora-all/adapter");
    let out = bench.path("f16.gguf");
    merge(&base, &adapter, &out, &["--quant", "f16"]).ok();
    let delta = delta_of(&root, "lora-all");
    let (before, after) = (values(&base), values(&out));
    for (name, (packing, values)) in &after {
        let (own, was) = &before[name];
        if name.contains("_proj") {
            assert_eq!(packing.dtype(), Dtype::F16, "{name}");
        } else {
            assert_eq!((packing, values), (own, was), "{name}");
        }
        if let Some(delta) = delta.get(name) {
            let wanted: Vec<f64> = was.iter().zip(delta).map(|(was, delta)| was + delta).collect();
            assert_close(values, &wanted, 6e-4);
        }
    }
    assert_eq!(FileType::said(&metadata(&base)).unwrap().name(), Some("Q4_1"));
    assert_eq!(FileType::said(&metadata(&out)).unwrap().name(), Some("F16"));

    let out = bench.path("q8.gguf");
    merge(&base, &adapter, &out, &["--quant", "q8_0", "--include", "q_proj"]).ok();
    assert_eq!(FileType::said(&metadata(&out)).unwrap().name(), Some("Q4_1"), "most of it still is");
    assert_eq!(values(&out)["model.layers.0.self_attn.q_proj.weight"].0, Packing::Blocks(GgmlType::Q8_0));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn dora_and_the_order_of_rows_go_together() {
    let root = reference_part("gguf");
    let (bench, adapter) = (Bench::new(), root.join("dora/adapter"));
    let (gguf, hub) = (bench.path("merged.gguf"), bench.path("hub"));
    merge(&root.join("bases/tiny-f32.gguf"), &adapter, &gguf, &[]).ok();
    merge(&root.join("bases/tiny-hf-bf16"), &adapter, &hub, &["--dtype", "f32"]).ok();
    let (after, expected) = (values(&gguf), read(&hub.join("model.safetensors")));
    for name in after.keys().filter(|name| name.contains("_proj")) {
        assert_close(&after[name].1, &expected[name].values(), 1e-6);
    }
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_change_that_is_smaller_than_a_step_is_there_on_average() {
    let root = reference_part("gguf");
    let (bench, base) = (Bench::new(), root.join("bases/tiny-q4_1.gguf"));
    let weak = format!("{}:0.05", root.join("lora-all/adapter").display());
    let run = |name: &str, more: &[&str]| {
        let out = bench.path(name);
        let report = merge(&base, Path::new(&weak), &out, &[&["--json"], more].concat()).ok().json();
        (fs::read(out).unwrap(), report)
    };
    let (chance, report) = run("a.gguf", &[]);
    assert_eq!(report["by_chance"], 7);
    let kept = report["survival"]["retained"].as_f64().unwrap();
    assert!((0.8..1.2).contains(&kept), "{kept}");
    assert!(report["notes"].to_string().contains("rounded stochastically"), "{}", report["notes"]);
    assert!(report["drowned"].as_u64().unwrap() > 0, "noise and change are of one size, and that is said");
    assert!(chance == run("b.gguf", &["-j", "1", "--max-memory", "8MiB"]).0);

    let (nearest, report) = run("c.gguf", &["--rounding", "nearest"]);
    assert_eq!(report["by_chance"], 0);
    assert!(report["survival"]["retained"].as_f64().unwrap() < 0.5, "{}", report["survival"]);
    assert!(nearest != chance);
    let (_, report) = run("d.gguf", &["--rounding", "stochastic", "--seed", "3"]);
    assert_eq!(report["by_chance"], 0, "nothing was chosen");
    assert!((0.8..1.2).contains(&report["survival"]["retained"].as_f64().unwrap()), "{}", report["survival"]);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn the_bytes_do_not_depend_on_threads_or_memory() {
    let root = reference_part("gguf");
    let bench = Bench::new();
    let (base, adapter) = (root.join("bases/tiny-q4_k_m-mixed.gguf"), root.join("dora/adapter"));
    let run = |name: &str, more: &[&str]| {
        let out = bench.path(name);
        merge(&base, &adapter, &out, more).ok();
        fs::read(&out).unwrap()
    };
    let once = run("a.gguf", &["-j", "1", "--max-memory", "8MiB"]);
    assert!(once == run("b.gguf", &["-j", "4"]));
}

/// Writes `model` again as files of at most `max_bytes`, and gives the first.
fn split(model: &Path, directory: &Path, max_bytes: u64) -> PathBuf {
    fs::create_dir_all(directory).unwrap();
    let gguf = Gguf::open(model).unwrap();
    let tensors: Vec<TensorInfo> = gguf.tensors().cloned().collect();
    let parts = cut(model, gguf.metadata(), &tensors, max_bytes).unwrap();
    let count = parts.len() as u64;
    for (at, (metadata, range)) in (0..).zip(parts) {
        let own = tensors[range].to_vec();
        let data: Vec<_> = own.iter().map(|tensor| gguf.find(&tensor.name).unwrap().unwrap()).collect();
        let layout = Layout::new(model, &metadata, own).unwrap();
        let mut file = fs::File::create(directory.join(split_name("tiny", at, count))).unwrap();
        write_gguf(&mut file, &layout, data.iter().map(|stored| stored.view().unwrap().data)).unwrap();
    }
    directory.join(split_name("tiny", 0, count))
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn split_files_stay_split_or_become_one() {
    let root = reference_part("gguf");
    let (bench, base) = (Bench::new(), root.join("bases/tiny-q4_1.gguf"));
    let adapter = root.join("lora-all/adapter");
    let first = split(&base, &bench.path("split"), 60_000);
    let whole = bench.path("whole.gguf");
    merge(&base, &adapter, &whole, &[]).ok();

    let joined = bench.path("joined.gguf");
    merge(&first, &adapter, &joined, &[]).ok();
    assert!(fs::read(&joined).unwrap() == fs::read(&whole).unwrap(), "the metadata and the tensors of the whole");

    for (named, out) in [(first.clone(), "kept"), (bench.path("split"), "kept-directory")] {
        let out = bench.path(out);
        merge(&named, &adapter, &out, &[]).ok();
        let names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let files = Gguf::open(&out.join(first.file_name().unwrap())).unwrap();
        assert_eq!(names.len(), files.files().len() + 1, "the files and the record of the merge: {names:?}");
        assert!(files.files().len() > 2);
        assert_eq!(stored(&out), stored(&whole));
        assert_eq!(files.metadata(), &metadata(&whole));
    }

    let cut = bench.path("cut");
    merge(&base, &adapter, &cut, &["--max-shard-size", "100KB"]).ok();
    assert!(cut.join("tiny-q4_1-00002-of-00004.gguf").is_file());
    assert_eq!(stored(&cut), stored(&whole));
}

/// Name, shape as torch has it, how it is stored, values.
type Written<'a> = (&'a str, &'a [u64], Packing, Vec<f32>);

/// A model of llama.cpp with these tensors.
fn model(path: &Path, metadata: &Metadata, tensors: &[Written<'_>]) {
    let encode = |packing: &Packing, values: &[f32]| {
        let mut bytes = vec![0; packing.bytes_of(values.len())];
        packing.encode(values, lorakit::tensor::Rounding::Nearest, &mut bytes);
        bytes
    };
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, _, packing, values)| encode(packing, values)).collect();
    let info = |((name, shape, packing, _), data): (&Written<'_>, &Vec<u8>)| TensorInfo {
        name: (*name).into(),
        dtype: packing.dtype(),
        shape: Shape::from(shape.to_vec()),
        offset: 0,
        bytes: data.len() as u64,
    };
    let infos = tensors.iter().zip(&data).map(info).collect();
    let layout = Layout::new(path, metadata, infos).unwrap();
    write_gguf(&mut fs::File::create(path).unwrap(), &layout, data.iter().map(Vec::as_slice)).unwrap();
}

fn about(arch: &str) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", arch.into());
    metadata.set("general.file_type", Value::U32(7));
    for (key, value) in [("block_count", 1), ("attention.head_count", 2), ("embedding_length", 32)] {
        metadata.set(&format!("{arch}.{key}"), Value::U32(value));
    }
    metadata
}

const PLAIN: Packing = Packing::Float(lorakit::tensor::Float::F32);

#[test]
fn experts_are_found_in_their_stack() {
    let bench = Bench::new();
    let base = bench.path("moe.gguf");
    let stack = noise(1, 3 * 32 * 32, 1.0);
    let gate = ("blk.0.ffn_gate_exps.weight", &[3_u64, 32, 32][..], PLAIN, stack.clone());
    let embedding = ("token_embd.weight", &[8_u64, 32][..], PLAIN, noise(2, 256, 1.0));
    model(&base, &about("qwen3moe"), &[embedding, gate]);
    let (down, up) = (noise(3, 64, 0.1), noise(4, 64, 0.1));
    let module = "model.layers.0.mlp.experts.1.gate_proj";
    let adapter = bench.adapter(
        "adapter",
        serde_json::json!({"target_modules": ["gate_proj"]}),
        &[
            (&format!("{module}.lora_A.weight"), Tensor::f32(&[2, 32], &down)),
            (&format!("{module}.lora_B.weight"), Tensor::f32(&[32, 2], &up)),
        ],
    );
    let out = bench.path("merged.gguf");
    merge(&base, &adapter, &out, &[]).ok();
    let after = values(&out);
    let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<f64>>();
    let wanted = dense(&wide(&stack[1024..2048]), &wide(&up), &wide(&down), 2, 2.0);
    assert_close(&after[&format!("{module}.weight")].1, &wanted, 1e-6);
    let beside = &after["model.layers.0.mlp.experts.2.gate_proj.weight"].1;
    assert_eq!(*beside, wide(&stack[2048..]));

    // A stack has one type.
    let out = bench.path("q8.gguf");
    merge(&base, &adapter, &out, &["--quant", "q8_0"]).ok();
    let after = stored(&out);
    let mut blocks = vec![0; GgmlType::Q8_0.bytes_of(1024).unwrap() as usize];
    GgmlType::Q8_0.encode(&stack[2048..], &mut blocks);
    let (dtype, bytes) = &after["blk.0.ffn_gate_exps.weight"];
    assert_eq!((dtype, bytes.len()), (&Dtype::Ggml(GgmlType::Q8_0), 3 * blocks.len()));
    assert_eq!(bytes[2 * blocks.len()..], blocks);
}

#[test]
fn norms_that_are_stored_with_one_added_change_as_they_should() {
    let bench = Bench::new();
    let base = bench.path("gemma.gguf");
    let norm: Vec<f32> = noise(5, 32, 0.5).iter().map(|value| value + 1.0).collect();
    let tensors = [
        ("token_embd.weight", &[8_u64, 32][..], PLAIN, noise(6, 256, 1.0)),
        ("blk.0.attn_norm.weight", &[32][..], PLAIN, norm.clone()),
        ("blk.0.attn_q.weight", &[32, 32][..], PLAIN, noise(7, 1024, 1.0)),
    ];
    model(&base, &about("gemma2"), &tensors);
    let trained = noise(8, 32, 0.5);
    let adapter = bench.adapter(
        "adapter",
        serde_json::json!({"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}),
        &[
            ("model.layers.0.input_layernorm.weight", Tensor::f32(&[32], &trained)),
            ("model.layers.0.self_attn.q_proj.lora_A.weight", Tensor::f32(&[2, 32], &noise(9, 64, 0.1))),
            ("model.layers.0.self_attn.q_proj.lora_B.weight", Tensor::f32(&[32, 2], &noise(10, 64, 0.1))),
        ],
    );
    let out = bench.path("merged.gguf");
    merge(&base, &adapter, &out, &[]).ok();
    let bytes = &stored(&out)["blk.0.attn_norm.weight"].1;
    let wanted: Vec<u8> = trained.iter().flat_map(|value| (value + 1.0).to_le_bytes()).collect();
    assert!(*bytes == wanted, "w + 1 is stored for w");
}

#[test]
fn a_layer_that_is_saved_whole_gets_the_order_of_the_file() {
    let bench = Bench::new();
    let base = bench.path("llama.gguf");
    let tensors = [
        ("token_embd.weight", &[8_u64, 32][..], PLAIN, noise(6, 256, 1.0)),
        ("blk.0.attn_q.weight", &[32, 32][..], PLAIN, noise(7, 1024, 1.0)),
        ("blk.0.attn_q.bias", &[32][..], PLAIN, noise(8, 32, 1.0)),
    ];
    model(&base, &about("llama"), &tensors);
    let (weight, bias) = (noise(9, 1024, 1.0), noise(10, 32, 1.0));
    let adapter = bench.adapter(
        "adapter",
        serde_json::json!({"target_modules": ["v_proj"], "modules_to_save": ["q_proj"]}),
        &[
            ("model.layers.0.self_attn.q_proj.weight", Tensor::f32(&[32, 32], &weight)),
            ("model.layers.0.self_attn.q_proj.bias", Tensor::f32(&[32], &bias)),
        ],
    );
    let out = bench.path("merged.gguf");
    merge(&base, &adapter, &out, &[]).ok();
    // Two heads of 16: rows 0, 8, 1, 9 … of each.
    let order: Vec<usize> = (0..32).map(|at| at / 16 * 16 + at % 2 * 8 + at % 16 / 2).collect();
    let after = stored(&out);
    let bytes = |values: Vec<f32>| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    assert!(after["blk.0.attn_q.bias"].1 == bytes(order.iter().map(|row| bias[*row]).collect()), "the bias");
    let rows = order.iter().flat_map(|row| weight[row * 32..][..32].to_vec()).collect();
    assert!(after["blk.0.attn_q.weight"].1 == bytes(rows), "the weight");
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_head_of_its_own_is_added_where_the_embedding_served_as_one() {
    let root = reference_part("gguf");
    let (bench, base) = (Bench::new(), root.join("bases/tiny-q8_0.gguf"));
    let (down, up) = (noise(11, 2 * 256, 0.1), noise(12, 2 * 320, 0.1));
    let adapter = bench.adapter(
        "adapter",
        serde_json::json!({"target_modules": ["lm_head"]}),
        &[
            ("lm_head.lora_A.weight", Tensor::f32(&[2, 256], &down)),
            ("lm_head.lora_B.weight", Tensor::f32(&[320, 2], &up)),
        ],
    );
    let out = bench.path("merged.gguf");
    merge(&base, &adapter, &out, &[]).ok();
    let (before, after) = (stored(&base), stored(&out));
    assert_eq!(before["token_embd.weight"], after["token_embd.weight"]);
    assert_eq!(after["output.weight"].0, before["token_embd.weight"].0);
    let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<f64>>();
    let wanted = dense(&values(&base)["model.embed_tokens.weight"].1, &wide(&up), &wide(&down), 2, 2.0);
    assert_close(&values(&out)["lm_head.weight"].1, &wanted, 5e-3);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let root = reference_part("gguf");
    let bench = Bench::new();
    let (base, adapter) = (root.join("bases/tiny-q4_1.gguf"), root.join("lora-all/adapter"));
    let hub = root.join("bases/tiny-hf-bf16");
    let out = bench.path("out.gguf");
    let refused = |base: &Path, out: &Path, more: &[&str], parts: &[&str]| {
        // What the command line says wrongly is 2, what the files are is 1.
        let code = if parts[0].contains("adapter,") || parts[0].contains("cut") { 1 } else { 2 };
        merge(base, &adapter, out, more).refused(code, parts);
    };
    refused(&base, &bench.path("x.safetensors"), &[], &["named like safetensors, the base is gguf"]);
    refused(&hub, &out, &[], &["named like gguf, the base is safetensors", "convert --to gguf"]);
    refused(&hub, &bench.path("x"), &["--quant", "q8_0"], &["Q8_0 is a type of GGUF, and the base is none"]);
    refused(&base, &out, &["--quant", "q9"], &["`q9` is no type that can be written", "q4_k"]);
    refused(&base, &out, &["--quant", "iq2_xs"], &["no type that can be written"]);
    refused(&base, &out, &["--quant", "q8_0", "--dtype", "f16"], &["asks for Q8_0, `--dtype` for F16"]);
    refused(&base, &out, &["--dtype", "f16", "--cast-all"], &["--cast-all"]);
    refused(&base, &out, &["--dtype", "f8_e4m3"], &["a GGUF file has no type F8_E4M3"]);
    refused(&base, &out, &["--rounding", "peft-safe"], &["the base is quantised"]);
    refused(&root.join("lora-all/converter-f32.gguf"), &out, &[], &["is an adapter, and the base must be a model"]);
    let cut = bench.path("cut.gguf");
    let bytes = fs::read(&base).unwrap();
    fs::write(&cut, &bytes[..bytes.len() - 1000]).unwrap();
    refused(&cut, &out, &[], &["cut.gguf", "the file has"]);
    assert_eq!(bench.listing(), ["cut.gguf"]);

    let rare = bench.path("rare.gguf");
    let elements = 64 * 256;
    let blocks = Packing::Blocks(GgmlType::Q8_0);
    model(&rare, &about("qwen2"), &[("blk.0.attn_q.weight", &[64, 256], blocks, vec![0.0; elements])]);
    // The same bytes under a type that cannot be written: 74 of 272 bytes of every block count.
    let mut bytes = fs::read(&rare).unwrap();
    let at = bytes.windows(4).rposition(|four| four == GgmlType::Q8_0.id().to_le_bytes()).unwrap();
    let at = bytes[..at + 4]
        .windows(12)
        .rposition(|w| w[..8] == 64_u64.to_le_bytes() && w[8..] == 8_u32.to_le_bytes())
        .unwrap_or(at - 8)
        + 8;
    bytes[at..at + 4].copy_from_slice(&GgmlType::Iq2Xs.id().to_le_bytes());
    fs::write(&rare, &bytes).unwrap();
    let lora = bench.adapter(
        "lora",
        serde_json::json!({}),
        &[
            ("model.layers.0.self_attn.q_proj.lora_A.weight", Tensor::f32(&[2, 256], &noise(9, 512, 0.1))),
            ("model.layers.0.self_attn.q_proj.lora_B.weight", Tensor::f32(&[64, 2], &noise(10, 128, 0.1))),
        ],
    );
    merge(&rare, &lora, &out, &[]).refused(1, &["IQ2_XS, which can be read but not written", "--quant q8_0"]);
    merge(&rare, &lora, &out, &["--quant", "q4_k"]).ok();
    assert_eq!(values(&out)["model.layers.0.self_attn.q_proj.weight"].0, Packing::Blocks(GgmlType::Q4K));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn adapters_of_llama_cpp_and_of_peft_merge_alike() {
    let root = reference_part("gguf");
    let (bench, base) = (Bench::new(), root.join("bases/tiny-q8_0.gguf"));
    let (ours, theirs) = (bench.path("a.gguf"), bench.path("b.gguf"));
    merge(&base, &root.join("lora-all/adapter"), &ours, &[]).ok();
    merge(&base, &root.join("lora-all/converter-f32.gguf"), &theirs, &[]).ok();
    assert!(fs::read(ours).unwrap() == fs::read(theirs).unwrap());
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn what_was_merged_is_extracted_under_the_names_of_the_checkpoint() {
    let root = reference_part("gguf");
    let (bench, base) = (Bench::new(), root.join("bases/tiny-f32.gguf"));
    let (merged, found, again) = (bench.path("merged.gguf"), bench.path("adapter"), bench.path("again.gguf"));
    merge(&base, &root.join("lora-all/adapter"), &merged, &[]).ok();
    lorakit(&[&"extract", &base, &merged, &"-o", &found, &"--rank", &"4", &"-q"]).ok();
    let names = read(&found.join("adapter_model.safetensors"));
    assert!(names.contains_key("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"), "{names:?}");
    merge(&base, &found, &again, &[]).ok();
    let (wanted, got) = (values(&merged), values(&again));
    for (name, (_, values)) in &wanted {
        assert_close(&got[name].1, values, 1e-5);
    }

    let out = bench.path("x");
    let words: [&dyn AsRef<std::ffi::OsStr>; 6] = [&"subtract", &merged, &found, &"--base", &base, &"-o"];
    let words: Vec<&dyn AsRef<std::ffi::OsStr>> =
        words.into_iter().chain([&out as &dyn AsRef<std::ffi::OsStr>]).collect();
    lorakit(&words).refused(1, &["is a GGUF file, and `--base` compares models of other formats only"]);
    assert!(!out.exists());
}
