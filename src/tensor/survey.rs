//! Encoding and surveying in one pass over a tile, while its values are in the cache.
//!
//! The survey must cost less than the merge. Its differences are taken in f32, their squares summed in f32 over runs
//! of [`RUN`] elements per lane and from there on in f64: a relative error below 40 · 2⁻²⁴ (2.4e-6). Squares in f64
//! throughout took twice the time. A chunk whose deltas are so small or large that their squares would leave the range
//! of f32 is surveyed again in f64.
//! The lanes are added up in a fixed order, so a tile gives the same [`Survival`] on every CPU.

use super::code::{Bf16, Code};
use super::codec::Rounding;
use super::dtype::Float;
use super::packing::Packing;
use super::simd::{Level, Simd, lanes, per_cpu};
use super::survival::Survival;

/// Elements surveyed side by side: one AVX2 register of f32, one AVX-512 or two AVX2 registers of f64.
const LANES: usize = 8;

/// Elements per lane that are summed in f32 before f64 takes over.
const RUN: usize = 32;

/// Elements between two looks at the sums; what is decoded of them stays in the L1 cache.
const CHUNK: usize = 1024;

/// The largest |delta| of a chunk must lie between these for its squares to be summed in f32: that keeps
/// the squares that matter normal (above 2⁻¹²⁶), and [`RUN`] of them finite (below 2¹²⁸).
const F32_RANGE: std::ops::RangeInclusive<f32> = 8.881784e-16..=1.1529215e18; // 2^-50 to 2^60

/// A value that is infinite or NaN, or became so when it was rounded, or was lost with its block. (Values of an F64 tensor are shown as f32.)
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct NotFinite {
    /// Index in the slices given.
    pub index: usize,
    /// The base's value.
    pub base: f32,
    /// Base plus delta.
    pub exact: f32,
    /// That, as it would be stored.
    pub rounded: f32,
}

/// What survived so far, and room for what a survey decodes: clearing that for each call would cost as much as the survey.
#[derive(Debug)]
pub struct Tally {
    /// The sums.
    pub survival: Survival,
    bases: [f32; CHUNK],
    roundeds: [f32; CHUNK],
    dithered: [f32; CHUNK],
}

impl Default for Tally {
    fn default() -> Self {
        Self { survival: Survival::default(), bases: [0.0; CHUNK], roundeds: [0.0; CHUNK], dithered: [0.0; CHUNK] }
    }
}

/// Encodes `exact` into `out` and adds to the `tally` what became of the change from `base`.
///
/// An F64 base is surveyed as f32; [`add_to_f64`] is for results in f64.
///
/// # Errors
/// The first element whose base, exact or rounded value is not finite. `out` is then incomplete and `survival` as it
/// was.
///
/// # Panics
/// When the three slices hold different numbers of elements.
pub fn encode_surveyed(
    base: &[u8],
    base_float: Float,
    exact: &[f32],
    out_float: Float,
    rounding: Rounding,
    out: &mut [u8],
    tally: &mut Tally,
) -> Result<(), NotFinite> {
    assert_eq!(base.len(), exact.len() * base_float.bytes(), "as many base elements as values");
    assert_eq!(out.len(), exact.len() * out_float.bytes(), "as many places as values");
    // What no product changes in one pass (DoRA, LoHa and their kin), without the detour of the numbers through memory.
    let fused = base_float == Float::Bf16 && out_float == Float::Bf16 && rounding == Rounding::Nearest;
    let mut sum = Survival::default();
    let chunks = base.chunks(CHUNK * base_float.bytes()).zip(exact.chunks(CHUNK));
    for (n, ((base, exact), out)) in chunks.zip(out.chunks_mut(CHUNK * out_float.bytes())).enumerate() {
        let (bases, roundeds) = (&mut tally.bases[..exact.len()], &mut tally.roundeds[..exact.len()]);
        let mut chunk = if fused {
            encode_and_survey_at::<Bf16>(Level::best(), base, exact, out)
        } else {
            base_float.decode(base, bases);
            out_float.encode(exact, rounding.skip(n * CHUNK), out);
            out_float.decode(out, roundeds);
            survey_at(Level::best(), bases, exact, roundeds)
        };
        if !fits_f32(&chunk) {
            base_float.decode(base, bases);
            out_float.decode(out, roundeds);
            chunk = survey_in_f64(bases, exact, roundeds)
                .map_err(|found| NotFinite { index: n * CHUNK + found.index, ..found })?;
        }
        sum.add(&chunk);
    }
    tally.survival.add(&sum);
    Ok(())
}

