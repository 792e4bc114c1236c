//! Damaged adapters and quantised models: whatever the bytes, they are described, converted or refused, without a panic and within
//! bounded memory.
//!
//! `LORAKIT_FUZZ_SECONDS=600 cargo test --test fuzz -- --ignored` runs each for ten minutes; `LORAKIT_FUZZ_SEEDS` names a folder of
//! further adapters to start from, one file or one folder each.

#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lorakit::ops::convert::{ConvertOptions, convert};
use lorakit::ops::inspect::{InspectOptions, inspect};
use lorakit::ops::{Run, WriteOptions};
use lorakit::plan::Budget;

/// Names and contents of the files of one adapter.
type Files = Vec<(String, Vec<u8>)>;

/// Numbers that look random and are the same everywhere.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }
}

fn files_of(path: &Path) -> Files {
    let read = |path: &Path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap());
    if path.is_file() {
        return vec![read(path)];
    }
    let inside = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    inside.filter(|path| path.is_file()).map(|path| read(&path)).collect()
}

fn seeds() -> Vec<Files> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let folders = ["dialects", "pickle/good"].map(|folder| fixtures.join(folder));
    let folders = folders.into_iter().chain(std::env::var_os("LORAKIT_FUZZ_SEEDS").map(PathBuf::from));
    let mut paths: Vec<PathBuf> =
        folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path())).collect();
    paths.extend([fixtures.join("gguf/lora-all-f16.gguf"), fixtures.join("tiny/adapter")]);
    paths.sort();
    paths.iter().map(|path| files_of(path)).filter(|files| !files.is_empty()).collect()
}

/// Changes some bytes. What is not data lies at the ends of a file, so half of the damage is done there.
fn damage(bytes: &mut Vec<u8>, chance: &mut Chance) {
    let interesting = *b"\0\x01\x7F\x80\xFF019-,:\"[]{}.ABas";
    for _ in 0..=chance.below(4) {
        let length = bytes.len().max(1);
        let near = length.min(2048);
        let at = match chance.below(4) {
            0 => chance.below(near),
            1 => length - 1 - chance.below(near),
            _ => chance.below(length),
        };
        if at >= bytes.len() {
            bytes.push(b'x');
        }
        let end = (at + 1 + chance.below(16)).min(bytes.len());
        match chance.below(7) {
            0 => bytes[at] = interesting[chance.below(interesting.len())],
            1 => bytes[at] ^= 1 << chance.below(8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, interesting[chance.below(interesting.len())]),
            4 => drop(bytes.drain(at..end)),
            5 => {
                let copy = bytes[at..end].to_vec();
                let to = chance.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            _ => bytes[at..end].iter_mut().for_each(|byte| *byte = chance.next().to_le_bytes()[0]),
        }
    }
}

/// Whether the adapter at `path` is described; it may be refused as well.
fn survive(path: &Path) -> bool {
    let mut options = InspectOptions::default();
    options.spectrum = true;
    options.check = true;
    options.budget = Budget { threads: 1, max_bytes: 1 << 28 };
    inspect(path, &options, &Run::default()).is_ok_and(|facts| facts.to_json(true).is_object())
}

/// Small quantised models, one of each kind of storage.
fn quantised() -> Vec<Files> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quant");
    let mut cases: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    let cases = cases.into_iter().filter(|case| !case.to_string_lossy().ends_with("-refuse"));
    let models = cases.flat_map(|case| ["checkpoint", "model", "model.safetensors"].map(|place| case.join(place)));
    models.filter(|path| path.exists()).map(|path| files_of(&path)).collect()
}

