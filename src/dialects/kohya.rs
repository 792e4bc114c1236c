//! One file with α beside the factors: sd-scripts (flattened names) and ComfyUI (dotted names of the original model).
//! Sources: sd-scripts `networks/lora.py`, ComfyUI `comfy/lora.py`.

use super::dialect::{Dialect, Form};
use super::files::{Facts, Files, Tensor, column, matrix};
use super::peft::write::cast;
use super::pieces::Pieces;
use super::spell::Wanted;
use crate::error::Result;
use crate::naming::Role;
use crate::naming::arch::{self, Arch};
use crate::naming::components;
use crate::naming::scheme::{Scheme, scheme};
use crate::pairs::Bytes;
use crate::tensor::{Float, Shape};

/// sd-scripts: flattened names.
pub const KOHYA: Dialect = Dialect {
    name: "kohya",
    title: "kohya",
    form: Form::File("safetensors"),
    names: Wanted::Kohya,
    pipelines: true,
    own_alphas: true,
    write: Some(|pieces, facts| write(&KOHYA, &pieces, facts)),
    ..Dialect::PLAIN
};

/// ComfyUI: dotted names of the original model.
pub const COMFYUI: Dialect = Dialect {
    name: "comfyui",
    title: "ComfyUI",
    form: Form::File("safetensors"),
    names: Wanted::Original,
    pipelines: true,
    write: Some(|pieces, facts| write(&COMFYUI, &pieces, facts)),
    ..Dialect::PLAIN
};

/// The file, in the names of one of the two.
fn write(of: &Dialect, pieces: &Pieces, facts: &Facts<'_>) -> Result<Files> {
    let dialect = of.name;
    let scheme = scheme(dialect).expect("the tables are part of the program");
    let mut files = Files { hashed: true, ..Files::of(of, &[]) };
    let several =
        pieces.paths().any(|path| matches!(components::split(path), Some(("text_encoder_2" | "text_encoder_3", _))))
            || facts.family.is_some_and(Arch::has_several_encoders);
    let name = |path: &str| match (components::split(path), scheme.is_flattened()) {
        (None, true) if path.starts_with("lora_") => Ok(path.to_owned()),
        (None, _) => Err(facts.refuse(format!(
            "`{path}` is no part of a diffusion pipeline; files of {dialect} belong to image and video models"
        ))),
        (Some(_), false) => Ok(path.to_owned()),
        (Some((component, _)), true) => arch::flatten(path, several)
            .ok_or_else(|| facts.refuse(format!("`{path}`: {dialect} has no name for `{component}`"))),
    };
    for pair in &pieces.pairs {
        let module = name(&pair.path)?;
        if pair.embedding {
            return Err(facts.refuse(format!("`{}` is a table of rows, which {dialect} does not know", pair.path)));
        }
        let mut add = |role: Role, make: &dyn Fn(String) -> Tensor| match scheme.print(&module, &role) {
            Some(key) => {
                files.tensors.push(make(key));
                Ok(())
            }
            None => {
                Err(facts.refuse(format!("`{}` has a `{}`, which {dialect} does not know", pair.path, role.label())))
            }
        };
        add(Role::Down, &|key| matrix(key, pair.down.clone(), facts.float))?;
        add(Role::Up, &|key| matrix(key, pair.up.clone(), facts.float))?;
        if pair.bias.is_some() {
            let what =
                format!("`{}` has a bias in its B, for which {dialect} has no place beside the factors", pair.path);
            return Err(facts.refuse(what));
        }
        if let Some(magnitude) = &pair.magnitude {
            let ones = pair.down.kernel.iter().map(|_| 1);
            let count = magnitude.grid.size.0;
            let shape: Vec<u64> = if magnitude.per_input { vec![1, count] } else { vec![count, 1] };
            let shape: Vec<u64> = shape.into_iter().chain(ones).collect();
            add(Role::Part("dora_scale".into()), &|key| column(key, magnitude.grid.clone(), &shape, facts.float))?;
        }
        let alpha = alpha(facts, &pair.path, pair.alpha())?;
        add(Role::Alpha, &|key| (key, alpha.0.clone(), alpha.1.clone()))?;
    }
    others(scheme, pieces, facts, &mut files, &name)?;
    metadata(pieces, facts, &mut files);
    let rounded = pieces.pairs.iter().filter(|pair| f64::from(pair.alpha() as f32) != pair.alpha()).count();
    if rounded > 0 {
        files.notes.push(format!("α of {rounded} modules was rounded to f32"));
    }
    Ok(files)
}

