//! A new adapter of PEFT's that lies in no file: read as if it did, so that any writer takes it. What is computed of it is computed
//! where a writer reads it, piece by piece.

use std::path::Path;
use std::sync::Arc;

use super::files::{Files, Tensor};
use super::open::of_peft;
use super::opened::Source;
use crate::adapters::config::CONFIG_NAME;
use crate::adapters::options::Chosen;
use crate::adapters::{Adapter, ReadOptions};
use crate::error::Result;
use crate::formats::{Checkpoint, Stored, json};
use crate::io::MappedFile;
use crate::pairs::Bytes;
use crate::plan::Compute;
use crate::tensor::TensorInfo;

/// The adapter that `files` of PEFT's are. It was made of the input `of`, by which messages name it; what is held of it in memory
/// answers to `file`, one of that input's.
///
/// # Errors
/// When it contradicts itself.
pub fn made(files: Files, of: &Path, file: &Arc<MappedFile>) -> Result<Adapter> {
    let config = files.beside.iter().find(|(name, _)| name == Path::new(CONFIG_NAME));
    let raw = config.map(|(name, text)| json::parse(name, "JSON", text)).transpose()?.unwrap_or_default();
    let mut tensors = files.tensors.into_iter().map(|tensor| stored(file, tensor)).collect::<Result<Vec<_>>>()?;
    // As they would lie in a file.
    tensors.sort_by(|left, right| {
        let bits = |stored: &Stored| stored.info.dtype.bits();
        (bits(right), &left.info.name).cmp(&(bits(left), &right.info.name))
    });
    let tensors = Checkpoint::of_tensors(of, file, files.metadata, tensors)?;
    let (chosen, options) = (Chosen::default(), ReadOptions::default());
    let source = Source { root: of, raw, tensors, chosen: &chosen, options: &options };
    let (mut adapter, problem) = of_peft(source, true)?.examined();
    adapter.root = of.to_owned();
    adapter.leave_out_originals();
    adapter.leave_out_model();
    problem.map_or(Ok(adapter), Err)
}

fn stored(file: &MappedFile, (name, shape, bytes): Tensor) -> Result<Stored> {
    let (dtype, count, rows) = (bytes.dtype(), bytes.count(), shape.rows_cols().0);
    let info = TensorInfo { name, dtype, shape, offset: 0, bytes: count };
    Ok(match bytes {
        Bytes::Stored(own) => Stored { info, ..own },
        Bytes::Held { bytes, .. } => Stored::held(file, info, bytes),
        Bytes::Computed { compute, .. } => {
            compute.prepare()?;
            let row_bytes = usize::try_from(count.checked_div(rows).unwrap_or(0)).unwrap_or(usize::MAX).max(1);
            let made = file.made(count, move |offset, out| read(compute.as_ref(), row_bytes, offset, out));
            Stored { map: Arc::new(made), info, start: 0 }
        }
    })
}

/// The bytes from `offset` on, of rows that are computed.
fn read(compute: &dyn Compute, row_bytes: usize, offset: u64, out: &mut [u8]) -> Result<()> {
    let offset = usize::try_from(offset).expect("a tensor that is computed fits the address space");
    let rows = offset / row_bytes..(offset + out.len()).div_ceil(row_bytes);
    let skipped = offset - rows.start * row_bytes;
    if skipped == 0 && rows.len() * row_bytes == out.len() {
        return compute.rows(rows, out);
    }
    let mut whole = vec![0; rows.len() * row_bytes];
    compute.rows(rows, &mut whole)?;
    out.copy_from_slice(&whole[skipped..skipped + out.len()]);
    Ok(())
}
