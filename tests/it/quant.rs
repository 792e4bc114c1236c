//! Quantised checkpoints as their producers wrote them, and what those make of them: a few small ones always, all of the reference
//! data where it is at hand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{
    Bench, Outcome, Tensor, Tensors, cases, fixtures, lorakit, merge, read, read_json, read_model, reference_part,
};

/// What a plain checkpoint has none of.
const COMPANIONS: [&str; 12] = [
    "_scale",
    ".scales",
    ".biases",
    "absmax",
    "quant_map",
    "quant_state",
    ".SCB",
    ".qzeros",
    ".g_idx",
    "weight_shape",
    "_packed",
    ".comfy_quant",
];

/// One case.
struct Case {
    root: PathBuf,
    name: String,
    facts: Value,
    model: PathBuf,
}

impl Case {
    /// The cases in `folder` that hold a checkpoint.
    fn all(folder: &Path) -> Vec<Self> {
        let open = |name: String| {
            let root = folder.join(&name);
            let places = ["model", "checkpoint", "model.safetensors"].map(|place| root.join(place));
            let model = places.into_iter().find(|place| place.exists())?;
            Some(Self { facts: read_json(&root.join("case.json")), root, name, model })
        };
        cases(folder).into_iter().filter_map(open).collect()
    }

    fn is_refused(&self) -> bool {
        self.facts["mergeable"] == json!(false)
    }

    /// Where the result of this case goes: it is of the kind of the input.
    fn out(&self, bench: &Bench, name: &str) -> PathBuf {
        bench.path(if self.model.is_dir() { name.to_owned() } else { format!("{name}.safetensors") }.as_str())
    }

    /// A file of the case, where it has it.
    fn file(&self, name: &str) -> Option<Tensors> {
        let path = self.root.join(format!("{name}.safetensors"));
        path.is_file().then(|| read(&path))
    }

    fn adapter(&self) -> Option<PathBuf> {
        self.facts["adapter"].as_str().map(|adapter| self.root.join(adapter))
    }

    fn merge(&self, adapter: &Path, out: &Path, more: &[&str]) -> Outcome {
        merge(&self.model, adapter, out, more)
    }

    /// SHA-256 of the values of every quantised weight in f32.
    fn digests(&self) -> BTreeMap<String, String> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let own = self.facts["dequantised"].as_object().into_iter().flatten();
        let plain = self.facts["dequantised_as_plain_gpt2_stores_it"].as_object().into_iter().flatten();
        let listed = own.chain(plain).filter_map(|(name, said)| Some((name.clone(), text(said.get("sha256_f32")?)?)));
        let others = self.facts["sha256_f32"].as_object().into_iter().flatten();
        let others = others.filter_map(|(name, sha)| Some((name.clone(), text(sha)?)));
        let padded = self.facts["kind"] == json!("quant-comfy");
        listed.chain(others).filter(|_| !padded).collect()
    }
}

fn tensors(path: &Path) -> Tensors {
    if path.is_dir() { read_model(path) } else { read(path) }
}

