//! One weight file of tensors that are held, computed or taken from an input.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::formats::layout::OutputFile;
use crate::pairs::Bytes;
use crate::plan::{Compute, Plan};
use crate::tensor::{Shape, TensorInfo};

/// One weight file, called `name`, that holds `tensors`.
pub fn lay_out(
    name: &str,
    mut tensors: Vec<(String, Shape, Bytes)>,
    metadata: &[(String, String)],
    job_bytes: u64,
) -> Plan {
    for (name, shape, bytes) in &tensors {
        let bits = shape.elements().zip(bytes.dtype().bits()).map(|(count, bits)| count * u64::from(bits));
        assert!(
            bits.is_none_or(|bits| bits == bytes.count() * 8),
            "`{name}` has as many bytes as its shape {shape} needs"
        );
    }
    // Wide elements first, so that every tensor lies at a multiple of its element's width.
    tensors.sort_by(|(left, _, left_bytes), (right, _, right_bytes)| {
        (right_bytes.dtype().bits(), left).cmp(&(left_bytes.dtype().bits(), right))
    });
    let infos = tensors.iter().map(|(name, shape, bytes)| TensorInfo {
        name: name.clone(),
        dtype: bytes.dtype(),
        shape: shape.clone(),
        offset: 0,
        bytes: bytes.count(),
    });
    let file = OutputFile::new(name.into(), metadata, infos.collect());
    let mut plan = Plan::default();
    for (info, (_, _, bytes)) in file.tensors.iter().zip(tensors) {
        schedule(&mut plan, file.start_of(info), info, bytes, job_bytes);
    }
    plan.files.push(file);
    plan
}

fn schedule(plan: &mut Plan, offset: u64, info: &TensorInfo, bytes: Bytes, job_bytes: u64) {
    let count = bytes.count();
    let rows = info.shape.rows_cols().0;
    let row_bytes = count.checked_div(rows).unwrap_or(0);
    let compute: Arc<dyn Compute> = match bytes {
        Bytes::Stored(stored) => return plan.copy(0, offset, &stored.map, stored.start, count),
        Bytes::Held { bytes, .. } => Arc::new(Held { bytes, row_bytes: usize::try_from(row_bytes).unwrap_or(0) }),
        Bytes::Computed { compute, .. } => compute,
    };
    if count > 0 {
        let rows = usize::try_from(rows).expect("a tensor with so many rows was never read");
        plan.compute(0, offset, &compute, 0..rows, row_bytes, job_bytes);
        plan.computed.push(compute);
    }
}

/// A tensor that is in memory.
struct Held {
    bytes: Vec<u8>,
    row_bytes: usize,
}

impl Compute for Held {
    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.bytes[rows.start * self.row_bytes..rows.end * self.row_bytes]);
        Ok(())
    }
}
