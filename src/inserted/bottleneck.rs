//! One bottleneck as numbers: y = k · (up · f(down · x + b) + c), with a layer norm in front of `down` where there is one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

use super::kronecker;
use super::structure::Structure;
use crate::adapters::{Adapter, Inserted};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::tensor::Float;

/// What the roles of a bottleneck's tensors are or begin with.
const ROLES: [&str; 5] = ["adapter_down.0", "adapter_down.1", "adapter_up", "adapter_norm_before", "scaling"];

/// The tensors of one bottleneck by role, and those that all of the adapter share.
pub struct Parts<'a> {
    /// The place, for messages.
    pub place: &'a str,
    inserted: &'a Inserted,
    shared: Option<&'a Inserted>,
    root: &'a Path,
}

/// The numbers.
#[derive(Debug, Clone)]
pub struct Bottleneck {
    /// Width of the model.
    pub hidden: usize,
    /// `[units, hidden]`.
    pub down: Vec<f32>,
    /// One per unit.
    pub down_bias: Vec<f32>,
    /// `[hidden, units]`.
    pub up: Vec<f32>,
    /// One per output.
    pub up_bias: Vec<f32>,
    /// Weight and bias of a layer norm in front.
    pub norm: Option<[Vec<f32>; 2]>,
    /// How the tensors are stored.
    pub float: Float,
    /// A number is not as it was stored.
    pub rounded: bool,
}

impl<'a> Parts<'a> {
    /// The tensors of the bottleneck `inserted` at `place` of `adapter`.
    pub fn new(place: &'a str, inserted: &'a Inserted, shared: Option<&'a Inserted>, adapter: &'a Adapter) -> Self {
        Self { place, inserted, shared, root: &adapter.root }
    }

    /// The tensor of this role.
    pub fn find(&self, role: &str) -> Option<&'a Stored> {
        by_role(self.inserted, role)
    }

    /// The tensor of this name that all bottlenecks of the adapter share.
    pub fn shared(&self, name: &str) -> Option<&'a Stored> {
        by_role(self.shared?, name)
    }

    /// The adapter, for messages.
    pub fn path(&self) -> &'a Path {
        self.root
    }

    /// Refuses a tensor that no part of a bottleneck is made of: it would be lost.
    ///
    /// # Errors
    /// When there is one.
    fn check_known(&self) -> Result<()> {
        let known = |role: &str| ROLES.iter().any(|known| role == *known || role.starts_with(&format!("{known}.")));
        match self.inserted.tensors.iter().find(|(role, _)| !known(role)) {
            None => Ok(()),
            Some((role, stored)) => {
                let what = format!("tensor `{}`: what `{role}` of a bottleneck means is not known", stored.info.name);
                Err(Error::unsupported(stored.path(), what))
            }
        }
    }

    fn needed(&self, role: &str) -> Result<&'a Stored> {
        let problem =
            || Error::malformed(self.root, format!("bottleneck `{}`", self.place), format!("`{role}` is missing"));
        self.find(role).ok_or_else(problem)
    }
}

fn by_role<'a>(inserted: &'a Inserted, role: &str) -> Option<&'a Stored> {
    inserted.tensors.iter().find(|(own, _)| own == role).map(|(_, stored)| stored)
}

