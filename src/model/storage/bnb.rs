//! Weights of bitsandbytes in 4 bits: NF4 and FP4, with and without double quantisation. W = map[code] · absmax[block], in f32.
//!
//! | tensor of `M` | what |
//! |---|---|
//! | `M.weight` `[⌈n ∕ 2⌉, 1]` | codes of the flattened weight, the first of two in the high nibble; bytes under any dtype |
//! | `M.weight.absmax` | F32 `[blocks]`; U8 with double quantisation |
//! | `M.weight.quant_map` | F32 `[16]`: the values of the codes |
//! | `M.weight.nested_absmax`, `.nested_quant_map` | F32 `[⌈blocks ∕ 256⌉]`, `[256]` |
//! | `M.weight.quant_state.bitsandbytes__nf4`, `__fp4` | JSON: sizes, dtype, offset |
//!
//! GPTQModel writes an underscore for the dot behind `weight`, and `weight_quant_state` alone. With double quantisation
//! absmax = map₂[code] · absmax₂ + offset, rounded twice where `nested_dtype` is not `float32`. Layers of the type Conv1D (GPT-2) hold
//! the transpose of what the plain checkpoint holds. Source: bitsandbytes `functional.py`, `backends/default/ops.py`.

use std::ops::Range;
use std::sync::Arc;

use super::bnb_state::{Nested, State};
use super::files::Files;
use super::{Change, Facts, Found, Grid, Group, Storage};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::conv1d;
use crate::tensor::codes::{BitOrder, Bits, Codebook, Level, Levels, Shared, decode_levels, requantise};
use crate::tensor::{Dtype, Float, Shape, TensorInfo, usize_of};

/// Codes of one map.
const CODES: usize = 16;

/// Codes that are read at once: they stay in the first cache.
const PIECE: usize = 4096;

/// Codes of the map of double quantisation.
const NESTED_CODES: usize = 256;

/// A weight in 4 bits.
#[derive(Debug)]
struct FourBits {
    codes: Stored,
    map: [f32; CODES],
    scales: Absmax,
    state: State,
    /// The plain weight is the transpose.
    turned: bool,
}

/// The scales.
#[derive(Debug)]
struct Absmax {
    stored: Stored,
    nested: Option<(Nested, Box<[f32; NESTED_CODES]>, Stored)>,
}

/// Recognises `M.weight` with its state beside it.
///
/// # Errors
/// When what lies beside it is not complete, or does not fit.
pub fn recognise(files: &Files<'_>, info: &TensorInfo) -> Result<Option<Found>> {
    let name = &info.name;
    // Codes under another type than that of bytes stand one below the other.
    if info.dtype != Dtype::U8 && info.shape.as_slice().last() != Some(&1) {
        return Ok(None);
    }
    let states = [
        format!("{name}.quant_state.bitsandbytes__nf4"),
        format!("{name}.quant_state.bitsandbytes__fp4"),
        format!("{name}_quant_state"),
    ];
    let Some(state_name) = states.into_iter().find(|state| files.info(state).is_some()) else { return Ok(None) };
    let state = State::read(&files.find(&state_name).expect("it was found"))?;
    let between = if state_name.ends_with("_quant_state") { '_' } else { '.' };
    let at = |end: &str| format!("{name}{between}{end}");
    let need = |end: &str| {
        files.find(&at(end)).ok_or_else(|| files.malformed(&state_name, format!("tensor `{}` is missing", at(end))))
    };
    let elements = state.elements().filter(|elements| elements.div_ceil(2) == info.bytes);
    let Some(elements) = elements else {
        let shape = Shape::from(state.shape.clone());
        let problem = format!("`shape` is {shape}, and `{name}` has {} bytes of two codes each", info.bytes);
        return Err(files.malformed(&state_name, problem));
    };
    let blocks = elements.div_ceil(state.block as u64);
    let map = table(files, &need("quant_map")?)?;
    let absmax = need("absmax")?;
    check(files, &absmax, blocks, if state.nested.is_some() { &Dtype::U8 } else { &Dtype::F32 })?;
    let nested = match state.nested {
        None => None,
        Some(nested) => {
            let (inner, map) = (need("nested_absmax")?, table(files, &need("nested_quant_map")?)?);
            check(files, &inner, blocks.div_ceil(nested.block as u64), &Dtype::F32)?;
            Some((nested, Box::new(map), inner))
        }
    };
    let ends = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"];
    let mut tensors = vec![name.clone()];
    tensors.extend(files.present(ends.map(at)));
    tensors.push(state_name);
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let turned = state.shape.len() == 2 && files.keeps_inputs_in_rows() && conv1d::is_layer(module);
    let codes = files.find(name).expect("it was found");
    let storage = FourBits { codes, map, scales: Absmax { stored: absmax, nested }, state, turned };
    Ok(Some(Found { name: name.clone(), tensors, storage: Arc::new(storage) }))
}

