//! A merge in one pass: bytes of a weight in, bytes of the merged weight out, registers between.
//!
//! A block of [`ROWS`] × [`VECTORS`] vectors is widened, given the low-rank products one after the other (each as `low_rank` defines
//! it), rounded, and surveyed; no f32 of it is ever stored. Every element has the bits that decoding a tile, adding to it and
//! encoding it would give.
//!
//! The sums of the survey are formed in f32 over [`ROWS`] × [`RUN_COLS`] elements, [`LANES`] columns side by side, and in f64
//! from there on; the order is that of this file on every CPU.

use bytemuck::Zeroable;

use super::cells::{self, Cells, Each};
use super::code;
use super::codec::Rounding;
use super::dtype::Float;
use super::low_rank::{ROWS, VECTORS, group_cols, pack_down, pack_up, panels_of, product};
use super::random;
use super::simd::{Level, Simd, lanes, per_cpu, prefetch};
use super::survey::{Run, Sums, fits_f32};
use super::survival::Survival;

/// Columns of a run, and groups of columns are multiples of it: a whole number of blocks on every CPU.
const RUN_COLS: usize = 64;

/// Columns that are surveyed side by side: one AVX-512 register.
const LANES: usize = 16;

/// scale · up · down.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// `[rows, rank]`, contiguous.
    pub up: &'a [f32],
    /// `[rank, cols]`, contiguous.
    pub down: &'a [f32],
    /// At least 1.
    pub rank: usize,
    /// In front of the product.
    pub scale: f32,
}

/// Products and the block of a weight they are added to. The merged weight lies as the weight does.
#[derive(Clone, Copy, Debug)]
pub struct OnePass<'a> {
    /// Rows of the block.
    pub rows: usize,
    /// Columns of the block.
    pub cols: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// What is added, in order.
    pub products: &'a [Product<'a>],
    /// How the sum is rounded; of the random numbers, those of the block's first element.
    pub rounding: Rounding,
    /// Every product is rounded before it is added, and every sum after that: PEFT's `safe_merge=True`.
    pub rounds_products: bool,
}

impl OnePass<'_> {
    /// Merges `base` into `out`, both from the first element of the block on, and says what became of the change.
    ///
    /// `None` where a value is not finite, or changes are so small or large that their squares leave the range of f32: `out` is
    /// then not to be used, and [`encode_surveyed`](super::encode_surveyed) says more.
    ///
    /// # Panics
    /// When slices do not have these shapes.
    pub fn merge(&self, float: Float, base: &[u8], out: &mut [u8]) -> Option<Survival> {
        self.merge_at(Level::best(), float, base, out)
    }

    fn merge_at(&self, level: Level, float: Float, base: &[u8], out: &mut [u8]) -> Option<Survival> {
        if self.rows * self.cols == 0 {
            return Some(Survival::default());
        }
        let span = ((self.rows - 1) * self.stride + self.cols) * float.bytes();
        assert!(self.stride >= self.cols && base.len() >= span && out.len() >= span, "base and out hold the block");
        for Product { up, down, rank, .. } in self.products {
            assert!(*rank > 0 && up.len() == self.rows * rank, "up is [rows, rank]");
            assert_eq!(down.len(), rank * self.cols, "down is [rank, cols]");
        }
        let survival = match float {
            Float::Bf16 => merge_cells::<cells::Bf16>(level, self, base, out),
            Float::F16 => merge_cells::<cells::F16>(level, self, base, out),
            Float::F32 => merge_cells::<Each<code::F32>>(level, self, base, out),
            Float::F8E4M3 => merge_cells::<Each<code::F8E4M3>>(level, self, base, out),
            Float::F8E5M2 => merge_cells::<Each<code::F8E5M2>>(level, self, base, out),
            Float::F8E4M3Fnuz => merge_cells::<Each<code::F8E4M3Fnuz>>(level, self, base, out),
            Float::F8E5M2Fnuz => merge_cells::<Each<code::F8E5M2Fnuz>>(level, self, base, out),
            Float::F64 => return None,
        };
        fits_f32(&survival).then_some(survival)
    }
}

