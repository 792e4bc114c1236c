//! The merge itself: a low-rank product added to a tile of weights, rounded exactly as PEFT rounds it.
//!
//! For every element, `acc = fma(up[i, k], down[k, j], acc)` for k = 0, 1, … from 0 on, all in f32; then `acc · scale`
//! and `value + delta`, each rounded. That is what torch's matrix product does at the ranks of adapters, and it
//! reproduced PEFT's merges bit for bit (106 million elements per adapter, ranks 2 to 64). A matrix library is free to
//! split or reorder the sum over k, so the kernel is ours: each element keeps one accumulator, and speed comes from
//! holding a block of them in registers (Goto, van de Geijn 2008, "Anatomy of high-performance matrix multiplication").

use super::simd::{Level, Simd, per_cpu};

/// Rows of a block. With [`VECTORS`] it holds 8 accumulators, which keep two fma units of latency 4 busy. Measured on Zen 3 (AVX2) at
/// rank 64, in GF/s of 104: 4 × 16 columns 81, 3 × 24 and 6 × 16 77; 4 × 24 spills a register, 41.
pub(super) const ROWS: usize = 4;

/// Vectors of columns of a block.
pub(super) const VECTORS: usize = 2;

/// Bytes of packed `down` that are used again and again; half of the 32 KiB L1 cache of most x86-64 cores, so that
/// `up` and the weights fit beside it.
const PANEL_BYTES: usize = 16 << 10;

/// f32 in a cache line. A vector that straddles two of them costs two loads.
const LINE: usize = 16;

/// `value[i, j] += scale · Σₖ up[i, k] · down[k, j]`, bit for bit as this module's introduction says.
///
/// * `value`: `[rows, cols]`, contiguous.
/// * `up`: `[rows, rank]`, contiguous.
/// * `down`: `[rank, cols]`; row k starts at `k · down_stride`.
///
/// Rank 0 changes nothing.
///
/// # Panics
/// When the slices do not have these shapes.
pub fn add_low_rank(
    value: &mut [f32],
    cols: usize,
    up: &[f32],
    down: &[f32],
    down_stride: usize,
    rank: usize,
    scale: f32,
) {
    if value.is_empty() || rank == 0 {
        return;
    }
    assert!(cols > 0 && value.len().is_multiple_of(cols), "value is [rows, cols]");
    assert_eq!(up.len(), value.len() / cols * rank, "up is [rows, rank]");
    assert!(down_stride >= cols && down.len() >= (rank - 1) * down_stride + cols, "down is [rank, cols]");
    add_at(Level::best(), value, &Factors { cols, up, down, down_stride, rank, scale });
}

/// The arguments of [`add_low_rank`], checked.
struct Factors<'a> {
    cols: usize,
    up: &'a [f32],
    down: &'a [f32],
    down_stride: usize,
    rank: usize,
    scale: f32,
}