impl Bottleneck {
    /// Reads the bottleneck.
    ///
    /// # Errors
    /// When a tensor is missing, of no numbers, or does not fit the others.
    pub fn read(parts: &Parts<'_>, structure: &Structure, scaling: Option<f64>) -> Result<Self> {
        parts.check_known()?;
        let norm = if structure.is("ln_before") {
            let [weight, bias] =
                ["adapter_norm_before.weight", "adapter_norm_before.bias"].map(|role| parts.needed(role));
            Some([values(weight?)?, values(bias?)?])
        } else {
            None
        };
        let down_layer = if norm.is_some() { "adapter_down.1" } else { "adapter_down.0" };
        let (down, [units, hidden], down_bias) = layer(parts, down_layer, "down")?;
        let (up, [outputs, inner], up_bias) = layer(parts, "adapter_up", "up")?;
        let fits = inner == units
            && outputs == hidden
            && down_bias.as_ref().is_none_or(|bias| bias.len() == units)
            && up_bias.as_ref().is_none_or(|bias| bias.len() == hidden)
            && norm.iter().flatten().all(|norm| norm.len() == hidden);
        if !fits {
            let problem =
                format!("down is [{units}, {hidden}], up is [{outputs}, {inner}]: they do not fit each other");
            return Err(Error::malformed(parts.path(), format!("bottleneck `{}`", parts.place), problem));
        }
        let float = parts.inserted.tensors.iter().find_map(|(_, stored)| stored.info.dtype.float());
        let mut read = Self {
            hidden,
            down,
            down_bias: down_bias.unwrap_or_else(|| vec![0.0; units]),
            up,
            up_bias: up_bias.unwrap_or_else(|| vec![0.0; hidden]),
            norm,
            float: float.unwrap_or(Float::F32),
            rounded: parts.find("adapter_up.weight").is_none(),
        };
        match scaling {
            Some(scale) => read.scale(&[scale]),
            None => {
                let learned: Vec<f64> = values(parts.needed("scaling")?)?.into_iter().map(f64::from).collect();
                if learned.len() != 1 && learned.len() != hidden {
                    let problem = format!("`scaling` has {} numbers for {hidden} outputs", learned.len());
                    return Err(Error::malformed(parts.path(), format!("bottleneck `{}`", parts.place), problem));
                }
                read.scale(&learned);
            }
        }
        Ok(read)
    }

    /// One that adds nothing, of `units` units.
    pub fn nothing(like: &Self, units: usize) -> Self {
        let norm = like.norm.as_ref().map(|_| [vec![1.0; like.hidden], vec![0.0; like.hidden]]);
        Self {
            down: vec![0.0; units * like.hidden],
            down_bias: vec![0.0; units],
            up: vec![0.0; units * like.hidden],
            up_bias: vec![0.0; like.hidden],
            norm,
            ..*like
        }
    }

    /// Number of units.
    pub fn units(&self) -> usize {
        self.down_bias.len()
    }

    /// Multiplies its output: by one number, or by one for each output.
    pub fn scale(&mut self, factors: &[f64]) {
        let units = self.units();
        let factor = |row: usize| if factors.len() == 1 { factors[0] } else { factors[row] };
        for row in 0..self.hidden {
            let factor = factor(row);
            if factor == 1.0 {
                continue;
            }
            let mut rounded = false;
            let mut times = |value: &mut f32| {
                let exact = f64::from(*value) * factor;
                *value = exact as f32;
                rounded |= f64::from(*value) != exact;
            };
            self.up[row * units..(row + 1) * units].iter_mut().for_each(&mut times);
            times(&mut self.up_bias[row]);
            self.rounded |= rounded;
        }
    }

    /// Takes weight and bias of the layer norm in front into `down`: the norm that is left has ones and zeros.
    pub fn fold_norm(&mut self) {
        let Some([weight, bias]) = &mut self.norm else { return };
        for (row, unit_bias) in self.down.chunks_exact_mut(self.hidden).zip(&mut self.down_bias) {
            let moved: f64 = row.iter().zip(&*bias).map(|(down, bias)| f64::from(*down) * f64::from(*bias)).sum();
            *unit_bias = (f64::from(*unit_bias) + moved) as f32;
            row.iter_mut().zip(&*weight).for_each(|(down, weight)| *down *= weight);
        }
        weight.fill(1.0);
        bias.fill(0.0);
        self.rounded = true;
    }