/// [`encode_surveyed`] for values that are stored in any way: `base` has the values as they were.
///
/// # Errors
/// As [`encode_surveyed`].
///
/// # Panics
/// When the three slices hold different numbers of values, or they are no whole number of blocks.
pub fn encode_values(
    base: &[f32],
    exact: &[f32],
    packing: Packing,
    rounding: Rounding,
    out: &mut [u8],
    tally: &mut Tally,
) -> Result<(), NotFinite> {
    assert_eq!(base.len(), exact.len(), "as many base values as values");
    assert_eq!(out.len(), packing.bytes_of(exact.len()), "as many places as values");
    let mut sum = Survival::default();
    let chunks = base.chunks(CHUNK).zip(exact.chunks(CHUNK)).zip(out.chunks_mut(packing.bytes_of(CHUNK)));
    for (n, ((base, exact), out)) in chunks.enumerate() {
        let roundeds = &mut tally.roundeds[..exact.len()];
        let at = |found: NotFinite| NotFinite { index: n * CHUNK + found.index, ..found };
        if packing.float().is_none() && !exact.iter().fold(true, |finite, value| finite & value.is_finite()) {
            // A block with such a value has no scale; the search below finds which it is.
            return survey_in_f64(base, exact, exact).map(|_| ()).map_err(at);
        }
        match (packing, rounding.skip(n * CHUNK)) {
            (Packing::Blocks(ggml), Rounding::Stochastic { seed, index }) => {
                let dithered = &mut tally.dithered[..exact.len()];
                dithered.copy_from_slice(exact);
                ggml.dither(dithered, seed, index);
                ggml.encode(dithered, out);
            }
            (_, rounding) => packing.encode(exact, rounding, out),
        }
        packing.decode(out, roundeds);
        let mut chunk = survey_at(Level::best(), base, exact, roundeds);
        if !fits_f32(&chunk) {
            chunk = survey_in_f64(base, exact, roundeds).map_err(at)?;
        }
        if let Packing::Blocks(ggml) = packing
            && let Some(index) = ggml.lost(exact, roundeds)
        {
            let lost = NotFinite { index, base: base[index], exact: exact[index], rounded: roundeds[index] };
            return Err(at(lost));
        }
        sum.add(&chunk);
    }
    tally.survival.add(&sum);
    Ok(())
}

/// Adds f32 deltas to an F64 base: `out = base + delta` in f64, surveyed as in [`encode_surveyed`].
///
/// # Errors
/// The first element whose base, delta or sum is not finite. `out` is then incomplete and `survival` as it was.
///
/// # Panics
/// When the slices hold different numbers of elements.
pub fn add_to_f64(base: &[u8], delta: &[f32], out: &mut [u8], survival: &mut Survival) -> Result<(), NotFinite> {
    assert!(base.len() == delta.len() * size_of::<f64>() && out.len() == base.len(), "as many elements as deltas");
    let mut sum = Survival::default();
    let elements = base.as_chunks().0.iter().zip(delta).zip(out.as_chunks_mut().0);
    for (index, ((&base, &delta), out)) in elements.enumerate() {
        let base = f64::from_le_bytes(base);
        let moved = base + f64::from(delta);
        if !moved.is_finite() {
            let moved = moved as f32;
            return Err(NotFinite { index, base: base as f32, exact: moved, rounded: moved });
        }
        *out = moved.to_le_bytes();
        sum.add(&one(f64::from(delta), moved - base, moved - base - f64::from(delta)));
    }
    survival.add(&sum);
    Ok(())
}

