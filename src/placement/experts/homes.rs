//! Where the projections of experts lie in a base, whatever its layout.

use std::collections::HashMap;

use crate::model::base::Base;
use crate::naming::experts::{self, Apart, Fused, INTERLEAVED_MODELS, Part, Place, Split, TRANSPOSED_MODELS, joined};
use crate::tensor::usize_of;

/// A matrix in a stack, a part of it, or a tensor of its own, to which one expert's change is added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    pub tensor: String,
    /// First row and column in the matrix view with `cols` columns.
    pub row: usize,
    pub col: usize,
    pub cols: Option<usize>,
    /// It is stored as `[in, out]`.
    pub turned: bool,
    /// Its outputs stand so far apart, with others between them, and the first is this one.
    pub every: usize,
    pub first: usize,
    /// Outputs and inputs.
    pub size: (u64, u64),
}

impl Home {
    /// A tensor of its own.
    pub fn whole(base: &Base, tensor: String) -> Option<Self> {
        let size = base.checkpoint.info(&tensor)?.shape.rows_cols();
        Some(Self { tensor, row: 0, col: 0, cols: None, turned: false, every: 1, first: 0, size })
    }

    /// One of `count` matrices of a stack.
    pub fn slice(base: &Base, tensor: String, expert: u64, turned: bool) -> Option<Self> {
        let &[count, rows, cols] = base.checkpoint.info(&tensor)?.shape.as_slice() else { return None };
        let size = if turned { (cols, rows) } else { (rows, cols) };
        let row = usize_of(expert.checked_mul(rows)?);
        let home = Self { tensor, row, col: 0, cols: Some(usize_of(cols)), turned, every: 1, first: 0, size };
        (expert < count).then_some(home)
    }

    /// The outputs of the half `at` of two, which stand one over the other or, interleaved, in turn.
    #[must_use]
    fn half(self, at: usize, interleaved: bool) -> Self {
        let outputs = self.size.0 / 2;
        let size = (outputs, self.size.1);
        if interleaved {
            return Self { every: 2, first: at, size, ..self };
        }
        let start = at * usize_of(outputs);
        if self.turned {
            Self { col: self.col + start, size, ..self }
        } else {
            Self { row: self.row + start, size, ..self }
        }
    }
}

/// The experts of one layer of a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    layer: String,
    place: Place,
    /// Stacks are `[E, in, out]`.
    turned: bool,
    /// Gate and up alternate where they are one.
    pub interleaved: bool,
}

/// The layers of a base that were asked for.
#[derive(Debug, Default)]
pub struct Layers(HashMap<String, Option<Layer>>);

impl Layers {
    /// The experts of the layer `layer`, which ends with its dot.
    pub fn of(&mut self, base: &Base, layer: &str) -> Option<Layer> {
        if let Some(known) = self.0.get(layer) {
            return known.clone();
        }
        let found = Layer::of(base, layer);
        self.0.insert(layer.to_owned(), found.clone());
        found
    }
}

impl Layer {
    fn of(base: &Base, layer: &str) -> Option<Self> {
        let place = experts::find(layer, |name| base.names.has(name))?;
        let turned = match place {
            Place::Fused(fused) => is_turned(base, layer, fused),
            Place::Split(..) | Place::Joined(_) | Place::Apart(_) => false,
        };
        let interleaved = matches!(place, Place::Joined(_)) || base.is_one_of(&INTERLEAVED_MODELS);
        Some(Self { layer: layer.to_owned(), place, turned, interleaved })
    }

    /// Whether its stacks are `[E, in, out]`.
    pub fn is_turned(&self) -> bool {
        self.turned
    }

    /// How many experts the projections `parts` have.
    pub fn experts(&self, base: &Base, parts: &[Part]) -> Option<u64> {
        let stack = |name: String| base.checkpoint.info(&name)?.shape.as_slice().first().copied();
        match self.place {
            Place::Split(_, count) | Place::Joined(count) => Some(count),
            Place::Fused(fused) => stack(fused.tensor(&self.layer, *parts.first()?)),
            Place::Apart(apart) => stack(apart.tensor(&self.layer, *parts.first()?)?),
        }
    }

