//! C3A (Chen et al. 2025): ΔW is made of circulant blocks of b × b: ΔW[mb + p, nb + s] = w[m, n, (s − p) mod b] / in.
//!
//! Follows PEFT `tuners/c3a/layer.py`, whose Fourier transforms come to this.

use std::ops::Range;
use std::sync::Arc;

use super::form::{Formed, Formula, General, sizes, values, weight};
use crate::adapters::kind::Kind;
use crate::adapters::method::{Method, Target};
use crate::adapters::parts::{Context, Parts};
use crate::error::Result;

/// C3A.
pub static KIND: Kind = Kind::of_peft("C3A", &["C3A"], &["c3a"], gather);

fn gather(parts: &mut Parts, _: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let Some(stored) = parts.take_part("c3a_kernel") else { return Ok(None) };
    let [high, wide, b] = sizes::<3>(&stored)?;
    let tensors = vec![("c3a_kernel", stored.clone())];
    let make = move |_: &Target| Ok(vec![weight(Formed(Circulant { high, wide, b, kernel: values(&stored)? }))]);
    Ok(Some(Arc::new(General::changing(&KIND, tensors, make).shaped((high * b) as u64, (wide * b) as u64))))
}

struct Circulant {
    high: usize,
    wide: usize,
    b: usize,
    kernel: Vec<f32>,
}

impl Formula for Circulant {
    fn shape(&self) -> (usize, usize) {
        (self.high * self.b, self.wide * self.b)
    }

    fn rewrites(&self) -> bool {
        false
    }

    fn compute(&self, rows: Range<usize>, cols: Range<usize>, _: &[f32], out: &mut [f32]) -> Result<()> {
        let (b, inputs) = (self.b, (self.wide * self.b) as f32);
        for (row, line) in rows.zip(out.chunks_exact_mut(cols.len())) {
            for (col, value) in cols.clone().zip(line) {
                let at = (row / b * self.wide + col / b) * b + (col % b + b - row % b) % b;
                *value = self.kernel[at] / inputs;
            }
        }
        Ok(())
    }
}