/// What became of one element, from rounded differences that are exact enough to be 0 only where they should be.
fn one(delta: f64, moved: f64, error: f64) -> Survival {
    Survival {
        elements: 1,
        wanted: u64::from(delta != 0.0),
        lost: u64::from(delta != 0.0 && moved == 0.0),
        delta_squared: delta * delta,
        moved_squared: moved * moved,
        dot: moved * delta,
        error_squared: error * error,
        max_delta: delta.abs() as f32,
        ..Survival::default()
    }
}

/// The survey of a chunk in f64 from the start, and the search for what is not finite in it.
#[cold]
fn survey_in_f64(base: &[f32], exact: &[f32], rounded: &[f32]) -> Result<Survival, NotFinite> {
    let mut sum = Survival::default();
    for (index, ((&base, &exact), &rounded)) in base.iter().zip(exact).zip(rounded).enumerate() {
        if !(base.is_finite() && exact.is_finite() && rounded.is_finite()) {
            return Err(NotFinite { index, base, exact, rounded });
        }
        let (base, exact, rounded) = (f64::from(base), f64::from(exact), f64::from(rounded));
        sum.add(&one(exact - base, rounded - base, rounded - exact));
    }
    Ok(sum)
}

/// What became of a change: `base` as it was, `exact` as wanted, `rounded` as it is stored.
///
/// # Errors
/// When a value is not finite, with its index.
pub fn survey_values(base: &[f32], exact: &[f32], rounded: &[f32]) -> Result<Survival, NotFinite> {
    let chunk = survey_at(Level::best(), base, exact, rounded);
    if fits_f32(&chunk) { Ok(chunk) } else { survey_in_f64(base, exact, rounded) }
}

/// Whether the sums of a chunk can be trusted; never so where anything was not finite.
pub(super) fn fits_f32(chunk: &Survival) -> bool {
    // Whatever is infinite or NaN in base, exact or rounded is so in one of these two sums.
    let finite = (chunk.delta_squared + chunk.moved_squared).is_finite();
    finite && (chunk.max_delta == 0.0 || F32_RANGE.contains(&chunk.max_delta))
}

per_cpu! {
    fn survey_at(base: &[f32], exact: &[f32], rounded: &[f32]) -> Survival = survey_body;
}

#[inline(always)]
fn survey_body(base: &[f32], exact: &[f32], rounded: &[f32]) -> Survival {
    let ((bases, base_rest), (exacts, exact_rest)) = (base.as_chunks::<LANES>(), exact.as_chunks::<LANES>());
    let (roundeds, rounded_rest) = rounded.as_chunks::<LANES>();
    let mut sums = Sums::<LANES>::ZERO;
    for ((bases, exacts), roundeds) in bases.chunks(RUN).zip(exacts.chunks(RUN)).zip(roundeds.chunks(RUN)) {
        let mut run = Run::<LANES>::ZERO;
        for ((base, exact), rounded) in bases.iter().zip(exacts).zip(roundeds) {
            run.add(base, exact, rounded);
        }
        sums.add(&run);
    }
    let mut run = Run::<LANES>::ZERO;
    run.add(&padded(base_rest), &padded(exact_rest), &padded(rounded_rest));
    sums.add(&run);
    sums.total(exact.len())
}

per_cpu! {
    fn encode_and_survey_at<C: Code>(base: &[u8], exact: &[f32], out: &mut [u8]) -> Survival = encode_and_survey_body::<C>;
}

