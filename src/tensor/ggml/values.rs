//! Blocks ↔ values, for every type.

use super::{GgmlType, pack, unpack};
use crate::tensor::Rounding;

impl GgmlType {
    /// Unpacks whole blocks as f32, exactly as ggml does.
    ///
    /// # Panics
    /// When `bytes` and `out` do not hold the same whole number of blocks.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(self.bytes_of(out.len() as u64), Some(bytes.len() as u64), "whole blocks of {self}");
        match self.float() {
            Some(float) => float.decode(bytes, out),
            None => unpack::decode(self, bytes, out),
        }
    }

    /// Whether [`encode`](Self::encode) makes blocks of this type.
    pub fn can_encode(self) -> bool {
        self.float().is_some() || pack::is_known(self)
    }

    /// Packs values into whole blocks, with the scales that ggml chooses where nothing says which values matter more.
    ///
    /// # Panics
    /// When `values` and `out` do not hold the same whole number of blocks, or the type is none that
    /// [`can_encode`](Self::can_encode).
    pub fn encode(self, values: &[f32], out: &mut [u8]) {
        assert_eq!(self.bytes_of(values.len() as u64), Some(out.len() as u64), "whole blocks of {self}");
        match self.float() {
            Some(float) => float.encode(values, Rounding::Nearest, out),
            None => pack::encode(self, values, out),
        }
    }
}
