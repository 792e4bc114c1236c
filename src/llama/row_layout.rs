//! How the rows of a weight lie in a GGUF file, beside how the checkpoint has them.

use std::sync::Arc;

/// Order of the rows, and what was added to every value. The default is a weight that lies as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowLayout {
    /// Where the rows stand, if not in their order.
    pub order: Option<Arc<RowPermutation>>,
    /// Added to every value that is stored: 1 for the norms of Gemma.
    pub added: f32,
}

/// A permutation of rows.
#[derive(Debug, PartialEq)]
pub struct RowPermutation {
    stored: Vec<usize>,
    block: usize,
}

impl RowPermutation {
    /// The order in which the file has row `rows[0]` of the checkpoint first, then `rows[1]` and so on.
    ///
    /// # Panics
    /// When `rows` is no permutation.
    pub fn new(rows: &[usize]) -> Self {
        let mut stored = vec![usize::MAX; rows.len()];
        rows.iter().enumerate().for_each(|(at, row)| stored[*row] = at);
        assert!(stored.iter().all(|at| *at < rows.len()), "every row stands somewhere");
        let block = closed_block(&stored);
        Self { stored, block }
    }
}

impl RowLayout {
    /// Where row `row` of the checkpoint stands in the file.
    pub fn stored_row(&self, row: usize) -> usize {
        self.order.as_ref().map_or(row, |order| order.stored[row])
    }

    /// Rows that change places among each other only: work is cut at multiples of it.
    pub fn grain(&self) -> usize {
        self.order.as_ref().map_or(1, |order| order.block)
    }
}

/// The smallest number of rows whose blocks are permutations of themselves.
fn closed_block(stored: &[usize]) -> usize {
    let mut furthest = 0;
    for (row, at) in stored.iter().enumerate() {
        furthest = furthest.max(*at);
        let block = row + 1;
        let closed = |(row, at): (usize, &usize)| row / block == at / block;
        if furthest == row && stored.len().is_multiple_of(block) && stored.iter().enumerate().all(closed) {
            return block;
        }
    }
    stored.len().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_heads_change_places_within_their_head() {
        let layout = RowLayout { order: Some(Arc::new(RowPermutation::new(&[0, 2, 1, 3, 4, 6, 5, 7]))), added: 0.0 };
        assert_eq!((0..8).map(|row| layout.stored_row(row)).collect::<Vec<_>>(), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(layout.grain(), 4);
        let order = RowPermutation::new(&[0, 3, 1, 4, 2, 5]);
        assert_eq!((order.stored.as_slice(), order.block), (&[0, 2, 4, 1, 3, 5][..], 6));
        assert_eq!((RowLayout::default().stored_row(3), RowLayout::default().grain()), (3, 1));
    }

    #[test]
    fn an_order_that_mixes_all_rows_is_one_block() {
        assert_eq!(RowPermutation::new(&[3, 0, 1, 2]).block, 4);
        assert_eq!(RowPermutation::new(&[]).block, 1);
        assert_eq!(RowPermutation::new(&[0, 1, 3, 2]).block, 2);
    }
}
