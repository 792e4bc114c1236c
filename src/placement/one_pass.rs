//! Tensors that low-rank products alone change: decoded, changed, rounded and surveyed in one pass, without a tile in f32.
//!
//! The bytes are those of the tiles of `merged.rs`, through which everything else goes, and rows with a value that is not finite:
//! they say which.

use std::ops::Range;

use super::merged::Merged;
use super::tile::{Piece, TILE_COLS, cuts};
use crate::adapters::Term;
use crate::error::Result;
use crate::model::Rounding;
use crate::tensor::{Float, OnePass, Product, Survival};

/// Rows that share the packed factors of their columns.
const BAND_ROWS: usize = 256;

impl Merged {
    /// The bytes of `rows`, and what became of the change in them. `None` where the tiles have to do it; `out` may hold anything
    /// then.
    ///
    /// # Errors
    /// When the factors cannot be read.
    pub(super) fn fill_in_one_pass(&self, rows: &Range<usize>, out: &mut [u8]) -> Result<Option<Survival>> {
        let Some((float, terms)) = self.terms() else { return Ok(None) };
        let data = self.source.tensor.view()?.data;
        let (stride, width) = (self.source.cols, float.bytes());
        let mut survival = Survival::default();
        for cols in cuts(0..stride, TILE_COLS, self.pieces.iter().map(Piece::cols)) {
            let mut ready = Vec::with_capacity(terms.len());
            for (piece, term) in terms.iter().filter(|(piece, _)| piece.is_active(rows, &cols)) {
                ready.push((piece, term, term.decode_down(piece.cols_in(&cols))?));
            }
            for band in cuts(rows.clone(), BAND_ROWS, ready.iter().map(|(piece, ..)| piece.rows())) {
                let here = || ready.iter().filter(|(piece, ..)| piece.is_active(&band, &cols));
                let mut ups = Vec::with_capacity(ready.len());
                for (piece, term, _) in here() {
                    ups.push(term.decode_up(piece.rows_in(&band))?);
                }
                let mut products = Vec::with_capacity(ups.len());
                for ((piece, term, down), up) in here().zip(&ups) {
                    let scale = (piece.strength * term.scale) as f32;
                    products.push(Product { up, down, rank: term.rank(), scale });
                }
                let first = band.start * stride + cols.start;
                let pass = OnePass {
                    rows: band.len(),
                    cols: cols.len(),
                    stride,
                    products: &products,
                    rounding: self.rounding.at(&self.name, first as u64),
                    rounds_products: self.rounding == Rounding::PeftSafe,
                };
                let place = &mut out[(first - rows.start * stride) * width..];
                let Some(found) = pass.merge(float, &data[first * width..], place) else { return Ok(None) };
                survival.add(&found);
            }
        }
        Ok(Some(survival))
    }

    /// The products and the format they are added in, if that is all there is to do.
    fn terms(&self) -> Option<(Float, Vec<(&Piece, &Term)>)> {
        let float = self.out.float().filter(|_| self.is_plain() && self.copies_rows() && !self.adds_in_f64())?;
        let mut terms = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            let of_piece = piece.delta.products()?;
            // PEFT rounds ΔW once, and not that of every product.
            if self.rounding == Rounding::PeftSafe && (of_piece.len() > 1 || !piece.delta.rounds_alone()) {
                return None;
            }
            terms.extend(of_piece.into_iter().map(|term| (piece, term)));
        }
        (!terms.is_empty() && terms.iter().all(|(_, term)| term.rank() > 0)).then_some((float, terms))
    }
}