/// To nearest from and to the same format, in one pass; the sums are those of [`survey_body`], bit for bit.
#[inline(always)]
fn encode_and_survey_body<C: Code>(base: &[u8], exact: &[f32], out: &mut [u8]) -> Survival {
    let base = bytemuck::cast_slice::<u8, C::Bytes>(base);
    let out = bytemuck::cast_slice_mut::<u8, C::Bytes>(out);
    let ((bases, base_rest), (exacts, exact_rest)) = (base.as_chunks::<LANES>(), exact.as_chunks::<LANES>());
    let (outs, out_rest) = out.as_chunks_mut::<LANES>();
    let mut sums = Sums::<LANES>::ZERO;
    for ((bases, exacts), outs) in bases.chunks(RUN).zip(exacts.chunks(RUN)).zip(outs.chunks_mut(RUN)) {
        let mut run = Run::<LANES>::ZERO;
        for ((base, exact), out) in bases.iter().zip(exacts).zip(outs) {
            *out = exact.map(C::nearest);
            run.add(&base.map(C::widen), exact, &out.map(C::widen));
        }
        sums.add(&run);
    }
    let mut rest = [[0.0; LANES]; 3];
    for (i, ((base, exact), out)) in base_rest.iter().zip(exact_rest).zip(out_rest).enumerate() {
        *out = C::nearest(*exact);
        (rest[0][i], rest[1][i], rest[2][i]) = (C::widen(*base), *exact, C::widen(*out));
    }
    let mut run = Run::<LANES>::ZERO;
    run.add(&rest[0], &rest[1], &rest[2]);
    sums.add(&run);
    sums.total(exact.len())
}

/// The last few elements, followed by zeros: three equal values add nothing to any sum.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    std::array::from_fn(|i| rest.get(i).copied().unwrap_or(0.0))
}

/// The sums of up to [`RUN`] elements in each of `LANES` lanes.
#[derive(Clone, Copy)]
pub(super) struct Run<const LANES: usize> {
    wanted: [u32; LANES],
    moved: [u32; LANES],
    delta_squared: [f32; LANES],
    moved_squared: [f32; LANES],
    dot: [f32; LANES],
    error_squared: [f32; LANES],
    max_delta: [f32; LANES],
}

impl<const LANES: usize> Run<LANES> {
    /// Nothing yet.
    pub(super) const ZERO: Self = Self {
        wanted: [0; LANES],
        moved: [0; LANES],
        delta_squared: [0.0; LANES],
        moved_squared: [0.0; LANES],
        dot: [0.0; LANES],
        error_squared: [0.0; LANES],
        max_delta: [0.0; LANES],
    };

    #[inline(always)]
    fn add(&mut self, base: &[f32; LANES], exact: &[f32; LANES], rounded: &[f32; LANES]) {
        for i in 0..LANES {
            let delta = exact[i] - base[i];
            let moved = rounded[i] - base[i];
            let error = rounded[i] - exact[i];
            let wanted = u32::from(exact[i] != base[i]);
            self.wanted[i] += wanted;
            self.moved[i] += wanted & u32::from(rounded[i] != base[i]);
            self.max_delta[i] = larger(delta.abs(), self.max_delta[i]);
            self.delta_squared[i] = delta.mul_add(delta, self.delta_squared[i]);
            self.moved_squared[i] = moved.mul_add(moved, self.moved_squared[i]);
            self.dot[i] = moved.mul_add(delta, self.dot[i]);
            self.error_squared[i] = error.mul_add(error, self.error_squared[i]);
        }
    }