/// α of a module as a number of its own.
fn alpha(facts: &Facts<'_>, path: &str, value: f64) -> Result<(Shape, Bytes)> {
    let of = format!("α of {path}");
    let bytes = Bytes::held(&[value as f32], Float::F32, (&facts.adapter.config.path, &of))?;
    Ok((Shape::from(Vec::<u64>::new()), bytes))
}

/// Methods and whole tensors, where both dialects write them alike.
fn others(
    scheme: &Scheme,
    pieces: &Pieces,
    facts: &Facts<'_>,
    files: &mut Files,
    name: &dyn Fn(&str) -> Result<String>,
) -> Result<()> {
    for other in &pieces.methods {
        let (module, kind) = (name(&other.path)?, other.method.kind());
        let lycoris = Dialect::of(facts.adapter.dialect).lycoris;
        let known = (lycoris || kind.is_of_lycoris) && (scheme.is_flattened() || kind.is_dotted);
        let numbers = other.method.rank().zip(other.method.scale());
        let mut has_alpha = false;
        for (role, tensor) in other.method.tensors() {
            // What α says already.
            if role == "scalar" && numbers.is_some() {
                continue;
            }
            let dotted = scheme.is_flattened() || role != "w_norm" && role != "b_norm";
            let key = scheme
                .print(&module, &crate::naming::scheme::role(role))
                .filter(|_| known && dotted)
                .ok_or_else(|| {
                    let what =
                        format!("`{}` is changed by {kind}, for which {} has no place", other.path, scheme.name());
                    facts.refuse(what).hint("--as lora, where the change is one of low rank; or merge, then extract")
                })?;
            has_alpha |= role == "alpha";
            files.tensors.push((key, tensor.info.shape.clone(), cast(tensor, facts.float.filter(|_| role != "alpha"))));
        }
        let value = match (numbers, other.method.scale()) {
            _ if has_alpha => continue,
            (Some((rank, scale)), _) => scale * rank as f64,
            // Without a rank two whole Kronecker factors: readers want α, and take the scale for 1 whatever it is.
            (None, Some(scale)) if !lycoris && scale != 1.0 => {
                let what = format!(
                    "`{}` is two whole Kronecker factors times {scale}; here they cannot be scaled",
                    other.path
                );
                return Err(facts.refuse(what).hint("make it LoRA: --as lora"));
            }
            (None, Some(_)) => 1.0,
            _ => continue,
        };
        let key = scheme.print(&module, &Role::Alpha).expect("every such dialect has an alpha");
        let (shape, bytes) = alpha(facts, &other.path, value)?;
        files.tensors.push((key, shape, bytes));
    }
    if let Some(whole) = pieces.whole.first() {
        let what = format!(
            "`{}.{}` is stored whole, and {} stores differences: the base's own values would be needed",
            whole.path,
            whole.parameter,
            scheme.name()
        );
        return Err(facts.refuse(what));
    }
    Ok(())
}

/// What sd-scripts keeps even when it is told to write no metadata.
fn metadata(pieces: &Pieces, facts: &Facts<'_>, files: &mut Files) {
    let source = &facts.adapter.tensors.files()[0].header.metadata;
    let kept = source.iter().filter(|(key, _)| key.starts_with("ss_") || key.starts_with("modelspec."));
    files.metadata.extend(kept.cloned());
    let mut set = |key: &str, value: String, over: bool| match files.metadata.iter_mut().find(|(own, _)| own == key) {
        Some((_, old)) if over => *old = value,
        Some(_) => {}
        None => files.metadata.push((key.to_owned(), value)),
    };
    let text = |values: Vec<String>| {
        let first = values.first().cloned().unwrap_or_default();
        if values.iter().all(|value| *value == first) { first } else { "Dynamic".into() }
    };
    let mut ranks: Vec<String> = pieces.pairs.iter().map(|pair| pair.rank().to_string()).collect();
    let mut alphas: Vec<String> = pieces.pairs.iter().map(|pair| format!("{:?}", pair.alpha())).collect();
    for other in &pieces.methods {
        if let (Some(rank), Some(scale)) = (other.method.rank(), other.method.scale()) {
            ranks.push(rank.to_string());
            alphas.push(format!("{:?}", scale * rank as f64));
        }
    }
    if let Some(version) = facts.family.and_then(Arch::sd_scripts) {
        set("ss_base_model_version", version.into(), false);
    }
    let module = if pieces.methods.is_empty() && pieces.pairs.iter().all(|pair| pair.magnitude.is_none()) {
        "networks.lora"
    } else {
        "lycoris.kohya"
    };
    set("ss_network_module", module.into(), false);
    set("ss_network_dim", text(ranks), true);
    set("ss_network_alpha", text(alphas), true);
    set("ss_network_args", "{}".into(), false);
    set("ss_v2", "False".into(), false);
    set("format", "pt".into(), false);
}
