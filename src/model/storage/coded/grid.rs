//! Codes written back on the numbers a weight has.

use std::ops::Range;

use super::{Coded, ROWS, Source, bands};
use crate::error::Result;
use crate::model::storage::{Change, Grid};
use crate::tensor::codes::{Wanted, requantise};

impl Grid for Coded {
    fn bands(&self) -> (usize, usize) {
        self.codes.bands()
    }

    fn part(&self, bands: Range<usize>) -> (Range<usize>, Range<usize>) {
        self.codes.part(bands)
    }

    fn encode(&self, parts: Range<usize>, change: &Change<'_>, out: &mut [u8]) -> Result<()> {
        let (rows, cols) = self.codes.part(parts.clone());
        let width = cols.len();
        if rows.is_empty() || width == 0 {
            return Ok(());
        }
        let inputs = self.inputs_of(cols.clone())?;
        let mut codes = vec![0; rows.len() * width];
        self.codes.read(self.source_of(&parts, out), rows.clone(), cols.clone(), &mut codes)?;
        let before = codes.clone();
        let (mut base, mut wanted) = (Vec::new(), Vec::new());
        for (first, lines) in bands(&rows, ROWS).zip(codes.chunks_mut(ROWS * width)) {
            let held = self.numbers.read(first.clone(), cols.clone())?;
            for (at, codes) in lines.chunks_exact_mut(width).enumerate() {
                let row = first.start + at;
                let begin = (row - rows.start) * width;
                let line = begin..begin + width;
                if change.base[line.clone()] == change.wanted[line.clone()] {
                    continue;
                }
                self.without_inputs(&change.base[line.clone()], &inputs, &mut base);
                self.without_inputs(&change.wanted[line], &inputs, &mut wanted);
                let rounding = change.rounding.skip(row * change.cols + cols.start);
                let values = Wanted { base: &base, wanted: &wanted, rounding };
                requantise(self.meaning.codebook(), held.row(at), values, codes);
            }
        }
        if codes != before {
            self.codes.write(parts, codes, out);
        }
        Ok(())
    }

    fn values(&self, parts: Range<usize>, codes: &[u8], out: &mut [f32]) -> Result<()> {
        let (rows, cols) = self.codes.part(parts.clone());
        self.read_from(self.source_of(&parts, codes), rows, cols, out)
    }
}

impl Coded {
    /// Values as codes have them: without what stands in front of the layer's input.
    fn without_inputs(&self, values: &[f32], inputs: &[f32], out: &mut Vec<f32>) {
        out.clear();
        match inputs {
            [] => out.extend_from_slice(values),
            // Columns without a factor of their own have no value but 0: they keep their codes.
            _ => out.extend(
                values.iter().zip(inputs).map(|(value, input)| if *input == 0.0 { 0.0 } else { value / input }),
            ),
        }
    }

    /// Bytes that stand for those of bands.
    fn source_of<'a>(&self, bands: &Range<usize>, bytes: &'a [u8]) -> Source<'a> {
        Source::Bytes(bands.start as u64 * self.codes.bands().1 as u64, bytes)
    }
}
