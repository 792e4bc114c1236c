//! Trainable tokens (PEFT `TRAINABLE_TOKENS`, or `trainable_token_indices` beside LoRA): whole rows replace rows of the
//! embedding, W′[id] = row. The key says `trainable_tokens_delta`; the values are absolute.

use std::collections::BTreeMap;
use std::ops::Range;

use super::delta::{Columns, Delta, Tile};
use super::factor::Factor;
use crate::error::Result;

/// Rows by the token they replace.
#[derive(Debug)]
pub struct TokenRows {
    rows: Factor,
    /// Row of the embedding → row of the factor.
    ids: BTreeMap<usize, usize>,
    vocabulary: usize,
}

impl TokenRows {
    /// Row i of `rows` replaces row `ids[i]`; of two rows for one token the later one counts, as in torch's
    /// `index_copy` on the CPU.
    pub fn new(rows: Factor, ids: &[usize], vocabulary: usize) -> Self {
        let ids = ids.iter().enumerate().map(|(at, id)| (*id, at)).collect();
        Self { rows, ids, vocabulary }
    }
}

impl Delta for TokenRows {
    fn shape(&self) -> (usize, usize) {
        (self.vocabulary, self.rows.shape().1)
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn touches_all(&self) -> bool {
        false
    }

    fn touches(&self, rows: Range<usize>) -> bool {
        self.ids.range(rows).next().is_some()
    }

    fn columns(&self, _cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        Ok(Box::new(TokenColumns(self)))
    }
}

struct TokenColumns<'a>(&'a TokenRows);

impl Columns for TokenColumns<'_> {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        let width = tile.cols.len();
        let mut line = vec![0.0; width];
        for (id, at) in self.0.ids.range(tile.rows.clone()) {
            self.0.rows.decode(*at..at + 1, tile.cols.clone(), &mut line)?;
            let start = (id - tile.rows.start) * width;
            super::whole::replace(
                strength,
                tile.fresh,
                &line,
                &tile.base[start..start + width],
                &mut tile.value[start..start + width],
            );
        }
        Ok(())
    }
}
