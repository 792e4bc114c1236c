//! Codes written back on the numbers a weight has.

use std::ops::Range;

use super::{Coded, Meaning, ROWS, Source, bands};
use crate::error::Result;
use crate::model::storage::{Change, Grid};
use crate::tensor::codes::Level;

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
        let mut is_changed = false;
        for (first, lines) in bands(&rows, ROWS).zip(codes.chunks_mut(ROWS * width)) {
            let held = self.numbers.read(first.clone(), cols.clone())?;
            for (at, line) in lines.chunks_exact_mut(width).enumerate() {
                let begin = (first.start + at - rows.start) * width;
                for (col, code) in line.iter_mut().enumerate() {
                    if change.is_same(begin + col) {
                        continue;
                    }
                    let (scale, zero, bias) = held.of(at, col);
                    let level = match self.meaning {
                        Meaning::Whole(least, most) => Level::Whole { least, most, zero, bias },
                        Meaning::Level(table) => Level::Table { table: &table.values, levels: &table.levels },
                    };
                    let wanted = f64::from(change.wanted[begin + col]);
                    let target = inputs.get(col).map_or(wanted, |input| wanted / f64::from(*input));
                    let chosen = match change.chance(first.start + at, cols.start + col) {
                        None => level.nearest(target, scale, *code),
                        Some(chance) => level.stochastic(target, scale, *code, chance),
                    };
                    is_changed |= chosen != *code;
                    *code = chosen;
                }
            }
        }
        if is_changed {
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
    /// Bytes that stand for those of bands.
    fn source_of<'a>(&self, bands: &Range<usize>, bytes: &'a [u8]) -> Source<'a> {
        Source::Bytes(bands.start as u64 * self.codes.bands().1 as u64, bytes)
    }
}