    /// The projections whose outputs are the parameter `name` of transformers 5.
    pub fn parts_of(&self, name: &str) -> Option<&'static [Part]> {
        let gated: &[Part] = &[Part::Gate, Part::Up];
        let of = |has_gate: bool| match name {
            "down_proj" | "output_linear" => Some(Part::Down.alone()),
            "gate_up_proj" | "input_linear" if has_gate => Some(gated),
            "up_proj" if !has_gate => Some(Part::Up.alone()),
            _ => None,
        };
        match self.place {
            Place::Split(split, _) => of(split.has().contains(&Part::Gate)),
            Place::Fused(fused) => of(fused.gated),
            Place::Joined(_) => of(true),
            Place::Apart(Apart { parts, .. }) => of(!parts[0].is_empty()),
        }
    }

    /// Where gate and up of one expert are one matrix.
    pub fn both(&self, base: &Base, expert: u64) -> Option<Home> {
        match self.place {
            Place::Fused(fused) if fused.gated => self.slice(base, fused, expert, Part::Up),
            Place::Joined(count) if expert < count => Home::whole(base, joined(&self.layer, expert, Part::Up)),
            _ => None,
        }
    }

    /// Where one projection of one expert lies.
    pub fn home(&self, base: &Base, expert: u64, part: Part) -> Option<Home> {
        let at = usize::from(part == Part::Up);
        match self.place {
            Place::Split(split, count) if expert < count => split_home(base, split, &self.layer, expert, part),
            Place::Fused(fused) if part == Part::Down => self.slice(base, fused, expert, part),
            Place::Fused(fused) if !fused.gated => self.slice(base, fused, expert, part).filter(|_| part != Part::Gate),
            Place::Joined(count) if part == Part::Down && expert < count => {
                Home::whole(base, joined(&self.layer, expert, part))
            }
            Place::Fused(_) | Place::Joined(_) => Some(self.both(base, expert)?.half(at, self.interleaved)),
            Place::Apart(apart) => Home::slice(base, apart.tensor(&self.layer, part)?, expert, false),
            Place::Split(..) => None,
        }
    }

    /// The name of the tensor that holds `part` of `expert`, for messages.
    pub fn tensor(&self, expert: u64, part: Part) -> String {
        match self.place {
            Place::Split(split, _) => split.tensor(&self.layer, expert, part),
            Place::Fused(fused) => fused.tensor(&self.layer, part),
            Place::Joined(_) => joined(&self.layer, expert, part),
            Place::Apart(apart) => apart.tensor(&self.layer, part).unwrap_or_default(),
        }
    }

    fn slice(&self, base: &Base, fused: &Fused, expert: u64, part: Part) -> Option<Home> {
        Home::slice(base, fused.tensor(&self.layer, part), expert, self.turned)
    }
}

fn split_home(base: &Base, split: &Split, layer: &str, expert: u64, part: Part) -> Option<Home> {
    split.has().contains(&part).then(|| Home::whole(base, split.tensor(layer, expert, part)))?
}

/// Whether the stacks of a layer are `[E, in, out]`: both together tell, else the width of the model, else its type.
fn is_turned(base: &Base, layer: &str, fused: &Fused) -> bool {
    let sizes = |part| match *base.checkpoint.info(&fused.tensor(layer, part))?.shape.as_slice() {
        [_, rows, cols] => Some((rows, cols)),
        _ => None,
    };
    let (first, second) = (sizes(Part::Up), sizes(Part::Down));
    let halves = if fused.gated { 2 } else { 1 };
    let told = first.zip(second).and_then(|((a, b), (c, d))| {
        let straight = b == c && Some(a) == d.checked_mul(halves);
        let turned = a == d && Some(b) == c.checked_mul(halves);
        (straight != turned).then_some(turned)
    });
    let hidden = base.config.as_ref().and_then(|config| config.hidden);
    let by_width = || {
        let (rows, cols) = first.or_else(|| second.map(|(rows, cols)| (cols, rows)))?;
        let hidden = hidden.filter(|hidden| (rows == *hidden) != (cols == *hidden))?;
        Some(rows == hidden)
    };
    told.or_else(by_width).unwrap_or_else(|| base.is_one_of(&TRANSPOSED_MODELS))
}
