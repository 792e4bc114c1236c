//! llama.cpp: one GGUF file, in the names, the order of rows and with the one α that its loader knows (`dialects::gguf`).

use std::path::Path;

use serde_json::Value as Json;

use super::rows::{Rows, Tensor};
use super::{GGUF, Model, Part, Planned, metadata_of, plan};
use crate::adapters::Adapter;
use crate::adapters::config::INVOCATION;
use crate::dialects::files::{Facts, Files, Wishes};
use crate::dialects::pieces::{Pair, Pieces, WholePiece};
use crate::dialects::spell::{self, Respelled, is_of_pipeline};
use crate::error::{Error, Result};
use crate::formats::gguf::{Array, Metadata, Value};
use crate::io::name_of;
use crate::llama::{FileType, GgufArch, HeadCounts, gguf_arch, gguf_arch_of, gguf_archs};
use crate::naming::experts::{self, SPLIT};
use crate::tensor::{GgmlType, TensorInfo};

/// The types that factors are written as.
const WRITTEN: [GgmlType; 4] = [GgmlType::F32, GgmlType::F16, GgmlType::Q8_0, GgmlType::Bf16];

/// Where the language model of a model with several parts begins, and what its modules are called alone.
const PREFIXES: [(&str, &str); 3] =
    [("model.language_model.", "model."), ("language_model.model.", "model."), ("language_model.", "")];

/// What the file is called.
const NAME: &str = "general.name";

/// Makes the modules those that the file has: by their names there, fused or split.
///
/// # Errors
/// When llama.cpp cannot express a change, or too little is known of the model.
pub fn fit(pieces: &mut Pieces, facts: &Facts<'_>, done: &mut Respelled) -> Result<()> {
    let Facts { adapter, wishes, .. } = facts;
    refuse(adapter, pieces)?;
    let arch = architecture(adapter, wishes)?;
    pieces.pairs.iter_mut().for_each(|pair| pair.path = own_name(arch, &pair.path));
    let fused = done.fused;
    spell::refit(adapter, pieces, |path| arch.place(path).is_some(), done)?;
    if done.fused > fused {
        let counts = wishes.counts(adapter);
        pieces.pairs.iter_mut().try_for_each(|pair| fill_up(adapter, pair, counts))?;
    }
    check_head(adapter, &pieces.pairs, wishes)
}

/// The file.
///
/// # Errors
/// When a module has no place in it, or too little is known of the model.
pub fn write(pieces: &Pieces, facts: &Facts<'_>) -> Result<Files> {
    let wishes = &facts.wishes;
    let arch = architecture(facts.adapter, wishes)?;
    let (root, pairs) = (&facts.adapter.root, &pieces.pairs);
    let experts = wishes.config.and_then(|config| config.experts);
    let counts = wishes.counts(facts.adapter);
    let in_order = facts.adapter.config.llama_cpp.as_ref().is_some_and(|said| said.unordered);
    let parts: Vec<Part<'_>> = pairs.iter().map(part).collect();
    let (alpha, planned) = plan(root, arch, Model { counts, experts, in_order }, &parts)?;
    let mut files = Files::of(&GGUF, &[]);
    let mut tensors = Vec::new();
    let (mut narrow, mut empty) = (0, 0);
    for planned in &planned {
        files.folded += planned.factors.iter().filter(|factor| **factor != 1.0).count();
        files.padded += planned.parts.iter().flatten().filter(|part| pairs[**part].rank() != planned.rank).count();
        empty += planned.parts.iter().filter(|part| part.is_none()).count();
        for (half, rows) in halves(planned, pairs).into_iter().enumerate() {
            let shape = planned.shapes[half].clone();
            let ggml = rows.type_of(&shape, facts.float, wishes.quant);
            let ggml =
                ggml.ok_or_else(|| Error::invalid("--dtype", "ggml has no such type for the factors of LoRA"))?;
            narrow += usize::from(wishes.quant.is_some_and(|wanted| wanted != ggml));
            let bytes = shape.elements().and_then(|elements| ggml.bytes_of(elements)).unwrap_or(0);
            let name = planned.names[half].clone();
            let info = TensorInfo { name, dtype: ggml.dtype(), shape, offset: 0, bytes };
            tensors.push(Tensor { info, source: rows.written(ggml) });
        }
    }
    if let (Some(quant), true) = (wishes.quant, narrow > 0) {
        let block = quant.block().0;
        files.notes.push(format!(
            "{narrow} of {} factors are F16: their rows are no whole number of blocks of {quant}, {block} values each",
            tensors.len()
        ));
    }
    let copies = pieces.whole.iter().filter(|whole| is_copy(whole)).count();
    if copies > 0 {
        files.notes.push(format!("{copies} weights of the model itself, saved along with the adapter, are left out"));
    }
    if empty > 0 {
        files.notes.push(format!("{empty} experts that are not changed were filled up with zeros"));
    }
    let mut metadata = metadata_of(arch, &name_of(root), alpha);
    describe(&mut metadata, facts, counts.filter(|_| planned.iter().any(|planned| planned.order.is_some())), arch);
    metadata.set("general.file_type", Value::U32(file_type(&tensors)));
    files.gguf = Some((metadata, tensors));
    Ok(files)
}

