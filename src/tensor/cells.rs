//! Rows of a block between bytes and vectors, format by format.

use std::marker::PhantomData;

use super::code::{self, Code};
use super::low_rank::VECTORS;
use super::simd::{Simd, lanes};

/// A format, as the rows of blocks are read and written in it.
pub(super) trait Cells: Copy + 'static {
    /// The bytes of one element.
    type Bytes: bytemuck::Pod;

    /// Whether the vectors of a row hold its even and its odd columns, not its left and its right half.
    const PAIRED: bool = false;

    /// The values of a row.
    fn widen<const W: usize, S: Simd<W>>(simd: S, row: &[[Self::Bytes; W]; VECTORS]) -> [S::Vector; VECTORS];

    /// A row of the nearest elements.
    fn nearest<const W: usize, S: Simd<W>>(simd: S, values: [S::Vector; VECTORS]) -> [[Self::Bytes; W]; VECTORS];

    /// The same for values none of which is NaN; others may become anything.
    #[inline(always)]
    fn nearest_number<const W: usize, S: Simd<W>>(
        simd: S,
        values: [S::Vector; VECTORS],
    ) -> [[Self::Bytes; W]; VECTORS] {
        Self::nearest(simd, values)
    }

    /// A row of neighbours, at random.
    fn stochastic<const W: usize, S: Simd<W>>(
        simd: S,
        values: [S::Vector; VECTORS],
        random: [[u32; W]; VECTORS],
    ) -> [[Self::Bytes; W]; VECTORS];

    /// Column of a lane within its row.
    #[inline(always)]
    fn column<const W: usize>(vector: usize, lane: usize) -> usize {
        if Self::PAIRED { VECTORS * lane + vector } else { vector * W + lane }
    }
}

/// Element by element.
#[derive(Clone, Copy)]
pub(super) struct Each<C>(PhantomData<C>);

impl<C: Code> Cells for Each<C> {
    type Bytes = C::Bytes;

    #[inline(always)]
    fn widen<const W: usize, S: Simd<W>>(simd: S, row: &[[C::Bytes; W]; VECTORS]) -> [S::Vector; VECTORS] {
        let [left, right] = row;
        [simd.load(&lanes(|i| C::widen(left[i]))), simd.load(&lanes(|i| C::widen(right[i])))]
    }

    #[inline(always)]
    fn nearest<const W: usize, S: Simd<W>>(simd: S, [left, right]: [S::Vector; VECTORS]) -> [[C::Bytes; W]; VECTORS] {
        let (left, right) = (simd.store(left), simd.store(right));
        [lanes(|i| C::nearest(left[i])), lanes(|i| C::nearest(right[i]))]
    }

    #[inline(always)]
    fn stochastic<const W: usize, S: Simd<W>>(
        simd: S,
        [left, right]: [S::Vector; VECTORS],
        random: [[u32; W]; VECTORS],
    ) -> [[C::Bytes; W]; VECTORS] {
        let (left, right) = (simd.store(left), simd.store(right));
        [lanes(|i| C::stochastic(left[i], random[0][i])), lanes(|i| C::stochastic(right[i], random[1][i]))]
    }
}

/// f16 by the instructions for it.
#[derive(Clone, Copy)]
pub(super) struct F16;

impl Cells for F16 {
    type Bytes = [u8; 2];

    #[inline(always)]
    fn widen<const W: usize, S: Simd<W>>(simd: S, row: &[[[u8; 2]; W]; VECTORS]) -> [S::Vector; VECTORS] {
        [simd.widen_f16(&row[0]), simd.widen_f16(&row[1])]
    }

    #[inline(always)]
    fn nearest<const W: usize, S: Simd<W>>(simd: S, [left, right]: [S::Vector; VECTORS]) -> [[[u8; 2]; W]; VECTORS] {
        [simd.narrow_f16(left), simd.narrow_f16(right)]
    }

    #[inline(always)]
    fn stochastic<const W: usize, S: Simd<W>>(
        simd: S,
        values: [S::Vector; VECTORS],
        random: [[u32; W]; VECTORS],
    ) -> [[[u8; 2]; W]; VECTORS] {
        Each::<code::F16>::stochastic(simd, values, random)
    }
}

/// bf16, two neighbours to a word: the even columns are its lower halves, the odd ones its upper halves, and nothing has to change
/// its lane.
#[derive(Clone, Copy)]
pub(super) struct Bf16;

/// The bits of an f32 that are bf16.
const UPPER: u32 = 0xFFFF_0000;

impl Bf16 {
    /// A row of values that are rounded, of each of which the upper half counts.
    #[inline(always)]
    fn join<const W: usize>([even, odd]: [[u32; W]; VECTORS]) -> [[[u8; 2]; W]; VECTORS] {
        let mut row = [[[0; 2]; W]; VECTORS];
        let words = row.as_flattened_mut().as_flattened_mut().as_chunks_mut().0;
        for (word, (even, odd)) in words.iter_mut().zip(even.iter().zip(&odd)) {
            *word = (even >> 16 | odd & UPPER).to_le_bytes();
        }
        row
    }

    /// Rounded to nearest, ties to even; of a NaN anything.
    #[inline(always)]
    fn number(value: f32) -> u32 {
        code::to_upper_half(value.to_bits())
    }

    /// In the upper half.
    #[inline(always)]
    fn upper(code: [u8; 2]) -> u32 {
        u32::from(u16::from_le_bytes(code)) << 16
    }
}

impl Cells for Bf16 {
    type Bytes = [u8; 2];

    const PAIRED: bool = true;

    #[inline(always)]
    fn widen<const W: usize, S: Simd<W>>(simd: S, row: &[[[u8; 2]; W]; VECTORS]) -> [S::Vector; VECTORS] {
        let words = row.as_flattened().as_flattened().as_chunks().0;
        let words: [u32; W] = lanes(|i| u32::from_le_bytes(words[i]));
        [simd.load(&lanes(|i| f32::from_bits(words[i] << 16))), simd.load(&lanes(|i| f32::from_bits(words[i] & UPPER)))]
    }

    #[inline(always)]
    fn nearest<const W: usize, S: Simd<W>>(simd: S, [even, odd]: [S::Vector; VECTORS]) -> [[[u8; 2]; W]; VECTORS] {
        let (even, odd) = (simd.store(even), simd.store(odd));
        Self::join([
            lanes(|i| Self::upper(code::Bf16::nearest(even[i]))),
            lanes(|i| Self::upper(code::Bf16::nearest(odd[i]))),
        ])
    }

    #[inline(always)]
    fn nearest_number<const W: usize, S: Simd<W>>(
        simd: S,
        [even, odd]: [S::Vector; VECTORS],
    ) -> [[[u8; 2]; W]; VECTORS] {
        let (even, odd) = (simd.store(even), simd.store(odd));
        Self::join([lanes(|i| Self::number(even[i])), lanes(|i| Self::number(odd[i]))])
    }

    #[inline(always)]
    fn stochastic<const W: usize, S: Simd<W>>(
        simd: S,
        [even, odd]: [S::Vector; VECTORS],
        random: [[u32; W]; VECTORS],
    ) -> [[[u8; 2]; W]; VECTORS] {
        let (even, odd) = (simd.store(even), simd.store(odd));
        Self::join([
            lanes(|i| Self::upper(code::Bf16::stochastic(even[i], random[0][i]))),
            lanes(|i| Self::upper(code::Bf16::stochastic(odd[i], random[1][i]))),
        ])
    }
}
