//! What has to be decompressed or put in order before it is a tensor, within bounds that depend on the file.

use std::path::Path;

use crate::error::{Error, Result};
use crate::limits::MAX_HELD_BYTES;

/// What may still be held for one file.
#[derive(Debug)]
pub struct Budget<'a> {
    path: &'a Path,
    used: u64,
    most: u64,
}

impl<'a> Budget<'a> {
    /// The budget of a file of `bytes` bytes.
    pub fn new(path: &'a Path, bytes: u64) -> Self {
        Self { path, used: 0, most: MAX_HELD_BYTES.saturating_add(bytes) }
    }

    /// Takes `bytes` for `what`, and tells how long the buffer is.
    ///
    /// # Errors
    /// `Limit`, when that is more than the file can reasonably need.
    pub fn take(&mut self, bytes: u64, what: &str) -> Result<usize> {
        let used = self.used.saturating_add(bytes);
        let len = usize::try_from(bytes).ok().filter(|_| used <= self.most);
        let Some(len) = len else {
            let quantity = format!("what is held in memory for it, in bytes, with {what}");
            return Err(Error::limit(self.path, quantity, used, self.most)
                .hint("it is compressed, transposed or repeated far beyond its own size"));
        };
        self.used = used;
        Ok(len)
    }
}

/// Elements of `item` bytes that lie `strides` elements apart, in row-major order. `first` is the index of the first one.
///
/// The caller has checked that all of them lie inside `bytes`.
pub fn gather(bytes: &[u8], item: usize, first: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let count: usize = shape.iter().product();
    let mut out = Vec::with_capacity(count * item);
    if count == 0 {
        return out;
    }
    let mut index = vec![0; shape.len()];
    let (last_size, last_stride) = (shape.last().copied().unwrap_or(1), strides.last().copied().unwrap_or(1));
    let mut at = first;
    loop {
        if last_stride == 1 {
            out.extend_from_slice(&bytes[at * item..(at + last_size) * item]);
        } else {
            for element in 0..last_size {
                let from = (at + element * last_stride) * item;
                out.extend_from_slice(&bytes[from..from + item]);
            }
        }
        // The next row: the last dimension but one counts, and carries.
        let mut dimension = shape.len().saturating_sub(1);
        loop {
            if dimension == 0 {
                return out;
            }
            dimension -= 1;
            index[dimension] += 1;
            at += strides[dimension];
            if index[dimension] < shape[dimension] {
                break;
            }
            at -= strides[dimension] * shape[dimension];
            index[dimension] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_gathered_by_their_strides() {
        let bytes: Vec<u8> = (0..24).collect();
        assert_eq!(gather(&bytes, 1, 0, &[2, 3], &[3, 1]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(gather(&bytes, 1, 0, &[3, 2], &[1, 3]), [0, 3, 1, 4, 2, 5], "transposed");
        assert_eq!(gather(&bytes, 2, 1, &[2], &[3]), [2, 3, 8, 9], "stepped, from an offset");
        assert_eq!(gather(&bytes, 1, 7, &[2, 2], &[0, 1]), [7, 8, 7, 8], "repeated");
        assert_eq!(gather(&bytes, 1, 0, &[2, 2, 2], &[1, 2, 12]), [0, 12, 2, 14, 1, 13, 3, 15], "permuted");
        assert_eq!(gather(&bytes, 4, 2, &[], &[]), [8, 9, 10, 11], "a scalar");
        assert_eq!(gather(&bytes, 1, 0, &[2, 0], &[0, 1]), Vec::<u8>::new(), "nothing");
    }

    #[test]
    fn a_budget_ends() {
        let mut budget = Budget::new(Path::new("x.bin"), 10);
        assert_eq!(budget.take(MAX_HELD_BYTES, "tensor `a`").unwrap() as u64, MAX_HELD_BYTES);
        let error = budget.take(11, "tensor `b`").unwrap_err().to_string();
        let most = MAX_HELD_BYTES + 10;
        assert!(error.contains(&format!("with tensor `b` is {}, more than the accepted {most}", most + 1)), "{error}");
        assert!(budget.take(u64::MAX, "tensor `c`").is_err());
    }
}
