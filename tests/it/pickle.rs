//! Files of PyTorch and numpy: every good one equals what torch reads in it, every hostile one is refused at once.

use std::fs;
use std::path::{Path, PathBuf};

use lorakit::formats::Checkpoint;
use proptest::prelude::*;

use crate::containers::{View, npy, torch_of, zip};
use crate::support::{Bench, Outcome, Tensor, fixtures, read, read_json, reference, reference_part};

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| !path.to_string_lossy().ends_with(".safetensors")).collect();
    files.sort();
    files
}

/// The tensors of the expected file whose names lead to the weights.
fn expected_of(path: &Path) -> Option<crate::support::Tensors> {
    let expected = PathBuf::from(format!("{}.expected.safetensors", path.display()));
    expected.exists().then(|| {
        let all = read(&expected).into_iter();
        all.map(|(name, tensor)| (name.trim_start_matches("state_dict.").to_owned(), tensor)).collect()
    })
}

/// Compares every file of `folder`; says how many tensors.
fn check_good(folder: &Path) -> usize {
    let mut compared = 0;
    for path in files(&folder.join("good")) {
        let checkpoint = Checkpoint::open(&path).unwrap_or_else(|error| panic!("{error}"));
        let Some(expected) = expected_of(&path) else {
            assert!(checkpoint.count() > 0, "{}", path.display());
            continue;
        };
        assert_eq!(checkpoint.count(), expected.len(), "{}", path.display());
        for (name, wanted) in &expected {
            let place = format!("{}: `{name}`", path.display());
            let stored = checkpoint.find(name).unwrap_or_else(|| panic!("{place} is missing"));
            let shape: Vec<usize> = stored.info.shape.as_slice().iter().map(|size| *size as usize).collect();
            assert_eq!(shape, wanted.shape, "{place}");
            assert_eq!(stored.info.dtype.name(), wanted.dtype.to_string(), "{place}");
            assert!(stored.view().unwrap().data == wanted.data, "{place}: other bytes");
            compared += 1;
        }
    }
    compared
}

