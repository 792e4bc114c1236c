//! LoRA to GGUF and back, against what llama.cpp's converter makes of the same adapters, and against the merged tensors of
//! PEFT where the converter is wrong (rsLoRA, patterns of alpha).

#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lorakit::adapters::gguf::{GgufLora, HeadCounts, Pair, lora_tensors, metadata_of, pairs_of};
use lorakit::formats::gguf::{Gguf, Layout, write};
use lorakit::naming::gguf::{GgufArch, gguf_arch};
use lorakit::tensor::{Dtype, TensorInfo};
use safetensors::SafeTensors;
use serde_json::Value;

type Floats = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn reference() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/gguf");
    if !path.is_dir() {
        eprintln!("SKIPPED: ../shared/reference is not there");
        return None;
    }
    Some(path)
}

fn read(path: &Path) -> Floats {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |tensor: &safetensors::tensor::TensorView<'_>| match tensor.dtype() {
        safetensors::Dtype::F32 => tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        safetensors::Dtype::BF16 => {
            tensor.data().as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        }
        other => panic!("{other:?}"),
    };
    tensors.tensors().into_iter().map(|(name, tensor)| (name, (tensor.shape().to_vec(), floats(&tensor)))).collect()
}

/// The tiny model of the reference.
const COUNTS: HeadCounts = HeadCounts { heads: 4, kv_heads: 2 };

fn llama() -> &'static GgufArch {
    gguf_arch("llama").unwrap()
}

/// The pairs of a PEFT adapter, with their scales by its config.
fn peft(case: &Path) -> Vec<Pair> {
    let config: Value = serde_json::from_slice(&fs::read(case.join("adapter/adapter_config.json")).unwrap()).unwrap();
    let tensors = read(&case.join("adapter/adapter_model.safetensors"));
    let mut pairs = Vec::new();
    for (name, (shape, down)) in &tensors {
        let Some((module, end)) = name.split_once(".lora_").filter(|(_, end)| end.contains("A")) else { continue };
        let up = &tensors[&format!("{module}.lora_{}", end.replace('A', "B"))].1;
        let module = module.strip_prefix("base_model.model.").unwrap();
        let patterns = config["alpha_pattern"].as_object().unwrap();
        let pattern = patterns.iter().find(|(key, _)| module.ends_with(key.as_str()));
        let alpha = pattern.map_or(&config["lora_alpha"], |(_, alpha)| alpha).as_f64().unwrap();
        let rank = shape[0] as f64;
        let scale = if config["use_rslora"] == true { alpha / rank.sqrt() } else { alpha / rank };
        pairs.push(Pair { module: module.into(), down: down.clone(), up: up.clone(), rank: shape[0], scale });
    }
    assert!(!pairs.is_empty());
    pairs
}

fn open(path: &Path) -> (f64, Floats) {
    let gguf = Gguf::open(path).unwrap();
    let alpha = gguf.metadata().get("adapter.lora.alpha").unwrap().as_f64().unwrap();
    let mut tensors = Floats::new();
    for info in gguf.tensors() {
        let stored = gguf.find(&info.name).unwrap().unwrap();
        let shape = info.shape.as_slice().iter().map(|size| usize::try_from(*size).unwrap()).collect();
        let data = stored.view().unwrap().data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        tensors.insert(info.name.clone(), (shape, data));
    }
    (alpha, tensors)
}

fn save(path: &Path, arch: &GgufArch, lora: &GgufLora) {
    let info = |(name, shape, values): &(String, _, Vec<f32>)| TensorInfo {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: Clone::clone(shape),
        offset: 0,
        bytes: 4 * values.len() as u64,
    };
    let metadata = metadata_of(arch, "test", lora.alpha);
    let layout = Layout::new(path, &metadata, lora.tensors.iter().map(info).collect()).unwrap();
    let data: Vec<Vec<u8>> =
        lora.tensors.iter().map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let mut out = Vec::new();
    write(&mut out, &layout, data.iter().map(Vec::as_slice)).unwrap();
    fs::write(path, out).unwrap();
}

#[test]
fn where_the_converter_is_right_the_tensors_are_its_own() {
    let Some(root) = reference() else { return };
    for case in ["lora-all", "lora-embed", "lora-mts-norm"] {
        let case = root.join(case);
        let ours = lora_tensors(&case, llama(), Some(COUNTS), &peft(&case)).unwrap();
        let (alpha, mut theirs) = open(&case.join("converter-f32.gguf"));
        assert_eq!(f64::from(ours.alpha), alpha);
        for (name, shape, values) in &ours.tensors {
            let (their_shape, their_values) = theirs.remove(name).unwrap();
            assert!(shape.as_slice().iter().eq(their_shape.iter().map(|size| *size as u64).collect::<Vec<_>>().iter()));
            assert!(*values == their_values, "{name}");
        }
        // The converter copies norms, which llama.cpp does not apply.
        assert!(theirs.keys().all(|name| name.ends_with("_norm.weight")), "{:?}", theirs.keys());
    }
}

