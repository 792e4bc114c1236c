//! PEFT: `adapter_config.json` and tensors below `base_model.model.`.

use super::PEFT;
use crate::adapters::config::{AdapterConfig, Scaling};
use crate::adapters::{Change, Gathered, Inserted, Module, ReadOptions, gather, methods, peft_keys};
use crate::dialects::alphas::{Alphas, Survey};
use crate::dialects::experts::stacked;
use crate::dialects::opened::{Opened, Source};
use crate::error::Result;
use crate::formats::{Checkpoint, Stored};
use crate::naming::{Key, Role};

pub(in crate::dialects) fn open(source: Source<'_>) -> Result<Opened> {
    let mut config = source.config()?;
    let Source { root, tensors, chosen, options, .. } = source;
    let keyed: Vec<(Key, Stored)> = tensors
        .all()
        .filter_map(|stored| Some((peft_keys::parse(chosen.key(&stored.info.name)?.as_ref()), stored)))
        .collect();
    let stacked::Apart { keyed, origins } = stacked::take_apart(keyed)?;
    if let Some(scaling) = &mut config.scaling {
        origins.iter().for_each(|(path, origin)| scaling.same_for(path, origin));
    }
    let empty =
        keyed.iter().filter(|(key, stored)| key.role == Role::Down && stored.info.shape.rows_cols().0 == 0).count();
    let modules = settle(&mut config, &tensors, &keyed, options).and_then(|()| collect(&config, keyed));
    let mut opened = Opened::new(root, &PEFT, config, tensors, modules);
    opened.needed.repacked = !origins.is_empty();
    if let Some(kind) = opened.config.kind.filter(|kind| empty > 0 && kind.drops_ranks) {
        opened.tensors.note(format!("{kind} left {empty} modules no rank: they stay as they are"));
    }
    Ok(opened)
}

/// What the header says of α has to be what the config says, unless it is told.
fn settle(
    config: &mut AdapterConfig,
    tensors: &Checkpoint,
    keyed: &[(Key, Stored)],
    options: &ReadOptions,
) -> Result<()> {
    if config.scaling.is_none() {
        return Ok(());
    }
    let survey = Survey::of(keyed)?;
    let alphas = Alphas::decide(tensors, &survey, Some(config), options)?;
    if alphas.is_told() {
        let told =
            survey.pairs.iter().filter_map(|(path, rank)| Some((path.clone(), (*rank, alphas.of(None, path, *rank)?))));
        config.scaling = Some(Scaling::exact(told));
        config.alpha_from = Some(alphas.from);
    }
    Ok(())
}

/// Groups the tensors by module, in path order.
fn collect(config: &AdapterConfig, keyed: Vec<(Key, Stored)>) -> Result<Vec<Module>> {
    if let Some((kind, reason)) = methods::refused::inserted(&config.method) {
        let tensors = keyed.into_iter().map(|(_, stored)| (stored.info.name.clone(), stored)).collect();
        let change = Change::Inserted(Box::new(Inserted { kind, reason, tensors }));
        return Ok(vec![Module { path: String::new(), nesting: 0, change }]);
    }
    let Gathered { modules, .. } = gather(keyed.into_iter(), config, PEFT.name, false)?;
    Ok(modules)
}
