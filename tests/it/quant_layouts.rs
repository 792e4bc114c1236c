//! Codes in the layouts of their makers, packed here one bit at a time: larger than what is read at once, so that pieces have to fit
//! together, and written back where nothing changes.

use std::path::PathBuf;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::support::{Bench, Tensor, lorakit, read};

/// Rows and columns.
const ROWS: usize = 160;
const COLS: usize = 1088;
const GROUP: usize = 32;

/// A code in 0 .. 2^bits for a place.
fn code(seed: usize, row: usize, col: usize, bits: u32) -> u32 {
    let mixed = (row * 7919 + col * 104_729 + seed * 31).wrapping_mul(2_654_435_761) >> 7;
    u32::try_from(mixed % (1 << bits)).unwrap()
}

/// Codes as one stream of bits, in words of 32.
fn stream(codes: impl Iterator<Item = u32>, bits: u32) -> Vec<u32> {
    let all: Vec<bool> = codes.flat_map(|code| (0..bits).map(move |bit| code >> bit & 1 == 1)).collect();
    all.chunks(32).map(|bits| (0..).zip(bits).fold(0, |word, (at, bit)| word | u32::from(*bit) << at)).collect()
}

/// Of 32 codes their low four bits, then the others.
fn planes(codes: impl Iterator<Item = u32>, bits: u32) -> Vec<u32> {
    let codes: Vec<u32> = codes.collect();
    let upper = bits - 4;
    let plane =
        |codes: &[u32], shift: u32, bits: u32| stream(codes.iter().map(|code| code >> shift & ((1 << bits) - 1)), bits);
    codes.chunks(32).flat_map(|codes| [plane(codes, 0, 4), plane(codes, 4, upper)].concat()).collect()
}

/// Words that hold whole codes.
fn padded(codes: impl Iterator<Item = u32>, bits: u32) -> Vec<u32> {
    let codes: Vec<u32> = codes.collect();
    codes
        .chunks(32 / usize::try_from(bits).unwrap())
        .map(|codes| (0..).zip(codes).fold(0, |word, (at, code)| word | code << (at * bits)))
        .collect()
}

/// Halves in AWQ's order.
fn interleaved(codes: impl Iterator<Item = u32>, _bits: u32) -> Vec<u32> {
    let codes: Vec<u32> = codes.collect();
    let order = [0, 2, 4, 6, 1, 3, 5, 7];
    codes.chunks(8).map(|codes| (0..).zip(order).fold(0, |word, (at, from)| word | codes[from] << (4 * at))).collect()
}

fn words(dtype: Dtype, lines: &[Vec<u32>]) -> Tensor {
    let data = lines.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
    Tensor { dtype, shape: vec![lines.len(), lines[0].len()], data }
}

/// Lines become columns.
fn turned(lines: &[Vec<u32>]) -> Vec<Vec<u32>> {
    (0..lines[0].len()).map(|at| lines.iter().map(|line| line[at]).collect()).collect()
}

/// A scale that bf16 and f16 hold.
fn scale(row: usize, group: usize) -> f32 {
    (1 + (row * 5 + group * 3) % 61) as f32 / 1024.0
}

/// Reads a model of these tensors, and writes it back with nothing added.
#[track_caller]
fn check(tensors: &[(&str, Tensor)], config: &Value, value: impl Fn(usize, usize) -> f32) {
    let bench = Bench::new();
    let base = bench.base(tensors, &json!({"model_type": "llama", "quantization_config": config}));
    let out = bench.path("out");
    lorakit(&[&"convert", &base, &"--dtype", &"f32", &"-o", &out]).ok();
    let plain = read(&out.join("model.safetensors"));
    assert_eq!(plain.len(), 1, "{:?}", plain.keys());
    assert_eq!(plain["m.weight"].shape, [ROWS, COLS]);
    for (at, found) in plain["m.weight"].values().into_iter().enumerate() {
        assert_eq!(found, f64::from(value(at / COLS, at % COLS)), "row {}, column {}", at / COLS, at % COLS);
    }
    let kept: PathBuf = bench.path("kept");
    let (down, up) = (Tensor::f32(&[2, COLS], &[1.0; 2 * COLS]), Tensor::f32(&[ROWS, 2], &[0.0; 2 * ROWS]));
    let pair = [("m.lora_A.weight", down), ("m.lora_B.weight", up)];
    let adapter = bench.adapter("adapter", json!({"target_modules": ["m"]}), &pair);
    lorakit(&[&"merge", &base, &adapter, &"--keep-format", &"-o", &kept]).ok();
    assert_eq!(read(&kept.join("model.safetensors")), read(&base.join("model.safetensors")));
}

