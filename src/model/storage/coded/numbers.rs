//! What gives codes their values: scales, zeros and biases, one per run of columns of a row.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::model::storage::Group;
use crate::model::storage::scales::Scales;
use crate::model::storage::shapes::Sizes;
use crate::tensor::codes::{BitOrder, Bits, Shared, TILE, tiled};

/// The numbers of a weight.
#[derive(Debug)]
pub struct Numbers {
    /// Which columns share them.
    pub runs: Runs,
    /// What codes are multiplied by.
    pub scales: Field,
    /// What scales are multiplied by or divided by, for all runs of a matrix.
    pub common: Option<Common>,
    /// What is taken off codes.
    pub zeros: Zeros,
    /// What is added to products.
    pub biases: Option<Field>,
}

/// Which columns share numbers.
#[derive(Debug)]
pub enum Runs {
    /// So many neighbours.
    Of(usize),
    /// Those that are given the same index (`g_idx`: I32, one per column).
    Named {
        /// The indices.
        index: Stored,
        /// How many runs there are.
        count: usize,
    },
}

/// Floating point numbers, one per run.
#[derive(Debug)]
pub struct Field {
    /// The tensor.
    pub scales: Scales,
    /// Where the number of a row and run is.
    pub place: Place,
}

/// Where a number lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// There is one.
    One,
    /// Row by row, so many in each.
    Rows(usize),
    /// Run by run, so many rows in each.
    Columns(usize),
    /// In the tiles of cuBLAS, so many columns side by side.
    Tiled(usize),
}

/// A number that all runs of a matrix share.
#[derive(Debug)]
pub struct Common {
    /// One for all, or one per matrix of a stack.
    pub scales: Scales,
    /// Rows that share one.
    pub rows: usize,
    /// (scale, shared number) → scale.
    pub apply: fn(f32, f32) -> f32,
}

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

/// Numbers that were read.
#[derive(Debug)]
pub struct Held {
    size: usize,
    skipped: usize,
    /// Runs of a row.
    across: usize,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    biases: Vec<f32>,
}

impl Held {
    /// Those of the row that was read as the `at`th.
    pub fn row(&self, at: usize) -> Shared<'_> {
        let of = |numbers: &[f32]| {
            let (start, end) = (at * self.across, (at + 1) * self.across);
            if numbers.is_empty() { 0..0 } else { start..end }
        };
        Shared {
            size: self.size,
            skipped: self.skipped,
            scales: &self.scales[of(&self.scales)],
            zeros: &self.zeros[of(&self.zeros)],
            biases: &self.biases[of(&self.biases)],
        }
    }
}

impl Numbers {
    /// Scales and nothing else.
    pub fn new(runs: Runs, scales: Field) -> Self {
        Self { runs, scales, common: None, zeros: Zeros::All(0.0), biases: None }
    }

    /// What shares a scale, of a weight of `cols` columns.
    pub fn group(&self, cols: usize) -> Group {
        match (&self.runs, self.scales.place) {
            (_, Place::One) => Group::Tensor,
            (Runs::Of(size), _) if *size >= cols => Group::Row,
            (Runs::Of(size), _) => Group::Columns(*size),
            (Runs::Named { count, .. }, _) => Group::Columns(cols.div_ceil(*count)),
        }
    }

    /// Reads those of `rows × cols`.
    ///
    /// # Errors
    /// When one is no finite number, or names a run that does not exist.
    pub fn read(&self, rows: Range<usize>, cols: Range<usize>) -> Result<Held> {
        match &self.runs {
            Runs::Of(size) => {
                let runs = cols.start / size..cols.end.div_ceil(*size);
                self.read_runs(rows, runs, *size, cols.start % size)
            }
            Runs::Named { index, count } => {
                let all = index.elements();
                let size = all.div_ceil(*count);
                let named = indices(index, cols.clone(), *count)?;
                if named.iter().zip(cols.clone()).all(|(run, col)| *run == col / size) {
                    return self.read_runs(rows, cols.start / size..cols.end.div_ceil(size), size, cols.start % size);
                }
                let first = named.iter().copied().min().unwrap_or(0);
                let end = named.iter().max().map_or(first, |last| last + 1);
                let held = self.read_runs(rows, first..end, 1, 0)?;
                let across = held.across;
                let each = |numbers: Vec<f32>| -> Vec<f32> {
                    let lines = numbers.chunks_exact(across.max(1));
                    lines.flat_map(|line| named.iter().map(|run| line[run - first])).collect()
                };
                let Held { scales, zeros, biases, .. } = held;
                let (scales, zeros, biases) = (each(scales), each(zeros), each(biases));
                Ok(Held { size: 1, skipped: 0, across: named.len(), scales, zeros, biases })
            }
        }
    }

