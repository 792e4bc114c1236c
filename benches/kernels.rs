//! The kernels of a merge, one by one and together, on a tile as large as the plan makes them.
#![allow(missing_docs, reason = "a program without a public interface; its macros define undocumented items")]

use divan::Bencher;
use divan::counter::BytesCount;
use lorakit::tensor::{Float, GgmlType, OnePass, Product, Rounding, Tally, add_low_rank, encode_surveyed};

const ROWS: usize = 64;
const COLS: usize = 2048;
const SCALE: f32 = 2.0;

fn main() {
    divan::main();
}

/// Some values around 0, the same on every run.
fn values(count: usize, size: f32) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * size).collect()
}

fn encoded(float: Float) -> Vec<u8> {
    let mut bytes = vec![0; ROWS * COLS * float.bytes()];
    float.encode(&values(ROWS * COLS, 0.05), Rounding::Nearest, &mut bytes);
    bytes
}

const FLOATS: [Float; 4] = [Float::Bf16, Float::F16, Float::F32, Float::F8E4M3];

#[divan::bench(args = FLOATS)]
fn decode(bencher: Bencher, float: Float) {
    let (bytes, mut out) = (encoded(float), vec![0.0; ROWS * COLS]);
    bencher.counter(BytesCount::new(bytes.len())).bench_local(|| float.decode(&bytes, &mut out));
}

#[divan::bench(args = FLOATS)]
fn encode(bencher: Bencher, float: Float) {
    let (mut bytes, values) = (encoded(float), values(ROWS * COLS, 0.05));
    let counter = BytesCount::new(bytes.len());
    bencher.counter(counter).bench_local(|| float.encode(&values, Rounding::Nearest, &mut bytes));
}

#[divan::bench]
fn encode_bf16_stochastic(bencher: Bencher) {
    let (mut bytes, values) = (encoded(Float::Bf16), values(ROWS * COLS, 0.05));
    let rounding = Rounding::Stochastic { seed: 1, index: 0 };
    let counter = BytesCount::new(bytes.len());
    bencher.counter(counter).bench_local(|| Float::Bf16.encode(&values, rounding, &mut bytes));
}

#[divan::bench(args = FLOATS)]
fn encode_and_survey(bencher: Bencher, float: Float) {
    let (base, mut out, exact) = (encoded(float), encoded(float), values(ROWS * COLS, 0.051));
    let mut tally = Tally::default();
    bencher
        .counter(BytesCount::new(base.len()))
        .bench_local(|| encode_surveyed(&base, float, &exact, float, Rounding::Nearest, &mut out, &mut tally));
}

#[divan::bench(args = [8, 16, 32, 64])]
fn low_rank(bencher: Bencher, rank: usize) {
    let (up, down) = (values(ROWS * rank, 1e-3), values(rank * COLS, 1e-3));
    let mut value = values(ROWS * COLS, 0.05);
    let counter = BytesCount::new(ROWS * COLS * Float::Bf16.bytes());
    bencher.counter(counter).bench_local(|| add_low_rank(&mut value, COLS, &up, &down, COLS, rank, SCALE));
}

/// The same product by faer, added to the values in place. (It folds the scale into the sum: other bits than PEFT's.)
#[divan::bench(args = [8, 16, 32, 64])]
fn low_rank_by_faer(bencher: Bencher, rank: usize) {
    use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
    let (up, down) = (values(ROWS * rank, 1e-3), values(rank * COLS, 1e-3));
    let mut value = values(ROWS * COLS, 0.05);
    let counter = BytesCount::new(ROWS * COLS * Float::Bf16.bytes());
    bencher.counter(counter).bench_local(|| {
        let value = MatMut::from_row_major_slice_mut(&mut value, ROWS, COLS);
        let up = MatRef::from_row_major_slice(&up, ROWS, rank);
        let down = MatRef::from_row_major_slice(&down, rank, COLS);
        matmul(value, Accum::Add, up, down, SCALE, Par::Seq);
    });
}

/// What a merge does to a tile of products: everything in one pass. Bytes are those of the output.
#[divan::bench(args = [8, 16, 32, 64])]
fn one_pass_bf16(bencher: Bencher, rank: usize) {
    one_pass(bencher, Float::Bf16, rank);
}

#[divan::bench(args = [8, 16, 32, 64])]
fn one_pass_f16(bencher: Bencher, rank: usize) {
    one_pass(bencher, Float::F16, rank);
}

fn one_pass(bencher: Bencher, float: Float, rank: usize) {
    let (base, mut out) = (encoded(float), encoded(float));
    let (up, down) = (values(ROWS * rank, 1e-3), values(rank * COLS, 1e-3));
    let products = [Product { up: &up, down: &down, rank, scale: SCALE }];
    let (rounding, rounds_products) = (Rounding::Nearest, false);
    let pass = OnePass { rows: ROWS, cols: COLS, stride: COLS, products: &products, rounding, rounds_products };
    bencher.counter(BytesCount::new(base.len())).bench_local(|| pass.merge(float, &base, &mut out));
}

/// What a merge does to any other tile: decode, add, encode and survey.
#[divan::bench(args = [8, 16, 32, 64])]
fn tile_bf16(bencher: Bencher, rank: usize) {
    whole_tile(bencher, Float::Bf16, rank);
}

#[divan::bench(args = [8, 16, 32, 64])]
fn tile_f16(bencher: Bencher, rank: usize) {
    whole_tile(bencher, Float::F16, rank);
}

fn whole_tile(bencher: Bencher, float: Float, rank: usize) {
    let (base, mut out) = (encoded(float), encoded(float));
    let (up, down) = (values(ROWS * rank, 1e-3), values(rank * COLS, 1e-3));
    let mut value = vec![0.0; ROWS * COLS];
    let mut tally = Tally::default();
    bencher.counter(BytesCount::new(base.len())).bench_local(|| {
        float.decode(&base, &mut value);
        add_low_rank(&mut value, COLS, &up, &down, COLS, rank, SCALE);
        encode_surveyed(&base, float, &value, float, Rounding::Nearest, &mut out, &mut tally)
    });
}

const BLOCKS: [GgmlType; 12] = [
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Q2K,
    GgmlType::Q3K,
    GgmlType::Q4K,
    GgmlType::Q5K,
    GgmlType::Q6K,
    GgmlType::Iq4Nl,
    GgmlType::Mxfp4,
];

/// Blocks of ggml to values; bytes are those of the values.
#[divan::bench(args = BLOCKS)]
fn unpack_blocks(bencher: Bencher, ggml: GgmlType) {
    let mut values = values(ROWS * COLS, 0.05);
    let (per_block, bytes) = ggml.block();
    let mut blocks = vec![0; values.len() / per_block * bytes];
    ggml.encode(&values, &mut blocks);
    bencher.counter(BytesCount::new(4 * values.len())).bench_local(|| ggml.decode(&blocks, &mut values));
}

/// Values to blocks of ggml; bytes are those of the values.
#[divan::bench(args = BLOCKS)]
fn pack_blocks(bencher: Bencher, ggml: GgmlType) {
    let values = values(ROWS * COLS, 0.05);
    let (per_block, bytes) = ggml.block();
    let mut blocks = vec![0; values.len() / per_block * bytes];
    bencher.counter(BytesCount::new(4 * values.len())).bench_local(|| ggml.encode(&values, &mut blocks));
}