    /// Base, exact and rounded elements of a format that holds every base, so that what was not to move did not; in the lanes
    /// from `first` on.
    #[inline(always)]
    pub(super) fn add_vectors<const W: usize, S: Simd<W>, const N: usize>(
        &mut self,
        simd: S,
        first: usize,
        elements: [[S::Vector; 3]; N],
    ) {
        macro_rules! lanes {
            ($field:ident) => {
                self.$field[first..].first_chunk_mut::<W>().expect("the lanes are there")
            };
        }
        macro_rules! counts {
            ($field:ident) => {
                simd.load(&lanes(|i| f32::from_bits(self.$field[first + i])))
            };
        }
        let (mut wanted, mut moved) = (counts!(wanted), counts!(moved));
        let (mut delta_squared, mut moved_squared) =
            (simd.load(lanes!(delta_squared)), simd.load(lanes!(moved_squared)));
        let (mut dot, mut error_squared) = (simd.load(lanes!(dot)), simd.load(lanes!(error_squared)));
        let mut max_delta = simd.load(lanes!(max_delta));
        for [base, exact, rounded] in elements {
            let (delta, change, error) = (simd.sub(exact, base), simd.sub(rounded, base), simd.sub(rounded, exact));
            wanted = simd.count_differing(wanted, exact, base);
            moved = simd.count_differing(moved, rounded, base);
            max_delta = simd.largest(delta, max_delta);
            delta_squared = simd.mul_add(delta, delta, delta_squared);
            moved_squared = simd.mul_add(change, change, moved_squared);
            dot = simd.mul_add(change, delta, dot);
            error_squared = simd.mul_add(error, error, error_squared);
        }
        let (wanted, moved) = (simd.store(wanted), simd.store(moved));
        *lanes!(wanted) = lanes(|i| wanted[i].to_bits());
        *lanes!(moved) = lanes(|i| moved[i].to_bits());
        *lanes!(delta_squared) = simd.store(delta_squared);
        *lanes!(moved_squared) = simd.store(moved_squared);
        *lanes!(dot) = simd.store(dot);
        *lanes!(error_squared) = simd.store(error_squared);
        *lanes!(max_delta) = simd.store(max_delta);
    }
}

/// The sums of many runs.
pub(super) struct Sums<const LANES: usize> {
    wanted: [u32; LANES],
    moved: [u32; LANES],
    delta_squared: [f64; LANES],
    moved_squared: [f64; LANES],
    dot: [f64; LANES],
    error_squared: [f64; LANES],
    max_delta: [f32; LANES],
}

impl<const LANES: usize> Sums<LANES> {
    /// Nothing yet.
    pub(super) const ZERO: Self = Self {
        wanted: [0; LANES],
        moved: [0; LANES],
        delta_squared: [0.0; LANES],
        moved_squared: [0.0; LANES],
        dot: [0.0; LANES],
        error_squared: [0.0; LANES],
        max_delta: [0.0; LANES],
    };

    /// One more run.
    #[inline(always)]
    pub(super) fn add(&mut self, run: &Run<LANES>) {
        for i in 0..LANES {
            self.wanted[i] += run.wanted[i];
            self.moved[i] += run.moved[i];
            self.delta_squared[i] += f64::from(run.delta_squared[i]);
            self.moved_squared[i] += f64::from(run.moved_squared[i]);
            self.dot[i] += f64::from(run.dot[i]);
            self.error_squared[i] += f64::from(run.error_squared[i]);
            self.max_delta[i] = larger(run.max_delta[i], self.max_delta[i]);
        }
    }

    /// The sums of all lanes, in their order.
    #[inline(always)]
    pub(super) fn total(&self, elements: usize) -> Survival {
        let wanted = self.wanted.iter().sum::<u32>();
        Survival {
            elements: u64::try_from(elements).expect("usize has at most 64 bits"),
            wanted: wanted.into(),
            lost: (wanted - self.moved.iter().sum::<u32>()).into(),
            delta_squared: self.delta_squared.iter().sum(),
            moved_squared: self.moved_squared.iter().sum(),
            dot: self.dot.iter().sum(),
            error_squared: self.error_squared.iter().sum(),
            max_delta: self.max_delta.iter().copied().fold(0.0, larger),
            ..Survival::default()
        }
    }
}

/// `max` in the one form that is a single instruction.
#[inline(always)]
fn larger(new: f32, old: f32) -> f32 {
    if new > old { new } else { old }
}

#[cfg(test)]
mod tests {
    use super::super::dtype::FLOATS;
    use super::super::random;
    use super::*;
    use proptest::prelude::*;

    /// Uniform in -1 to 1.
    fn uniform(seed: u64, count: usize) -> Vec<f32> {
        (0..count).map(|i| random::bits(seed, i as u64) as f32 / 2.0_f32.powi(31) - 1.0).collect()
    }

