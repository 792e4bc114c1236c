//! The builders of the library do what the program does, and ΔW of a module is what a merge adds.

use std::fs;
use std::path::Path;

use lorakit::{Adapter, Convert, Extract, Float, Merge, Stack};

use crate::support::{Bench, cases, fixtures, lorakit, read_json, read_model, snapshot};

#[test]
fn builders_write_the_bytes_of_the_program() {
    let bench = Bench::new();
    let (base, adapter) = (fixtures().join("tiny/base"), fixtures().join("tiny/adapter"));
    let out = |name: &str| bench.path(name);

    fs::create_dir_all(out("a")).unwrap();
    fs::create_dir_all(out("b")).unwrap();
    Merge::new(&base).adapter(&adapter, 0.5).include("q_proj").out(out("a/merged")).run().unwrap();
    lorakit(&[&"merge", &base, &format!("{}:0.5", adapter.display()), &"-i", &"q_proj", &"-o", &out("b/merged")]).ok();
    Extract::new(&base, out("a/merged")).energy(0.9).dtype(Float::F16).out(out("a/lora")).run().unwrap();
    let words: [&dyn AsRef<std::ffi::OsStr>; 9] =
        [&"extract", &base, &out("b/merged"), &"--energy", &"0.9", &"--dtype", &"f16", &"-o", &out("b/lora")];
    lorakit(&words).ok();
    Stack::new().adapter(&adapter, 1.0).adapter(out("a/lora"), -1.0).out(out("a/sum")).run().unwrap();
    lorakit(&[&"stack", &adapter, &format!("{}:-1", out("b/lora").display()), &"-o", &out("b/sum")]).ok();

    let (ours, theirs) = (snapshot(&out("a")), snapshot(&out("b")));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (path, bytes) in ours {
        assert!(bytes == theirs[&path], "{}", path.display());
    }
}

/// Modules of the adapter in `case` whose ΔW is what a merge added to their weight, and those whose ΔW is refused.
fn held_against_merge(case: &Path, bases: &Path, bench: &Bench) -> (usize, usize) {
    let name = case.file_name().unwrap().to_string_lossy().into_owned();
    let base = bases.join(read_json(&case.join("case.json"))["base"].as_str().unwrap());
    let (exact, merged) = (bench.path(&format!("{name}-base")), bench.path(&format!("{name}-merged")));
    let Ok(adapter) = Adapter::open(case.join("adapter")) else { return (0, 0) };
    if !base.is_dir() {
        return (0, 0);
    }
    Convert::new(&base).dtype(Float::F32).out(&exact).run().unwrap();
    let Ok(_) = Merge::new(&exact).adapter(case.join("adapter"), 1.0).out(&merged).run() else { return (0, 0) };
    let (before, after) = (read_model(&exact), read_model(&merged));
    let (mut equal, mut refused) = (0, 0);
    for module in adapter.modules() {
        let Ok((delta, [rows, cols])) = adapter.delta(&module.path) else {
            refused += 1;
            continue;
        };
        assert_eq!(delta.len(), rows * cols, "{name}: {}", module.path);
        let key = format!("{}.weight", module.path);
        let Some(weight) = before.get(&key).filter(|weight| weight.values().len() == delta.len()) else { continue };
        for ((old, new), change) in weight.values().into_iter().zip(after[&key].values()).zip(delta) {
            let off = (new - old - f64::from(change)).abs();
            assert!(off <= 1e-6 * (1.0 + old.abs()), "{name}: {key}: {old} became {new}, ΔW says {change}");
        }
        equal += 1;
    }
    (equal, refused)
}

#[test]
fn the_delta_of_a_module_is_what_a_merge_adds() {
    let (bench, bases) = (Bench::new(), fixtures().join("peft/bases"));
    let names = ["conv-lora", "lora-embed", "lora-patterns", "lora-r8", "rslora-r4", "dora-r4", "mixtral-params"];
    let found = names.map(|name| held_against_merge(&fixtures().join("peft").join(name), &bases, &bench));
    assert_eq!(found, [(6, 0), (4, 0), (14, 0), (8, 0), (14, 0), (0, 14), (2, 4)]);
}

#[test]
fn every_method_is_a_delta_that_a_merge_adds_or_refused() {
    let (bench, root) = (Bench::new(), fixtures().join("methods/peft"));
    let mut sums = (0, 0);
    for case in cases(&root) {
        let (equal, refused) = held_against_merge(&root.join(&case), &fixtures().join("peft/bases"), &bench);
        sums = (sums.0 + equal, sums.1 + refused);
    }
    assert_eq!(sums, (68, 103));
}

#[test]
fn what_has_no_delta_says_why() {
    let refused = |case: &str, path: &str| {
        let adapter = Adapter::open(fixtures().join(case)).unwrap();
        let path = if path.is_empty() { adapter.modules()[0].path.clone() } else { path.to_owned() };
        adapter.delta(&path).unwrap_err().to_string()
    };
    for (case, path, reason) in [
        ("peft/dora-r4/adapter", "", "DoRA's magnitudes need the base's weight"),
        ("peft/mixtral-params/adapter", "", "experts are in one pair of factors"),
        ("peft/pissa-r4/adapter", "", "`init_lora_weights` is `pissa`: the base was changed too"),
        ("peft/lora-r8/adapter", "model.nothing", "changes no module `model.nothing`"),
        ("dialects/peft-oft-b8", "", "OFT needs the shape of the base's weight"),
    ] {
        let error = refused(case, path);
        assert!(error.contains(reason), "{case}: {error}");
    }
}
