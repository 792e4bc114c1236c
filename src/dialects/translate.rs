//! An adapter in another dialect: any of them → changes by module → names, scales, shapes and config of the target.
//!
//! There is one reader and one writer per dialect, and no pair of dialects has code of its own. What the target cannot express is
//! folded exactly or refused with the reason, never dropped.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::dialect::Dialect;
use super::experts::sides::Family as ModelFamily;
use super::experts::{ExpertForm, together};
use super::files::{Facts, Files, Wishes, rounded_note};
use super::pieces::{Pair, Pieces, Stacks};
use super::spell::Wanted;
use super::{as_lora, denoisers, family, pieces, spell, text_encoders};
use crate::adapters::{Adapter, Init, embeddings_note};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::model::base::Base;
use crate::naming::{arch, components};
use crate::tensor::Float;

/// What is asked for.
pub struct Asked<'a> {
    /// The dialect.
    pub dialect: &'static Dialect,
    /// The model the adapter belongs to.
    pub base: Option<&'a Path>,
    /// What is known of that model, and what is wished for.
    pub wishes: Wishes<'a>,
    /// The denoiser that is meant.
    pub component: Option<&'a str>,
    /// Other methods become LoRA.
    pub as_lora: bool,
    /// The form that experts get; that of the dialect if not given.
    pub experts: Option<ExpertForm>,
    /// What is known of the model that experts belong to.
    pub model: Option<&'a ModelConfig>,
    /// Whether a module is taken, by its path.
    pub takes: &'a dyn Fn(&str) -> bool,
    /// The dtype of what is written; that of every tensor if not given.
    pub float: Option<Float>,
    /// Where it goes, which may tell whether it is a file.
    pub out: &'a Path,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Account {
    /// Whose names it has.
    pub family: Family,
    /// What became of its modules.
    pub modules: Modules,
    /// Notes.
    pub notes: Vec<String>,
}

/// The family of models that an adapter is for.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Family {
    /// Its name, where names tell.
    pub family: Option<String>,
    /// What told it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family_by: Option<String>,
}

/// What became of the modules of an adapter.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Modules {
    /// Modules that are changed by low-rank pairs.
    pub pairs: usize,
    /// Modules that are changed by other methods.
    pub methods: usize,
    /// Parameters stored whole.
    pub whole: usize,
    /// Modules with another name.
    pub renamed: usize,
    /// Modules that became several.
    pub split: usize,
    /// Modules that were made of several.
    pub fused: usize,
    /// Modules into whose factors a scale went.
    pub folded: usize,
    /// Modules whose rank was filled up with zeros.
    pub padded: usize,
    /// Modules of another method that became pairs.
    pub made_pairs: usize,
    /// Largest error of those, relative to ‖ΔW‖; `None` where there are none.
    pub error: Option<f64>,
}