#[test]
fn good_files_equal_what_torch_reads() {
    assert_eq!(check_good(&fixtures().join("pickle")), 44);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn good_files_of_the_reference_equal_what_torch_reads() {
    assert_eq!(check_good(&reference_part("pickle")), 369);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn names_can_be_anything() {
    let root = reference();
    let case = read_json(&root.join("pickle/case.json"));
    let checkpoint = Checkpoint::open(&root.join("pickle/good/zip-unicode-names.bin")).unwrap();
    let tensors = case["files"]["good/zip-unicode-names.bin"]["tensors"].as_object().unwrap();
    assert_eq!(tensors.len(), checkpoint.count());
    for name in tensors.keys() {
        assert!(checkpoint.find(name).is_some(), "{name:?}");
    }
}

/// What a refusal must name beside the file, where it is a name.
const NAMED: [(&str, &str); 14] = [
    ("os-system.bin", "`posix.system`"),
    ("os-system-proto4.bin", "`posix.system`"),
    ("legacy-os-system.bin", "`posix.system`"),
    ("eval.bin", "`builtins.eval`"),
    ("getattr-import.bin", "`builtins.__import__`"),
    ("inst-opcode.bin", "`os.system`"),
    ("obj-opcode.bin", "`os.system`"),
    ("build-setstate.bin", "`builtins.object`"),
    ("unknown-storage.bin", "`torch.QuantumStorage`"),
    ("deflate-bomb.bin", "100000000, more than the accepted"),
    ("missing-storage.bin", "storage `7` is not in the file"),
    ("numel-2p63.bin", "[2147483648, 4294967296]"),
    ("negative-view.pt", "lazy view (`neg`)"),
    ("deep-lists.bin", "nesting"),
];

/// A run that gets ten seconds of processor time (programs are built without much optimisation for tests) and so much address space, and would be ended beyond.
fn limited(kib: u32, words: &[&dyn AsRef<std::ffi::OsStr>]) -> Outcome {
    let program = assert_cmd::cargo::cargo_bin("lorakit");
    let script = format!("ulimit -t 10 && ulimit -v {kib} && exec \"$0\" \"$@\"");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]).arg(program).args(words.iter().map(|word| word.as_ref())).env("NO_COLOR", "1");
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Tries every file of `folder`; says how many were refused.
fn check_hostile(folder: &Path) -> usize {
    let mut refused = 0;
    for path in files(&folder.join("hostile")) {
        let bench = Bench::new();
        let name = path.file_name().unwrap().to_str().unwrap();
        let adapter = fixtures().join("bad/good/adapter");
        let words: [&dyn AsRef<std::ffi::OsStr>; 5] = [&"merge", &path, &adapter, &"-o", &bench.path("out")];
        let outcome = limited(300_000, &words).refused(1, &[name]);
        for (_, part) in NAMED.iter().filter(|(file, _)| *file == name) {
            assert!(outcome.stderr.contains(part), "{name}: `{part}` is not in: {}", outcome.stderr);
        }
        let first = outcome.stderr.lines().next().unwrap();
        assert!(first.starts_with("error: ") && first.len() < 400 && !first.ends_with('.'), "{name}: {first}");
        assert_eq!(bench.listing(), [""; 0], "{name}: something was left behind");
        refused += 1;
    }
    refused
}

#[test]
fn hostile_files_are_refused_at_once_and_by_name() {
    assert_eq!(check_hostile(&fixtures().join("pickle")), 20);
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn hostile_files_of_the_reference_are_refused_at_once_and_by_name() {
    assert_eq!(check_hostile(&reference_part("pickle")), 43);
}

#[test]
fn no_pickle_takes_more_memory_than_its_limits() {
    let bench = Bench::new();
    let path = bench.path("x.bin");
    let many = |piece: &[u8], count: usize| piece.repeat(count);
    let memo = (0..4_200_000_u32).flat_map(|at| [&b"r"[..], &at.to_le_bytes()].concat()).collect::<Vec<u8>>();
    for (pickle, part) in [
        (many(b"]", 5_000_000), "the number of values in its pickle"),
        (many(b"N", 13_000_000), "the number of values its pickle names"),
        ([&b"]"[..], &many(b"Na", 13_000_000)].concat(), "the number of values its pickle names"),
        ([&b"N"[..], &memo].concat(), "the number of memo entries"),
        (many(b")", 5_000_000), "the number of values in its pickle"),
        (many(b"N\x85", 5_000_000), "the number of values"),
        (many(b"N0", 10), "opcode 0x30"),
        (many(b"N", 100_000_000), "length of its pickle in bytes is 100000002"),
    ] {
        fs::write(&path, zip(&[("x/data.pkl".to_owned(), [&b"\x80\x02"[..], &pickle].concat())])).unwrap();
        limited(1_000_000, &[&"inspect", &path]).refused(1, &["x.bin", part]);
    }
}

#[test]
fn dicts_that_hold_themselves_or_each_other_twice_come_to_an_end() {
    let bench = Bench::new();
    let path = bench.path("x.bin");
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let tensor = {
        let file = torch_of(
            &[Tensor::f32(&[1], &[1.0])],
            &[View { name: "", storage: 0, offset: 0, shape: vec![1], strides: vec![1] }],
        );
        let (begin, end) = (b"ctorch._utils", b"u.");
        let at = file.windows(begin.len()).position(|bytes| bytes == begin).unwrap();
        let len = file[at..].windows(end.len()).position(|bytes| bytes == end).unwrap();
        file[at..at + len].to_vec()
    };
    let put = |at: u8| vec![b'q', at];
    let get = |at: u8| vec![b'h', at];
    let in_itself = |key: &str| [vec![b'}'], put(0), text(key), get(0), vec![b's']].concat();
    let with_tensor = [in_itself("x"), text("w"), tensor.clone(), vec![b's']].concat();
    // Every dict holds the one before under two names: 2^40 tensors.
    let mut doubled = [vec![b'}'], put(0), text("w"), tensor.clone(), vec![b's']].concat();
    for at in 1..40 {
        doubled.extend(
            [vec![b'}'], put(at), text("a"), get(at - 1), vec![b's'], text("b"), get(at - 1), vec![b's']].concat(),
        );
    }
    let list = [vec![b']'], put(0), get(0), vec![b'a']].concat();
    for (pickle, part) in [
        (in_itself("state_dict"), "the nesting of its pickle"),
        (in_itself("x"), "holds no tensors"),
        (list, "holds no tensors"),
        (with_tensor, "the nesting of its pickle"),
        (doubled, "the length of a header for its tensors"),
    ] {
        let pickle = [&b"\x80\x02"[..], &pickle, b"."].concat();
        let entries = [("x/data.pkl".to_owned(), pickle), ("x/data/0".to_owned(), vec![0; 4])];
        fs::write(&path, zip(&entries)).unwrap();
        limited(1_000_000, &[&"inspect", &path]).refused(1, &["x.bin", part]);
    }
}

/// What a damaged file may be: refused, or read within the file.
fn survives(bench: &Bench, bytes: &[u8]) {
    let path = bench.path("x.bin");
    fs::write(&path, bytes).unwrap();
    let Ok(checkpoint) = Checkpoint::open(&path) else { return };
    for file in checkpoint.files() {
        for position in 0..file.header.tensors.len() {
            let stored = file.stored(position);
            assert_eq!(stored.view().unwrap().data.len() as u64, stored.info.bytes, "`{}`", stored.info.name);
        }
    }
}

/// An archive of numpy with arrays in every order.
fn archive_of_arrays() -> Vec<u8> {
    let data: Vec<u8> = (0..24).collect();
    let entries = [
        ("plain.npy", npy("<f4", false, &[2, 3], &data)),
        ("big.npy", npy(">f4", false, &[2, 3], &data)),
        ("columns.npy", npy("<i2", true, &[2, 3, 2], &data)),
    ];
    zip(&entries.map(|(name, bytes)| (name.to_owned(), bytes)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn a_damaged_file_is_refused_or_read_within_bounds(
        pick: prop::sample::Index,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut: Option<prop::sample::Index>,
    ) {
        let good = files(&fixtures().join("pickle/good"));
        let pick = pick.index(good.len() + 1);
        let mut bytes = good.get(pick).map_or_else(archive_of_arrays, |path| fs::read(path).unwrap());
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        survives(&Bench::new(), &bytes);
    }
}

#[test]
fn a_file_cut_at_any_byte_is_refused_or_read_within_bounds() {
    let bench = Bench::new();
    for name in ["legacy-strided.bin", "zip-handmade.bin"] {
        let bytes = fs::read(fixtures().join("pickle/good").join(name)).unwrap();
        for end in 0..bytes.len() {
            survives(&bench, &bytes[..end]);
        }
    }
    let arrays = archive_of_arrays();
    let path = bench.path("x.npz");
    fs::write(&path, &arrays).unwrap();
    assert_eq!(Checkpoint::open(&path).unwrap().count(), 3);
    (0..arrays.len()).for_each(|end| survives(&bench, &arrays[..end]));
}

#[test]
fn any_byte_of_a_file_can_be_another() {
    let bench = Bench::new();
    for bytes in [fs::read(fixtures().join("pickle/good/zip-handmade.bin")).unwrap(), archive_of_arrays()] {
        for at in 0..bytes.len() {
            for value in [0, 1, 0x28, 0x2e, 0x5d, 0x75, 0x7f, 0x80, 0x8a, 0x94, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                survives(&bench, &damaged);
            }
        }
    }
}
