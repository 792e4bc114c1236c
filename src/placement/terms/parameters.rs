//! Which parameter a pair without a layer of its own belongs to (PEFT's `target_parameters`).
//!
//! The key of such a pair does not name its parameter: the parameters of one module nest in the order in which the module defines
//! them, the last one outermost. Without the model at hand the order is that of `naming::experts`; where every adapter adapts
//! the same parameters, it does not matter, since equal nesting means equal parameters.

use foldhash::{HashMap, HashSet};

use super::spellings::{Place, Spellings};
use crate::adapters::{Adapter, Change, Lora};
use crate::error::{Error, Result};
use crate::naming::Endings;
use crate::naming::experts::DEFINITION_ORDER;
use crate::pairs::PairKind;
use crate::placement::{Applied, Placeable};

/// The parameters that adapters adapt without a layer.
pub struct Parameters {
    /// Of every module that some adapter adapts so, innermost first.
    all: HashMap<String, Vec<String>>,
    /// Adapter by adapter.
    sources: Vec<Pairs>,
}

/// The pairs of one adapter, by module.
#[derive(Default)]
struct Pairs {
    count: HashMap<String, usize>,
    /// Modules with a pair that is nested, or has another rank than the config gives the module: a stack.
    stacked: HashSet<String>,
    /// Modules that the config names by more than their parameter.
    owners: Endings,
    /// Whether the config adapts parameters at all.
    any: bool,
}

impl Parameters {
    /// Collects them.
    ///
    /// # Errors
    /// When adapters adapt different parameters of a module and their order is not known.
    pub fn of(sources: &[Applied], spellings: &Spellings) -> Result<Self> {
        let own = sources.iter().map(|source| Pairs::of(&source.adapter)).collect();
        let mut found = Self { all: HashMap::default(), sources: own };
        for (source, applied) in sources.iter().enumerate() {
            for (at, module) in applied.adapter.modules.iter().enumerate() {
                if !matches!(module.change, Change::Lora(_)) || module.nesting > 0 {
                    continue;
                }
                let own = found.sources[source].named(&applied.adapter, &module.path);
                if !own.is_empty() {
                    let path = match spellings.place(source, at) {
                        Place::Named(path) => path,
                        _ => &module.path,
                    };
                    found.add(&applied.adapter, path, own)?;
                }
            }
        }
        Ok(found)
    }

    fn add(&mut self, adapter: &Adapter, path: &str, own: Vec<String>) -> Result<()> {
        let known = self.all.entry(path.to_owned()).or_insert_with(|| own.clone());
        if *known == own {
            return Ok(());
        }
        let mut both = own.iter().chain(known.iter());
        if let Some(unknown) = both.find(|name| !DEFINITION_ORDER.contains(&name.as_str())) {
            let what = format!(
                "adapts other parameters of `{path}` than another adapter, among them `{unknown}`: which one lies outermost is \
                 not known"
            );
            return Err(Error::unsupported(&adapter.config.path, what));
        }
        known.extend(own);
        known.sort_by_key(|name| DEFINITION_ORDER.iter().position(|known| known == name));
        known.dedup();
        Ok(())
    }

    /// What kind of layer a pair of adapter `source` belongs to.
    ///
    /// # Errors
    /// When config and tensors disagree about it.
    pub fn kind(&self, job: &Placeable<'_>, source: usize, lora: &Lora) -> Result<PairKind> {
        let (adapter, module) = (&job.applied.adapter, job.module);
        let shape = lora.down.info.shape.as_slice();
        if lora.embedding {
            return Ok(PairKind::Embedding);
        }
        if shape.len() > 2 {
            return Ok(PairKind::Conv { kernel: shape[2..].to_vec() });
        }
        let own = self.sources[source].named(adapter, &module.path);
        if own.is_empty() && module.nesting == 0 {
            return Ok(PairKind::Linear);
        }
        if let Some(stack) = &lora.stack
            && stack.sides.is_none()
        {
            // Its shape tells whoever has the model, so it is written as it lies; a square one may lie either way.
            if lora.inputs() == lora.outputs() {
                return Err(stack.refusal(&lora.down));
            }
        }
        let pairs = self.sources[source].count.get(&module.path).copied().unwrap_or(0);
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
        let all = self.all.get(&job.path).unwrap_or(&own);
        let place = all.iter().position(|known| *known == name).unwrap_or(0);
        Ok(PairKind::Parameter { nesting: all.len() - 1 - place, experts: lora.rank() / rank, name })
    }
}

impl Pairs {
    fn of(adapter: &Adapter) -> Self {
        let config = &adapter.config;
        let mut pairs = Self { any: !config.target_parameters.is_empty(), ..Self::default() };
        for module in &adapter.modules {
            let Change::Lora(lora) = &module.change else { continue };
            *pairs.count.entry(module.path.clone()).or_default() += 1;
            let configured = config.scaling.as_ref().map_or(0, |scaling| scaling.rank(&module.path));
            if module.nesting > 0 || lora.rank() != configured {
                pairs.stacked.insert(module.path.clone());
            }
        }
        let owners = config.target_parameters.iter().filter_map(|target| target.rsplit_once('.'));
        pairs.owners = owners.map(|(owner, _)| owner).collect();
        pairs
    }

    /// The parameters of `path` that the config of `adapter` adapts without a layer. An entry without a module means any module,
    /// which is one with a stack only if A has more rows than the rank.
    fn named(&self, adapter: &Adapter, path: &str) -> Vec<String> {
        if !self.any || !self.stacked.contains(path) && !self.owners.take(path) {
            return Vec::new();
        }
        adapter.config.parameters_of(path).into_iter().map(str::to_owned).collect()
    }
}