/// GPTQ's tensors: codes packed down the inputs, zeros along the outputs.
fn gptq(
    bits: u32,
    pack: impl Fn(Vec<u32>) -> Vec<u32>,
    shift: impl Fn(Vec<u32>) -> Vec<u32>,
) -> Vec<(&'static str, Tensor)> {
    let codes: Vec<Vec<u32>> =
        (0..ROWS).map(|row| pack((0..COLS).map(|col| code(1, row, col, bits)).collect())).collect();
    let groups = COLS / GROUP;
    let zeros: Vec<Vec<u32>> =
        (0..groups).map(|group| shift((0..ROWS).map(|row| code(2, row, group, bits)).collect())).collect();
    let scales: Vec<f32> = (0..groups).flat_map(|group| (0..ROWS).map(move |row| scale(row, group))).collect();
    vec![
        ("m.qweight", words(Dtype::I32, &turned(&codes))),
        ("m.qzeros", words(Dtype::I32, &zeros)),
        ("m.scales", Tensor::new(Dtype::F16, &[groups, ROWS], &scales)),
    ]
}

fn whole(bits: u32, group: impl Fn(usize) -> usize) -> impl Fn(usize, usize) -> f32 {
    move |row, col| {
        let group = group(col);
        (code(1, row, col, bits) as f32 - code(2, row, group, bits) as f32) * scale(row, group)
    }
}

#[test]
fn gptq_is_read_in_each_of_its_packings() {
    let plain = |bits| move |codes: Vec<u32>| stream(codes.into_iter(), bits);
    let planar = |bits| move |codes: Vec<u32>| planes(codes.into_iter(), bits);
    let in_order = |col: usize| col / GROUP;
    for (bits, one) in [(2, 0x5555_5555_u32), (4, 0x1111_1111), (8, 0x0101_0101)] {
        let less =
            move |codes: Vec<u32>| stream(codes.into_iter(), bits).iter().map(|word| word.wrapping_sub(one)).collect();
        let config = json!({"quant_method": "gptq", "bits": bits, "sym": false});
        check(&gptq(bits, plain(bits), less), &config, whole(bits, in_order));
    }
    let less = |codes: Vec<u32>| stream(codes.into_iter().map(|zero| (zero + 7) % 8), 3);
    check(&gptq(3, plain(3), less), &json!({"quant_method": "gptq", "sym": false}), whole(3, in_order));
    let v2 = json!({"quant_method": "gptq", "checkpoint_format": "gptq_v2", "sym": false});
    check(&gptq(3, plain(3), plain(3)), &v2, whole(3, in_order));
    check(&gptq(6, planar(6), planar(6)), &v2, whole(6, in_order));
    let round = json!({"quant_method": "auto-round", "packing_format": "auto_round", "sym": false});
    check(&gptq(6, plain(6), plain(6)), &round, whole(6, in_order));
    check(&gptq(4, plain(4), plain(4)), &round, whole(4, in_order));
    // Groups in an order of their own.
    let mixed = |col: usize| (col * 17 + col / 40) % (COLS / GROUP);
    let mut tensors = gptq(4, plain(4), plain(4));
    let index = (0..COLS).flat_map(|col| i32::try_from(mixed(col)).unwrap().to_le_bytes()).collect();
    tensors.push(("m.g_idx", Tensor { dtype: Dtype::I32, shape: vec![COLS], data: index }));
    check(&tensors, &v2, whole(4, mixed));
}

