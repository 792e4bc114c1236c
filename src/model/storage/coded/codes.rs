//! Where the codes of a weight lie in the tensor that holds them.
//!
//! | | the tensor | who |
//! |---|---|---|
//! | `Rows` | one row of codes after the other | compressed-tensors, MLX, ComfyUI, ModelOpt NVFP4 |
//! | `Columns` | `[words, out]`: the words of a row stand below each other | GPTQ |
//! | `Turned` | one column of codes after the other | AWQ |
//! | `Pairs` | `[out ∕ 2, in]`: two rows in the halves of the same bytes, the even one low | ModelOpt INT4 |

use std::borrow::Cow;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::tensor::codes::{BitOrder, Bits};
use crate::tensor::usize_of;

/// The codes of a weight.
#[derive(Debug)]
pub struct Codes {
    /// The tensor.
    pub stored: Stored,
    /// How they are packed.
    pub bits: Bits,
    /// Where they lie.
    pub lay: Lay,
    /// Bits that are turned over, so that two's complement ascends: 8 of 4 bits, 128 of 8.
    pub flip: u8,
    /// Rows of the weight, those of all matrices of a stack.
    pub rows: usize,
    /// Columns of the weight.
    pub cols: usize,
}

/// Where bytes of codes are read.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// In the tensor.
    Stored(&'a Stored),
    /// In bytes that stand for those of the tensor from this one on.
    Bytes(u64, &'a [u8]),
}

impl<'a> Source<'a> {
    fn read(self, start: u64, len: u64) -> Result<Cow<'a, [u8]>> {
        match self {
            Self::Stored(stored) => stored.read(start, len),
            Self::Bytes(first, bytes) => {
                Ok(Cow::Borrowed(&bytes[usize_of(start - first)..usize_of(start - first + len)]))
            }
        }
    }
}

/// Where codes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lay {
    /// Row by row.
    Rows {
        /// Bytes of a row.
        bytes: usize,
    },
    /// In columns of words.
    Columns {
        /// Bytes of a word: 1, 2, 4 or 8.
        word: usize,
    },
    /// Column by column.
    Turned {
        /// Bytes of a column.
        bytes: usize,
    },
    /// Two rows in one.
    Pairs,
}

impl Codes {
    /// Whether the tensor holds all of them.
    ///
    /// # Errors
    /// When it is too short.
    pub fn check(self) -> Result<Self> {
        let (count, bytes) = self.bands();
        let (covered, held) = match self.lay {
            Lay::Rows { bytes } => (self.rows, self.bits.bytes_of(self.cols) <= bytes),
            Lay::Turned { bytes } => (self.cols, self.bits.bytes_of(self.rows) <= bytes),
            Lay::Columns { .. } => (count, true),
            Lay::Pairs => (self.rows.div_ceil(2), self.rows.is_multiple_of(2)),
        };
        let needed = covered.checked_mul(bytes).map(|needed| needed as u64);
        if held && needed.is_some_and(|needed| needed <= self.stored.info.bytes) {
            return Ok(self);
        }
        let Self { stored, rows, cols, .. } = &self;
        let problem = format!(
            "is {} {}, too small for [{rows}, {cols}] codes of {} bits",
            stored.info.dtype,
            stored.info.shape,
            self.bits.width()
        );
        Err(Error::malformed(stored.path(), format!("tensor `{}`", stored.info.name), problem))
    }

