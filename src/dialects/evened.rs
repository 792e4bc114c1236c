//! Pairs for a target that has one rank, and one scale, for all of them.

use super::files::{Files, rounded_note};
use super::pieces::Pair;
use crate::pairs::matrix::Grid;

/// What all pairs get.
pub struct Evened {
    /// The largest rank there is; others are filled up with zeros.
    pub rank: u64,
    /// The scale of the target; what a pair has beside it goes into B.
    scale: f64,
    rounded: usize,
}

impl Evened {
    /// Before any pair was looked at.
    pub fn new(pairs: &[Pair], scale: f64) -> Self {
        Self { rank: pairs.iter().map(Pair::rank).max().unwrap_or(1), scale, rounded: 0 }
    }

    /// A and B of the pair; what was done to them is counted.
    pub fn factors(&mut self, pair: &Pair, files: &mut Files) -> (Grid, Grid) {
        let ratio = if pair.scale == self.scale { 1.0 } else { pair.scale / self.scale };
        files.folded += usize::from(ratio != 1.0);
        files.padded += usize::from(pair.rank() != self.rank);
        let (inputs, outputs) = (pair.down.size.1, pair.up.size.0);
        let up = pair.up.clone().padded(outputs, self.rank).scaled(ratio);
        self.rounded += usize::from(up.rounds() && !pair.up.rounds());
        (pair.down.clone().padded(self.rank, inputs), up)
    }

    /// A and B that change nothing.
    pub fn nothing(&self, inputs: u64, outputs: u64) -> (Grid, Grid) {
        (Grid::zero((self.rank, inputs)), Grid::zero((outputs, self.rank)))
    }

    /// Says where the scale was rounded.
    pub fn tell(self, files: &mut Files) {
        files.notes.extend(rounded_note(self.rounded));
    }
}