impl Wishes<'_> {
    fn counts(&self, adapter: &Adapter) -> Option<HeadCounts> {
        let said = adapter.config.llama_cpp.as_ref();
        let own = || said.and_then(|said| HeadCounts::in_metadata(&said.metadata, said.arch.name()));
        self.config.and_then(HeadCounts::of).or_else(own)
    }
}

fn part(pair: &Pair) -> Part<'_> {
    let module = &pair.path;
    Part { module, rank: pair.rank(), inputs: pair.down.size.1, outputs: pair.up.size.0, scale: pair.scale }
}

/// A and B as they are written.
fn halves(planned: &Planned, pairs: &[Pair]) -> [Rows; 2] {
    let all = || planned.parts.iter().zip(&planned.factors);
    let down = |(part, _): (&Option<usize>, _)| {
        let pair = &pairs[(*part)?];
        let grid = pair.down.clone().padded(planned.rank, 0);
        Some(if planned.embedding { grid.turned() } else { grid })
    };
    let up = |(part, factor): (&Option<usize>, &f64)| {
        Some(pairs[(*part)?].up.clone().padded(0, planned.rank).scaled(*factor))
    };
    [Rows::new(all().map(down).collect(), None), Rows::new(all().map(up).collect(), planned.order.clone())]
}

/// The path of a module where the language model stands alone, as in the GGUF files, and its block is called as there.
fn own_name(arch: &GgufArch, path: &str) -> String {
    let found = PREFIXES.iter().find_map(|(begin, own)| Some(format!("{own}{}", path.strip_prefix(begin)?)));
    let path = found.unwrap_or_else(|| path.to_owned());
    let known = |path: &String| arch.place(path).is_some();
    let single = experts::expert_of(&path)
        .and_then(|single| Some((single.layer, single.expert, *single.parts.first()?, single.parts.len())));
    let others = single.into_iter().filter(|(.., parts)| *parts == 1).flat_map(|(layer, expert, part, _)| {
        let has = SPLIT.iter().filter(move |split| split.has().contains(&part));
        let names = has.map(move |split| split.tensor(layer, expert, part));
        names.map(|tensor| tensor.trim_end_matches(".weight").to_owned())
    });
    let other = experts::aliases(&path).into_iter().chain(others).find(known);
    if known(&path) { path } else { other.unwrap_or(path) }
}

/// Queries alone do not tell how many rows of keys and values follow them where the three are one.
fn fill_up(adapter: &Adapter, pair: &mut Pair, counts: Option<HeadCounts>) -> Result<()> {
    let rows = pair.up.size.0;
    if !pair.path.ends_with(".qkv_proj") || rows != pair.down.size.1 {
        return Ok(());
    }
    let all = counts.and_then(|HeadCounts { heads, kv_heads }| {
        let size = rows.checked_div(heads as u64)?;
        size.checked_mul(heads as u64 + 2 * kv_heads as u64)
    });
    let Some(all) = all else {
        let what =
            format!("changes the queries of `{}` alone, and how many keys and values follow is not known", pair.path);
        return Err(Error::unsupported(&adapter.root, what).hint("give the model: --base PATH"));
    };
    pair.up = pair.up.clone().padded(all, 0);
    Ok(())
}

