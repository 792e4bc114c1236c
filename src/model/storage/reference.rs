//! Every quantised checkpoint of the reference data: values bit for bit, and codes on the grid they have.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Change;
use super::view::View;
use crate::formats::Checkpoint;
use crate::tensor::{Rounding, usize_of};

/// The cases whose names begin so.
fn cases(starts: &[&str]) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/quant");
    let folders = fs::read_dir(root).expect("the reference data").map(|entry| entry.expect("an entry").path());
    let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
    let is_meant = |path: &PathBuf| {
        let name = name(path);
        starts.iter().any(|start| name.starts_with(start))
            && !name.ends_with("-refuse")
            && path.join("case.json").exists()
    };
    let mut found: Vec<PathBuf> = folders.filter(is_meant).collect();
    found.sort();
    found
}

fn json(path: &Path) -> Map<String, Value> {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// The checkpoint of a case, and its quantised weights.
fn opened(case: &Path) -> (Checkpoint, View) {
    let said = json(&case.join("case.json"));
    let place = said.get("checkpoint").or_else(|| said.get("model")).and_then(Value::as_str).expect("a checkpoint");
    let place = if said["kind"] == "quant" || place.ends_with(".safetensors") { place } else { "model" };
    let path = case.join(place);
    let config = path.join("config.json");
    let config = config.exists().then(|| json(&config));
    let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
    let view = View::find(&checkpoint, config.as_ref(), None).unwrap_or_else(|error| panic!("{case:?}: {error}"));
    (checkpoint, view)
}

/// What differs of the values of a case.
fn differing(case: &Path, file: &str) -> Vec<String> {
    let (_, view) = opened(case);
    let expected = Checkpoint::open(&case.join(file)).expect("expected values");
    let mut wrong = Vec::new();
    for info in expected.tensors() {
        let Some(weight) = view.weight(&info.name) else {
            wrong.push(format!("{case:?}: `{}` is not recognised", info.name));
            continue;
        };
        let values = expected.read_f32(&info.name).expect("values");
        let cols = usize_of(*info.shape.as_slice().last().expect("a dimension"));
        let mut own = vec![0.0; weight.rows * weight.cols];
        if let Err(error) = weight.exact(0..weight.rows, 0..weight.cols, &mut own) {
            wrong.push(format!("{case:?}: {error}"));
            continue;
        }
        let turned = case.to_string_lossy().contains("comfy-int8");
        let same = |one: f32, other: f32| one == other || turned && (one - other).abs() < 1e-5;
        let lines = own.chunks(weight.cols).zip(values.chunks(cols));
        let off = lines
            .flat_map(|(own, expected)| own.iter().zip(expected))
            .filter(|(own, expected)| !same(**own, **expected));
        let count = off.count();
        if count > 0 || weight.rows * weight.cols > values.len() {
            wrong.push(format!(
                "{case:?}: `{}` {} differs in {count} of {}",
                info.name,
                weight.storage.shape(),
                own.len()
            ));
        }
        // Any part is the same as the part of the whole.
        let (rows, part) = (weight.rows / 3..weight.rows - 1, weight.cols / 3..weight.cols * 2 / 3 + 1);
        let mut some = vec![0.0; rows.len() * part.len()];
        weight.exact(rows.clone(), part.clone(), &mut some).expect("a part");
        for (line, row) in some.chunks(part.len()).zip(rows) {
            if line.iter().zip(&own[row * weight.cols + part.start..]).any(|(one, other)| !same(*one, *other)) {
                wrong.push(format!("{case:?}: `{}` row {row}: a part is not that of the whole", info.name));
                break;
            }
        }
    }
    wrong
}

#[test]
fn values_are_those_of_the_producers() {
    let mut wrong = Vec::new();
    for case in cases(&["ct-", "gptq-", "awq-", "autoround-", "modelopt-", "mlx-", "comfy-", "fp8-deepseek-v4"]) {
        let is_scaled = case.join("effective-f32.safetensors").exists();
        if is_scaled {
            wrong.extend(differing(&case, "effective-f32.safetensors"));
        }
        let found = differing(&case, "expected-f32.safetensors");
        // Where the layer's input is scaled, the plain weight is the effective one.
        wrong.extend(
            found.into_iter().filter(|line| !is_scaled || !line.contains("down_proj") && !line.contains("o_proj")),
        );
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// B · A · scale of a weight; `None` where the adapter leaves it alone.
fn delta(adapter: &Checkpoint, weight: &str, scale: f64) -> Option<Vec<f64>> {
    let module = weight.strip_suffix(".weight")?;
    let find = |end: &str| {
        adapter.tensors().find(|info| {
            let stem = info.name.strip_suffix(end);
            let own =
                stem.map(|stem| stem.trim_start_matches("base_model.model.").trim_start_matches("diffusion_model."));
            own.is_some_and(|own| module == own || module.ends_with(&format!(".{own}")))
        })
    };
    let (down, up) = (find(".lora_A.weight")?, find(".lora_B.weight")?);
    let cols = usize_of(down.shape.as_slice()[1]);
    let rank = usize_of(down.shape.as_slice()[0]);
    let (down, up) = (adapter.read_f32(&down.name).ok()?, adapter.read_f32(&up.name).ok()?);
    let rows = up.len() / rank;
    let mut out = vec![0.0; rows * cols];
    for row in 0..rows {
        for k in 0..rank {
            let factor = f64::from(up[row * rank + k]) * scale;
            let line = &down[k * cols..(k + 1) * cols];
            out[row * cols..(row + 1) * cols]
                .iter_mut()
                .zip(line)
                .for_each(|(sum, value)| *sum += factor * f64::from(*value));
        }
    }
    Some(out)
}

#[test]
fn codes_on_the_old_grid_are_the_nearest() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for case in cases(&["ct-", "gptq-", "awq-", "autoround-", "modelopt-", "mlx-", "comfy-"]) {
        let file = case.join("merged-grid.safetensors");
        if !file.exists() {
            continue;
        }
        let said = json(&case.join("case.json"));
        let (checkpoint, view) = opened(&case);
        let adapter = Checkpoint::open(&case.join(said["adapter"].as_str().expect("an adapter"))).expect("an adapter");
        let scale =
            said.get("scale").and_then(Value::as_f64).unwrap_or(if said["kind"] == "quant-comfy" { 1.0 } else { 2.0 });
        let expected = Checkpoint::open(&file).expect("expected codes");
        for info in expected.tensors() {
            let Some(weight) = view.owner(&info.name).and_then(|name| view.weight(name)) else { continue };
            let is_other = weight.storage.facts().format.starts_with("FP8");
            let Some(grid) = weight.storage.grid().filter(|_| !is_other) else { continue };
            let mut base = vec![0.0; weight.rows * weight.cols];
            weight.exact(0..weight.rows, 0..weight.cols, &mut base).expect("values");
            let Some(delta) = delta(&adapter, &weight.name, scale) else {
                panic!("{case:?}: no delta of {}", weight.name)
            };
            let wanted: Vec<f32> =
                base.iter().zip(&delta).map(|(base, delta)| (f64::from(*base) + delta) as f32).collect();
            let stored = checkpoint.find(&info.name).expect("codes");
            let before = stored.view().expect("codes").data;
            let mut codes = before.to_vec();
            let (bands, bytes) = grid.bands();
            // Two jobs of unlike sizes, to see that parts fit together.
            let mut whole = true;
            for part in [0..bands / 3, bands / 3..bands] {
                let (rows, cols) = grid.part(part.clone());
                let cut = |values: &[f32]| -> Vec<f32> {
                    rows.clone().flat_map(|row| values[row * weight.cols..][cols.clone()].to_vec()).collect()
                };
                let (base, wanted) = (cut(&base), cut(&wanted));
                let out = &mut codes[part.start * bytes..part.end * bytes];
                let mut change = Change {
                    base: &base,
                    wanted: &base,
                    row: rows.start,
                    cols: weight.cols,
                    span: (cols.start, cols.len()),
                    rounding: Rounding::Nearest,
                };
                grid.encode(part.clone(), &change, out).expect("codes");
                whole &= *out == before[part.start * bytes..part.end * bytes];
                let mut back = vec![0.0; base.len()];
                grid.values(part.clone(), out, &mut back).expect("values");
                whole &= back == base;
                change.wanted = &wanted;
                grid.encode(part.clone(), &change, out).expect("codes");
            }
            count += 1;
            let theirs = expected.find(&info.name).expect("codes");
            let theirs = theirs.view().expect("codes").data;
            let off = codes.iter().zip(theirs).filter(|(own, theirs)| own != theirs).count();
            if !whole || off > 0 || codes == before {
                wrong.push(format!(
                    "{case:?}: `{}` {off} of {} bytes, unchanged stays: {whole}",
                    info.name,
                    codes.len()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 80, "{count} weights were looked at");
}