    fn encoded(float: Float, values: &[f32], rounding: Rounding) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * float.bytes()];
        float.encode(values, rounding, &mut bytes);
        bytes
    }

    fn decoded(float: Float, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / float.bytes()];
        float.decode(bytes, &mut values);
        values
    }

    fn surveyed(base: &[f32], exact: &[f32], float: Float) -> Result<Survival, NotFinite> {
        let (base, mut tally) = (encoded(float, base, Rounding::Nearest), Tally::default());
        let mut out = vec![0; base.len()];
        encode_surveyed(&base, float, exact, float, Rounding::Nearest, &mut out, &mut tally).map(|()| tally.survival)
    }

    #[track_caller]
    fn assert_close(found: &Survival, expected: &Survival) {
        assert_eq!((found.elements, found.wanted, found.lost), (expected.elements, expected.wanted, expected.lost));
        assert!((found.max_delta - expected.max_delta).abs() <= expected.max_delta * 1e-6);
        // The terms of `dot` may cancel, so its error is measured against what they could have added up to.
        let all = (expected.delta_squared * expected.moved_squared).sqrt();
        for (found, expected, size) in [
            (found.delta_squared, expected.delta_squared, expected.delta_squared),
            (found.moved_squared, expected.moved_squared, expected.moved_squared),
            (found.dot, expected.dot, all),
            (found.error_squared, expected.error_squared, expected.error_squared),
        ] {
            assert!((found - expected).abs() <= 40.0 * 2.0_f64.powi(-24) * size, "{found} instead of {expected}");
        }
    }

    proptest! {
        #[test]
        fn one_pass_gives_the_sums_of_three(seed: u64, count in 0_usize..700, size in 1e-9_f32..10.0) {
            let base = encoded(Float::Bf16, &uniform(seed, count), Rounding::Nearest);
            let exact: Vec<f32> =
                decoded(Float::Bf16, &base).iter().zip(uniform(!seed, count)).map(|(w, d)| w + size * d).collect();
            let out = encoded(Float::Bf16, &exact, Rounding::Nearest);
            let wanted = survey_body(&decoded(Float::Bf16, &base), &exact, &decoded(Float::Bf16, &out));
            for level in Level::all() {
                let mut written = vec![0; out.len()];
                let got = encode_and_survey_at::<Bf16>(level, &base, &exact, &mut written);
                prop_assert_eq!(&written, &out);
                prop_assert_eq!(format!("{got:?}"), format!("{wanted:?}"));
            }
        }

        #[test]
        fn every_instruction_set_gives_the_same_sums_and_they_are_those_of_f64(len in 0_usize..3000, seed: u64) {
            let base = decoded(Float::Bf16, &encoded(Float::Bf16, &uniform(seed, len), Rounding::Nearest));
            let exact: Vec<f32> = base.iter().zip(uniform(!seed, len)).map(|(base, delta)| base + delta * 0.01).collect();
            let rounded = decoded(Float::Bf16, &encoded(Float::Bf16, &exact, Rounding::Nearest));
            let expected = survey_in_f64(&base, &exact, &rounded).unwrap();
            let portable = survey_body(&base, &exact, &rounded);
            assert_close(&portable, &expected);
            for level in Level::all() {
                prop_assert_eq!(&survey_at(level, &base, &exact, &rounded), &portable, "{:?}", level);
            }
        }

        #[test]
        fn any_pair_of_formats_is_encoded_and_surveyed(len in 1_usize..2500, seed: u64, stochastic: bool) {
            let rounding = if stochastic { Rounding::Stochastic { seed, index: 77 } } else { Rounding::Nearest };
            let exact = uniform(seed, len);
            for (base_float, out_float) in FLOATS.into_iter().flat_map(|a| FLOATS.map(|b| (a, b))) {
                let base = encoded(base_float, &uniform(!seed, len), Rounding::Nearest);
                let (mut out, mut tally) = (vec![0; len * out_float.bytes()], Tally::default());
                encode_surveyed(&base, base_float, &exact, out_float, rounding, &mut out, &mut tally).unwrap();
                prop_assert_eq!(&out, &encoded(out_float, &exact, rounding));
                assert_close(&tally.survival, &survey_in_f64(&decoded(base_float, &base), &exact, &decoded(out_float, &out)).unwrap());
            }
        }

        #[test]
        fn the_first_value_that_is_not_finite_is_named(len in 1_usize..3000, at in 0_usize..3000, which in 0..3) {
            let at = at % len;
            let (mut base, mut exact) = (vec![1.0; len], vec![1.25; len]);
            match which {
                0 => base[at..].fill(f32::NEG_INFINITY),
                1 => exact[at..].fill(f32::NAN),
                _ => exact[at..].fill(70_000.0), // beyond F16
            }
            let found = surveyed(&base, &exact, Float::F16).unwrap_err();
            prop_assert_eq!((found.index, found.base, found.exact.to_bits()), (at, base[at], exact[at].to_bits()));
            prop_assert!(which != 2 || found.rounded == f32::INFINITY);
        }
    }

    #[test]
    fn a_delta_below_half_an_ulp_of_bf16_is_lost_and_a_larger_one_moves() {
        // The neighbours of 1 in bf16 are 1 − 2^-8 and 1 + 2^-7.
        let survival = surveyed(&[1.0; 4], &[1.0, 1.001, 1.0 + 0.75 / 128.0, 1.0 + 1.0 / 128.0], Float::Bf16).unwrap();
        assert_eq!((survival.elements, survival.wanted, survival.lost), (4, 3, 1));
        assert_eq!(survival.max_delta, 1.0 / 128.0);
        assert!((survival.moved_squared - 2.0 / 128.0_f64.powi(2)).abs() < 1e-12);
    }

    #[test]
    fn deltas_whose_squares_leave_the_range_of_f32_are_counted_all_the_same() {
        for size in [1e-30_f32, 1e-22, 1e25, 1e38] {
            let survival = surveyed(&[0.0; 100], &[size; 100], Float::F32).unwrap();
            assert_eq!((survival.wanted, survival.lost, survival.retained()), (100, 0, 1.0), "{size}");
            assert!((survival.delta_norm() / f64::from(size) - 10.0).abs() < 1e-6, "{size}");
        }
        let across = surveyed(&[-3e38], &[3e38], Float::F32).unwrap();
        assert!((across.delta_norm() / 6e38 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_failed_survey_adds_nothing() {
        let (mut tally, mut out) = (Tally::default(), vec![0; 8000]);
        let exact: Vec<f32> = (0..2000).map(|i| if i == 1999 { f32::NAN } else { 1.0 }).collect();
        let base = vec![0; 8000];
        encode_surveyed(&base, Float::F32, &exact, Float::F32, Rounding::Nearest, &mut out, &mut tally).unwrap_err();
        assert_eq!(tally.survival, Survival::default());
    }

    #[test]
    fn an_f64_base_keeps_deltas_that_f32_would_lose() {
        let base: Vec<u8> = [1.0_f64, -2.0, 1e300, 5.0].into_iter().flat_map(f64::to_le_bytes).collect();
        let (mut out, mut survival) = (vec![0; base.len()], Survival::default());
        add_to_f64(&base, &[1e-10, 0.5, 1.0, 0.0], &mut out, &mut survival).unwrap();
        let expected = [1.0 + f64::from(1e-10_f32), -1.5, 1e300, 5.0];
        assert_eq!(out, expected.into_iter().flat_map(f64::to_le_bytes).collect::<Vec<u8>>());
        assert_eq!((survival.elements, survival.wanted, survival.lost, survival.max_delta), (4, 3, 1, 1.0));
        assert!((survival.retained() - 0.25 / 1.25).abs() < 1e-12);

        let found = add_to_f64(&base, &[0.0, f32::INFINITY, 0.0, 0.0], &mut out, &mut survival).unwrap_err();
        assert_eq!((found.index, found.base, found.exact), (1, -2.0, f32::INFINITY));
        assert_eq!(survival.elements, 4);
    }
}
