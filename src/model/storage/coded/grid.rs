//! Codes written back on the numbers a weight has.

use std::ops::Range;

use super::{Coded, Meaning, ROWS, bands};
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
        self.codes.read(rows.clone(), cols.clone(), &mut codes)?;
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
}
