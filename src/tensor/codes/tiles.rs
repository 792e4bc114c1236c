//! Where a block scale lies in the tiles of cuBLAS, in which ComfyUI stores the scales of `nvfp4` and `mxfp8`.
//!
//! Rows are padded to 128 and columns to 4; a tile of 128 × 4 scales is stored as 32 rows of 16, of which each holds four
//! columns of the rows r, r + 32, r + 64 and r + 96 (cuBLAS manual, "1D Block Scaling Factors Layout").

/// Rows and columns of a tile.
pub const TILE: (usize, usize) = (128, 4);

/// The place of the scale at (`row`, `col`) among `cols` columns, a multiple of four.
pub fn tiled(row: usize, col: usize, cols: usize) -> usize {
    let tile = row / TILE.0 * (cols / TILE.1) + col / TILE.1;
    tile * TILE.0 * TILE.1 + row % 32 * 16 + row % TILE.0 / 32 * 4 + col % TILE.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scale_has_one_place() {
        let (rows, cols) = (256, 8);
        let mut places: Vec<usize> =
            (0..rows).flat_map(|row| (0..cols).map(move |col| tiled(row, col, cols))).collect();
        assert_eq!(places[..5], [0, 1, 2, 3, 512]);
        assert_eq!((tiled(1, 0, cols), tiled(32, 0, cols), tiled(128, 0, cols)), (16, 4, 1024));
        places.sort_unstable();
        assert!(places.into_iter().eq(0..rows * cols));
    }
}