per_cpu! {
    fn merge_cells<C: Cells>(pass: &OnePass<'_>, base: &[u8], out: &mut [u8]) -> Survival = vectors of merge_body;
}

/// The pass in blocks of [`ROWS`] × [`VECTORS`] vectors.
#[inline(always)]
fn merge_body<const W: usize, S: Simd<W>, C: Cells>(
    simd: S,
    pass: &OnePass<'_>,
    base: &[u8],
    out: &mut [u8],
) -> Survival {
    let &OnePass { rows, cols, stride, products, .. } = pass;
    let (base, out) = (bytemuck::cast_slice::<u8, C::Bytes>(base), bytemuck::cast_slice_mut::<u8, C::Bytes>(out));
    let rank = products.iter().map(|product| product.rank).sum::<usize>().max(1);
    let ups = pack_ups(products, rows, rank);
    // The same on every CPU: the sums are formed run by run.
    let group = group_cols(rank, RUN_COLS);
    let mut buffer = Vec::new();
    let panels = panels_of::<W>(&mut buffer, rank, group);
    let mut sums = Sums::<LANES>::ZERO;
    for first in (0..cols).step_by(group) {
        let width = group.min(cols - first);
        let mut above = 0;
        for product in products {
            pack_down(&product.down[first..], cols, width, product.rank, &mut panels[above..], rank, C::PAIRED);
            above += product.rank;
        }
        for (up, row) in ups.chunks_exact(rank).zip((0..rows).step_by(ROWS)) {
            for (panels, offset) in panels.chunks(rank * RUN_COLS / (VECTORS * W)).zip((0..width).step_by(RUN_COLS)) {
                let mut run = Run::<LANES>::ZERO;
                for (panel, offset) in panels.chunks_exact(rank).zip((offset..width).step_by(VECTORS * W)) {
                    let block = Block {
                        at: row * stride + first + offset,
                        stride,
                        rows: ROWS.min(rows - row),
                        cols: (VECTORS * W).min(width - offset),
                    };
                    block.prefetch(base);
                    let before = block.widen::<W, S, C>(simd, base);
                    let mut exact = before;
                    add_products::<W, S, C>(simd, pass, up, panel, &mut exact);
                    let after = finish::<W, S, C>(simd, pass, &block, offset, before, exact, &mut run);
                    block.store(&after, out);
                }
                sums.add(&run);
            }
        }
    }
    sums.total(rows * cols)
}

/// Something of every row. (A closure that is called four times is a call, and one without the instruction set.)
macro_rules! by_row {
    ($row:ident => $of:expr) => {{
        macro_rules! of {
            ($at:literal) => {{
                let $row: usize = $at;
                $of
            }};
        }
        [of!(0), of!(1), of!(2), of!(3)]
    }};
}

/// Rounds a block and surveys it.
#[inline(always)]
fn finish<const W: usize, S: Simd<W>, C: Cells>(
    simd: S,
    pass: &OnePass<'_>,
    block: &Block,
    offset: usize,
    before: [[S::Vector; VECTORS]; ROWS],
    exact: [[S::Vector; VECTORS]; ROWS],
    run: &mut Run<LANES>,
) -> [[[C::Bytes; W]; VECTORS]; ROWS] {
    let after = match pass.rounding {
        Rounding::Nearest => by_row!(row => C::nearest_number(simd, exact[row])),
        Rounding::Stochastic { seed, index } => by_row!(row => {
            let first = index.wrapping_add(wide(block.at + row * block.stride));
            C::stochastic(simd, exact[row], [drawn::<W, C, 0>(seed, first), drawn::<W, C, 1>(seed, first)])
        }),
    };
    let rounded = by_row!(row => C::widen(simd, &after[row]));
    let left = by_row!(row => [before[row][0], exact[row][0], rounded[row][0]]);
    let right = by_row!(row => [before[row][1], exact[row][1], rounded[row][1]]);
    let lanes = match (C::PAIRED, W == LANES) {
        (_, true) => [0, 0],
        (true, false) => [offset / VECTORS % LANES; 2],
        (false, false) => [offset % LANES, (offset + W) % LANES],
    };
    run.add_vectors(simd, lanes[0], left);
    run.add_vectors(simd, lanes[1], right);
    after
}

/// The random numbers of the elements of a vector of a row.
#[inline(always)]
fn drawn<const W: usize, C: Cells, const VECTOR: usize>(seed: u64, first: u64) -> [u32; W] {
    lanes(|lane| random::bits(seed, first.wrapping_add(wide(C::column::<W>(VECTOR, lane)))))
}

#[inline(always)]
fn wide(index: usize) -> u64 {
    u64::try_from(index).expect("usize has at most 64 bits")
}

/// Some of the elements of a slice: those of a block that exist.
struct Block {
    at: usize,
    stride: usize,
    rows: usize,
    cols: usize,
}

impl Block {
    /// Asks for the block below.
    #[inline(always)]
    fn prefetch<T>(&self, from: &[T]) {
        for row in ROWS..2 * ROWS {
            prefetch(from, self.at + row * self.stride);
        }
    }

    /// The values of the block; those that do not exist are zero.
    #[inline(always)]
    fn widen<const W: usize, S: Simd<W>, C: Cells>(&self, simd: S, from: &[C::Bytes]) -> [[S::Vector; VECTORS]; ROWS] {
        let mut values = [[simd.splat(0.0); VECTORS]; ROWS];
        if self.rows == ROWS && self.cols == VECTORS * W {
            for (row, to) in values.iter_mut().enumerate() {
                let halves = from[self.at + row * self.stride..][..VECTORS * W].as_chunks().0;
                *to = C::widen(simd, halves.first_chunk().expect("a row has two halves"));
            }
        } else {
            for (row, to) in values[..self.rows].iter_mut().enumerate() {
                let mut padded = [[C::Bytes::zeroed(); W]; VECTORS];
                padded.as_flattened_mut()[..self.cols]
                    .copy_from_slice(&from[self.at + row * self.stride..][..self.cols]);
                *to = C::widen(simd, &padded);
            }
        }
        values
    }

    /// Writes the elements that exist.
    #[inline(always)]
    fn store<const W: usize, T: Copy>(&self, block: &[[[T; W]; VECTORS]; ROWS], to: &mut [T]) {
        if self.rows == ROWS && self.cols == VECTORS * W {
            for (row, from) in block.iter().enumerate() {
                to[self.at + row * self.stride..][..VECTORS * W].copy_from_slice(from.as_flattened());
            }
        } else {
            for (row, from) in block[..self.rows].iter().enumerate() {
                let to = &mut to[self.at + row * self.stride..][..self.cols];
                to.copy_from_slice(&from.as_flattened()[..self.cols]);
            }
        }
    }
}

/// `value += Σ scale · up · down`, each rounded by itself where the pass says so.
#[inline(always)]
fn add_products<const W: usize, S: Simd<W>, C: Cells>(
    simd: S,
    pass: &OnePass<'_>,
    up: &[[f32; ROWS]],
    panel: &[[[f32; W]; VECTORS]],
    value: &mut [[S::Vector; VECTORS]; ROWS],
) {
    let mut above = 0;
    for &Product { rank, scale, .. } in pass.products {
        let sums = product(simd, &up[above..above + rank], &panel[above..above + rank]);
        above += rank;
        let scale = simd.splat(scale);
        for (value, [left, right]) in value.iter_mut().zip(sums) {
            let mut delta = [simd.mul(left, scale), simd.mul(right, scale)];
            if pass.rounds_products {
                // As the first change of an empty tile, whose zeros have no sign.
                delta = rounded::<W, S, C>(simd, plus(simd, [simd.splat(0.0); VECTORS], delta));
            }
            *value = plus(simd, *value, delta);
            if pass.rounds_products {
                *value = rounded::<W, S, C>(simd, *value);
            }
        }
    }
}

#[inline(always)]
fn rounded<const W: usize, S: Simd<W>, C: Cells>(simd: S, row: [S::Vector; VECTORS]) -> [S::Vector; VECTORS] {
    C::widen(simd, &C::nearest(simd, row))
}

#[inline(always)]
fn plus<const W: usize, S: Simd<W>>(
    simd: S,
    [left, right]: [S::Vector; VECTORS],
    more: [S::Vector; VECTORS],
) -> [S::Vector; VECTORS] {
    [simd.add(left, more[0]), simd.add(right, more[1])]
}

/// The factors `up` of all products, one beside the other: per block of rows, `rank` × `[f32; ROWS]`.
#[inline(always)]
fn pack_ups(products: &[Product<'_>], rows: usize, rank: usize) -> Vec<[f32; ROWS]> {
    let mut packed = vec![[0.0; ROWS]; rows.div_ceil(ROWS) * rank];
    let mut above = 0;
    for product in products {
        pack_up(product.up, product.rank, &mut packed[above..], rank);
        above += product.rank;
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::super::dtype::FLOATS;
    use super::super::survey::{Tally, encode_surveyed};
    use super::*;
    use proptest::prelude::*;

    /// Uniform in -1 to 1.
    fn uniform(seed: u64, count: usize) -> Vec<f32> {
        (0..count).map(|i| random::bits(seed, i as u64) as f32 / 2.0_f32.powi(31) - 1.0).collect()
    }

    /// Any of `values`.
    fn some_of(seed: u64, count: usize, values: &[f32]) -> Vec<f32> {
        (0..count).map(|i| values[random::bits(seed, i as u64) as usize % values.len()]).collect()
    }

    /// A weight and what is added to it.
    struct Case {
        rows: usize,
        cols: usize,
        gap: usize,
        base: Vec<f32>,
        factors: Vec<(Vec<f32>, Vec<f32>, usize, f32)>,
        rounding: Rounding,
        rounds_products: bool,
    }

    impl Case {
        /// `values` of a seed and a count gives weights and factors.
        fn new(
            seed: u64,
            (rows, cols): (usize, usize),
            ranks: &[usize],
            values: impl Fn(u64, usize) -> Vec<f32>,
        ) -> Self {
            let factor = |(n, &rank): (usize, &usize)| {
                let seed = seed.wrapping_add(10 * n as u64);
                (values(seed + 1, rows * rank), values(seed + 2, rank * cols), rank, [0.75, -2.0, 1e-3][n % 3])
            };
            let gap = seed as usize % 5;
            let base = values(seed, rows * (cols + gap));
            let factors = ranks.iter().enumerate().map(factor).collect();
            Self { rows, cols, gap, base, factors, rounding: Rounding::Nearest, rounds_products: false }
        }

        /// The definition, element by element and tile by tile.
        fn expected(&self, float: Float, base: &[u8], out: &mut [u8]) -> Option<Survival> {
            let (stride, width) = (self.cols + self.gap, float.bytes());
            let mut tally = Tally::default();
            for row in 0..self.rows {
                let here = row * stride * width..(row * stride + self.cols) * width;
                let mut value = vec![0.0; self.cols];
                float.decode(&base[here.clone()], &mut value);
                for (up, down, rank, scale) in &self.factors {
                    for (col, value) in value.iter_mut().enumerate() {
                        let term = |sum: f32, k: usize| up[row * rank + k].mul_add(down[k * self.cols + col], sum);
                        let delta = (0..*rank).fold(0.0, term) * scale;
                        *value = if self.rounds_products {
                            rounded(float, *value + rounded(float, 0.0 + delta))
                        } else {
                            *value + delta
                        };
                    }
                }
                let rounding = self.rounding.skip(row * stride);
                encode_surveyed(&base[here.clone()], float, &value, float, rounding, &mut out[here], &mut tally)
                    .ok()?;
            }
            Some(tally.survival)
        }

        #[track_caller]
        fn check(&self, float: Float) {
            let mut base = vec![0; self.base.len() * float.bytes()];
            float.encode(&self.base, Rounding::Nearest, &mut base);
            let mut wanted = vec![0xAA; base.len()];
            let expected = self.expected(float, &base, &mut wanted);
            let mut products = Vec::new();
            for (up, down, rank, scale) in &self.factors {
                products.push(Product { up, down, rank: *rank, scale: *scale });
            }
            let &Self { rows, cols, gap, rounding, rounds_products, .. } = self;
            let pass = OnePass { rows, cols, stride: cols + gap, products: &products, rounding, rounds_products };
            let mut first = None;
            for level in Level::all() {
                let mut out = vec![0xAA; base.len()];
                let found = pass.merge_at(level, float, &base, &mut out);
                let what = format!("[{rows}, {cols}] {float} {rounding:?} {rounds_products} with {level:?}");
                // Squares beyond f32 are left to the tiles.
                assert_eq!(found.is_some(), expected.as_ref().is_some_and(fits_f32), "{what}");
                let Some((found, expected)) = found.zip(expected.as_ref()) else { continue };
                assert!(out == wanted, "{what}: other bytes");
                let counts = |survival: &Survival| (survival.elements, survival.wanted, survival.lost);
                assert_eq!(counts(&found), counts(expected), "{what}");
                assert_eq!(found.max_delta, expected.max_delta, "{what}");
                let all = (expected.delta_squared * expected.moved_squared).sqrt();
                for (found, expected, size) in [
                    (found.delta_squared, expected.delta_squared, expected.delta_squared),
                    (found.moved_squared, expected.moved_squared, expected.moved_squared),
                    (found.dot, expected.dot, all),
                    (found.error_squared, expected.error_squared, expected.error_squared),
                ] {
                    assert!((found - expected).abs() <= 1e-5 * size, "{what}: {found} instead of {expected}");
                }
                assert_eq!(format!("{found:?}"), *first.get_or_insert(format!("{found:?}")), "{what}");
            }
        }
    }

    fn rounded(float: Float, value: f32) -> f32 {
        let (mut bytes, mut back) = (vec![0; float.bytes()], [0.0]);
        float.encode(&[value], Rounding::Nearest, &mut bytes);
        float.decode(&bytes, &mut back);
        back[0]
    }

    fn formats() -> impl Iterator<Item = Float> {
        FLOATS.into_iter().filter(|float| *float != Float::F64)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_block_is_merged_as_defined(
            rows in 1_usize..14, cols in 1_usize..200, rank in 1_usize..=64, more in 0_usize..3, seed: u32, mode in 0..3
        ) {
            let ranks = [rank, 1 + rank / 2, 3];
            let mut case = Case::new(seed.into(), (rows, cols), &ranks[..=more], uniform);
            case.rounds_products = mode == 1;
            if mode == 2 {
                case.rounding = Rounding::Stochastic { seed: seed.into(), index: u64::from(seed) << 20 };
            }
            formats().for_each(|float| case.check(float));
        }

        #[test]
        fn ties_zeros_with_a_sign_and_subnormals_are_merged_as_defined(
            rows in 1_usize..9, cols in 1_usize..140, rank in 1_usize..4, seed: u32, rounds_products: bool
        ) {
            let odd = [0.0, -0.0, 1.0, -1.0, 1.0078125, 0.00390625, -0.00390625, 0.0625, 1e-40, -1e-45, 6e-8, 3e-5];
            let mut case = Case::new(seed.into(), (rows, cols), &[rank, 1], |seed, count| some_of(seed, count, &odd));
            case.rounds_products = rounds_products;
            formats().for_each(|float| case.check(float));
        }

        #[test]
        fn what_is_not_finite_is_left_to_the_tiles(
            rows in 1_usize..9, cols in 1_usize..140, at in 0_usize..10_000, which in 0..4, value in 0..3_usize, rounds_products: bool
        ) {
            let mut case = Case::new(7, (rows, cols), &[3], uniform);
            case.rounds_products = rounds_products;
            let value = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][value];
            let at_base = at % rows * (cols + case.gap) + at % cols;
            match which {
                0 => case.base[at_base] = value,
                1 => case.factors[0].0[at % (3 * rows)] = value,
                2 => case.factors[0].1[at % (3 * cols)] = value,
                _ => case.factors[0].3 = value,
            }
            formats().for_each(|float| case.check(float));
        }
    }

    #[test]
    fn wide_rows_many_rows_and_high_ranks_are_merged_as_defined() {
        for (rows, cols, ranks) in
            [(65, 2049, &[16][..]), (7, 331, &[700]), (64, 1, &[64]), (5, 96, &[]), (33, 640, &[64, 64, 8])]
        {
            let case = Case::new(3, (rows, cols), ranks, uniform);
            formats().for_each(|float| case.check(float));
        }
    }

    #[test]
    fn squares_beyond_f32_and_f64_weights_are_left_to_the_tiles() {
        let small = Case::new(0, (4, 40), &[1], |_, count| vec![1e-12; count]);
        let mut base = vec![0; 4 * 40 * 4];
        let (up, down, rank, scale) = &small.factors[0];
        let products = [Product { up, down, rank: *rank, scale: *scale }];
        let (rounding, rounds_products) = (Rounding::Nearest, false);
        let pass = OnePass { rows: 4, cols: 40, stride: 40, products: &products, rounding, rounds_products };
        let mut out = vec![0; base.len()];
        assert_eq!(pass.merge(Float::F32, &base, &mut out), None);
        base.resize(2 * base.len(), 0);
        out.resize(base.len(), 0);
        assert_eq!(pass.merge(Float::F64, &base, &mut out), None);
    }
}
