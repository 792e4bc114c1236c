//! The tensors of one module of a method, by the suffixes it is written with.

use crate::adapters::factor::Factor;
use crate::adapters::parts::{Context, Parts, describe, number, wrong};
use crate::error::{Error, Result};
use crate::formats::Stored;

/// Tensors by suffix.
#[derive(Debug, Clone)]
pub struct Named {
    path: String,
    tensors: Vec<(&'static str, Stored)>,
}

impl Named {
    /// Takes those of `names` that are there.
    pub fn take(parts: &mut Parts, names: &[&'static str]) -> Self {
        let tensors = names.iter().filter_map(|name| Some((*name, parts.take_part(name)?))).collect();
        Self { path: parts.path.clone(), tensors }
    }

    /// Adds a tensor.
    pub fn put(&mut self, name: &'static str, stored: Option<Stored>) {
        self.tensors.extend(stored.map(|stored| (name, stored)));
    }

    /// The module.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tensor `name`.
    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.iter().find(|(have, _)| *have == name).map(|(_, stored)| stored)
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// When it is missing.
    pub fn need(&self, name: &str) -> Result<&Stored> {
        self.get(name).ok_or_else(|| {
            let problem = format!("belongs to module `{}`, whose `{name}` is not in the file", self.path);
            wrong(self.first(), problem)
        })
    }

    /// The matrix `name`: its first dimension against all others.
    ///
    /// # Errors
    /// When it is missing, or holds no floating point numbers.
    pub fn factor(&self, name: &str) -> Result<Factor> {
        Factor::new(self.need(name)?)
    }

    /// Any of the tensors.
    pub fn first(&self) -> &Stored {
        &self.tensors.first().expect("a method is recognised by one of its tensors").1
    }

    /// All of them.
    pub fn list(&self) -> Vec<(&'static str, &Stored)> {
        self.tensors.iter().map(|(name, stored)| (*name, stored)).collect()
    }

    /// The same, to be kept.
    pub fn tensors(&self) -> Vec<(&'static str, Stored)> {
        self.tensors.clone()
    }

    /// The number `scalar`, which old LyCORIS files keep beside the factors; 1 without one.
    ///
    /// # Errors
    /// When it is not one finite number.
    pub fn scalar(&self) -> Result<f64> {
        self.get("scalar").map_or(Ok(1.0), number)
    }

    /// Says that the inner dimensions of `left` `[…, r]` and `right` `[r, …]` have to agree.
    ///
    /// # Errors
    /// When they do not.
    pub fn agree(&self, left: (&str, usize), right: (&str, usize)) -> Result<()> {
        if left.1 == right.1 {
            return Ok(());
        }
        let problem = format!("`{}` has rank {}, `{}` has {}", left.0, left.1, right.0, right.1);
        Err(Error::mismatch(describe(self.need(left.0)?), describe(self.need(right.0)?), problem))
    }
}

/// The rank PEFT's config gives the module has to be that of its tensors: the scale depends on it.
///
/// # Errors
/// When it is another.
pub fn check_rank(named: &Named, context: &Context<'_>, rank: u64) -> Result<()> {
    let Some(scaling) = context.config.scaling.as_ref().filter(|_| !context.alpha_per_module) else { return Ok(()) };
    let configured = scaling.rank(named.path());
    if configured == rank {
        return Ok(());
    }
    let path = named.path();
    let problem =
        format!("the tensors of `{path}` have rank {rank}, the config says {configured}: the scale is ambiguous");
    Err(Error::mismatch(describe(named.first()), context.config.path.display().to_string(), problem))
}

/// Most elements of a factor that is computed from others, 2³⁰: far beyond every layer there is.
const MAX_ELEMENTS: usize = 1 << 30;

/// The elements of a factor of `dimensions` that is made of `tensor` and others.
///
/// # Errors
/// When there would be more of them than any layer has.
pub fn room(tensor: &Stored, dimensions: &[usize]) -> Result<usize> {
    let elements = dimensions.iter().try_fold(1_usize, |all, one| all.checked_mul(*one));
    elements.filter(|elements| *elements <= MAX_ELEMENTS).ok_or_else(|| {
        wrong(tensor, format!("would make a factor of {dimensions:?}, more than the {MAX_ELEMENTS} elements allowed"))
    })
}