/// Whether the model at `path` becomes a plain one; it may be refused as well, and then nothing is left.
fn dequantise(path: &Path) -> bool {
    let out = tempfile::tempdir().unwrap();
    let name = if path.is_dir() { "out" } else { "out.safetensors" };
    let mut write = WriteOptions::new(out.path().join(name));
    write.budget = Budget { threads: 1, max_bytes: 1 << 28 };
    let _ = inspect(path, &InspectOptions::default(), &Run::default());
    let is_done = convert(&ConvertOptions::new(path, write), &Run::default()).is_ok();
    assert_eq!(fs::read_dir(out.path()).unwrap().count() > 0, is_done, "something is left behind");
    is_done
}

/// Writes the files into an empty folder: where they are looked for.
fn place(files: &Files, folder: &Path) -> PathBuf {
    fs::remove_dir_all(folder).ok();
    fs::create_dir(folder).unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(folder.join(name), bytes).unwrap());
    if files.len() == 1 { folder.join(&files[0].0) } else { folder.to_path_buf() }
}

fn fuzz(
    seeds: &[Files],
    survive: impl Fn(&Path) -> bool + std::panic::RefUnwindSafe,
    mut goes_on: impl FnMut(u64) -> bool,
) -> (u64, u64) {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("input");
    let (mut chance, mut runs, mut described) = (Chance(0x9e37_79b9_7f4a_7c15), 0, 0);
    while goes_on(runs) {
        let mut files = seeds[chance.below(seeds.len())].clone();
        let which = chance.below(files.len());
        damage(&mut files[which].1, &mut chance);
        let path = place(&files, &folder);
        let before = Instant::now();
        let outcome = std::panic::catch_unwind(|| survive(&path));
        let kept = || {
            let kept = std::env::temp_dir().join(format!("lorakit-fuzz-{runs}"));
            place(&files, &kept);
            kept
        };
        let Ok(told) = outcome else { panic!("`{}` makes it panic", kept().display()) };
        assert!(before.elapsed() < Duration::from_secs(20), "`{}` takes too long", kept().display());
        described += u64::from(told);
        runs += 1;
    }
    (runs, described)
}

#[test]
fn damaged_adapters_are_survived() {
    let seeds = seeds();
    for files in &seeds {
        let temporary = tempfile::tempdir().unwrap();
        let path = place(files, &temporary.path().join("adapter"));
        assert!(survive(&path), "{}", files[0].0);
    }
    let (runs, described) = fuzz(&seeds, survive, |runs| runs < 200);
    assert_eq!(runs, 200);
    assert!((10..190).contains(&described), "{described} of 200 described: the damage is too small or too great");
}

/// Damages adapters for LORAKIT_FUZZ_SECONDS.
#[test]
#[ignore = "runs as long as LORAKIT_FUZZ_SECONDS says"]
fn fuzz_adapters() {
    let seconds = std::env::var("LORAKIT_FUZZ_SECONDS").unwrap().parse().unwrap();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (runs, described) = fuzz(&seeds(), survive, |_| Instant::now() < end);
    eprintln!("{runs} adapters, {described} described");
}

#[test]
fn damaged_quantised_models_are_survived() {
    let seeds = quantised();
    assert!(seeds.len() >= 10, "{} models", seeds.len());
    for files in &seeds {
        let temporary = tempfile::tempdir().unwrap();
        assert!(dequantise(&place(files, &temporary.path().join("model"))), "{}", files[0].0);
    }
    let (runs, converted) = fuzz(&seeds, dequantise, |runs| runs < 100);
    assert_eq!(runs, 100);
    assert!((5..95).contains(&converted), "{converted} of 100 converted: the damage is too small or too great");
}

/// Damages quantised models for LORAKIT_FUZZ_SECONDS.
#[test]
#[ignore = "runs as long as LORAKIT_FUZZ_SECONDS says"]
fn fuzz_quantised_models() {
    let seconds = std::env::var("LORAKIT_FUZZ_SECONDS").unwrap().parse().unwrap();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (runs, converted) = fuzz(&quantised(), dequantise, |_| Instant::now() < end);
    eprintln!("{runs} quantised models, {converted} converted");
}
