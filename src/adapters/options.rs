//! What the files of an adapter may leave open, and whoever reads them says.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::adapter::Adapter;
use super::peft_keys;
use crate::error::{Error, Result};
use crate::formats::Checkpoint;
use crate::naming::experts::peft::{Order, Sides};

/// The name that PEFT gives an adapter when nobody does.
pub(crate) const DEFAULT: &str = "default";

/// What an adapter's files may leave open.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ReadOptions {
    /// α of adapters that say none, or say it twice.
    pub alpha: Option<f64>,
    /// Which adapter is meant, where there are several.
    pub name: Option<String>,
    /// Which factor of stacks of experts lies on the input.
    pub expert_sides: Option<Sides>,
    /// In which order the columns of B of stacks of experts stand.
    pub expert_order: Option<Order>,
}

/// Which of the options an adapter needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needed {
    /// Its α was told.
    pub alpha: bool,
    /// It is the one that was named.
    pub name: bool,
    /// It is without the weights of the model that lie in its file.
    pub model: bool,
    /// How its stacks of experts lie was told.
    pub experts: bool,
    /// Its stacks of experts lie in another way than PEFT reads them today.
    pub repacked: bool,
}

impl ReadOptions {
    /// What was said, as far as it holds for the untrained factors of the same adapters.
    #[must_use]
    pub fn of_untrained(&self) -> Self {
        Self { alpha: None, name: None, ..self.clone() }
    }

    /// What was said has to serve one of `adapters`; α was said by `option`.
    ///
    /// # Errors
    /// `Invalid`, naming the option and what the adapters say themselves.
    pub fn check_needed<'a>(
        &self,
        option: &str,
        mut adapters: impl Iterator<Item = &'a Adapter> + Clone,
    ) -> Result<()> {
        let shown = |adapter: &Adapter| adapter.root.display().to_string();
        if self.alpha.is_some() && !adapters.clone().any(|adapter| adapter.needed.alpha) {
            let said = adapters.clone().find_map(|adapter| Some((shown(adapter), adapter.config.alpha_from.clone()?)));
            let problem = match said {
                Some((path, from)) => format!("is not needed: `{path}` says its alpha itself ({from})"),
                None => "is not needed: no adapter has a scale by alpha".to_owned(),
            };
            return Err(Error::invalid(option, problem).hint("a weight makes an adapter stronger: `ADAPTER:W`"));
        }
        let told = [("--expert-sides", self.expert_sides.is_some()), ("--expert-order", self.expert_order.is_some())];
        if let Some((option, _)) =
            told.iter().find(|(_, told)| *told && !adapters.clone().any(|adapter| adapter.needed.experts))
        {
            return Err(Error::invalid(
                *option,
                "no adapter has experts in one pair per parameter (`target_parameters`)",
            ));
        }
        if let Some(name) = self.name.as_deref().filter(|_| !adapters.any(|adapter| adapter.needed.name)) {
            return Err(Error::invalid("--adapter-name", format!("no adapter is called `{name}`")));
        }
        Ok(())
    }
}

/// Which keys of a file are read, where it holds several adapters.
#[derive(Debug, Clone, Default)]
pub struct Chosen {
    /// The adapter, if there are several.
    name: Option<String>,
}

impl Chosen {
    /// The adapter that is meant in `tensors`, and whether it is the one that was named.
    ///
    /// # Errors
    /// When there are several, and none of them was named.
    pub(crate) fn of(tensors: &Checkpoint, options: &ReadOptions) -> Result<(Self, bool)> {
        let names: BTreeSet<&str> = tensors.tensors().filter_map(|info| peft_keys::adapter_name(&info.name)).collect();
        let wanted = options.name.as_deref();
        if names.len() < 2 {
            let only = names.first().copied().unwrap_or(DEFAULT);
            return Ok((Self::default(), wanted == Some(only)));
        }
        let listed: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let listed = listed.join(", ");
        let several = |what: String| Error::unsupported(tensors.root(), what);
        match wanted {
            Some(name) if names.contains(name) => Ok((Self { name: Some(name.to_owned()) }, true)),
            Some(name) => Err(several(format!("holds the adapters {listed}, and none is called `{name}`"))),
            None => Err(several(format!("holds {} adapters: {listed}", names.len()))
                .hint("`--adapter-name NAME` chooses one of them")),
        }
    }

    /// A key without the name of its adapter; `None` for a key of another adapter.
    pub fn key<'k>(&self, key: &'k str) -> Option<Cow<'k, str>> {
        match (&self.name, peft_keys::adapter_name(key)) {
            (Some(chosen), Some(own)) if chosen != own => None,
            (_, Some(_)) => Some(peft_keys::without_name(key)),
            (_, None) => Some(key.into()),
        }
    }

    /// The name, where there are several.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}
