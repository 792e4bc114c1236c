//! Keys taken apart → changes by module: the same for every naming scheme.

use std::collections::BTreeMap;

use foldhash::{HashMap, HashSet};

use super::adapter::{Change, Lora, Module};
use super::config::AdapterConfig;
use super::methods::KINDS;
use super::parts::{Context, Fallback, Parts, wrong};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::naming::Key;
use crate::naming::Role;

/// Changes, and what their own tensors say of rank and α.
#[derive(Debug, Default)]
pub struct Gathered {
    /// In path order.
    pub modules: Vec<Module>,
    /// Path → rank and α of the pairs, where α stands beside the factors; a pair without one has α = rank.
    pub scales: HashMap<String, (u64, f64)>,
}

/// Groups tensors by module and finds out what they mean together.
///
/// # Errors
/// When tensors that belong together do not fit: half a pair, two tensors for one role.
pub fn gather(
    keyed: impl Iterator<Item = (Key, Stored)>,
    config: &AdapterConfig,
    dialect: &str,
    alpha_per_module: bool,
) -> Result<Gathered> {
    gather_with(keyed, config, dialect, alpha_per_module, None)
}

/// The same; `fallback` says α where no tensor does.
///
/// # Errors
/// As [`gather`].
pub fn gather_with(
    keyed: impl Iterator<Item = (Key, Stored)>,
    config: &AdapterConfig,
    dialect: &str,
    alpha_per_module: bool,
    fallback: Option<&Fallback<'_>>,
) -> Result<Gathered> {
    let mut parts: Vec<(usize, Parts)> = Vec::new();
    let mut places: HashMap<(String, usize), usize> = HashMap::default();
    let mut shared = BTreeMap::new();
    let mut gathered = Gathered::default();
    for (key, stored) in keyed {
        let change = match key.role {
            Role::Whole(parameter) => Change::Whole(parameter, stored),
            Role::Frozen(parameter) => Change::Frozen(parameter, stored),
            Role::TokenRows => Change::TokenRows(stored),
            Role::Unknown(_) => Change::Unknown(stored),
            Role::Part(name) if key.module.is_empty() => {
                shared.insert(name, stored);
                continue;
            }
            role => {
                // The tensors of a module mostly stand together.
                let last =
                    parts.last().is_some_and(|(nesting, last)| *nesting == key.nesting && last.path == key.module);
                let at = if last {
                    parts.len() - 1
                } else {
                    *places.entry((key.module, key.nesting)).or_insert_with_key(|(module, nesting)| {
                        parts.push((*nesting, Parts::new(module)));
                        parts.len() - 1
                    })
                };
                parts[at].1.put(role, stored)?;
                continue;
            }
        };
        gathered.modules.push(Module { path: key.module, nesting: key.nesting, change });
    }
    let context = Context { config, dialect, alpha_per_module, fallback, shared: &shared };
    drop(places);
    parts.sort_by(|(own, left), (other, right)| (&left.path, own).cmp(&(&right.path, other)));
    gathered.modules.reserve(parts.len());
    for (nesting, parts) in parts {
        gathered.take(nesting, parts, &context)?;
    }
    gathered.take_shared(&shared);
    gathered.modules.sort_by(|left, right| (&left.path, left.nesting).cmp(&(&right.path, right.nesting)));
    Ok(gathered)
}

impl Gathered {
    fn take(&mut self, nesting: usize, mut parts: Parts, context: &Context<'_>) -> Result<()> {
        let path = parts.path.clone();
        let path = path.as_str();
        let add = |modules: &mut Vec<Module>, change| modules.push(Module { path: path.to_owned(), nesting, change });
        // Most modules are a pair, and hold no tensor of another method.
        let kinds = if parts.holds_parts() { KINDS } else { &[] };
        for kind in kinds {
            if let Some(method) = (kind.gather)(&mut parts, context)? {
                add(&mut self.modules, Change::Method(method));
            }
        }
        if let Some(lora) = take_pair(&mut parts)? {
            if context.alpha_per_module {
                let alpha = parts.alpha_or(context, lora.rank())?;
                self.scales.insert(path.to_owned(), (lora.rank(), alpha.unwrap_or(lora.rank() as f64)));
            }
            add(&mut self.modules, Change::Lora(Box::new(lora)));
        }
        let rest: Vec<(Role, Stored)> = parts.rest().collect();
        let alone = self.modules.last().is_none_or(|module| module.path != path) && rest.len() == 1;
        for (role, stored) in rest {
            // α says something of the change it stands beside only.
            if role != Role::Alpha || alone {
                add(&mut self.modules, Change::Unknown(stored));
            }
        }
        Ok(())
    }

    /// Tensors that all modules share belong to each that uses them; what no method uses is said to be unknown.
    fn take_shared(&mut self, shared: &BTreeMap<String, Stored>) {
        if shared.is_empty() {
            return;
        }
        let used: HashSet<String> = self
            .modules
            .iter()
            .flat_map(|module| module.change.tensors().into_iter().map(|tensor| tensor.info.name.clone()))
            .collect();
        let unused = shared.values().filter(|tensor| !used.contains(&tensor.info.name));
        let modules =
            unused.map(|tensor| Module { path: String::new(), nesting: 0, change: Change::Unknown(tensor.clone()) });
        let modules: Vec<Module> = modules.collect();
        self.modules.extend(modules);
    }
}

/// Whether a pair has DoRA magnitudes.
pub fn has_magnitudes(modules: &[Module]) -> bool {
    modules.iter().any(|module| matches!(&module.change, Change::Lora(lora) if lora.magnitude.is_some()))
}

/// The LoRA pair among the parts, if there is one.
fn take_pair(parts: &mut Parts) -> Result<Option<Lora>> {
    let embedding = parts.has(&Role::EmbeddingDown) || parts.has(&Role::EmbeddingUp);
    let down = parts.take(&Role::EmbeddingDown).or_else(|| parts.take(&Role::Down));
    let up = parts.take(&Role::EmbeddingUp).or_else(|| parts.take(&Role::Up));
    let (down, up) = match (down, up) {
        (Some(down), Some(up)) => (down, up),
        (None, None) => {
            let lonely = [Role::UpBias, Role::Magnitude].into_iter().find_map(|role| parts.take(&role));
            return lonely.map_or(Ok(None), |tensor| Err(half_a_pair(parts, &tensor, "A (the down projection)")));
        }
        (Some(down), None) => return Err(half_a_pair(parts, &down, "B (the up projection)")),
        (None, Some(up)) => return Err(half_a_pair(parts, &up, "A (the down projection)")),
    };
    let magnitude = parts.take(&Role::Magnitude).or_else(|| parts.take_part("dora_scale"));
    let bias = parts.take(&Role::UpBias);
    Ok(Some(Lora { down, up, bias, magnitude, embedding, stack: None }))
}

fn half_a_pair(parts: &Parts, present: &Stored, missing: &str) -> Error {
    let problem = format!("belongs to module `{}`, whose {missing} is not in the file", parts.path);
    wrong(present, problem)
}