#[test]
fn awq_is_read_along_its_outputs() {
    let groups = COLS / GROUP;
    let codes: Vec<Vec<u32>> = (0..COLS).map(|col| interleaved((0..ROWS).map(|row| code(1, row, col, 4)), 4)).collect();
    let zeros: Vec<Vec<u32>> =
        (0..groups).map(|group| interleaved((0..ROWS).map(|row| code(2, row, group, 4)), 4)).collect();
    let scales: Vec<f32> = (0..groups).flat_map(|group| (0..ROWS).map(move |row| scale(row, group))).collect();
    let tensors = [
        ("m.qweight", words(Dtype::I32, &codes)),
        ("m.qzeros", words(Dtype::I32, &zeros)),
        ("m.scales", Tensor::new(Dtype::F16, &[groups, ROWS], &scales)),
    ];
    check(&tensors, &json!({"quant_method": "awq", "version": "gemm"}), whole(4, |col| col / GROUP));
}

#[test]
fn packed_numbers_are_read_in_both_orders() {
    type Pack = fn(std::vec::IntoIter<u32>, u32) -> Vec<u32>;
    let groups = COLS / GROUP;
    let numbers = |iterator: &mut dyn Iterator<Item = u32>| iterator.collect::<Vec<u32>>().into_iter();
    for (bits, pack, version) in [
        (3, padded as Pack, "0.17.0"),
        (3, stream as Pack, "0.20.0"),
        (5, stream as Pack, "0.20.0"),
        (8, stream as Pack, "0.17.0"),
    ] {
        let codes: Vec<Vec<u32>> =
            (0..ROWS).map(|row| pack(numbers(&mut (0..COLS).map(|col| code(1, row, col, bits))), bits)).collect();
        let zeros: Vec<Vec<u32>> =
            (0..groups).map(|group| pack(numbers(&mut (0..ROWS).map(|row| code(2, row, group, bits))), bits)).collect();
        let scales: Vec<f32> = (0..ROWS).flat_map(|row| (0..groups).map(move |group| scale(row, group))).collect();
        let shape = [ROWS, COLS].into_iter().flat_map(|size| i64::try_from(size).unwrap().to_le_bytes()).collect();
        let tensors = [
            ("m.weight_packed", words(Dtype::I32, &codes)),
            ("m.weight_zero_point", words(Dtype::I32, &turned(&zeros))),
            ("m.weight_scale", Tensor::new(Dtype::BF16, &[ROWS, groups], &scales)),
            ("m.weight_shape", Tensor { dtype: Dtype::I64, shape: vec![2], data: shape }),
        ];
        let config = json!({"quant_method": "compressed-tensors", "version": version, "num_bits": bits});
        check(&tensors, &config, whole(bits, |col| col / GROUP));
    }
}

#[test]
fn affine_codes_are_read_at_every_width() {
    let (groups, bias) = (COLS / GROUP, |row: usize, group: usize| -scale(group, row) * 8.0);
    for bits in [1, 2, 3, 4, 5, 6, 8] {
        let codes: Vec<Vec<u32>> =
            (0..ROWS).map(|row| stream((0..COLS).map(|col| code(1, row, col, bits)), bits)).collect();
        let of = |value: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
            (0..ROWS * groups).map(|at| value(at / groups, at % groups)).collect()
        };
        let tensors = [
            ("m.weight", words(Dtype::U32, &codes)),
            ("m.scales", Tensor::new(Dtype::F16, &[ROWS, groups], &of(&scale))),
            ("m.biases", Tensor::new(Dtype::F16, &[ROWS, groups], &of(&bias))),
        ];
        let value =
            |row: usize, col: usize| code(1, row, col, bits) as f32 * scale(row, col / GROUP) + bias(row, col / GROUP);
        check(&tensors, &json!({"bits": bits, "group_size": GROUP}), value);
    }
}