    fn read_runs(&self, rows: Range<usize>, runs: Range<usize>, size: usize, skipped: usize) -> Result<Held> {
        let across = runs.len();
        let mut scales = vec![0.0; rows.len() * across];
        self.scales.read(rows.clone(), runs.clone(), &mut scales)?;
        if let Some(common) = &self.common {
            common.apply_to(rows.clone(), across, &mut scales)?;
        }
        let zeros = self.zeros.read(rows.clone(), runs.clone())?;
        let biases = match &self.biases {
            None => Vec::new(),
            Some(field) => {
                let mut biases = vec![0.0; rows.len() * across];
                field.read(rows, runs, &mut biases)?;
                biases
            }
        };
        Ok(Held { size, skipped, across, scales, zeros, biases })
    }
}

/// The runs of columns.
fn indices(index: &Stored, cols: Range<usize>, count: usize) -> Result<Vec<usize>> {
    let bytes = index.read(cols.start as u64 * 4, cols.len() as u64 * 4)?;
    let named = bytes.as_chunks::<4>().0.iter().enumerate().map(|(at, bytes)| {
        let run = i32::from_le_bytes(*bytes);
        usize::try_from(run).ok().filter(|run| *run < count).ok_or_else(|| {
            let problem = format!("column {} is in group {run}, and there are {count}", cols.start + at);
            Error::malformed(index.path(), format!("tensor `{}`", index.info.name), problem)
        })
    });
    named.collect()
}

impl Field {
    /// Numbers that lie row by row, or one for all, of a weight of these sizes; and how many runs they tell apart.
    pub fn by_rows(scales: Scales, sizes: &Sizes) -> Option<(Self, usize)> {
        let runs = sizes.runs_in(&scales.stored.info.shape)?;
        let place = if scales.stored.elements() == 1 { Place::One } else { Place::Rows(runs) };
        Some((Self { scales, place }, runs))
    }

    /// Row by row.
    fn read(&self, rows: Range<usize>, runs: Range<usize>, out: &mut [f32]) -> Result<()> {
        let across = runs.len().max(1);
        match self.place {
            Place::One => {
                let mut one = [0.0];
                self.scales.read(0..1, &mut one)?;
                out.fill(one[0]);
            }
            Place::Rows(all) => {
                for (row, line) in rows.zip(out.chunks_exact_mut(across)) {
                    self.scales.read(row * all + runs.start..row * all + runs.end, line)?;
                }
            }
            Place::Columns(all) => {
                let mut column = vec![0.0; rows.len()];
                for (at, run) in runs.enumerate() {
                    self.scales.read(run * all + rows.start..run * all + rows.end, &mut column)?;
                    out[at..].iter_mut().step_by(across).zip(&column).for_each(|(place, value)| *place = *value);
                }
            }
            Place::Tiled(all) => {
                for (row, line) in rows.zip(out.chunks_exact_mut(across)) {
                    let (mut run, mut rest) = (runs.start, line);
                    while run < runs.end {
                        // Those of a row in one tile lie side by side.
                        let count = (TILE.1 - run % TILE.1).min(runs.end - run);
                        let place = tiled(row, run, all);
                        let (values, others) = rest.split_at_mut(count);
                        self.scales.read(place..place + count, values)?;
                        (run, rest) = (run + count, others);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Common {
    fn apply_to(&self, rows: Range<usize>, across: usize, scales: &mut [f32]) -> Result<()> {
        for (row, line) in rows.zip(scales.chunks_exact_mut(across.max(1))) {
            let (matrix, mut shared) = (row / self.rows, [0.0]);
            self.scales.read(matrix..matrix + 1, &mut shared)?;
            line.iter_mut().for_each(|scale| *scale = (self.apply)(*scale, shared[0]));
        }
        Ok(())
    }
}

impl Zeros {
    /// Row by row.
    fn read(&self, rows: Range<usize>, runs: Range<usize>) -> Result<Vec<f32>> {
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
            Self::Down { stored, bits, across: all } => {
                // Words that begin where the order does: 32 codes of a stream, as many as fit one otherwise.
                let (unit, words) = match bits.order() {
                    BitOrder::Words => (bits.unit().0, 1),
                    _ => (32, bits.bytes_of(32) / 4),
                };
                let skipped = rows.start % unit;
                let first = rows.start / unit * words;
                let needed = bits.bytes_of(skipped + count).div_ceil(4);
                let mut gathered = vec![0; across * needed * 4];
                for at in 0..needed {
                    let line = stored.read((((first + at) * all + runs.start) * 4) as u64, across as u64 * 4)?;
                    for (run, word) in line.as_chunks::<4>().0.iter().enumerate() {
                        gathered[(run * needed + at) * 4..][..4].copy_from_slice(word);
                    }
                }
                let mut codes = vec![0; skipped + count];
                for (run, words) in gathered.chunks_exact(needed * 4).enumerate() {
                    bits.unpack(words, &mut codes);
                    let places = zeros[run..].iter_mut().step_by(across);
                    places.zip(&codes[skipped..]).for_each(|(place, code)| *place = f32::from(*code));
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
