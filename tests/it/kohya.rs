//! Files of sd-scripts and LyCORIS against what their tools compute.
//!
//! A case is a folder of the reference data, or of the fixtures, with a `case.json`. The file that its `use` names holds some tensors of the result as
//! `<component>/<tensor>`; all others of the base have to stay as they are, and not more may change than
//! `changed_by_the_full_file` says. Where LyCORIS' merge disagrees with its own training the file was read off the forward pass
//! (docs/inside/decisions/0010).

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::*;

/// What a result may be off by, as a part of the largest number of the tensor: what a tool merged, and what was read off its
/// forward pass.
const TOLERANCES: [(&str, f64); 2] = [("expected-tool", 1e-6), ("expected-forward", 2e-6)];

/// Both components of a pipeline, as `<component>/<tensor>`.
fn tensors(root: &Path) -> Tensors {
    let of = |component: &str| {
        let named = read_model(&root.join(component)).into_iter();
        named.map(|(name, tensor)| (format!("{component}/{name}"), tensor)).collect::<Tensors>()
    };
    ["unet", "text_encoder"].into_iter().flat_map(of).collect()
}

/// Merges the case and compares every tensor.
fn check(root: &Path, case: &str) {
    let (root, base) = (root.join(case), root.join("base"));
    let facts = read_json(&root.join("case.json"));
    let file = facts["use"].as_str().unwrap();
    let (_, tolerance) = TOLERANCES.into_iter().find(|(name, _)| file.starts_with(name)).unwrap();
    let bench = Bench::new();
    merge(&base, &root.join("lora.safetensors"), &bench.path("out"), &[]).ok();
    let (before, got, expected) = (tensors(&base), tensors(&bench.path("out")), read(&root.join(file)));
    assert_eq!(before.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>(), "{case}");
    assert!(!expected.is_empty(), "{case}: nothing to compare");
    for (name, wanted) in &expected {
        let size = wanted.values().iter().fold(0.0_f64, |size, value| size.max(value.abs()));
        let pairs = got[name].values().into_iter().zip(wanted.values());
        let worst = pairs.map(|(left, right)| (left - right).abs()).fold(0.0, f64::max);
        assert!(worst <= tolerance * size, "{case}: `{name}` is off by {worst:e} of {size:e}");
    }
    let changed: BTreeSet<&String> = got.keys().filter(|name| got[*name] != before[*name]).collect();
    let wanted = facts["changed_by_the_full_file"].as_u64().unwrap();
    assert!(changed.len() as u64 <= wanted, "{case}: {} tensors changed, {wanted} may", changed.len());
    if facts["modules"] == facts["changed_by_the_full_file"] {
        assert_eq!(changed.len() as u64, wanted, "{case}");
    }
}

/// Checks every case in `root`; says how many there were.
fn check_all(root: &Path) -> usize {
    let mut cases = cases(root);
    cases.retain(|name| root.join(name).join("lora.safetensors").exists());
    cases.iter().for_each(|case| check(root, case));
    cases.len()
}

#[test]
fn every_file_merges_as_its_tool_trains_it() {
    assert_eq!(check_all(&fixtures().join("methods/kohya")), 21);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn every_file_of_the_reference_merges_as_its_tool_trains_it() {
    assert_eq!(check_all(&reference_part("kohya")), 22);
}