    /// The same units and those of `other`, of the same norm in front.
    pub fn beside(&self, other: &Self) -> Self {
        let (left, right) = (self.units(), other.units());
        let joined = |one: &[f32], two: &[f32]| [one, two].concat();
        let rows =
            |row: usize| joined(&self.up[row * left..(row + 1) * left], &other.up[row * right..(row + 1) * right]);
        let added = |one: f32, two: f32| f64::from(one + two) == f64::from(one) + f64::from(two);
        let exact = self.up_bias.iter().zip(&other.up_bias).all(|(one, two)| added(*one, *two));
        Self {
            hidden: self.hidden,
            down: joined(&self.down, &other.down),
            down_bias: joined(&self.down_bias, &other.down_bias),
            up: (0..self.hidden).flat_map(rows).collect(),
            up_bias: self.up_bias.iter().zip(&other.up_bias).map(|(one, two)| one + two).collect(),
            norm: self.norm.clone(),
            float: self.float,
            rounded: self.rounded || other.rounded || !exact,
        }
    }

    /// Those of its units.
    #[must_use]
    pub fn only(&self, kept: &[usize]) -> Self {
        let units = self.units();
        let row = |unit: &usize| self.down[unit * self.hidden..(unit + 1) * self.hidden].iter().copied();
        Self {
            down: kept.iter().flat_map(row).collect(),
            down_bias: kept.iter().map(|unit| self.down_bias[*unit]).collect(),
            up: (0..self.hidden)
                .flat_map(|row| kept.iter().map(move |unit| (row, *unit)))
                .map(|(row, unit)| self.up[row * units + unit])
                .collect(),
            ..self.clone()
        }
    }

    /// ‖downᵢ‖ · ‖upᵢ‖ of every unit.
    pub fn sizes(&self) -> Vec<f64> {
        let units = self.units();
        let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
        (0..units)
            .map(|unit| {
                let down = squares(&mut self.down[unit * self.hidden..(unit + 1) * self.hidden].iter().copied());
                let up = squares(&mut self.up[unit..].iter().step_by(units).copied());
                (down * up).sqrt()
            })
            .collect()
    }

    /// Units with the same `down` become one, whose `up` is their sum; those of which nothing is left go.
    #[must_use]
    pub fn cancelled(&self) -> Self {
        let units = self.units();
        let mut merged = self.clone();
        let mut seen: HashMap<Vec<u32>, usize> = HashMap::new();
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for unit in 0..units {
            let row = &self.down[unit * self.hidden..(unit + 1) * self.hidden];
            let bits = row.iter().chain([&self.down_bias[unit]]).map(|value| value.to_bits()).collect();
            match seen.entry(bits) {
                Entry::Vacant(free) => {
                    free.insert(unit);
                    kept.push(unit);
                }
                Entry::Occupied(first) => {
                    let first = *first.get();
                    for row in 0..self.hidden {
                        merged.up[row * units + first] += merged.up[row * units + unit];
                    }
                    gone.push(first);
                }
            }
        }
        let is_nothing = |unit: &usize| merged.up[*unit..].iter().step_by(units).all(|value| *value == 0.0);
        kept.retain(|unit| !(gone.contains(unit) && is_nothing(unit)));
        merged.only(&kept)
    }
}

/// Weight `[out, in]`, its sizes and the bias of a layer.
pub type Layer = (Vec<f32>, [usize; 2], Option<Vec<f32>>);

fn layer(parts: &Parts<'_>, layer: &str, position: &str) -> Result<Layer> {
    let Some(weight) = parts.find(&format!("{layer}.weight")) else {
        return kronecker::plain(parts, layer, position);
    };
    let (rows, cols) = weight.rows_cols();
    let bias = parts.find(&format!("{layer}.bias")).map(values).transpose()?;
    Ok((values(weight)?, [rows, cols], bias))
}

/// The numbers of a tensor.
///
/// # Errors
/// When it holds others.
pub fn values(stored: &Stored) -> Result<Vec<f32>> {
    let float = stored.info.dtype.float().ok_or_else(|| {
        let what = format!(
            "tensor `{}` holds {}, and floating point numbers belong there",
            stored.info.name, stored.info.dtype
        );
        Error::unsupported(stored.path(), what)
    })?;
    let mut values = vec![0.0; stored.elements()];
    float.decode(&stored.read(0, stored.info.bytes)?, &mut values);
    Ok(values)
}
