//! What it takes to add a method or a container: the toys are one file and one line each, and every verb knows them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::common::alone;
use super::{Inspect, Merge, Stack};
use crate::dialects::Target;
use crate::formats::Checkpoint;
use crate::formats::safetensors::render_header;
use crate::ops::WriteOptions;
use crate::ops::convert::{ConvertOptions, convert};
use crate::ops::inspect::Inspection;
use crate::tensor::{Dtype, Shape, TensorInfo};

const MODULE: &str = "model.layers.0.self_attn.q_proj";

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of safetensors.
    fn write(&self, name: &str, tensors: &[(String, &[u64], &[f32])]) {
        let mut offset = 0;
        let mut infos = Vec::new();
        for (name, shape, values) in tensors {
            let bytes = values.len() as u64 * 4;
            let shape = Shape::from(shape.to_vec());
            infos.push(TensorInfo { name: name.clone(), dtype: Dtype::F32, shape, offset, bytes });
            offset += bytes;
        }
        let mut file = render_header(&[], &infos);
        file.extend(tensors.iter().flat_map(|(.., values)| bytes(values)));
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("written");
        fs::write(path, file).expect("written");
    }

    /// A base of one layer, zero everywhere.
    fn base(&self) -> PathBuf {
        self.write("base/model.safetensors", &[(format!("{MODULE}.weight"), &[2, 3], &[0.0; 6])]);
        self.path("base")
    }

    fn adapter(&self) -> PathBuf {
        let key = |role: &str| format!("base_model.model.{MODULE}.{role}");
        let tensors: [(String, &[u64], &[f32]); 2] =
            [(key("toy_u"), &[2], &[1.0, 2.0]), (key("toy_v"), &[3], &[1.0, 0.0, -1.0])];
        self.write("toy/adapter_model.safetensors", &tensors);
        let config = json!({"peft_type": "TOY", "r": 1, "toy_alpha": 0.5, "target_modules": ["q_proj"]});
        fs::write(self.path("toy/adapter_config.json"), config.to_string()).expect("written");
        self.path("toy")
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn weight(model: &Path) -> Vec<f32> {
    Checkpoint::open(model).and_then(|model| model.read_f32(&format!("{MODULE}.weight"))).expect("a weight")
}

/// ½ · [1, 2]ᵀ · [1, 0, −1].
const CHANGE: [f32; 6] = [0.5, 0.0, -0.5, 1.0, 0.0, -1.0];

#[test]
fn a_method_of_one_file_and_one_line_is_merged_inspected_stacked_and_converted() {
    let bench = Bench::new();
    let (base, adapter) = (bench.base(), bench.adapter());
    Merge::new(&base).adapter(&adapter, 1.0).out(bench.path("merged")).run().expect("merged");
    assert_eq!(weight(&bench.path("merged")), CHANGE);

    let Inspection::Adapter(facts) = Inspect::new(&adapter).run().expect("inspected") else { panic!("an adapter") };
    let modules: Vec<_> =
        facts.modules.iter().map(|module| (module.path.as_str(), module.method, module.rank, module.scale)).collect();
    assert_eq!(modules, [(MODULE, "Toy", Some(1), Some(0.5))]);
    assert_eq!(facts.problems, Vec::<String>::new());

    let write = WriteOptions::new(bench.path("lora"));
    let options = ConvertOptions { to: Some(Target::PEFT), as_lora: true, ..ConvertOptions::new(&adapter, write) };
    alone(|run| convert(&options, run)).expect("converted");
    Stack::new().adapter(&adapter, 2.0).out(bench.path("sum")).run().expect("stacked");
    for (made, factor) in [("lora", 1.0), ("sum", 2.0)] {
        let out = bench.path(&format!("{made}-merged"));
        Merge::new(&base).adapter(bench.path(made), 1.0).out(&out).run().expect(made);
        for (got, want) in weight(&out).iter().zip(CHANGE) {
            assert!((got - factor * want).abs() < 1e-6, "{made}: {got} is not {factor} · {want}");
        }
    }
}

#[test]
fn a_container_of_one_file_and_one_line_is_found_inspected_and_merged() {
    let bench = Bench::new();
    let name = format!("{MODULE}.weight");
    let mut file = b"TOY1".to_vec();
    file.push(u8::try_from(name.len()).expect("a short name"));
    file.extend(name.as_bytes());
    file.extend([2, 3]);
    file.extend(bytes(&[1.0; 6]));
    fs::create_dir(bench.path("base")).expect("a folder");
    fs::write(bench.path("base/model.toy"), file).expect("written");

    let Inspection::Checkpoint(facts) = Inspect::new(bench.path("base")).run().expect("inspected") else {
        panic!("a model")
    };
    assert_eq!((facts.weights.files[0].format, facts.weights.tensor_count), ("toy", 1));
    for (base, out) in [("base", "merged"), ("base/model.toy", "merged.safetensors")] {
        Merge::new(bench.path(base)).adapter(bench.adapter(), 1.0).out(bench.path(out)).run().expect(base);
        let merged = Checkpoint::open(&bench.path(out)).expect("a model");
        assert_eq!(merged.files()[0].name.rsplit('.').next(), Some("safetensors"), "{base}");
        assert_eq!(weight(&bench.path(out)), CHANGE.map(|change| change + 1.0), "{base}");
    }
}
