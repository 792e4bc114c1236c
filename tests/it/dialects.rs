//! Adapters of every dialect are recognised, and none of their tensors is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use lorakit::adapters::{Adapter, Change};
use lorakit::dialects::is_adapter;

use crate::support::{read_model, reference_part};

/// Folder, dialect, and how many changes of each kind are in it.
fn kinds(adapter: &Adapter) -> BTreeMap<&'static str, usize> {
    let mut kinds = BTreeMap::new();
    for module in &adapter.modules {
        let kind = match &module.change {
            Change::Lora(_) => "pair",
            Change::Method(method) => method.kind().title,
            Change::Inserted(inserted) => inserted.kind,
            Change::Whole(..) => "whole",
            Change::Frozen(..) => "frozen",
            Change::TokenRows(_) => "rows",
            Change::Unknown(_) => "unknown",
        };
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

fn open(path: &Path) -> Adapter {
    assert!(is_adapter(path), "{}", path.display());
    Adapter::open(path).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()))
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn mlx_adapters_have_their_scale_and_orientation() {
    let root = reference_part("mlx");
    for (case, kind, count) in [
        ("lora", "pair", 14),
        ("dora", "pair", 14),
        ("lora-embed", "pair", 4),
        ("full", "whole", 6),
        ("lora-last-layer", "pair", 7),
    ] {
        let adapter = open(&root.join(case).join("adapter"));
        assert_eq!(adapter.dialect, "mlx", "{case}");
        assert_eq!(kinds(&adapter), BTreeMap::from([(kind, count)]), "{case}");
        for module in &adapter.modules {
            let Change::Lora(lora) = &module.change else { continue };
            assert_eq!(lora.down.info.shape.as_slice()[0], lora.up.info.shape.as_slice()[1], "{case}: {}", module.path);
        }
    }
    let scaling = open(&root.join("lora-embed").join("adapter")).config.scaling.unwrap();
    assert_eq!((scaling.scale("lm_head"), scaling.rank("lm_head")), (4.0, 4));
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn adapterhub_tells_changes_of_weights_from_insertions() {
    let root = reference_part("adapterhub");
    for (case, wanted) in [
        ("lora", vec![("pair", 4)]),
        ("houlsby-double_seq_bn", vec![("bottleneck adapter", 4)]),
        ("pfeiffer-seq_bn", vec![("bottleneck adapter", 2)]),
        ("par_bn", vec![("bottleneck adapter", 2)]),
        ("prompt", vec![("prompt tuning", 1)]),
    ] {
        let adapter = open(&root.join(case));
        assert_eq!(adapter.dialect, "adapterhub", "{case}");
        assert_eq!(kinds(&adapter), wanted.into_iter().collect(), "{case}");
    }
    let inverted = kinds(&open(&root.join("seq_bn_inv")));
    assert_eq!(inverted.get("invertible adapter"), Some(&1), "{inverted:?}");
    let compacter = kinds(&open(&root.join("compacter")));
    assert!(compacter.contains_key("shared parameters of bottleneck adapters"), "{compacter:?}");
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn files_of_kohya_and_lycoris_need_no_config() {
    let root = reference_part("kohya");
    let base: BTreeSet<String> = ["unet", "text_encoder"]
        .into_iter()
        .flat_map(|component| {
            let keys = read_model(&root.join("base").join(component)).into_keys();
            keys.map(move |key| format!("{component}.{key}"))
        })
        .collect();
    let mut seen = 0;
    for entry in fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path().join("lora.safetensors");
        if !path.exists() {
            continue;
        }
        let adapter = open(&path);
        assert_eq!(adapter.dialect, "kohya", "{}", path.display());
        assert!(!adapter.modules.is_empty(), "{}", path.display());
        let changes = adapter.modules.iter().flat_map(|module| module.change.tensors());
        let held: BTreeSet<&str> = changes.map(|tensor| tensor.info.name.as_str()).collect();
        let lost = |name: &str| !held.contains(name) && !name.ends_with(".alpha");
        let lost: Vec<&str> =
            adapter.tensors.tensors().map(|info| info.name.as_str()).filter(|name| lost(name)).collect();
        assert!(lost.is_empty(), "{}: {lost:?}", path.display());
        for module in &adapter.modules {
            assert!(base.contains(&format!("{}.weight", module.path)), "{}: {}", path.display(), module.path);
        }
        seen += 1;
    }
    assert_eq!(seen, 22);
}