#[test]
fn a_file_of_the_converter_comes_back_as_it_was() {
    let Some(root) = reference() else { return };
    for case in ["lora-all", "lora-embed"] {
        let case = root.join(case);
        let gguf = Gguf::open(&case.join("converter-f32.gguf")).unwrap();
        let mut ours = pairs_of(&gguf, Some(COUNTS)).unwrap();
        ours.sort_by(|a, b| a.module.cmp(&b.module));
        assert_eq!(ours, peft(&case));
    }
}

/// scale · B · A.
fn delta(pair: &Pair) -> Vec<f64> {
    let (rank, inputs) = (pair.rank, pair.down.len() / pair.rank);
    let element = |at: usize| {
        let (row, column) = (at / inputs, at % inputs);
        let product = |k: usize| f64::from(pair.up[row * rank + k]) * f64::from(pair.down[k * inputs + column]);
        (0..rank).map(product).sum::<f64>() * pair.scale
    };
    (0..pair.up.len() / rank * inputs).map(element).collect()
}

#[test]
fn scales_that_no_alpha_says_give_the_weights_that_peft_merges() {
    let Some(root) = reference() else { return };
    let base = read(&root.join("bases/tiny-hf-bf16/model.safetensors"));
    let directory = tempfile::tempdir().unwrap();
    for case in ["lora-all", "lora-patterns", "rslora-all"] {
        let case = root.join(case);
        let path = directory.path().join("adapter.gguf");
        save(&path, llama(), &lora_tensors(&case, llama(), Some(COUNTS), &peft(&case)).unwrap());
        let pairs = pairs_of(&Gguf::open(&path).unwrap(), Some(COUNTS)).unwrap();
        let expected = read(&case.join("expected-f32.safetensors"));
        let mut checked = 0;
        for pair in &pairs {
            let name = format!("{}.weight", pair.module);
            let Some((_, expected)) = expected.get(&name) else { continue };
            for ((delta, base), expected) in delta(pair).iter().zip(&base[&name].1).zip(expected) {
                assert!((f64::from(*base) + delta - f64::from(*expected)).abs() < 1e-6, "{name} of {}", case.display());
            }
            checked += 1;
        }
        assert!(checked > 0, "{}", case.display());
    }
}

fn pair(module: &str, outputs: usize, seed: usize) -> Pair {
    let values = |count: usize, step: usize| (0..count).map(|at| ((at * step + seed) % 97) as f32 / 97.0).collect();
    Pair { module: module.into(), down: values(2 * 6, 7), up: values(outputs * 2, 11), rank: 2, scale: 1.5 }
}

#[test]
fn experts_are_stacked_and_come_back() {
    let module = |expert: usize| format!("model.layers.0.block_sparse_moe.experts.{expert}.w1");
    let mut pairs: Vec<Pair> = (0..3).map(|expert| pair(&module(expert), 4, expert)).collect();
    pairs.swap(0, 2);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("adapter.gguf");
    let lora = lora_tensors(&path, llama(), None, &pairs).unwrap();
    let shapes: Vec<_> = lora.tensors.iter().map(|(name, shape, _)| (name.as_str(), shape.to_string())).collect();
    let tensor = |end: &str| format!("blk.0.ffn_gate_exps.weight.lora_{end}");
    assert_eq!(shapes, [(tensor("a").as_str(), "[3, 2, 6]".into()), (tensor("b").as_str(), "[3, 4, 2]".into())]);
    save(&path, llama(), &lora);
    pairs.swap(0, 2);
    assert_eq!(pairs_of(&Gguf::open(&path).unwrap(), None).unwrap(), pairs);

    let error = lora_tensors(Path::new("a"), llama(), None, &pairs[1..]).unwrap_err().to_string();
    assert!(error.contains("holds all experts of a layer, and the adapter lacks expert 0"), "{error}");
}

#[test]
fn what_has_no_place_is_refused() {
    let refused = |pair: Pair, counts: Option<HeadCounts>| {
        lora_tensors(Path::new("adapter"), llama(), counts, &[pair]).unwrap_err().to_string()
    };
    let q = "model.layers.0.self_attn.q_proj";
    let error = refused(pair("model.layers.0.self_attn.rotary", 4, 0), None);
    assert!(error.ends_with("has no tensor in a GGUF file of architecture llama"), "{error}");
    assert!(refused(pair(q, 4, 0), None).contains("the number of attention heads is not known"));
    let error = refused(pair(q, 6, 0), Some(COUNTS));
    assert!(error.ends_with("6 outputs are not 4 heads of an even number of rows"), "{error}");
}