    /// The bytes of the tensor.
    pub fn source(&self) -> Source<'_> {
        Source::Stored(&self.stored)
    }

    /// Reads the codes of `rows × cols` in `source`, row by row.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn read(&self, source: Source<'_>, rows: Range<usize>, cols: Range<usize>, out: &mut [u8]) -> Result<()> {
        let width = cols.len();
        match self.lay {
            Lay::Rows { bytes } => {
                let mut scratch = Vec::new();
                for (row, line) in rows.zip(out.chunks_exact_mut(width)) {
                    self.read_line(source, row * bytes, cols.clone(), &mut scratch, line)?;
                }
            }
            Lay::Columns { word } => self.read_columns(source, (rows, cols), word, out)?,
            Lay::Turned { bytes } => {
                let (height, mut scratch) = (rows.len(), Vec::new());
                let mut lines = vec![0; SIDE * height];
                for first in cols.clone().step_by(SIDE) {
                    let some = first..(first + SIDE).min(cols.end);
                    for (col, line) in some.clone().zip(lines.chunks_exact_mut(height.max(1))) {
                        self.read_line(source, col * bytes, rows.clone(), &mut scratch, line)?;
                    }
                    turn(&lines[..some.len() * height], height, &mut out[first - cols.start..], width);
                }
            }
            Lay::Pairs => {
                for (row, line) in rows.zip(out.chunks_exact_mut(width)) {
                    let bytes = source.read((row / 2 * self.cols + cols.start) as u64, width as u64)?;
                    let shift = row % 2 * 4;
                    line.iter_mut().zip(bytes.iter()).for_each(|(code, byte)| *code = byte >> shift & 15);
                }
            }
        }
        out.iter_mut().for_each(|code| *code ^= self.flip);
        Ok(())
    }

    /// The codes `range` of a line that begins at byte `start`.
    fn read_line(
        &self,
        source: Source<'_>,
        start: usize,
        range: Range<usize>,
        scratch: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Result<()> {
        let (unit, size) = self.bits.unit();
        let (first, skipped) = (range.start / unit, range.start % unit);
        let count = skipped + range.len();
        let bytes = source.read((start + first * size) as u64, self.bits.bytes_of(count) as u64)?;
        if skipped == 0 {
            self.bits.unpack(&bytes, out);
        } else {
            scratch.resize(count, 0);
            self.bits.unpack(&bytes, scratch);
            out.copy_from_slice(&scratch[skipped..]);
        }
        Ok(())
    }

    /// The same where words of one row lie below each other: they are brought together first.
    fn read_columns(
        &self,
        source: Source<'_>,
        (rows, cols): (Range<usize>, Range<usize>),
        word: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let (unit, words) = self.column_unit(word);
        let units = cols.start / unit..cols.end.div_ceil(unit);
        let (first, count) = (units.start * words, units.len() * words);
        let line = count * word;
        let mut gathered = vec![0; rows.len() * line];
        for at in 0..count {
            let start = ((first + at) * self.rows + rows.start) * word;
            let side_by_side = source.read(start as u64, (rows.len() * word) as u64)?;
            let below = &mut gathered[at * word..];
            match word {
                4 => spread::<4>(&side_by_side, line, below),
                1 => spread::<1>(&side_by_side, line, below),
                2 => spread::<2>(&side_by_side, line, below),
                _ => spread::<8>(&side_by_side, line, below),
            }
        }
        let mut scratch = vec![0; units.len() * unit];
        let skipped = cols.start - units.start * unit;
        for (line, out) in gathered.chunks_exact(line).zip(out.chunks_exact_mut(cols.len())) {
            self.bits.unpack(line, &mut scratch);
            out.copy_from_slice(&scratch[skipped..skipped + out.len()]);
        }
        Ok(())
    }

    /// Codes that fill whole words of a column, and the words.
    fn column_unit(&self, word: usize) -> (usize, usize) {
        let (width, bits) = (self.bits.unit().1, 8 * word);
        match self.bits.order() {
            BitOrder::Planes => (self.bits.unit().0, width / word),
            // A unit of a stream is eight codes, so its bytes are the bits of a code.
            _ if bits.is_multiple_of(width) => (bits / width, 1),
            _ => (bits, width),
        }
    }

    /// How many bands the tensor has, and the bytes of each: see [`Grid`](super::Grid).
    pub fn bands(&self) -> (usize, usize) {
        let all = usize::try_from(self.stored.info.bytes).unwrap_or(usize::MAX);
        let bytes = match self.lay {
            Lay::Rows { bytes } | Lay::Turned { bytes } => bytes,
            Lay::Columns { word } => {
                let (unit, words) = self.column_unit(word);
                return (self.cols.div_ceil(unit), words.saturating_mul(word).saturating_mul(self.rows));
            }
            Lay::Pairs => self.cols,
        };
        (all.checked_div(bytes).unwrap_or(0), bytes)
    }

    /// The rows and columns that bands stand for.
    pub fn part(&self, bands: Range<usize>) -> (Range<usize>, Range<usize>) {
        let cut = |range: Range<usize>, end: usize| range.start.min(end)..range.end.min(end);
        match self.lay {
            Lay::Rows { .. } => (cut(bands, self.rows), 0..self.cols),
            Lay::Turned { .. } => (0..self.rows, cut(bands, self.cols)),
            Lay::Columns { word } => {
                let unit = self.column_unit(word).0;
                (0..self.rows, cut(bands.start * unit..bands.end * unit, self.cols))
            }
            Lay::Pairs => (cut(bands.start * 2..bands.end * 2, self.rows), 0..self.cols),
        }
    }

    /// Writes the codes of the part that `bands` stand for.
    pub fn write(&self, bands: Range<usize>, mut codes: Vec<u8>, out: &mut [u8]) {
        let (_, cols) = self.part(bands);
        if codes.is_empty() {
            return;
        }
        codes.iter_mut().for_each(|code| *code ^= self.flip);
        let width = cols.len();
        match self.lay {
            Lay::Rows { bytes } => {
                for (line, out) in codes.chunks_exact(width).zip(out.chunks_exact_mut(bytes)) {
                    self.bits.pack(line, &mut out[..self.bits.bytes_of(width)]);
                }
            }
            Lay::Turned { bytes } => {
                for (at, out) in out.chunks_exact_mut(bytes).take(width).enumerate() {
                    let column: Vec<u8> = codes[at..].iter().step_by(width).copied().collect();
                    self.bits.pack(&column, &mut out[..self.bits.bytes_of(column.len())]);
                }
            }
            Lay::Columns { word } => {
                let (unit, words) = self.column_unit(word);
                let count = width.div_ceil(unit) * words;
                let mut line = vec![0; count * word];
                for (row, codes) in codes.chunks_exact(width).enumerate() {
                    let needed = self.bits.bytes_of(width);
                    self.bits.pack(codes, &mut line[..needed]);
                    for (at, bytes) in line.chunks_exact(word).enumerate() {
                        let start = (at * self.rows + row) * word;
                        out[start..start + word].copy_from_slice(bytes);
                    }
                }
            }
            Lay::Pairs => {
                for (pair, out) in codes.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
                    let (low, high) = pair.split_at(width);
                    out.iter_mut().zip(low.iter().zip(high)).for_each(|(byte, (low, high))| *byte = low | high << 4);
                }
            }
        }
    }
}