/// The values of codes.
fn table<const N: usize>(files: &Files<'_>, stored: &Stored) -> Result<[f32; N]> {
    check(files, stored, N as u64, &Dtype::F32)?;
    let mut values = [0.0; N];
    Float::F32.decode(&stored.read(0, stored.info.bytes)?, &mut values);
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => {
            let problem = format!("the value of code {at} is {}", values[at]);
            Err(Error::numeric(stored.path(), &stored.info.name, problem))
        }
    }
}

/// A companion has one dimension, `count` elements and its own type.
fn check(files: &Files<'_>, stored: &Stored, count: u64, dtype: &Dtype) -> Result<()> {
    let name = &stored.info.name;
    if stored.info.dtype != *dtype || stored.info.shape.as_slice() != [count] {
        let problem = format!("is {} {}, and {dtype} [{count}] belongs there", stored.info.dtype, stored.info.shape);
        let error = files.malformed(name, problem);
        // Saved after a forward pass on a processor with AVX-512 in bf16, the scales are turned and rounded.
        let damaged = stored.info.dtype == Dtype::Bf16 && name.ends_with("absmax");
        return Err(if damaged {
            error.hint("bitsandbytes rearranged the scales for a processor before it saved them: save the model again without a forward pass on it")
        } else {
            error
        });
    }
    Ok(())
}

impl Absmax {
    /// Reads the scales of blocks.
    fn read(&self, blocks: Range<usize>, out: &mut [f32]) -> Result<()> {
        match &self.nested {
            None => Float::F32.decode(&self.stored.read(blocks.start as u64 * 4, blocks.len() as u64 * 4)?, out),
            Some((nested, map, inner)) => {
                let outer = blocks.start / nested.block..blocks.end.div_ceil(nested.block);
                let mut scales = vec![0.0; outer.len()];
                Float::F32.decode(&inner.read(outer.start as u64 * 4, outer.len() as u64 * 4)?, &mut scales);
                let codes = self.stored.read(blocks.start as u64, blocks.len() as u64)?;
                for ((block, code), value) in blocks.clone().zip(codes.iter()).zip(out.iter_mut()) {
                    *value = map[usize::from(*code)] * scales[block / nested.block - outer.start];
                }
                if nested.dtype != Float::F32 {
                    nested.dtype.round(out);
                }
                out.iter_mut().for_each(|value| *value += nested.offset);
                if nested.dtype != Float::F32 {
                    nested.dtype.round(out);
                }
            }
        }
        match out.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let problem = format!("the scale of block {} is {}", blocks.start + at, out[at]);
                Err(Error::numeric(self.stored.path(), &self.stored.info.name, problem))
            }
        }
    }
}

/// The first of two codes in the high half.
fn halves() -> Bits {
    Bits::new(BitOrder::HighFirst, 4).expect("half bytes")
}

impl FourBits {
    /// Reads elements of the flattened weight.
    fn flat(&self, elements: Range<usize>, out: &mut [f32]) -> Result<()> {
        if elements.is_empty() {
            return Ok(());
        }
        let block = self.state.block;
        let blocks = elements.start / block..elements.end.div_ceil(block);
        let mut scales = vec![0.0; blocks.len()];
        self.scales.read(blocks.clone(), &mut scales)?;
        let first = elements.start / 2;
        let bytes = self.codes.read(first as u64, (elements.end.div_ceil(2) - first) as u64)?;
        let shared = Shared { size: block, skipped: elements.start % block, scales: &scales, zeros: &[], biases: &[] };
        // An odd element is the second of its byte.
        let (bits, odd) = (halves(), elements.start % 2);
        let mut codes = [0; PIECE];
        let mut done = 0;
        while done < out.len() {
            let skipped = (odd + done) % 2;
            let count = (PIECE - skipped).min(out.len() - done);
            bits.unpack(&bytes[(odd + done) / 2..], &mut codes[..skipped + count]);
            decode_levels(&self.map, &codes[skipped..skipped + count], shared.from(done), &mut out[done..done + count]);
            done += count;
        }
        Ok(())
    }

    /// Rows and columns as they are stored.
    fn stored_shape(&self) -> (usize, usize) {
        let sizes = &self.state.shape;
        let cols = usize_of(sizes[sizes.len() - 1]);
        (sizes[..sizes.len() - 1].iter().map(|size| usize_of(*size)).product(), cols)
    }
}

impl FourBits {
    /// Writes the codes of elements that lie in the weight as they are stored.
    fn encode_flat(&self, elements: Range<usize>, change: &Change<'_>, out: &mut [u8]) -> Result<()> {
        let (block, levels) = (self.state.block, Levels::new(&self.map));
        let blocks = elements.start / block..elements.end.div_ceil(block);
        let mut scales = vec![0.0; blocks.len()];
        self.scales.read(blocks, &mut scales)?;
        let skipped = elements.start % block;
        let shared = Shared { size: block, skipped, scales: &scales, zeros: &[], biases: &[] };
        // The half of a last byte that is none of the weight's stays as it is.
        let bits = halves();
        let mut codes = vec![0; 2 * out.len()];
        bits.unpack(out, &mut codes);
        let (_, cols) = self.stored_shape();
        let first = (elements.start / cols.max(1), 0);
        let wanted = change.line(0..elements.len(), first);
        requantise(Codebook::Table(&self.map, &levels), shared, wanted, &mut codes[..elements.len()]);
        bits.pack(&codes, out);
        Ok(())
    }

