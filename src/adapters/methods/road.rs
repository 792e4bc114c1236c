//! RoAd (Liao & Monz 2024): W′ = R · W, b′ = R · b, R a rotation and scaling of pairs of outputs. In each group of g outputs a is
//! paired with a + g/2: R[a,a] = c, R[a,a'] = −s, R[a',a'] = c', R[a',a] = s', c = α cos θ, s = α sin θ.
//!
//! `road_1` has one θ and α per pair, `road_2` one per output, `road_4` per group first g for c, then g for s.
//! Follows PEFT `tuners/road/layer.py`.

use std::ops::Range;
use std::sync::Arc;

use super::form::{Formed, Formula, General, bias, values, weight};
use crate::adapters::kind::Kind;
use crate::adapters::method::{Method, Target};
use crate::adapters::parts::{Context, Parts, agree, wrong};
use crate::error::Result;

/// RoAd.
pub static KIND: Kind = Kind::of_peft("RoAd", &["ROAD"], &["road"], gather);

fn gather(parts: &mut Parts, context: &Context<'_>) -> Result<Option<Arc<dyn Method>>> {
    let Some(theta) = parts.take_part("road_theta") else { return Ok(None) };
    let alpha = parts.require_part("road_alpha", &theta)?;
    let count = theta.elements();
    agree(&alpha, "the number of entries", alpha.elements(), count)?;
    let group = context.config.fields().number("group_size")?.unwrap_or(64.0) as usize;
    let tensors = vec![("road_theta", theta.clone()), ("road_alpha", alpha.clone())];
    let make = move |target: &Target| {
        let outputs = target.outputs;
        if group < 2 || !group.is_multiple_of(2) || !outputs.is_multiple_of(group) {
            return Err(wrong(&theta, format!("is in groups of {group}, which do not divide {outputs} outputs")));
        }
        let angles: Vec<(f64, f64)> =
            values(&theta)?.iter().zip(values(&alpha)?).map(|(t, a)| (f64::from(*t), f64::from(a))).collect();
        let cos = |at: usize| angles[at].1 * angles[at].0.cos();
        let sin = |at: usize| angles[at].1 * angles[at].0.sin();
        let half = group / 2;
        let place: fn(usize, usize) -> (usize, usize) = match count {
            n if 2 * n == outputs => |row, group| {
                let at = row / group * (group / 2) + row % (group / 2);
                (at, at)
            },
            n if n == outputs => |row, _| (row, row),
            n if n == 2 * outputs => |row, group| {
                let first = row / group * 2 * group + row % group;
                (first, first + group)
            },
            n => return Err(wrong(&theta, format!("has {n} entries, the layer {outputs} outputs"))),
        };
        let row = |row: usize| {
            let (c, s) = place(row, group);
            (cos(c) as f32, if row % group < half { -sin(s) as f32 } else { sin(s) as f32 })
        };
        let turns: Vec<(f32, f32)> = (0..outputs).map(row).collect();
        let mut changes = Vec::new();
        if target.bias {
            changes.push(bias(Formed(Turn { turns: turns.clone(), group, inputs: None })));
        }
        changes.push(weight(Formed(Turn { turns, group, inputs: Some(target.inputs) })));
        Ok(changes)
    };
    Ok(Some(Arc::new(General::changing(&KIND, tensors, make))))
}

struct Turn {
    turns: Vec<(f32, f32)>,
    group: usize,
    /// None for a bias, which is one row of outputs.
    inputs: Option<usize>,
}

impl Formula for Turn {
    fn shape(&self) -> (usize, usize) {
        self.inputs.map_or((1, self.turns.len()), |inputs| (self.turns.len(), inputs))
    }

    fn grain(&self) -> (usize, usize) {
        if self.inputs.is_some() { (self.group, 1) } else { (1, self.group) }
    }

    fn compute(&self, rows: Range<usize>, cols: Range<usize>, base: &[f32], out: &mut [f32]) -> Result<()> {
        let (outputs, width) = if self.inputs.is_some() { (rows, cols.len()) } else { (cols, 1) };
        let half = self.group / 2;
        for (line, output) in outputs.enumerate() {
            let partner = if output % self.group < half { line + half } else { line - half };
            let (c, s) = self.turns[output];
            for at in 0..width {
                out[line * width + at] = c * base[line * width + at] + s * base[partner * width + at];
            }
        }
        Ok(())
    }
}