/// Edge of the squares that are turned at once.
const SIDE: usize = 8;

/// Writes lines of `height` codes as the columns of rows that are `width` long.
fn turn(lines: &[u8], height: usize, out: &mut [u8], width: usize) {
    let whole = if lines.len() == SIDE * height { height / SIDE * SIDE } else { 0 };
    for row in (0..whole).step_by(SIDE) {
        let mut square = [0_u64; SIDE];
        for (word, line) in square.iter_mut().zip(lines.chunks_exact(height)) {
            *word = line[row..].first_chunk().map_or(0, |codes| u64::from_le_bytes(*codes));
        }
        for (at, word) in turned(square).into_iter().enumerate() {
            let start = (row + at) * width;
            out[start..start + SIDE].copy_from_slice(&word.to_le_bytes());
        }
    }
    for (col, line) in lines.chunks_exact(height.max(1)).enumerate() {
        for (row, code) in line.iter().enumerate().skip(whole) {
            out[row * width + col] = *code;
        }
    }
}

/// The transpose of eight rows of eight bytes: squares of four, two and one change places across the diagonal.
fn turned(mut rows: [u64; SIDE]) -> [u64; SIDE] {
    for (step, bits, mask) in [(4, 32, 0xFFFF_FFFF), (2, 16, 0x0000_FFFF_0000_FFFF), (1, 8, 0x00FF_00FF_00FF_00FF)] {
        for upper in (0..SIDE).filter(|row| row & step == 0) {
            let swap = (rows[upper] >> bits ^ rows[upper + step]) & mask;
            rows[upper] ^= swap << bits;
            rows[upper + step] ^= swap;
        }
    }
    rows
}

/// Puts words that stand side by side at the start of lines of `line` bytes.
fn spread<const WORD: usize>(words: &[u8], line: usize, out: &mut [u8]) {
    for (word, place) in words.as_chunks::<WORD>().0.iter().zip(out.chunks_mut(line)) {
        if let Some(place) = place.first_chunk_mut() {
            *place = *word;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_become_rows_whatever_their_number() {
        for (count, height, width) in [(8, 64, 8), (8, 19, 11), (3, 16, 5), (1, 1, 1), (8, 7, 9)] {
            let lines: Vec<u8> = (0..count * height).map(|at| (at * 37 + at / 5) as u8).collect();
            let mut out = vec![0; height * width];
            turn(&lines, height, &mut out, width);
            for (row, line) in out.chunks_exact(width).enumerate() {
                let expected: Vec<u8> = (0..count).map(|col| lines[col * height + row]).collect();
                assert_eq!(line[..count], expected, "{count} × {height}, row {row}");
            }
        }
    }
}