/// The architecture of the file; that of the adapter, where it says one.
fn architecture(adapter: &Adapter, wishes: &Wishes<'_>) -> Result<&'static GgufArch> {
    let (wished, own) = (wished(adapter, wishes)?, adapter.config.llama_cpp.as_ref().map(|said| said.arch));
    let wanted = wished.or(own).ok_or_else(|| {
        let what = "tells nothing of the architecture of its model, by which llama.cpp names the tensors";
        Error::unsupported(&adapter.root, what).hint(
            "give the model, --base PATH: a directory with its `config.json` will do, or a GGUF file; or --arch NAME",
        )
    })?;
    match own.filter(|own| own.name() != wanted.name()) {
        None => Ok(wanted),
        Some(own) => {
            let what = format!("is for architecture `{}`, not `{}`", own.name(), wanted.name());
            Err(Error::unsupported(&adapter.root, what))
        }
    }
}

fn wished(adapter: &Adapter, wishes: &Wishes<'_>) -> Result<Option<&'static GgufArch>> {
    let known = || gguf_archs().iter().map(GgufArch::name).collect::<Vec<_>>().join(", ");
    if let Some(name) = wishes.arch {
        let unknown = || Error::invalid("--arch", format!("`{name}` is not one of {}", known()));
        return gguf_arch(name).or_else(|| gguf_arch_of(name)).ok_or_else(unknown).map(Some);
    }
    let Some(config) = wishes.config else { return Ok(None) };
    let mut kinds: Vec<&str> = config.types().collect();
    kinds.dedup();
    kinds.iter().find_map(|kind| gguf_arch_of(kind)).map(Some).ok_or_else(|| {
        let what = format!("is for a model of type `{}`, whose names in llama.cpp are not known", kinds.join("`, `"));
        Error::unsupported(&adapter.root, what).hint(format!("known are {}", known()))
    })
}

/// What llama.cpp does not load.
fn refuse(adapter: &Adapter, pieces: &Pieces) -> Result<()> {
    const WAY_OUT: &str = "merge it into the model instead, `lorakit merge`, and serve that";
    let error = |what: String| Error::unsupported(&adapter.root, what);
    if let Some(path) = pieces.paths().find(|path| is_of_pipeline(adapter, path)) {
        return Err(error(format!(
            "`{path}` belongs to a diffusion pipeline; llama.cpp loads adapters of language models"
        )));
    }
    if let Some(other) = pieces.methods.first() {
        let what = format!("`{}` is changed by {}, and llama.cpp knows LoRA", other.path, other.method.kind());
        return Err(error(what).hint("make it LoRA: --as lora; or merge it into the model and serve that"));
    }
    if let Some(whole) = pieces.whole.iter().find(|whole| !is_copy(whole)) {
        let what = format!(
            "`{}.{}` is stored whole, and llama.cpp applies nothing but pairs of factors",
            whole.path, whole.parameter
        );
        return Err(error(what).hint(WAY_OUT));
    }
    for pair in &pieces.pairs {
        let lacking = [
            (pair.magnitude.is_some(), "has magnitudes of DoRA, which llama.cpp does not have"),
            (pair.bias.is_some(), "has a bias in its B, which llama.cpp does not have"),
            (pair.is_conv(), "is a convolution, which llama.cpp does not adapt"),
        ];
        if let Some((_, what)) = lacking.iter().find(|(is, _)| *is) {
            return Err(error(format!("`{}` {what}", pair.path)).hint(WAY_OUT));
        }
    }
    Ok(())
}

/// A weight of the model that was saved along.
fn is_copy(whole: &WholePiece) -> bool {
    whole.frozen && whole.parameter == "weight"
}

/// A head that is the embedding has no tensor of its own to be changed.
fn check_head(adapter: &Adapter, pairs: &[Pair], wishes: &Wishes<'_>) -> Result<()> {
    let tied = wishes.config.and_then(|config| config.tied) == Some(true);
    match pairs.iter().find(|pair| tied && pair.path == "lm_head") {
        None => Ok(()),
        Some(pair) => {
            let what = format!(
                "`{}` is changed, and in that model it is the embedding (`tie_word_embeddings`): its GGUF file has no \
                 tensor for it",
                pair.path
            );
            Err(Error::unsupported(&adapter.root, what)
                .hint("merge it into the model, `lorakit merge`, which unties the head"))
        }
    }
}

/// What is told beside the factors.
fn describe(metadata: &mut Metadata, facts: &Facts<'_>, counts: Option<HeadCounts>, arch: &GgufArch) {
    let config = &facts.adapter.config;
    if let Some(said) = &config.llama_cpp {
        for (key, value) in said.metadata.iter() {
            if metadata.get(key).is_none() || key == NAME {
                metadata.set(key, value.clone());
            }
        }
    } else if let Some(name) = config.base_model.as_deref().filter(|name| !Path::new(name).is_absolute()) {
        metadata.set("general.base_model.count", Value::U32(1));
        let (organisation, model) = name.split_once('/').map_or((None, name), |(org, model)| (Some(org), model));
        metadata.set("general.base_model.0.name", model.into());
        if let Some(organisation) = organisation {
            metadata.set("general.base_model.0.organization", organisation.into());
            metadata.set("general.base_model.0.repo_url", format!("https://huggingface.co/{name}").as_str().into());
        }
    }
    let tokens = config.raw.get(INVOCATION).and_then(Json::as_array);
    let tokens = tokens.map(|tokens| tokens.iter().filter_map(|token| u32::try_from(token.as_u64()?).ok()));
    if let Some(tokens) = tokens {
        metadata.set("adapter.alora.invocation_tokens", Value::Array(Array::of_u32(tokens)));
    }
    // With them the order of the rows can be undone without the model.
    if let Some(HeadCounts { heads, kv_heads }) = counts {
        for (key, count) in [("head_count", heads), ("head_count_kv", kv_heads)] {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            metadata.set(&format!("{}.attention.{key}", arch.name()), Value::U32(count));
        }
    }
}

fn file_type(tensors: &[Tensor]) -> u32 {
    let values = |ggml: GgmlType| -> u64 {
        let own = tensors.iter().filter(|tensor| tensor.info.dtype == ggml.dtype());
        own.filter_map(|tensor| tensor.info.shape.elements()).sum()
    };
    let most = WRITTEN.into_iter().max_by_key(|ggml| values(*ggml));
    most.and_then(FileType::mostly).map_or(0, |kind| kind.0)
}
