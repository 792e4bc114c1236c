//! Buffers that a thread uses again. Decoded factors are needed for every tile and are too large for the allocator to keep:
//! it would hand their pages back to the system and fetch them anew each time.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Most buffers a thread keeps: one per factor of the deltas that meet on one tile.
const KEPT: usize = 8;

/// Longest buffer that is kept, in numbers: 16 MiB.
const LONGEST_KEPT: usize = 4 << 20;

thread_local! {
    static KEPT_BUFFERS: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Numbers of no particular value, until they are written.
pub struct Spare(Vec<f32>);

impl Spare {
    /// Room for `length` numbers.
    pub fn of(length: usize) -> Self {
        let mut buffer = KEPT_BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default();
        buffer.resize(length, 0.0);
        Self(buffer)
    }
}

impl Deref for Spare {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Spare {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        if buffer.capacity() <= LONGEST_KEPT {
            KEPT_BUFFERS.with_borrow_mut(|kept| {
                if kept.len() < KEPT {
                    kept.push(buffer);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_with_the_length_asked_for() {
        let first = Spare::of(1000);
        let place = first.as_ptr();
        drop(first);
        let again = Spare::of(10);
        assert_eq!((again.len(), again.as_ptr()), (10, place));
    }
}