per_cpu! {
    fn add_at(value: &mut [f32], factors: &Factors<'_>) = vectors of add_body;
}

#[inline(always)]
fn add_body<const W: usize, S: Simd<W>>(simd: S, value: &mut [f32], factors: &Factors<'_>) {
    let &Factors { cols, up, down, down_stride, rank, scale } = factors;
    let mut ups = vec![[0.0; ROWS]; (up.len() / rank).div_ceil(ROWS) * rank];
    pack_up(up, rank, &mut ups, rank);
    let group = group_cols(rank, VECTORS * W);
    let mut buffer = Vec::new();
    let panels = panels_of::<W>(&mut buffer, rank, group);
    let scale = simd.splat(scale);
    for first in (0..cols).step_by(group) {
        let width = group.min(cols - first);
        pack_down(&down[first..], down_stride, width, rank, panels, rank, false);
        for (up, rows) in ups.chunks_exact(rank).zip(value.chunks_mut(ROWS * cols)) {
            for (panel, offset) in panels.chunks_exact(rank).zip((0..width).step_by(VECTORS * W)) {
                let sums = product(simd, up, panel);
                let used = (VECTORS * W).min(width - offset);
                for (sums, row) in sums.iter().zip(rows.chunks_exact_mut(cols)) {
                    add_scaled(simd, &mut row[first + offset..][..used], sums, scale);
                }
            }
        }
    }
}

/// The products of [`ROWS`] rows of `up` and [`VECTORS`] vectors of columns of `down`, both packed one k after the other.
#[inline(always)]
pub(super) fn product<const W: usize, S: Simd<W>>(
    simd: S,
    up: &[[f32; ROWS]],
    down: &[[[f32; W]; VECTORS]],
) -> [[S::Vector; VECTORS]; ROWS] {
    let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
    for (up, down) in up.iter().zip(down) {
        let down = [simd.load(&down[0]), simd.load(&down[1])];
        for (row, &factor) in sums.iter_mut().zip(up) {
            let factor = simd.splat(factor);
            for (sum, down) in row.iter_mut().zip(down) {
                *sum = simd.mul_add(factor, down, *sum);
            }
        }
    }
    sums
}

/// `value += sums · scale`, for as many as there are.
#[inline(always)]
fn add_scaled<const W: usize, S: Simd<W>>(simd: S, value: &mut [f32], sums: &[S::Vector; VECTORS], scale: S::Vector) {
    let (whole, rest) = value.as_chunks_mut::<W>();
    let scaled = sums.map(|sum| simd.mul(sum, scale));
    whole.iter_mut().zip(scaled).for_each(|(value, delta)| *value = simd.store(simd.add(simd.load(value), delta)));
    if !rest.is_empty() {
        let delta = simd.store(scaled[whole.len()]);
        rest.iter_mut().zip(delta).for_each(|(value, delta)| *value += delta);
    }
}

/// Columns whose panels fill [`PANEL_BYTES`]: a multiple of `grain`.
#[inline(always)]
pub(super) fn group_cols(rank: usize, grain: usize) -> usize {
    grain * (PANEL_BYTES / (grain * rank * size_of::<f32>())).max(1)
}

/// Blocks of [`ROWS`] rows, transposed: every `period`, rank × `[f32; ROWS]`. Rows that the last block lacks stay as they are.
#[inline(always)]
pub(super) fn pack_up(up: &[f32], rank: usize, packed: &mut [[f32; ROWS]], period: usize) {
    for (block, rows) in packed.chunks_mut(period).zip(up.chunks(rank * ROWS)) {
        for (r, row) in rows.chunks_exact(rank).enumerate() {
            for (packed, &factor) in block.iter_mut().zip(row) {
                packed[r] = factor;
            }
        }
    }
}

/// Room for the panels of `group` columns in `buffer`, at the start of a cache line.
#[inline(always)]
pub(super) fn panels_of<const W: usize>(
    buffer: &mut Vec<f32>,
    rank: usize,
    group: usize,
) -> &mut [[[f32; W]; VECTORS]] {
    buffer.resize(rank * group + LINE, 0.0);
    let line_start = buffer.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    buffer[line_start..][..rank * group].as_chunks_mut().0.as_chunks_mut().0
}

/// Panels of [`VECTORS`] vectors of columns: every `period`, rank × `[[f32; W]; VECTORS]`, halves or, where they are `paired`, even and
/// odd columns. Columns that the last panel lacks are zero.
///
/// Packing matters most where the stride is a power of two: the rows then share a few sets of the L1 cache.
#[inline(always)]
pub(super) fn pack_down<const W: usize>(
    down: &[f32],
    stride: usize,
    width: usize,
    rank: usize,
    panels: &mut [[[f32; W]; VECTORS]],
    period: usize,
    paired: bool,
) {
    for (k, row) in down.chunks(stride).take(rank).enumerate() {
        for (panel, columns) in panels.chunks_mut(period).zip(row[..width].chunks(VECTORS * W)) {
            let [left, right] = &mut panel[k];
            if columns.len() < VECTORS * W {
                (*left, *right) = ([0.0; W], [0.0; W]);
                for (at, column) in columns.iter().enumerate() {
                    let (vector, lane) = if paired { (at % VECTORS, at / VECTORS) } else { (at / W, at % W) };
                    panel[k][vector][lane] = *column;
                }
            } else if paired {
                let pairs = columns.as_chunks::<VECTORS>().0;
                left.iter_mut().zip(right).zip(pairs).for_each(|((even, odd), pair)| [*even, *odd] = *pair);
            } else {
                let halves = columns.as_chunks().0;
                (*left, *right) = (halves[0], halves[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::random;
    use super::*;
    use proptest::prelude::*;

    /// Uniform in -1 to 1.
    fn uniform(seed: u64, count: usize) -> Vec<f32> {
        (0..count).map(|i| random::bits(seed, i as u64) as f32 / 2.0_f32.powi(31) - 1.0).collect()
    }

    /// The definition, element by element.
    fn by_definition(value: &mut [f32], cols: usize, up: &[f32], down: &[f32], stride: usize, rank: usize, scale: f32) {
        for (at, value) in value.iter_mut().enumerate() {
            let (i, j) = (at / cols, at % cols);
            let sum = (0..rank).fold(0.0_f32, |sum, k| up[i * rank + k].mul_add(down[k * stride + j], sum));
            let delta = sum * scale;
            *value += delta;
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[track_caller]
    fn check(rows: usize, cols: usize, rank: usize, gap: usize, seed: u64) {
        let (stride, scale) = (cols + gap, 1.7);
        let before = uniform(seed, rows * cols);
        let (up, down) = (uniform(seed ^ 1, rows * rank), uniform(seed ^ 2, rank * stride - gap));
        let mut expected = before.clone();
        by_definition(&mut expected, cols, &up, &down, stride, rank, scale);
        for level in Level::all() {
            let mut value = before.clone();
            let factors = Factors { cols, up: &up, down: &down, down_stride: stride, rank, scale };
            add_at(level, &mut value, &factors);
            assert_eq!(bits(&value), bits(&expected), "[{rows}, {cols}] of rank {rank} with {level:?}");
        }
        let mut value = before.clone();
        add_low_rank(&mut value, cols, &up, &down, stride, rank, scale);
        assert_eq!(bits(&value), bits(&expected));
    }

    proptest! {
        #[test]
        fn any_shape_is_merged_as_defined(rows in 1_usize..20, cols in 1_usize..200, rank in 1_usize..40, gap in 0_usize..9, seed: u64) {
            check(rows, cols, rank, gap, seed);
        }
    }

    #[test]
    fn wide_rows_and_high_ranks_are_merged_as_defined() {
        check(65, 2049, 16, 0, 1);
        check(9, 331, 700, 3, 2);
        check(64, 1, 64, 0, 3);
    }

    #[test]
    fn rank_0_and_no_rows_change_nothing() {
        let mut value = [-0.0, f32::NAN];
        add_low_rank(&mut value, 2, &[], &[], 2, 0, f32::INFINITY);
        assert_eq!(bits(&value), bits(&[-0.0, f32::NAN]));
        add_low_rank(&mut [], 2, &[], &[1.0; 4], 2, 2, 1.0);
    }

    #[test]
    fn an_infinite_row_leaves_the_others_alone() {
        let mut value = vec![0.0; 3 * 5];
        add_low_rank(&mut value, 5, &[1.0, f32::INFINITY, 1.0], &[2.0; 5], 5, 1, 0.5);
        assert_eq!((&value[..5], &value[5..10], &value[10..]), (&[1.0; 5][..], &[f32::INFINITY; 5][..], &[1.0; 5][..]));
    }

    #[test]
    #[should_panic(expected = "up is [rows, rank]")]
    fn shapes_that_disagree_are_refused() {
        add_low_rank(&mut [0.0; 6], 3, &[1.0; 3], &[1.0; 6], 3, 2, 1.0);
    }
}