    /// The elements that bands of bytes stand for.
    fn elements(&self, bands: Range<usize>) -> Range<usize> {
        let ((rows, cols), (count, _)) = (self.stored_shape(), self.bands());
        let each = rows.div_ceil(count.max(1)) * cols;
        bands.start * each..(bands.end * each).min(rows * cols)
    }

    /// Where an element of the flattened weight is in the rectangle of a band that begins at `first`, and in the plain weight.
    fn place(&self, element: usize, elements: &Range<usize>) -> (usize, usize, usize) {
        let (_, cols) = self.stored_shape();
        let (row, col) = (element / cols, element % cols);
        if !self.turned {
            return (element - elements.start, row, col);
        }
        let (first, count) = (elements.start / cols, elements.len() / cols);
        (col * count + row - first, col, row)
    }

    /// Calls `each` for every element with the scale of its block.
    fn scaled(&self, elements: Range<usize>, mut each: impl FnMut(usize, f32)) -> Result<()> {
        let block = self.state.block;
        let blocks = elements.start / block..elements.end.div_ceil(block);
        let mut scales = vec![0.0; blocks.len()];
        self.scales.read(blocks.clone(), &mut scales)?;
        elements.for_each(|element| each(element, scales[element / block - blocks.start]));
        Ok(())
    }
}

impl Grid for FourBits {
    fn bands(&self) -> (usize, usize) {
        let ((rows, cols), bytes) = (self.stored_shape(), usize_of(self.codes.info.bytes));
        // Rows that end in the middle of a byte are taken in pairs, or all together.
        match (cols % 2, rows % 2) {
            (0, _) => (rows, cols / 2),
            (_, 0) => (rows / 2, cols),
            _ => (1, bytes),
        }
    }

    fn part(&self, bands: Range<usize>) -> (Range<usize>, Range<usize>) {
        let (elements, (_, cols)) = (self.elements(bands), self.stored_shape());
        let rows = elements.start / cols.max(1)..elements.end / cols.max(1);
        if self.turned { (0..cols, rows) } else { (rows, 0..cols) }
    }

    fn encode(&self, bands: Range<usize>, change: &Change<'_>, out: &mut [u8]) -> Result<()> {
        let levels = Levels::new(&self.map);
        let level = Level::Table { table: &self.map, levels: &levels };
        let elements = self.elements(bands);
        if !self.turned {
            return self.encode_flat(elements, change, out);
        }
        self.scaled(elements.clone(), |element, scale| {
            let byte = &mut out[(element - elements.start) / 2];
            let place = self.place(element, &elements);
            *byte = if element.is_multiple_of(2) {
                change.code(place, level, scale, *byte >> 4) << 4 | *byte & 15
            } else {
                *byte & 0xF0 | change.code(place, level, scale, *byte & 15)
            };
        })
    }

    fn values(&self, bands: Range<usize>, codes: &[u8], out: &mut [f32]) -> Result<()> {
        let elements = self.elements(bands);
        self.scaled(elements.clone(), |element, scale| {
            let byte = codes[(element - elements.start) / 2];
            let code = if element.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            out[self.place(element, &elements).0] = self.map[usize::from(code)] * scale;
        })
    }
}

impl Storage for FourBits {
    fn shape(&self) -> Shape {
        let mut shape = self.state.shape.clone();
        if self.turned {
            shape.reverse();
        }
        Shape::from(shape)
    }

    fn read(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (width, (_, stored)) = (cols.len(), self.stored_shape());
        if width == 0 || rows.is_empty() {
            return Ok(());
        }
        if !self.turned {
            if width == stored {
                return self.flat(rows.start * stored..rows.end * stored, out);
            }
            return rows
                .zip(out.chunks_exact_mut(width))
                .try_for_each(|(row, line)| self.flat(row * stored + cols.start..row * stored + cols.end, line));
        }
        let mut line = vec![0.0; rows.len()];
        for (at, col) in cols.enumerate() {
            self.flat(col * stored + rows.start..col * stored + rows.end, &mut line)?;
            out.iter_mut().skip(at).step_by(width).zip(&line).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }

    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }

    fn facts(&self) -> Facts {
        let mut details = Vec::new();
        if let Some((nested, ..)) = &self.scales.nested {
            details.push(format!("double quantisation in blocks of {}", nested.block));
        }
        let format = format!("bitsandbytes {}", self.state.kind.to_uppercase());
        Facts { format, bits: 4, group: Group::Flat(self.state.block), details }
    }

    fn dtype(&self) -> Option<Float> {
        self.state.dtype
    }
}
