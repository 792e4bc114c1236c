//! What is taken off codes: zeros, packed in the ways of their makers.

use std::ops::Range;

use crate::error::Result;
use crate::formats::Stored;
use crate::tensor::codes::{BitOrder, Bits};

/// What is taken off codes.
#[derive(Debug)]
pub enum Zeros {
    /// The same for all.
    All(f32),
    /// A signed byte per run, row by row, and `middle` is added to it.
    Bytes {
        /// The tensor.
        stored: Stored,
        /// Runs of a row.
        across: usize,
        /// The code of 0.
        middle: f32,
    },
    /// Packed down the rows, a column of words per run (compressed-tensors).
    Down {
        /// The tensor, `[words, runs]`.
        stored: Stored,
        /// How they are packed.
        bits: Bits,
        /// Runs side by side.
        across: usize,
        /// Rows of one matrix of a stack: each begins with a word.
        rows: usize,
    },
    /// Packed along the rows, a line per run (GPTQ, AWQ).
    Along {
        /// The tensor, `[runs, words]`.
        stored: Stored,
        /// How they are packed.
        bits: Bits,
        /// Bytes of a line.
        bytes: usize,
        /// What has to be added to them.
        shift: Shift,
    },
}

/// What has to be added to stored zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shift {
    /// Nothing.
    Nothing,
    /// One to every field, by adding to the whole word of so many bytes: as it was subtracted, with its borrow.
    Word(usize),
    /// One to every field.
    Field,
}

impl Zeros {
    /// Row by row.
    pub fn read(&self, rows: Range<usize>, runs: Range<usize>) -> Result<Vec<f32>> {
        let (count, across) = (rows.len(), runs.len());
        let mut zeros = vec![0.0; count * across];
        match self {
            Self::All(zero) => zeros.fill(*zero),
            Self::Bytes { stored, across: all, middle } => {
                for (row, line) in rows.zip(zeros.chunks_exact_mut(across.max(1))) {
                    let bytes = stored.read((row * all + runs.start) as u64, across as u64)?;
                    let values = bytes.iter().map(|byte| f32::from(byte.cast_signed()) + middle);
                    line.iter_mut().zip(values).for_each(|(place, value)| *place = value);
                }
            }
            Self::Down { stored, bits, across: all, rows: each } => {
                let (mut row, mut rest) = (rows.start, zeros.as_mut_slice());
                while row < rows.end {
                    let (matrix, first) = (row / each, row % each);
                    let part = first..*each.min(&(first + rows.end - row));
                    let (own, others) = rest.split_at_mut(part.len() * across);
                    let above = matrix * bits.bytes_of(*each).div_ceil(4);
                    row += part.len();
                    down(stored, *bits, above, *all, (part, runs.clone()), own)?;
                    rest = others;
                }
            }
            Self::Along { stored, bits, bytes, shift } => {
                // Whole words of up to eight bytes, whatever the width: 64 codes.
                const UNIT: usize = 64;
                let first = rows.start / UNIT;
                let skipped = rows.start - first * UNIT;
                let start = first * bits.bytes_of(UNIT);
                let end = (*bytes).min(start + bits.bytes_of((skipped + count).next_multiple_of(UNIT)));
                let mut codes = vec![0; skipped + count];
                for (at, run) in runs.enumerate() {
                    let mut line = stored.read((run * bytes + start) as u64, (end - start) as u64)?.into_owned();
                    shift.add_to_words(*bits, &mut line);
                    bits.unpack(&line, &mut codes);
                    let places = zeros[at..].iter_mut().step_by(across);
                    let codes = codes[skipped..].iter().map(|code| shift.add_to_field(*bits, *code));
                    places.zip(codes).for_each(|(place, code)| *place = f32::from(code));
                }
            }
        }
        Ok(zeros)
    }
}

/// Zeros that are packed down the rows of a matrix, `above` words of others lying before it.
fn down(
    stored: &Stored,
    bits: Bits,
    above: usize,
    all: usize,
    (rows, runs): (Range<usize>, Range<usize>),
    zeros: &mut [f32],
) -> Result<()> {
    let across = runs.len();
    // Words that begin where the order does: 32 codes of a stream, as many as fit one otherwise.
    let (unit, words) = match bits.order() {
        BitOrder::Words => (bits.unit().0, 1),
        _ => (32, bits.bytes_of(32) / 4),
    };
    let (first, skipped) = (above + rows.start / unit * words, rows.start % unit);
    let needed = bits.bytes_of(skipped + rows.len()).div_ceil(4);
    let mut gathered = vec![0; across * needed * 4];
    for at in 0..needed {
        let line = stored.read((((first + at) * all + runs.start) * 4) as u64, across as u64 * 4)?;
        for (run, word) in line.as_chunks::<4>().0.iter().enumerate() {
            gathered[(run * needed + at) * 4..][..4].copy_from_slice(word);
        }
    }
    let mut codes = vec![0; skipped + rows.len()];
    for (run, words) in gathered.chunks_exact(needed * 4).enumerate() {
        bits.unpack(words, &mut codes);
        let places = zeros[run..].iter_mut().step_by(across);
        places.zip(&codes[skipped..]).for_each(|(place, code)| *place = f32::from(*code));
    }
    Ok(())
}

impl Shift {
    fn add_to_words(self, bits: Bits, line: &mut [u8]) {
        let Self::Word(word) = self else { return };
        // One in every field of a byte: 0x55, 0x11 or 0x01; a carry goes on to the end of the word.
        let one = (0..8).step_by(bits.unit().1).fold(0_u8, |byte, at| byte | 1 << at);
        for word in line.chunks_exact_mut(word) {
            let mut carry = 0;
            for byte in word {
                let [low, high] = (u16::from(*byte) + u16::from(one) + carry).to_le_bytes();
                (*byte, carry) = (low, u16::from(high));
            }
        }
    }

    fn add_to_field(self, bits: Bits, code: u8) -> u8 {
        if self == Self::Field { code.wrapping_add(1) & bits.most() } else { code }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_added_with_the_borrow_it_was_subtracted_with() {
        let four = Bits::new(BitOrder::Stream, 4).expect("four bits");
        // Zeros 0, 8, 8 … minus 0x11111111: the first field is all ones, its neighbour lost one more.
        let mut word = 0x8888_8880_u32.wrapping_sub(0x1111_1111).to_le_bytes();
        assert_eq!(word, [0x6F, 0x77, 0x77, 0x77]);
        Shift::Word(4).add_to_words(four, &mut word);
        assert_eq!(u32::from_le_bytes(word), 0x8888_8880);
        let two = Bits::new(BitOrder::Stream, 2).expect("two bits");
        let mut words = [0xFF; 8];
        Shift::Word(4).add_to_words(two, &mut words);
        assert_eq!(words, [0x54, 0x55, 0x55, 0x55, 0x54, 0x55, 0x55, 0x55], "nothing is carried into the next word");
        let three = Bits::new(BitOrder::Stream, 3).expect("three bits");
        assert_eq!([7, 3].map(|code| Shift::Field.add_to_field(three, code)), [0, 4]);
    }
}
