//! GLoRA in PEFT's form (Chavan et al. 2023): W′ = W + W ∘ A + B, b′ = b + b ∘ D + E + W · C. Each of A … E is a product, a vector,
//! one number or zero.
//!
//! Follows PEFT `tuners/glora/layer.py`.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::form::{Formed, Formula, General, bias, values, weight};
use crate::adapters::delta::BaseRows;
use crate::adapters::kind::Kind;
use crate::adapters::method::{Method, Target};
use crate::adapters::parts::{Context, Parts, agree, wrong};
use crate::error::Result;
use crate::formats::Stored;

/// GLoRA.
pub static KIND: Kind =
    Kind { parameters: &["Xd", "Xu", "X", "zeros"], ..Kind::of_peft("GLoRA", &["GLORA"], &["glora"], gather) };

const NAMES: [[&str; 4]; 5] = [
    ["glora_A.Xd", "glora_A.Xu", "glora_A.X", "glora_A.zeros"],
    ["glora_B.Xd", "glora_B.Xu", "glora_B.X", "glora_B.zeros"],
    ["glora_C.Xd", "glora_C.Xu", "glora_C.X", "glora_C.zeros"],
    ["glora_D.Xd", "glora_D.Xu", "glora_D.X", "glora_D.zeros"],
    ["glora_E.Xd", "glora_E.Xu", "glora_E.X", "glora_E.zeros"],
];

/// A product `[rows, k] · [k, cols]` or a tensor that is repeated.
#[derive(Clone)]
enum Path {
    Product(Stored, Stored),
    Repeated(Stored),
    Zero,
}

fn gather(parts: &mut Parts, _: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let mut tensors: Vec<(&'static str, Stored)> = Vec::new();
    let mut paths = Vec::new();
    for [down, up, x, zeros] in NAMES {
        let path = if let Some(first) = parts.take_part(down) {
            let second = parts.require_part(up, &first)?;
            agree(&second, "the rank", second.rows_cols().0, first.rows_cols().1)?;
            tensors.extend([(down, first.clone()), (up, second.clone())]);
            Path::Product(first, second)
        } else if let Some(only) = parts.take_part(x) {
            tensors.push((x, only.clone()));
            Path::Repeated(only)
        } else {
            tensors.extend(parts.take_part(zeros).map(|tensor| (zeros, tensor)));
            Path::Zero
        };
        paths.push(path);
    }
    if tensors.is_empty() {
        return Ok(None);
    }
    let make = move |target: &Target| {
        let shape = (target.outputs, target.inputs);
        let mut changes = Vec::new();
        if target.bias {
            let line = (1, target.outputs);
            let (by, add) = (grid(&paths[3], line)?, grid(&paths[4], line)?);
            let from = grid(&paths[2], (target.inputs, 1))?.map(|grid| FromWeight { grid, found: OnceLock::new() });
            changes.push(bias(Formed(Affine { shape: line, by, add, from })));
        }
        let (by, add) = (grid(&paths[0], shape)?, grid(&paths[1], shape)?);
        changes.push(weight(Formed(Affine { shape, by, add, from: None })));
        Ok(changes)
    };
    Ok(Some(Arc::new(General::changing(&KIND, tensors, make))))
}

/// A path as factors, ready to be asked for elements: `up[row] · down[col]`.
struct Grid {
    up: Vec<f32>,
    down: Vec<f32>,
    rank: usize,
    cols: usize,
}

fn grid(path: &Path, (rows, cols): (usize, usize)) -> Result<Option<Grid>> {
    Ok(match path {
        Path::Zero => None,
        Path::Product(first, second) => {
            agree(first, "the number of outputs", first.rows_cols().0, rows)?;
            agree(second, "the number of inputs", second.rows_cols().1, cols)?;
            Some(Grid { up: values(first)?, down: values(second)?, rank: first.rows_cols().1, cols })
        }
        Path::Repeated(tensor) => {
            let value = values(tensor)?;
            let (up, down) = match value.len() {
                1 => (vec![value[0]; rows], vec![1.0; cols]),
                n if n == rows && (rows > 1) => (value, vec![1.0; cols]),
                n if n == cols => (vec![1.0; rows], value),
                n => return Err(wrong(tensor, format!("has {n} entries, its place is [{rows}, {cols}]"))),
            };
            Some(Grid { up, down, rank: 1, cols })
        }
    })
}

impl Grid {
    fn at(&self, row: usize, col: usize) -> f32 {
        let line = &self.up[row * self.rank..][..self.rank];
        line.iter().enumerate().fold(0.0, |sum, (k, up)| up.mul_add(self.down[k * self.cols + col], sum))
    }
}

struct Affine {
    shape: (usize, usize),
    by: Option<Grid>,
    add: Option<Grid>,
    /// W · C, for a bias.
    from: Option<FromWeight>,
}

/// C, `[in, 1]`, and W · C once W was seen.
struct FromWeight {
    grid: Grid,
    found: OnceLock<Vec<f32>>,
}

/// Rows of W that are read at once.
const ROWS: usize = 16;

impl FromWeight {
    fn see(&self, weight: &dyn BaseRows, outputs: usize) -> Result<()> {
        let c: Vec<f64> = (0..self.grid.up.len() / self.grid.rank).map(|row| f64::from(self.grid.at(row, 0))).collect();
        let mut found = Vec::with_capacity(outputs);
        let mut band = Vec::new();
        for first in (0..outputs).step_by(ROWS) {
            let rows = first..outputs.min(first + ROWS);
            band.resize(rows.len() * c.len(), 0.0);
            weight.read(rows, 0..c.len(), &mut band)?;
            let sum = |line: &[f32]| line.iter().zip(&c).map(|(w, c)| f64::from(*w) * c).sum::<f64>() as f32;
            found.extend(band.chunks_exact(c.len()).map(sum));
        }
        // Seen twice it is the same: keeping the first is right.
        let _ = self.found.set(found);
        Ok(())
    }

    fn at(&self, output: usize) -> f32 {
        self.found.get().expect("the weight is seen before the bias is changed")[output]
    }
}

impl Formula for Affine {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn compute(&self, rows: Range<usize>, cols: Range<usize>, base: &[f32], out: &mut [f32]) -> Result<()> {
        let width = cols.len();
        for (line, row) in rows.enumerate() {
            for (at, col) in cols.clone().enumerate() {
                let old = base[line * width + at];
                let by = self.by.as_ref().map_or(0.0, |grid| grid.at(row, col));
                let add = self.add.as_ref().map_or(0.0, |grid| grid.at(row, col));
                let from = self.from.as_ref().map_or(0.0, |from| from.at(col));
                out[line * width + at] = old + (old * by + add + from);
            }
        }
        Ok(())
    }

    fn reads_weight(&self) -> bool {
        self.from.is_some()
    }

    fn see_weight(&self, weight: &dyn BaseRows) -> Result<()> {
        self.from.as_ref().map_or(Ok(()), |from| from.see(weight, self.shape.1))
    }
}
