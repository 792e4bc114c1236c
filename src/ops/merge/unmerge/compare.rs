//! A merged tensor against what the merge of the base gives: element by element where the rest can be subtracted, as a
//! whole where it cannot.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::expected::{Expected, release, rows_of};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::placement::merged::Merged;
use crate::plan::Compute;

/// Bytes that are compared at once while a tensor is proved.
const PROVED_BYTES: usize = 1 << 20;

/// How many elements there are, and how many are not those of the merge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All.
    pub elements: u64,
    /// Other ones.
    pub differing: u64,
    /// Those that only the second rounding explains.
    pub second: u64,
}

/// A tensor of MERGED beside the one the merge gives.
pub struct Pair {
    /// Its name in MERGED.
    pub name: String,
    /// What the merge gives.
    pub expected: Expected,
    /// What it gives where the delta is rounded first: PEFT does that to embeddings, expert stacks and attention even by
    /// default (docs/inside/decisions/0006), so an element of either kind is the merge's.
    pub second: Option<Arc<Merged>>,
    /// What MERGED holds, in the same dtype.
    pub found: Stored,
    /// Rows of the matrix view.
    pub rows: usize,
    /// Columns of the matrix view.
    pub cols: usize,
    /// What was compared, by first row. Summed in any order it is the same.
    tallies: Mutex<Vec<Tally>>,
}

impl Pair {
    /// Nothing is compared yet.
    pub fn new(name: String, expected: Expected, found: Stored, (rows, cols): (usize, usize)) -> Self {
        Self { name, expected, second: None, found, rows, cols, tallies: Mutex::default() }
    }

    /// What was compared so far.
    pub fn tally(&self) -> Tally {
        let tallies = self.tallies.lock().expect("no thread panics while it holds the tallies");
        tallies.iter().fold(Tally::default(), |sum, tally| Tally {
            elements: sum.elements + tally.elements,
            differing: sum.differing + tally.differing,
            second: sum.second + tally.second,
        })
    }

    fn width(&self) -> usize {
        usize::try_from(self.found.info.bytes).unwrap_or(usize::MAX) / (self.rows * self.cols).max(1)
    }

    /// Compares `rows` and calls `each` with the flags of elements that are those of the merge, or with `None` if all are.
    fn compare(&self, rows: Range<usize>, each: impl FnOnce(Option<Vec<bool>>, &[u8]) -> Result<()>) -> Result<()> {
        let (width, row_bytes) = (self.width(), self.width() * self.cols);
        let wanted = self.expected.rows(rows.clone(), row_bytes)?;
        let wanted: &[u8] = &wanted;
        let found = rows_of(&self.found, rows.clone(), row_bytes)?;
        let found: &[u8] = &found;
        let mut tally = Tally { elements: (rows.len() * self.cols) as u64, ..Tally::default() };
        let same = |wanted: &[u8]| -> Vec<bool> {
            wanted.chunks_exact(width).zip(found.chunks_exact(width)).map(|(wanted, found)| wanted == found).collect()
        };
        let mut agrees = (wanted != found).then(|| same(wanted));
        if let (Some(agrees), Some(second)) = (&mut agrees, &self.second) {
            let mut wanted = vec![0; found.len()];
            second.rows(rows.clone(), &mut wanted)?;
            for (agrees, other) in agrees.iter_mut().zip(same(&wanted)) {
                tally.second += u64::from(!*agrees && other);
                *agrees |= other;
            }
        }
        tally.differing = agrees.iter().flatten().filter(|agrees| !**agrees).count() as u64;
        self.tallies.lock().expect("no thread panics while it holds the tallies").push(tally);
        each(agrees, found)?;
        self.expected.release(rows.end, row_bytes);
        release(&self.found, rows.end, row_bytes);
        Ok(())
    }
}

/// What is written where an element is not that of the merge.
pub enum Otherwise {
    /// W′ − ΔW.
    Subtracted(Box<Merged>),
    /// W′, for a tensor that nothing was added to.
    Found,
}

/// A tensor of which each element is the base's where the merge explains it.
pub struct TakenOut {
    /// Both sides.
    pub pair: Pair,
    /// The base's tensor.
    pub base: Stored,
    /// Bytes of a row of the base's.
    pub row_bytes: usize,
    /// What is written elsewhere.
    pub otherwise: Otherwise,
}

impl Compute for TakenOut {
    fn prepare(&self) -> Result<()> {
        self.pair.expected.prepare()?;
        self.pair.second.iter().try_for_each(|second| second.prepare())?;
        self.pair.found.map.check_unchanged()?;
        self.base.map.check_unchanged()?;
        match &self.otherwise {
            Otherwise::Subtracted(merged) => merged.prepare(),
            Otherwise::Found => Ok(()),
        }
    }

    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let own = rows_of(&self.base, rows.clone(), self.row_bytes)?;
        self.pair.compare(rows.clone(), |agrees, found| {
            match (agrees, &self.otherwise) {
                (None, _) => out.copy_from_slice(&own),
                (Some(_), Otherwise::Found) => out.copy_from_slice(found),
                (Some(agrees), Otherwise::Subtracted(merged)) => {
                    merged.rows(rows.clone(), out)?;
                    let width = self.row_bytes / self.pair.cols.max(1);
                    let places = out.chunks_exact_mut(width).zip(own.chunks_exact(width)).zip(agrees);
                    places.filter(|(_, agrees)| *agrees).for_each(|((place, own), _)| place.copy_from_slice(own));
                }
            }
            Ok(())
        })?;
        release(&self.base, rows.end, self.row_bytes);
        Ok(())
    }
}

/// A tensor that has to be the merge's as a whole, since what changed it cannot be subtracted. It is compared before
/// anything is written.
pub struct Proved {
    /// Both sides.
    pub pair: Pair,
    /// What changed it, for messages.
    pub how: &'static str,
}

impl Proved {
    fn refuse(&self, problem: String) -> Error {
        let what = format!("{problem}, and {} cannot be subtracted", self.how);
        Error::unsupported(self.pair.found.path(), format!("tensor `{}`: {what}", self.pair.name))
            .hint("is MERGED that merge of BASE? weights and `--rounding` have to be those it was made with")
    }
}

impl Compute for Proved {
    fn prepare(&self) -> Result<()> {
        let pair = &self.pair;
        pair.expected.prepare()?;
        pair.found.map.check_unchanged()?;
        let mut first = None;
        let step = (PROVED_BYTES / (pair.width() * pair.cols).max(1)).max(1);
        for start in (0..pair.rows).step_by(step) {
            let rows = start..pair.rows.min(start + step);
            pair.compare(rows, |agrees, _| {
                let place = agrees.and_then(|agrees| agrees.iter().position(|agrees| !agrees));
                first = first.or(place.map(|at| (start + at / pair.cols, at % pair.cols)));
                Ok(())
            })?;
        }
        let Some((row, col)) = first else { return Ok(()) };
        let Tally { elements, differing, .. } = pair.tally();
        let problem =
            format!("{differing} of {elements} elements are not those of the merge, the first at [{row}, {col}]");
        Err(self.refuse(problem))
    }

    /// Its bytes are the base's, and copied.
    fn rows(&self, _rows: Range<usize>, _out: &mut [u8]) -> Result<()> {
        Ok(())
    }
}
