//! A dialect that is one file and one line of `ALL` (`dialects/toy.rs`) goes through every verb.

use std::fs;
use std::path::{Path, PathBuf};

use crate::dialects::Target;
use crate::ops::inspect::Inspection;
use crate::{Adapter, Checkpoint, Convert, Extract, Inspect, Merge, Resize, Stack, Subtract, Subtracted};

const BASE: &str = "fixtures/tiny/base";
const PEFT: &str = "fixtures/tiny/adapter";

/// Modules of the adapter.
const MODULES: usize = 14;

fn toy() -> Target {
    "toy".parse().expect("a line of `ALL`")
}

/// All numbers of a model by name.
fn numbers(model: &Path) -> Vec<(String, Vec<f32>)> {
    let model = Checkpoint::open(model).expect("a model");
    let read = |name: &String| model.read_f32(name).expect("numbers");
    let names: Vec<String> = model.tensors().map(|info| info.name.clone()).collect();
    names.iter().map(|name| (name.clone(), read(name))).collect()
}

/// Whether two adapters change the same modules by the same ΔW.
fn assert_same_changes(left: &Path, right: &Path) {
    let [left, right] = [left, right].map(|path| Adapter::open(path).expect("an adapter"));
    assert_eq!(left.modules().len(), right.modules().len());
    for module in left.modules() {
        let [own, other] = [&left, &right].map(|adapter| adapter.delta(&module.path).expect("a LoRA").0);
        let off = own.iter().zip(&other).map(|(own, other)| (own - other).abs()).fold(0.0, f32::max);
        assert!(off < 1e-5, "{} is off by {off}", module.path);
    }
}

fn assert_is_toy(adapter: &Path) {
    let names: Vec<String> = Checkpoint::open(&adapter.join("adapter.safetensors"))
        .expect("weights")
        .tensors()
        .map(|info| info.name.clone())
        .collect();
    assert_eq!(names.len(), 2 * MODULES);
    assert!(names.iter().all(|name| name.contains(".toy_")), "{names:?}");
    assert_eq!(Adapter::open(adapter).expect("an adapter").dialect(), "toy");
}

#[test]
fn a_dialect_of_one_file_and_one_line_goes_through_every_verb() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let (own, merged) = (at("toy"), at("merged"));
    Convert::new(PEFT).to(toy()).out(&own).run().expect("converted");
    assert_is_toy(&own);
    assert_same_changes(&own, Path::new(PEFT));

    Convert::new(&own).to(Target::PEFT).out(at("back")).run().expect("converted back");
    assert_same_changes(&at("back"), Path::new(PEFT));

    let Inspection::Adapter(facts) = Inspect::new(&own).run().expect("inspected") else { panic!("an adapter") };
    assert_eq!((facts.dialect, facts.pairs), ("toy", MODULES));

    Merge::new(BASE).adapter(&own, 1.0).out(&merged).run().expect("merged");
    Merge::new(BASE).adapter(PEFT, 1.0).out(at("wanted")).run().expect("merged");
    assert_eq!(numbers(&merged), numbers(&at("wanted")));
    let back = Subtract::new(&merged).adapter(&own, 1.0).base(BASE).out(at("unmerged")).run().expect("unmerged");
    assert!(matches!(back, Subtracted::Compared(report) if report.exact == Some(true)));

    let made: [PathBuf; 4] = ["extracted", "stacked", "subtracted", "resized"].map(at);
    Extract::new(BASE, &merged).rank(4).to(toy()).out(&made[0]).run().expect("extracted");
    Stack::new().adapter(&own, 0.5).adapter(PEFT, 0.5).to(toy()).out(&made[1]).run().expect("stacked");
    Stack::new().adapter(&own, 1.0).adapter(PEFT, -0.5).to(toy()).out(&made[2]).run().expect("subtracted");
    Resize::new(&own).rank(8).to(toy()).out(&made[3]).run().expect("resized");
    made.iter().for_each(|adapter| assert_is_toy(adapter));
    assert_same_changes(&made[1], Path::new(PEFT));
    assert_same_changes(&made[3], Path::new(PEFT));
}

#[test]
fn a_dry_run_into_another_dialect_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let stack = Stack::new().adapter(PEFT, 0.7).adapter(PEFT, 0.6).to(toy()).out(folder.path().join("sum"));
    assert!(stack.dry_run().run().expect("planned").made.bytes > 0);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
}

/// Beside its own file a dialect has two lines in `dialects/mod.rs`: its `mod`, and its line of `ALL`.
#[test]
fn nothing_but_their_lines_knows_the_toys() {
    fn naming(folder: &Path, found: &mut Vec<String>) {
        for path in fs::read_dir(folder).expect("sources").map(|entry| entry.expect("an entry").path()) {
            let tells = |text: String| text.contains("toy::") || text.contains("mod toy;");
            if path.is_dir() {
                naming(&path, found);
            } else if !path.ends_with("any_dialect.rs") && fs::read_to_string(&path).is_ok_and(tells) {
                found.push(path.display().to_string());
            }
        }
    }
    let (src, mut found) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), Vec::new());
    naming(&src, &mut found);
    found.sort();
    // A dialect, a method, a container: its `mod` and its line in the table.
    let wanted = ["adapters/methods/mod.rs", "dialects/mod.rs", "formats/format.rs", "formats/mod.rs"];
    assert_eq!(found, wanted.map(|place| src.join(place).display().to_string()));
}