/// The adapter in the names and numbers of another dialect.
///
/// # Errors
/// When the dialect cannot express it.
pub fn translate(adapter: &Adapter, asked: &Asked<'_>) -> Result<(Files, Account)> {
    let Dialect { name: to, names: wanted, wants_config, .. } = *asked.dialect;
    let Some(write) = asked.dialect.write else {
        return Err(Error::unsupported(&adapter.root, format!("{to} is not written")));
    };
    check(adapter, asked)?;
    if let Some(form) = asked.experts.filter(|_| !asked.dialect.keeps_stacks) {
        let problem = format!("`{}` is a form of PEFT's files, and {to} has one of its own", form.name());
        return Err(Error::invalid("--experts", problem));
    }
    let (mut done, mut modules) = (Account::default(), Modules::default());
    let family = ModelFamily::of(&adapter.config, asked.model);
    let stacks = match asked.experts {
        Some(form) if !form.is_fused() => Stacks::Apart(&family),
        _ if asked.dialect.takes_experts => Stacks::Apart(&family),
        _ if asked.dialect.keeps_stacks => Stacks::Kept,
        _ => Stacks::Refused,
    };
    let mut pieces = pieces::collect(adapter, stacks)?;
    let is_bias = |pair: &&Pair| pair.stack.as_ref().is_some_and(|stack| stack.name.ends_with("_bias"));
    if let Some(pair) = pieces.pairs.iter().find(is_bias).filter(|_| !asked.dialect.keeps_stacks) {
        let what = format!("`{}` adapts the biases of experts, which only PEFT stores", pair.path);
        return Err(Error::unsupported(&adapter.root, what));
    }
    if let Some(form) = asked.experts {
        let model = together::Model { family: &family, experts: asked.model.and_then(|model| model.experts) };
        match form {
            ExpertForm::Fused | ExpertForm::Vllm3d => together::fuse(&mut pieces, model, form.is_complete())?,
            ExpertForm::Vllm2d => together::complete(&mut pieces, model)?,
            ExpertForm::PerExpert => {}
        }
    }
    done.notes.extend(embeddings_note(&pieces.embedded, &format!("the dialect {to}")));
    let base = asked.base.map(Base::open).transpose();
    // Here the config is enough.
    let names_known = wants_config || adapter.config.llama_cpp.is_some();
    let base = if names_known && !asked.as_lora { base.unwrap_or_default() } else { base? };
    let flat = base.as_ref().map(flattened_names).unwrap_or_default();
    if wanted != Wanted::Own {
        family::name_components(&mut pieces);
    }
    // Targets whose models have configs have names of their own for architectures.
    let named = asked.wishes.arch.filter(|_| !wants_config);
    let only = asked.dialect.family;
    let question = family::Asked { adapter, pieces: &pieces, wanted, base: base.as_ref(), flat: &flat, only };
    let chosen = question.family(named)?;
    spell::unflatten(adapter, &mut pieces, &flat, chosen.table)?;
    if wanted != Wanted::Own {
        // An adapter of PEFT's belongs to one model, and its paths do not say which part of a pipeline that is.
        let encoder = |pair: &mut Pair| {
            pair.path = text_encoders::with_component(&pair.path, (pair.up.size.0, pair.down.size.1));
        };
        pieces.pairs.iter_mut().for_each(encoder);
        pieces.paths_mut().for_each(|path| *path = components::with_component(path));
        one_encoder(adapter, &pieces, asked.wishes.arch.is_some() || asked.dialect.names != Wanted::Kohya)?;
    }
    if let Some(component) = asked.component {
        done.notes.extend(denoisers::mean(&mut pieces, component)?);
    }
    pieces.retain(asked.takes);
    if asked.as_lora {
        let made = as_lora::convert(adapter, &mut pieces, base.as_ref(), asked.float)?;
        (modules.made_pairs, modules.error) = (made.count, made.error);
        done.notes.extend(made.notes);
    }
    let denoisers = denoisers::named(&pieces);
    let mut respelled = spell::respell(adapter, &mut pieces, wanted, chosen.table)?;
    let is_file = asked.dialect.is_file(asked.out);
    let mut facts =
        Facts { adapter, family: None, float: asked.float, wishes: asked.wishes, is_file, model: asked.model };
    (asked.dialect.fit)(&mut pieces, &facts, &mut respelled)?;
    // One of several that give the same names is none.
    facts.family = respelled.family.and(chosen.family);
    let name = facts.family.map(|family| family.name().to_owned());
    done.family = Family { family: name, family_by: facts.family.and(chosen.by) };
    done.notes.extend(chosen.notes);
    (modules.renamed, modules.split, modules.fused) = (respelled.renamed, respelled.split, respelled.fused);
    (modules.pairs, modules.methods, modules.whole) = (pieces.pairs.len(), pieces.methods.len(), pieces.whole.len());
    if pieces.paths().next().is_none() {
        return Err(Error::unsupported(&adapter.root, "nothing is left of the adapter to be written"));
    }
    let rounded = pieces.pairs.iter().filter(|pair| pair.up.rounds()).count();
    done.notes.extend(rounded_note(rounded));
    let mut files = write(pieces, &facts)?;
    (modules.folded, modules.padded) = (files.folded, files.padded);
    done.modules = modules;
    done.notes.append(&mut files.notes);
    let mut names: Vec<&str> = files.tensors.iter().map(|(name, ..)| name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(denoisers::same_name(&adapter.root, pair[0], &denoisers, to)),
        None => Ok((files, done)),
    }
}

/// Flattened names number the text encoders where there are several: of one alone it has to be known whose it is.
///
/// # Errors
/// When it is not.
fn one_encoder(adapter: &Adapter, pieces: &Pieces, known: bool) -> Result<()> {
    let bare = adapter.modules.iter().any(|module| components::split(&module.path).is_none());
    let first = |path: &String| components::split(path).is_some_and(|(component, _)| component == "text_encoder");
    if known || !bare || !pieces.paths().all(first) || pieces.paths().next().is_none() {
        return Ok(());
    }
    let what = "is a text encoder alone: Stable Diffusion 1 and SDXL name it differently";
    Err(Error::unsupported(&adapter.root, what).hint(
        "`--arch sd1` or `--arch sdxl`; or `lorakit stack UNET TEXT_ENCODER --to kohya -o lora.safetensors` with the part it belongs to",
    ))
}

/// What no other dialect can say.
fn check(adapter: &Adapter, asked: &Asked<'_>) -> Result<()> {
    if adapter.config.init.0 != Init::Plain {
        let what = format!(
            "was started with `{}` and belongs to the base that initialiser left; another dialect cannot say so",
            adapter.config.init.1
        );
        return Err(Error::unsupported(&adapter.root, what)
            .hint("make it one for the original base first: lorakit resize with --init-adapter"));
    }
    let refusal = adapter.config.refusal_but(asked.dialect.says);
    refusal.filter(|_| !asked.as_lora && adapter.config.scaling.is_some()).map_or(Ok(()), Err)
}

/// Flattened name → path of every module of the base; what no component is told of is a denoiser's.
fn flattened_names(base: &Base) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for info in base.checkpoint.tensors() {
        let Some((module, "weight")) = info.name.rsplit_once('.') else { continue };
        let path = components::with_component(module);
        let path = if components::split(&path).is_some() { path } else { format!("transformer.{module}") };
        for several in [false, true] {
            found.extend(arch::flatten(&path, several).map(|flat| (flat, path.clone())));
        }
    }
    found
}
