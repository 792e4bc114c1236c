//! The truncated SVD on matrices that are held, one thread: passes over a matrix against a plain product, and the whole of it.
#![allow(missing_docs, reason = "a program without a public interface; its macros define undocumented items")]

use divan::Bencher;
use divan::counter::ItemsCount;
use lorakit::error::Result;
use lorakit::linalg::{
    Compute, LinearOperator, LowRank, Matrix, RankPolicy, RankRule, RowSource, Streamed, truncated_svd,
};
use lorakit::tensor::{Float, random_bits};

/// Shapes of the linear layers of a 1B model.
const SHAPES: [(usize, usize); 3] = [(2048, 2048), (8192, 2048), (2048, 8192)];

fn main() {
    divan::main();
}

/// A matrix that is held, read like one that is not.
struct Held(Matrix);

impl RowSource for Held {
    fn shape(&self) -> (usize, usize) {
        self.0.dim()
    }

    fn read(&self, rows: std::ops::Range<usize>, out: &mut [f32]) -> Result<()> {
        let cols = self.0.ncols();
        let all = self.0.as_slice().expect("made in row order");
        out.copy_from_slice(&all[rows.start * cols..rows.end * cols]);
        Ok(())
    }
}

fn uniform(seed: u64, rows: usize, cols: usize) -> Matrix {
    let value = |at: usize| random_bits(seed, at as u64) as f32 / 2.0_f32.powi(31) - 1.0;
    Matrix::from_shape_fn((rows, cols), |(row, col)| value(row * cols + col))
}

/// Rank 256 with singular values near 1/i, and a little noise.
fn tuned((rows, cols): (usize, usize)) -> Streamed<Held> {
    let rank = 256;
    let mut up = uniform(1, rows, rank);
    up.columns_mut().into_iter().enumerate().for_each(|(at, mut column)| column /= (at + 1) as f32);
    let product = LowRank::new(up, uniform(2, rank, cols), 1.0).dense().expect("nothing is read");
    let noise = uniform(3, rows, cols) * 0.02;
    Streamed(Held(product.mapv(|value| value as f32) + noise))
}

/// Floating point operations are counted as items: 10⁹ items a second are 1 GF/s.
fn flops(count: usize) -> ItemsCount {
    ItemsCount::new(count)
}

#[divan::bench(args = SHAPES, sample_count = 5)]
fn half_a_pass(bencher: Bencher, (rows, cols): (usize, usize)) {
    let (operator, block) = (tuned((rows, cols)), uniform(5, cols, 48));
    bencher.counter(flops(2 * rows * cols * 48)).bench_local(|| operator.apply(block.view()));
}

#[divan::bench(args = SHAPES, sample_count = 5)]
fn one_pass(bencher: Bencher, (rows, cols): (usize, usize)) {
    let (operator, block) = (tuned((rows, cols)), uniform(5, cols, 48));
    bencher.counter(flops(4 * rows * cols * 48)).bench_local(|| operator.apply_gram(block.view(), 1.0));
}

#[divan::bench(args = SHAPES, sample_count = 5)]
fn rank_32(bencher: Bencher, (rows, cols): (usize, usize)) {
    let operator = tuned((rows, cols));
    let rule = RankRule::new(RankPolicy::Rank(32));
    bencher.bench_local(|| truncated_svd(&operator, &rule, Compute::Accurate, 1, Float::Bf16));
}

#[divan::bench(args = SHAPES, sample_count = 5)]
fn rank_32_fast(bencher: Bencher, (rows, cols): (usize, usize)) {
    let operator = tuned((rows, cols));
    let rule = RankRule::new(RankPolicy::Rank(32));
    bencher.bench_local(|| truncated_svd(&operator, &rule, Compute::Fast, 1, Float::Bf16));
}
