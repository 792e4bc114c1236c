//! Weights stored as a code per element and numbers per group: what most quantised formats have in common.
//!
//! value = (code − zero) · scale + bias, or level(code) · scale, in f32 and in that order. A storage of this kind says where its
//! codes lie ([`Codes`]), what they mean ([`Meaning`]) and where the numbers of a group are found ([`Numbers`]); reading and
//! writing back are done here for all of them.

mod codes;
mod grid;
mod numbers;
mod zeros;

use std::ops::Range;
use std::sync::LazyLock;

pub use codes::{Codes, Lay, Source};
pub use numbers::{Common, Field, Numbers, Place, Runs};
pub use zeros::{Shift, Zeros};

use super::scales::Scales;
use super::shapes::Sizes;
use super::{Facts, Grid, Storage};
use crate::error::Result;
use crate::tensor::codes::{Codebook, E2M1, E2M3, Levels, decode_levels, decode_whole};
use crate::tensor::{Float, Shape};

/// Rows whose codes and numbers are read together: a line of the cache holds the numbers of that many neighbours.
const ROWS: usize = 64;

/// Columns that are read at once: with [`ROWS`] what the second cache of a core holds.
const COLUMNS: usize = 1024;

/// A weight of codes.
#[derive(Debug)]
pub struct Coded {
    /// Its shape in the plain checkpoint.
    pub shape: Shape,
    /// The codes.
    pub codes: Codes,
    /// What they mean.
    pub meaning: Meaning,
    /// What gives them their values.
    pub numbers: Numbers,
    /// Factors of the columns, which stand in front of the layer's input (ModelOpt's `pre_quant_scale`).
    pub inputs: Option<Scales>,
    /// What is told of it.
    pub facts: Facts,
    /// What it was before it was quantised, where that is known.
    pub dtype: Option<Float>,
    /// Whether it can be written back.
    pub is_writable: bool,
}

/// What a code means.
#[derive(Debug, Clone, Copy)]
pub enum Meaning {
    /// A whole number; codes from the first to the second are written.
    Whole(u8, u8),
    /// A level of a table.
    Level(&'static Table),
}

impl Meaning {
    fn codebook(self) -> Codebook<'static> {
        match self {
            Self::Whole(least, most) => Codebook::Whole(least, most),
            Self::Level(table) => Codebook::Table(&table.values, &table.levels),
        }
    }
}

/// Levels by code and in order.
#[derive(Debug)]
pub struct Table {
    /// By code.
    pub values: Vec<f32>,
    /// In order.
    pub levels: Levels,
}

impl Table {
    fn of(values: &[f32]) -> Self {
        Self { values: values.to_vec(), levels: Levels::new(values) }
    }

    /// E2M1: four bits.
    pub fn e2m1() -> &'static Self {
        static TABLE: LazyLock<Table> = LazyLock::new(|| Table::of(&E2M1));
        &TABLE
    }

    /// E2M3: six bits.
    pub fn e2m3() -> &'static Self {
        static TABLE: LazyLock<Table> = LazyLock::new(|| Table::of(&E2M3));
        &TABLE
    }

    /// E4M3: eight bits.
    pub fn e4m3() -> &'static Self {
        static TABLE: LazyLock<Table> = LazyLock::new(|| {
            let codes: Vec<u8> = (0..=u8::MAX).collect();
            let mut values = vec![0.0; codes.len()];
            Float::F8E4M3.decode(&codes, &mut values);
            Table::of(&values)
        });
        &TABLE
    }
}

impl Storage for Coded {
    fn shape(&self) -> Shape {
        self.shape.clone()
    }

    fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.read_from(self.codes.source(), rows, cols, out)
    }

    fn facts(&self) -> Facts {
        self.facts.clone()
    }

    fn dtype(&self) -> Option<Float> {
        self.dtype
    }

    fn rows_together(&self) -> usize {
        match self.codes.lay {
            Lay::Rows { .. } => 1,
            Lay::Columns { .. } | Lay::Turned { .. } => ROWS,
            Lay::Pairs => 2,
        }
    }

    fn grid(&self) -> Option<&dyn Grid> {
        self.is_writable.then_some(self)
    }
}

impl Coded {
    /// A weight of these sizes that can be written back and has no more to it.
    pub fn new(sizes: &Sizes, meaning: Meaning, codes: Codes, numbers: Numbers, facts: Facts) -> Self {
        Self { shape: sizes.shape(), codes, meaning, numbers, inputs: None, facts, dtype: None, is_writable: true }
    }

    /// Reads `rows × cols` of codes that lie in `source`.
    fn read_from(&self, source: Source<'_>, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        let width = cols.len();
        if width == 0 {
            return Ok(());
        }
        let mut codes = Vec::new();
        for (first, band) in bands(&rows, ROWS).zip(out.chunks_mut(ROWS * width)) {
            for span in bands(&cols, COLUMNS) {
                codes.resize(first.len() * span.len(), 0);
                self.codes.read(source, first.clone(), span.clone(), &mut codes)?;
                let held = self.numbers.read(first.clone(), span.clone())?;
                let inputs = self.inputs_of(span.clone())?;
                for (at, codes) in codes.chunks_exact(span.len()).enumerate() {
                    let begin = at * width + span.start - cols.start;
                    let line = &mut band[begin..begin + span.len()];
                    match self.meaning {
                        Meaning::Whole(..) => decode_whole(codes, held.row(at), line),
                        Meaning::Level(table) => decode_levels(&table.values, codes, held.row(at), line),
                    }
                    line.iter_mut().zip(&inputs).for_each(|(value, input)| *value *= input);
                }
            }
        }
        Ok(())
    }

    /// The factors of columns; none where there are none.
    fn inputs_of(&self, cols: Range<usize>) -> Result<Vec<f32>> {
        let Some(inputs) = &self.inputs else { return Ok(Vec::new()) };
        let mut factors = vec![0.0; cols.len()];
        inputs.read(cols, &mut factors)?;
        Ok(factors)
    }
}

/// `range` in pieces of `size` that begin at its start.
fn bands(range: &Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = range.end;
    range.clone().step_by(size).map(move |start| start..(start + size).min(end))
}