fn f32s(tensor: &Tensor) -> Vec<f32> {
    tensor.data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// The digest of values, or of the same without a sign at zeros.
fn digests_of(tensor: &Tensor) -> [String; 2] {
    let unsigned: Vec<u8> = f32s(tensor).iter().flat_map(|value| (value + 0.0).to_le_bytes()).collect();
    let digest = |bytes: &[u8]| -> String { Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect() };
    [digest(&tensor.data), digest(&unsigned)]
}

/// `wanted` without the rows and columns that are padding.
fn cut(wanted: &Tensor, shape: &[usize]) -> Vec<f32> {
    let (values, [_, wide]) = (f32s(wanted), [wanted.shape[0], wanted.shape[1]]);
    let rows = (0..shape[0]).flat_map(|row| values[row * wide..row * wide + shape[1]].to_vec());
    rows.collect()
}

fn converts_to_what_the_producer_computes(case: &Case, bench: &Bench) -> usize {
    let out = case.out(bench, &case.name);
    lorakit(&[&"convert", &case.model, &"--dtype", &"f32", &"-o", &out]).ok();
    let (got, source) = (tensors(&out), tensors(&case.model));
    let mut wanted = case.file("expected-f32").unwrap_or_default();
    wanted.extend(case.file("effective-f32").unwrap_or_default());
    let is_turned = !case.facts["dequantised_as_plain_gpt2_stores_it"].is_null();
    let mut compared = 0;
    for (name, wanted) in wanted.iter().filter(|_| !is_turned) {
        let got = got.get(name).unwrap_or_else(|| panic!("{}: {name} is missing", case.name));
        let (values, wanted) = match got.shape == wanted.shape {
            true => (f32s(got), f32s(wanted)),
            false => (f32s(got), cut(wanted, &got.shape)),
        };
        // A rotation is a product of matrices, in whatever order it is summed.
        let rotated = case.facts["layers"][name.trim_end_matches(".weight")].get("convrot").is_some();
        let largest = wanted.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let near = |(got, wanted): (&f32, &f32)| (got - wanted).abs() <= if rotated { 1e-6 * largest } else { 0.0 };
        assert!(values.iter().zip(&wanted).all(near), "{}: {name}", case.name);
        compared += 1;
    }
    let has_factors = case.root.join("effective-f32.safetensors").is_file();
    for (name, digest) in case.digests() {
        let tensor = got.get(&name).or_else(|| got.get(&format!("{name}.weight"))).expect(&name);
        let is_own = digests_of(tensor).contains(&digest);
        let factored = has_factors && (name.contains("o_proj") || name.contains("down_proj"));
        assert!(is_own || factored, "{}: the digest of {name}", case.name);
        compared += 1;
    }
    let left: Vec<&String> = got.keys().filter(|name| COMPANIONS.iter().any(|end| name.ends_with(end))).collect();
    assert!(left.is_empty(), "{}: {left:?}", case.name);
    assert!(got.values().all(|tensor| tensor.dtype == Dtype::F32 || tensor.dtype == Dtype::I64), "{}", case.name);
    if case.model.is_dir() {
        let config = read_json(&out.join("config.json"));
        for key in ["quantization_config", "compression_config", "quantization"] {
            assert!(config.get(key).is_none(), "{}: {key}", case.name);
        }
        let dtype = config.get("dtype").or_else(|| config.get("torch_dtype"));
        assert_eq!(dtype, Some(&json!("float32")), "{}", case.name);
        let files = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(files.into_iter().all(|name| !name.contains("quant")), "{}", case.name);
    }
    // Nothing is lost on the way: what was plain is there.
    let plain = source.iter().filter(|(_, tensor)| [Dtype::BF16, Dtype::F16].contains(&tensor.dtype));
    let plain = plain.filter(|(name, _)| name.ends_with("norm.weight") || name.ends_with("embed_tokens.weight"));
    assert!(plain.into_iter().all(|(name, _)| got.contains_key(name)), "{}", case.name);
    compared
}

fn merges_densely(case: &Case, adapter: &Path, bench: &Bench) -> usize {
    let wanted = case.file("merged-bf16").or_else(|| case.file("merged-f16")).unwrap_or_default();
    if wanted.is_empty() {
        return 0;
    }
    let out = case.out(bench, &format!("{}-dense", case.name));
    case.merge(adapter, &out, &[]).ok();
    let got = tensors(&out);
    // PEFT rounds the change of stacked experts before it adds it: docs/inside/decisions/0006.
    let stacked = ["mxfp4-gptoss", "fp8-experts"].contains(&case.name.as_str());
    // Part B rounds the sum alone, and not the dequantised weight before.
    let once = case.facts.get("merged_bf16").is_some();
    for (name, wanted) in &wanted {
        let got = &got[name];
        assert_eq!(got.shape, wanted.shape, "{}: {name}", case.name);
        if once || stacked && name.contains("experts") {
            let largest = wanted.values().iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
            let near = |(got, wanted): (f64, &f64)| (got - wanted).abs() <= wanted.abs() / 64.0 + largest / 128.0;
            assert!(got.values().into_iter().zip(&wanted.values()).all(near), "{}: {name}", case.name);
        } else {
            assert!(got == wanted, "{}: {name}", case.name);
        }
    }
    let config = case.model.join("config.json");
    let same_dtype = config.is_file() && {
        let config = read_json(&config);
        let said = config.get("dtype").or_else(|| config.get("torch_dtype")).and_then(Value::as_str).unwrap_or("");
        [("bf16", "bfloat16"), ("f16", "float16")]
            .contains(&(case.facts["producer_dtype"].as_str().unwrap_or(""), said))
    };
    // Where the producer's own 16 bits are the values rounded once, what training saw is known as well.
    let exact = same_dtype && !case.root.join("expected-bf16.safetensors").is_file();
    for (name, digest) in case.facts["merged_train"]["sha256"].as_object().into_iter().flatten().filter(|_| exact) {
        let tensor = got.get(name).unwrap_or_else(|| &got[&format!("{name}.weight")]);
        assert_eq!(digests_of_bytes(tensor), digest.as_str().unwrap(), "{}: {name}", case.name);
    }
    wanted.len()
}

fn digests_of_bytes(tensor: &Tensor) -> String {
    Sha256::digest(&tensor.data).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn keeps_the_grid(case: &Case, adapter: &Path, bench: &Bench) -> usize {
    let Some(wanted) = case.file("merged-grid") else { return 0 };
    let out = case.out(bench, &format!("{}-grid", case.name));
    let report = case.merge(adapter, &out, &["--keep-format", "--json"]).ok().json();
    let (got, source) = (tensors(&out), tensors(&case.model));
    // The share of the codes that moved is the producer's, but for sums that lie at a tie.
    let told = if case.name.starts_with("comfy") { &Value::Null } else { &case.facts["merged"] };
    // Codes of ComfyUI are padded, and the producer counts the padding.
    for (name, moved) in told["merged-grid.safetensors"]["per_tensor"].as_object().into_iter().flatten() {
        let of = |key: &str| moved[key].as_f64();
        let told = report["worst"].as_array().unwrap().iter().find(|one| one["tensor"] == *name);
        let (Some(wanted), Some(told)) = (of("moved").zip(of("elements")), told) else { continue };
        let share = told["codes_moved"].as_f64().unwrap();
        assert!((share - wanted.0 / wanted.1).abs() <= 2.0 / wanted.1, "{}: {name} {share}", case.name);
    }
    assert_eq!(got.keys().collect::<Vec<_>>(), source.keys().collect::<Vec<_>>(), "{}", case.name);
    for (name, wanted) in &wanted {
        let differing = got[name].data.iter().zip(&wanted.data).filter(|(got, wanted)| got != wanted).count();
        // A sum in another order may lie on the other side of a tie, or of zero.
        assert!(differing <= 1, "{}: {differing} bytes of {name}", case.name);
    }
    let companion = |name: &str| COMPANIONS.iter().any(|end| name.ends_with(end)) && !name.ends_with("_packed");
    for (name, tensor) in source.iter().filter(|(name, _)| companion(name)) {
        assert!(got[name] == *tensor, "{}: {name}", case.name);
    }
    if case.model.is_dir() {
        assert_eq!(read_json(&out.join("config.json")), read_json(&case.model.join("config.json")), "{}", case.name);
    }
    // No change at all leaves every byte.
    let (still, nothing) = (case.out(bench, &format!("{}-still", case.name)), format!("{}:0", adapter.display()));
    case.merge(Path::new(&nothing), &still, &["--keep-format"]).ok();
    assert!(tensors(&still) == source, "{}", case.name);
    wanted.len()
}

/// Walks a folder; how many values, merges and grids were compared.
fn walk(folder: &Path) -> [usize; 4] {
    let mut counts = [0; 4];
    for case in Case::all(folder) {
        let bench = Bench::new();
        if case.is_refused() {
            let out = case.out(&bench, "out");
            let words: [&dyn AsRef<std::ffi::OsStr>; 6] = [&"convert", &case.model, &"--dtype", &"bf16", &"-o", &out];
            lorakit(&words).refused(1, &["hint: "]);
            assert!(!out.exists(), "{}", case.name);
            counts[3] += 1;
            continue;
        }
        counts[0] += converts_to_what_the_producer_computes(&case, &bench);
        if let Some(adapter) = case.adapter().filter(|adapter| adapter.exists()) {
            counts[1] += merges_densely(&case, &adapter, &bench);
            counts[2] += keeps_the_grid(&case, &adapter, &bench);
        }
    }
    counts
}

#[test]
fn small_quantised_checkpoints_are_read_merged_and_written_back() {
    let counts = walk(&fixtures().join("quant"));
    assert!(counts[0] > 50 && counts[1] >= 4 && counts[2] >= 4 && counts[3] == 2, "{counts:?}");
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn every_quantised_checkpoint_of_the_reference_is_what_its_producer_says() {
    let counts = walk(&reference_part("quant"));
    assert!(counts[0] > 700 && counts[1] > 60 && counts[2] > 100 && counts[3] == 3, "{counts:?}");
}
