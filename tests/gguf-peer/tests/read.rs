//! gguf-rs reads `fixtures/gguf/written.gguf`, which lorakit wrote: names, types, values, shapes, places and sizes.

#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::path::Path;

#[test]
fn gguf_rs_reads_what_lorakit_writes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf/written.gguf");
    let length = std::fs::metadata(&path).unwrap().len();
    let mut container = gguf_rs::get_gguf_container_array_size(path.to_str().unwrap(), u64::MAX).unwrap();
    let model = container.decode().unwrap();

    let text = |key: &str| model.metadata()[key].to_string();
    for (key, value) in [
        ("general.architecture", "\"llama\""),
        ("general.name", "\"für andere\""),
        ("general.file_type", "2"),
        ("test.i8", "-8"),
        ("test.u16", "65535"),
        ("test.i32", "-32"),
        ("test.f32", "0.25"),
        ("test.f64", "-1.5"),
        ("test.u64", "9223372036854775808"),
        ("test.bool", "true"),
        ("test.texts", "[\"a\",\"\",\"ß\"]"),
        ("test.numbers", "[1,-2,3]"),
    ] {
        assert_eq!(text(key), value, "{key}");
    }
    assert_eq!(model.metadata().len(), 12);

    // (name, type, innermost dimension, bytes of two rows)
    let expected: [(&str, u32, u64, u64); 5] = [
        ("blk.0.f32.weight", 0, 3, 24),
        ("blk.0.f16.weight", 1, 5, 20),
        ("blk.0.q4_0.weight", 2, 64, 72),
        ("blk.0.q8_0.weight", 8, 32, 68),
        ("blk.0.q4_k.weight", 12, 256, 288),
    ];
    let mut offset = 0;
    assert_eq!(model.tensors().len(), expected.len());
    for (tensor, (name, kind, columns, bytes)) in model.tensors().iter().zip(expected) {
        assert_eq!((tensor.name.as_str(), tensor.kind, tensor.size), (name, kind, bytes));
        assert_eq!((&tensor.shape[..2], tensor.offset), ([columns, 2].as_slice(), offset), "{name}");
        offset += bytes.next_multiple_of(32);
    }
    assert_eq!((model.alignment(), model.data_offset() % 32, model.data_offset() + offset), (32, 0, length));
}
