//! The rows of a tensor of a GGUF file: those of one matrix or of several one below the other, in an order of their own, in a
//! ggml type. They are computed when they are written.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::formats::gguf::{Layout, Metadata};
use crate::formats::layout::OutputFile;
use crate::pairs::Bytes;
use crate::pairs::matrix::{Grid, Kept};
use crate::pairs::range::beyond;
use crate::plan::{Compute, Plan};
use crate::tensor::{Beyond, Float, GgmlType, Packing, Rounding, Shape, TensorInfo};

/// A tensor that is to be written.
pub struct Tensor {
    /// Its name, type and shape.
    pub info: TensorInfo,
    /// Its values.
    pub source: Source,
}

/// Where the bytes of a tensor come from.
pub enum Source {
    /// They are those of an input.
    Stored(Stored),
    /// They are computed: by rows of the innermost dimension.
    Computed(Arc<dyn Compute>),
}

/// Matrices of one size, one below the other.
pub struct Rows {
    /// `None` where there is nothing but zeros.
    parts: Vec<Option<Grid>>,
    /// Rows of each.
    height: usize,
    width: usize,
    /// For every row that is written the one it is in its matrix.
    order: Option<Vec<usize>>,
    ggml: GgmlType,
    kept: Kept,
}

impl Rows {
    /// The matrices `parts`; `order` tells for every row written the one of the matrix, where that differs.
    pub fn new(parts: Vec<Option<Grid>>, order: Option<Vec<usize>>) -> Self {
        let size = parts.iter().flatten().map(|grid| grid.size).next().unwrap_or_default();
        let narrow = |count: u64| usize::try_from(count).expect("a mapped tensor fits the address space");
        Self { height: narrow(size.0), width: narrow(size.1), parts, order, ggml: GgmlType::F32, kept: Kept::default() }
    }

    /// The type it is written in: `quant`, unless rows are no whole number of blocks; else `float`; else the widest of the
    /// pieces, and F32 where values are rounded. `None` where ggml has no such type.
    pub fn type_of(&self, shape: &Shape, float: Option<Float>, quant: Option<GgmlType>) -> Option<GgmlType> {
        if let Some(quant) = quant {
            let row = shape.as_slice().last().copied().unwrap_or(0);
            return Some(if quant.bytes_of(row).is_some() { quant } else { GgmlType::F16 });
        }
        if let Some(float) = float {
            return GgmlType::of(&float.dtype());
        }
        let grids = || self.parts.iter().flatten();
        let widest = grids().map(Grid::float).max_by_key(|float| (float.bytes(), *float == Float::F32));
        let own = widest.and_then(|float| GgmlType::of(&float.dtype())).filter(|own| *own != GgmlType::F64);
        Some(own.filter(|_| !grids().any(Grid::rounds)).unwrap_or(GgmlType::F32))
    }

    /// The rows in that type.
    pub fn written(self, ggml: GgmlType) -> Source {
        if let ([Some(grid)], None, Some(float)) = (self.parts.as_slice(), &self.order, ggml.float())
            && let Bytes::Stored(stored) = grid.clone().bytes(Some(float))
        {
            return Source::Stored(stored);
        }
        Source::Computed(Arc::new(Self { ggml, ..self }))
    }

    fn packing(&self) -> Packing {
        self.ggml.float().map_or(Packing::Blocks(self.ggml), Packing::Float)
    }

    /// The refusal of a value among those of the rows from `first` on.
    fn refuse(&self, first: usize, found: &Beyond) -> Error {
        let width = self.width.max(1);
        let row = first + found.index / width;
        let within = row % self.height.max(1);
        let own = self.order.as_ref().map_or(within, |order| order[within]);
        let found = Beyond { index: found.index % width, ..*found };
        match self.parts.get(row / self.height.max(1)) {
            Some(Some(grid)) => grid.refuse(own, &found),
            _ => beyond(Path::new(""), "", row * width, &found),
        }
    }

    /// Decodes the rows `rows`, which lie in one matrix.
    fn decode(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (part, first) = (rows.start / self.height, rows.start % self.height);
        let Some(grid) = &self.parts[part] else {
            out.fill(0.0);
            return Ok(());
        };
        let Some(order) = &self.order else { return grid.decode(first..first + rows.len(), out) };
        for (from, line) in order[first..first + rows.len()].iter().zip(out.chunks_exact_mut(self.width)) {
            grid.decode(*from..from + 1, line)?;
        }
        Ok(())
    }
}

impl Compute for Rows {
    fn rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let mut values = vec![0.0; rows.len() * self.width];
        let mut first = rows.start;
        while first < rows.end {
            let last = rows.end.min((first / self.height + 1) * self.height);
            let place = (first - rows.start) * self.width..(last - rows.start) * self.width;
            self.decode(first..last, &mut values[place])?;
            first = last;
        }
        let packing = self.packing();
        let outcome = packing.encode_finite(&values, Rounding::Nearest, out);
        outcome.map_err(|found| self.refuse(rows.start, &found))?;
        self.kept.look(&values, || {
            let mut back = vec![0.0; values.len()];
            packing.decode(out, &mut back);
            back.iter().all(|value| *value == 0.0) && values.iter().any(|value| *value != 0.0)
        });
        Ok(())
    }

    fn vanished(&self) -> Option<String> {
        let name = || self.parts.iter().flatten().next().map(|grid| grid.origin().1.to_owned());
        self.kept.is_nothing().then(name).flatten()
    }
}

/// The plan of a file called `name` with this metadata and these tensors.
///
/// # Errors
/// When the metadata or a tensor cannot be laid out.
pub fn lay_out(name: &str, metadata: &Metadata, tensors: Vec<Tensor>, job_bytes: u64) -> Result<Plan> {
    let infos = tensors.iter().map(|tensor| tensor.info.clone()).collect();
    let Layout { head, tensors: infos, bytes, .. } = Layout::new(name.as_ref(), metadata, infos)?;
    let file = OutputFile { name: name.into(), header: head, tensors: infos, bytes };
    let mut plan = Plan::default();
    for (info, tensor) in file.tensors.iter().zip(tensors) {
        let offset = file.start_of(info);
        match tensor.source {
            Source::Stored(stored) => plan.copy(0, offset, &stored.map, stored.start, info.bytes),
            Source::Computed(compute) => {
                let width = info.shape.as_slice().last().copied().unwrap_or(1);
                let rows = info.shape.elements().and_then(|elements| elements.checked_div(width)).unwrap_or(0);
                let count = usize::try_from(rows).expect("a tensor with so many rows was never read");
                let row_bytes = info.bytes.checked_div(rows).unwrap_or(0);
                plan.compute(0, offset, &compute, 0..count, row_bytes, job_bytes);
                plan.computed.push(compute);
            }
        }
    }
    plan.files.push(file);
    Ok(plan)
}
