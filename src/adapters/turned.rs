//! A change seen differently: of a weight that is stored the other way round, or of some of its rows only.

use std::ops::Range;
use std::sync::Arc;

use super::delta::{BaseRows, Columns, Delta, Tile};
use crate::error::Result;

/// The change of `[out, in]` for a weight that is stored as `[in, out]`.
pub struct Turned(pub Arc<dyn Delta>);

impl Delta for Turned {
    fn shape(&self) -> (usize, usize) {
        let (rows, cols) = self.0.shape();
        (cols, rows)
    }

    fn is_additive(&self) -> bool {
        self.0.is_additive()
    }

    fn rounds_alone(&self) -> bool {
        self.0.rounds_alone()
    }

    fn reads_base(&self) -> bool {
        self.0.reads_base()
    }

    fn grain(&self) -> (usize, usize) {
        let (rows, cols) = self.0.grain();
        (cols, rows)
    }

    fn needs_measure(&self) -> bool {
        self.0.needs_measure()
    }

    fn measure_bytes(&self) -> u64 {
        self.0.measure_bytes()
    }

    fn measure(&self, base: &dyn BaseRows) -> Result<()> {
        self.0.measure(&TurnedRows(base))
    }

    fn notes(&self) -> Option<&str> {
        self.0.notes()
    }

    fn release(&self) {
        self.0.release();
    }

    fn columns(&self, _cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        Ok(Box::new(TurnedColumns(self.0.as_ref())))
    }
}

struct TurnedRows<'a>(&'a dyn BaseRows);

impl BaseRows for TurnedRows<'_> {
    fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        let mut stored = vec![0.0; out.len()];
        self.0.read(cols.clone(), rows.clone(), &mut stored)?;
        transpose(&stored, rows.len(), out);
        Ok(())
    }
}

struct TurnedColumns<'a>(&'a dyn Delta);

impl Columns for TurnedColumns<'_> {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        let (width, height) = (tile.cols.len(), tile.rows.len());
        let mut value = vec![0.0; tile.value.len()];
        let mut base = vec![0.0; tile.base.len()];
        transpose(tile.value, width, &mut value);
        transpose(tile.base, width, &mut base);
        let (rows, cols) = (tile.cols.clone(), tile.rows.clone());
        let mut turned = Tile { rows, cols: cols.clone(), base: &base, value: &mut value, fresh: tile.fresh };
        self.0.columns(cols)?.add(strength, &mut turned)?;
        transpose(&value, height, tile.value);
        Ok(())
    }
}

/// `from` has rows of `width` elements; `to` gets its columns as rows.
fn transpose(from: &[f32], width: usize, to: &mut [f32]) {
    let height = from.len() / width.max(1);
    for (row, line) in from.chunks_exact(width.max(1)).enumerate() {
        to.iter_mut().skip(row).step_by(height.max(1)).zip(line).for_each(|(to, from)| *to = *from);
    }
}

/// Some rows of a change.
pub struct Window {
    inner: Arc<dyn Delta>,
    rows: Range<usize>,
}

impl Window {
    /// `rows` of `inner`, whose rows must not depend on each other: see [`Window::fits`].
    pub fn new(inner: Arc<dyn Delta>, rows: Range<usize>) -> Self {
        assert!(rows.end <= inner.shape().0, "a window lies in the change");
        Self { inner, rows }
    }

    /// Whether `rows` of `inner` can be told without the rest of the weight.
    pub fn fits(inner: &dyn Delta, rows: &Range<usize>) -> bool {
        let grain = inner.grain().0.max(1);
        let whole = |row: usize| row.is_multiple_of(grain) || row == inner.shape().0;
        !inner.needs_measure() && whole(rows.start) && whole(rows.end)
    }

    fn shifted(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start + self.rows.start..rows.end + self.rows.start
    }
}

impl Delta for Window {
    fn shape(&self) -> (usize, usize) {
        (self.rows.len(), self.inner.shape().1)
    }

    fn is_additive(&self) -> bool {
        self.inner.is_additive()
    }

    fn rounds_alone(&self) -> bool {
        self.inner.rounds_alone()
    }

    fn reads_base(&self) -> bool {
        self.inner.reads_base()
    }

    fn grain(&self) -> (usize, usize) {
        self.inner.grain()
    }

    fn touches_all(&self) -> bool {
        self.inner.touches_all()
    }

    fn touches(&self, rows: Range<usize>) -> bool {
        self.inner.touches(self.shifted(&rows))
    }

    fn release(&self) {
        self.inner.release();
    }

    fn columns(&self, cols: Range<usize>) -> Result<Box<dyn Columns + '_>> {
        Ok(Box::new(WindowColumns { window: self, inner: self.inner.columns(cols)? }))
    }
}

struct WindowColumns<'a> {
    window: &'a Window,
    inner: Box<dyn Columns + 'a>,
}

impl Columns for WindowColumns<'_> {
    fn add(&mut self, strength: f64, tile: &mut Tile<'_>) -> Result<()> {
        let rows = self.window.shifted(&tile.rows);
        let (base, value, fresh) = (tile.base, &mut *tile.value, tile.fresh);
        self.inner.add(strength, &mut Tile { rows, cols: tile.cols.clone(), base, value, fresh })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::{Factor, LowRankDelta, Term};

    fn added(delta: &dyn Delta) -> Vec<f32> {
        let (rows, cols) = delta.shape();
        let mut value = vec![0.0; rows * cols];
        let mut tile = Tile { rows: 0..rows, cols: 0..cols, base: &[], value: &mut value, fresh: true };
        delta.columns(0..cols).expect("columns").add(1.0, &mut tile).expect("added");
        value
    }

    fn product() -> Arc<dyn Delta> {
        let up = Factor::held(vec![1.0, 2.0, 3.0], 1);
        let down = Factor::held(vec![1.0, 10.0], 2);
        Arc::new(LowRankDelta::new(vec![Term { up, down, scale: 1.0 }]))
    }

    #[test]
    fn a_turned_change_is_the_transpose() {
        assert_eq!(added(product().as_ref()), [1.0, 10.0, 2.0, 20.0, 3.0, 30.0]);
        assert_eq!(added(&Turned(product())), [1.0, 2.0, 3.0, 10.0, 20.0, 30.0]);
    }

    #[test]
    fn a_window_is_some_rows() {
        assert!(Window::fits(product().as_ref(), &(1..3)));
        assert_eq!(added(&Window::new(product(), 1..3)), [2.0, 20.0, 3.0, 30.0]);
    }
}
