//! The tensors of one module, while it is found out what they mean together.

use std::collections::BTreeMap;

use super::config::AdapterConfig;
use super::factor::Factor;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::Role;
use crate::tensor::Dtype;

/// Tensors of one module by role; what is understood is taken out.
#[derive(Debug, Default)]
pub struct Parts {
    /// The module's path.
    pub path: String,
    // A handful: a map would take many times the room.
    tensors: Vec<(Role, Stored)>,
    alpha: Option<f64>,
}

/// What else is known while parts are put together.
pub struct Context<'a> {
    /// The adapter's settings.
    pub config: &'a AdapterConfig,
    /// The naming scheme the file is written in.
    pub dialect: &'a str,
    /// Whether α stands beside the factors of every module (kohya); a module without one has α = rank.
    pub alpha_per_module: bool,
    /// α by path and rank where no tensor of the module says it, or in any case.
    pub fallback: Option<&'a Fallback<'a>>,
    /// Tensors that all modules share, by role (`vera_A` …).
    pub shared: &'a BTreeMap<String, Stored>,
}

/// α of a module by its path and rank.
pub struct Fallback<'a> {
    /// `None` where nothing says it.
    pub of: &'a dyn Fn(&str, u64) -> Option<f64>,
    /// It counts even where a tensor says something else.
    pub forced: bool,
}

impl Parts {
    /// No tensors yet.
    pub fn new(path: &str) -> Self {
        Self { path: path.to_owned(), ..Self::default() }
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// When another tensor has the same role.
    pub fn put(&mut self, role: Role, stored: Stored) -> Result<()> {
        if let Some((_, other)) = self.tensors.iter().find(|(own, _)| *own == role) {
            let problem =
                format!("is `{}` under another name: both mean the same part of the same module", other.info.name);
            return Err(wrong(&stored, problem));
        }
        self.tensors.push((role, stored));
        Ok(())
    }

    /// Whether a tensor of this role is there.
    pub fn has(&self, role: &Role) -> bool {
        self.tensors.iter().any(|(own, _)| own == role)
    }

    /// Whether the part `name` of another method is there.
    pub fn has_part(&self, name: &str) -> bool {
        self.has(&Role::Part(name.to_owned()))
    }

    /// Whether any tensor of another method than LoRA is there.
    pub fn holds_parts(&self) -> bool {
        self.tensors.iter().any(|(role, _)| matches!(role, Role::Part(_)))
    }

    /// Takes a tensor out.
    pub fn take(&mut self, role: &Role) -> Option<Stored> {
        let at = self.tensors.iter().position(|(own, _)| own == role)?;
        Some(self.tensors.swap_remove(at).1)
    }

    /// Takes the part `name` out.
    pub fn take_part(&mut self, name: &str) -> Option<Stored> {
        self.take(&Role::Part(name.to_owned()))
    }

    /// Takes the part `name` out.
    ///
    /// # Errors
    /// When it is missing: names the tensor beside which it was expected.
    pub fn require_part(&mut self, name: &str, beside: &Stored) -> Result<Stored> {
        self.take_part(name).ok_or_else(|| {
            wrong(beside, format!("belongs to module `{}`, whose `{name}` is not in the file", self.path))
        })
    }

    /// What nobody took, by role.
    pub fn rest(mut self) -> impl Iterator<Item = (Role, Stored)> {
        self.tensors.sort_by(|(left, _), (right, _)| left.cmp(right));
        self.tensors.into_iter()
    }

    /// α as the module's own tensor says it. It is taken out, and can be asked for again.
    ///
    /// # Errors
    /// When it is not one finite number.
    pub fn alpha(&mut self) -> Result<Option<f64>> {
        if let Some(stored) = self.take(&Role::Alpha) {
            self.alpha = Some(number(&stored)?);
        }
        Ok(self.alpha)
    }

    /// The same, or what is said elsewhere for a change of rank `rank`.
    ///
    /// # Errors
    /// When the module's own is not one finite number.
    pub fn alpha_or(&mut self, context: &Context<'_>, rank: u64) -> Result<Option<f64>> {
        let own = self.alpha()?;
        let Some(fallback) = context.fallback else { return Ok(own) };
        let said = || (fallback.of)(&self.path, rank);
        Ok(if fallback.forced { said().or(own) } else { own.or_else(said) })
    }

    /// The factor in front of a change of rank `rank`: α / rank, by the config or by the module's own α.
    ///
    /// # Errors
    /// When α cannot be read.
    pub fn scale(&mut self, context: &Context<'_>, rank: u64) -> Result<f64> {
        if context.alpha_per_module {
            return Ok(self.alpha_or(context, rank)?.map_or(1.0, |alpha| alpha / rank.max(1) as f64));
        }
        Ok(context.config.scaling.as_ref().map_or(1.0, |scaling| scaling.scale(&self.path)))
    }
}

/// The one number a tensor holds.
///
/// # Errors
/// When it holds more, none, or one that is not finite.
pub fn number(stored: &Stored) -> Result<f64> {
    let wrong = |problem: String| wrong(stored, problem);
    if stored.info.shape.elements() != Some(1) {
        return Err(wrong(format!("must be one number, has shape {}", stored.info.shape)));
    }
    let value = if stored.info.dtype.float().is_some() && stored.info.dtype != Dtype::F64 {
        f64::from(Factor::new(stored)?.to_vec()?[0])
    } else {
        let data = stored.view()?.data;
        let whole = |bytes: &[u8]| {
            let mut wide = [if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xFF } else { 0 }; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            i64::from_le_bytes(wide) as f64
        };
        match stored.info.dtype {
            Dtype::F64 => f64::from_le_bytes(data.try_into().map_err(|_| wrong("is not 8 bytes long".into()))?),
            Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 => whole(data),
            Dtype::Bool | Dtype::U8 => f64::from(data[0]),
            _ => return Err(wrong(format!("must be a number, is {}", stored.info.dtype))),
        }
    };
    if value.is_finite() { Ok(value) } else { Err(wrong(format!("must be finite, is {value}"))) }
}

/// A tensor for messages: file, name, shape.
pub fn describe(tensor: &Stored) -> String {
    format!("{}: `{}` {}", tensor.path().display(), tensor.info.name, tensor.info.shape)
}

/// That a tensor is not as the method needs it.
pub fn wrong(stored: &Stored, problem: impl Into<String>) -> Error {
    Error::malformed(stored.path(), format!("tensor `{}`", stored.info.name), problem.into())
}

/// That two sizes agree.
///
/// # Errors
/// When they do not.
pub fn agree(stored: &Stored, what: &str, got: usize, wanted: usize) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    Err(wrong(stored, format!("has shape {}: {what} must be {wanted}, is {got}", stored.info.shape)))
}
