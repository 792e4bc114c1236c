//! Which parameter a pair without a layer of its own belongs to (PEFT's `target_parameters`).
//!
//! The key of such a pair does not name its parameter: the parameters of one module nest in the order in which the module defines
//! them, the last one outermost. Without the model at hand the order is that of `naming::experts`; where every adapter adapts
//! the same parameters, it does not matter, since equal nesting means equal parameters.

use std::collections::BTreeMap;

use super::narrow;
use crate::adapters::{Adapter, Change, Lora, Module};
use crate::error::{Error, Result};
use crate::naming::experts::DEFINITION_ORDER;
use crate::pairs::PairKind;
use crate::placement::Applied;

/// The parameters of every module that some adapter adapts without a layer, innermost first.
pub struct Parameters(BTreeMap<String, Vec<String>>);

impl Parameters {
    /// Collects them.
    ///
    /// # Errors
    /// When adapters adapt different parameters of a module and their order is not known.
    pub fn of(sources: &[Applied]) -> Result<Self> {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for source in sources {
            for module in &source.adapter.modules {
                let own = named(&source.adapter, &module.path);
                if own.is_empty() || !matches!(module.change, Change::Lora(_)) || module.nesting > 0 {
                    continue;
                }
                let known = all.entry(module.path.clone()).or_insert_with(|| own.clone());
                if *known == own {
                    continue;
                }
                if let Some(unknown) =
                    own.iter().chain(known.iter()).find(|name| !DEFINITION_ORDER.contains(&name.as_str()))
                {
                    let what = format!(
                        "adapts other parameters of `{}` than another adapter, among them `{unknown}`: which one lies \
                         outermost is not known",
                        module.path
                    );
                    return Err(Error::unsupported(&source.adapter.config.path, what));
                }
                known.extend(own);
                known.sort_by_key(|name| DEFINITION_ORDER.iter().position(|known| known == name));
                known.dedup();
            }
        }
        Ok(Self(all))
    }

    /// What kind of layer a pair belongs to.
    ///
    /// # Errors
    /// When config and tensors disagree about it.
    pub fn kind(&self, adapter: &Adapter, module: &Module, lora: &Lora) -> Result<PairKind> {
        let shape = lora.down.info.shape.as_slice();
        if lora.embedding {
            return Ok(PairKind::Embedding);
        }
        if shape.len() > 2 {
            return Ok(PairKind::Conv { kernel: shape[2..].to_vec() });
        }
        let own = named(adapter, &module.path);
        if own.is_empty() && module.nesting == 0 {
            return Ok(PairKind::Linear);
        }
        let pairs = adapter.modules.iter().filter(|other| other.path == module.path);
        let pairs = pairs.filter(|other| matches!(other.change, Change::Lora(_))).count();
        let config = &adapter.config;
        if pairs != own.len() || module.nesting >= own.len() {
            let problem = format!("the file has {pairs} pairs for it, the config adapts {} parameters", own.len());
            return Err(Error::mismatch(
                format!("{}: `{}`", adapter.root.display(), module.path),
                config.path.display().to_string(),
                problem,
            ));
        }
        let name = own[own.len() - 1 - module.nesting].clone();
        let rank = config.scaling.as_ref().map_or(1, |scaling| scaling.rank(&format!("{}.{name}", module.path)));
        if !lora.rank().is_multiple_of(rank) {
            let problem = format!("A has {} rows, not a multiple of the rank {rank} of the config", lora.rank());
            return Err(Error::malformed(lora.down.path(), format!("tensor `{}`", lora.down.info.name), problem));
        }
        if lora.bias.is_some() || lora.magnitude.is_some() {
            let what = format!("`{}.{name}`: a stack of experts can have neither magnitudes nor a bias", module.path);
            return Err(Error::unsupported(lora.down.path(), what));
        }
        let all = self.0.get(&module.path).unwrap_or(&own);
        let place = all.iter().position(|known| *known == name).unwrap_or(0);
        Ok(PairKind::Parameter { nesting: all.len() - 1 - place, experts: lora.rank() / rank, name })
    }
}

/// The parameters of `path` that the config of `adapter` adapts without a layer. An entry without a module means any module,
/// which is one with a stack only if A has more rows than the rank.
fn named(adapter: &Adapter, path: &str) -> Vec<String> {
    let config = &adapter.config;
    let names: Vec<String> = config.parameters_of(path).into_iter().map(str::to_owned).collect();
    let explicit = config.target_parameters.iter().any(|target| {
        let owner = target.rsplit_once('.').map_or("", |(owner, _)| owner);
        !owner.is_empty() && (path == owner || path.ends_with(&format!(".{owner}")))
    });
    let plain = adapter.modules.iter().filter(|module| module.path == path).all(|module| match &module.change {
        Change::Lora(lora) => {
            let configured = config.scaling.as_ref().map_or(0, |scaling| scaling.rank(path));
            module.nesting == 0 && narrow(lora.rank()) == narrow(configured)
        }
        _ => true,
    });
    if explicit || !plain { names } else { Vec::new() }
}
