//! A pair that adapts a parameter with all experts at once (PEFT's `target_parameters`): what is known of how it lies.
//!
//! A is `[E·r, x]`, expert after expert; B is `[y, r·E]`, the expert running fastest. Which of x and y is the input depends on the
//! version of PEFT and on the class of the experts, and Unsloth packed the columns of B in another order for a while. Whoever
//! opens an adapter finds that out once, and puts the factors into the form that PEFT has today: `Lora::down` and `Lora::up` are
//! in that form, computed as they are read where the file has another.

use serde::Serialize;

use super::adapter::Lora;
use super::factor::Factor;
use super::low_rank::Term;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::experts::peft::{Order, Sides};
use crate::tensor::usize_of;

/// What is known of the pair of a stack.
#[derive(Debug, Clone)]
pub struct Stack {
    /// Path of the parameter, as the adapter has it.
    pub parameter: String,
    /// How many experts it has.
    pub experts: u64,
    /// Which factor lies on the input, in the form of today; `None` where nothing tells.
    pub sides: Option<Sides>,
    /// Where nothing tells: whether the factors lie as PEFT lays them today all the same.
    pub lies_as_today: bool,
    /// What decided.
    pub by: String,
    /// The factors as they lie in the file, where that is not the form of today.
    pub lies: Option<Lies>,
}

/// Factors as they lie in a file.
#[derive(Debug, Clone)]
pub struct Lies {
    /// A.
    pub down: Stored,
    /// B.
    pub up: Stored,
    /// The sides are the other ones.
    pub turned: bool,
    /// The order of B's columns.
    pub order: Order,
}

/// How the stacks of one parameter lie in the file of an adapter, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Packing {
    /// The parameter, as in `gate_up_proj`.
    pub parameter: String,
    /// How many stacks lie so.
    pub stacks: usize,
    /// Experts of each.
    pub experts: u64,
    /// Which factor lies on the input: `straight` or `swapped`; `None` where nothing tells.
    pub sides: Option<&'static str>,
    /// What tells.
    pub sides_by: String,
    /// The order of B's columns: `rank_major` or `grouped_by_expert`.
    pub order: &'static str,
    /// What tells.
    pub order_by: String,
}

impl Packing {
    /// Whether PEFT of today reads it as it is meant.
    pub fn is_plain(&self) -> bool {
        self.order == Order::RankMajor.marker() && self.sides != Some(Sides::Swapped.name())
    }

    /// In words.
    pub fn words(&self) -> String {
        let order = match self.order == Order::RankMajor.marker() {
            true => "rank by rank",
            false => "grouped by expert",
        };
        let sides = self.sides.map_or_else(|| "sides unknown".to_owned(), |sides| format!("{sides} factors"));
        format!(
            "`{}` of {} experts: expert columns {order} ({}), {sides} ({})",
            self.parameter, self.experts, self.order_by, self.sides_by
        )
    }
}

impl Stack {
    /// Which factor lies on the input.
    ///
    /// # Errors
    /// When nothing tells; `down` is named then.
    pub fn sides(&self, down: &Stored) -> Result<Sides> {
        self.sides.ok_or_else(|| self.refusal(down))
    }

    /// scale · B·A of one expert in the form of today, read as the file has it; `None` where the factors lie as they are used.
    pub fn expert(&self, expert: u64, scale: f64) -> Option<Result<Term>> {
        self.lies.as_ref().map(|lies| lies.expert(expert, self.experts, scale))
    }

    /// That it is not known how the pair with the factor `down` lies.
    pub fn refusal(&self, down: &Stored) -> Error {
        let what = format!(
            "tensor `{}` {}: whether A or B lies on the input of `{}` is not known: {}",
            down.info.name, down.info.shape, self.parameter, self.by
        );
        Error::unsupported(down.path(), what).hint(
            "`--expert-sides straight` says that A does, `--expert-sides swapped` that B does: training under transformers 5 gives \
             straight factors with PEFT 0.19.1 and later; `--base PATH` may tell where no model was given",
        )
    }
}

impl Lies {
    /// B·A of one of `experts` experts, in the form of today.
    fn expert(&self, expert: u64, experts: u64, scale: f64) -> Result<Term> {
        let term = one((Factor::new(&self.down)?, Factor::new(&self.up)?), expert, experts, self.order, scale);
        Ok(if self.turned { term.transposed() } else { term })
    }
}

/// The product of one expert of a stack.
fn one((down, up): (Factor, Factor), expert: u64, experts: u64, order: Order, scale: f64) -> Term {
    let (expert, experts) = (usize_of(expert), usize_of(experts));
    let rank = down.shape().0 / experts;
    let (first, step) = match order {
        Order::RankMajor => (expert, experts),
        Order::GroupedByExpert => (expert * rank, 1),
    };
    Term { down: down.pick_rows(expert * rank, rank, 1), up: up.pick_cols(first, rank, step), scale }
}

impl Term {
    /// The product of one of the `experts` experts of a stack.
    #[must_use]
    pub fn expert(&self, expert: usize, experts: usize) -> Self {
        let factors = (self.down.clone(), self.up.clone());
        one(factors, expert as u64, experts as u64, Order::RankMajor, self.scale)
    }
}

impl Lora {
    /// scale · B·A of one of the `experts` experts of a stack.
    ///
    /// # Errors
    /// When a factor holds no floating point numbers.
    pub fn expert(&self, expert: u64, experts: u64, scale: f64) -> Result<Term> {
        let stack = self.stack.as_ref().filter(|stack| stack.experts == experts);
        if let Some(term) = stack.and_then(|stack| stack.expert(expert, scale)) {
            return term;
        }
        Ok(one((Factor::new(&self.down)?, Factor::new(&self.up)?), expert, experts, Order::RankMajor, scale))
    }
}
