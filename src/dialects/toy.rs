//! A dialect that nobody writes: `MODULE.toy_down` `[r, in]` and `MODULE.toy_up` `[out, r]` with one `toy_scale` for all. It shows
//! that a dialect is one file and one line; `face/any_dialect.rs` takes it through every verb.

use serde_json::{Value, json};

use super::dialect::Dialect;
use super::evened::Evened;
use super::files::{Facts, Files, matrix};
use super::opened::{Opened, Source};
use super::pieces::{Pieces, most_frequent};
use crate::adapters::config::{AdapterConfig, CONFIG_NAME, Scaling};
use crate::adapters::{AlphaFrom, Gathered, gather};
use crate::error::{Error, Result};
use crate::formats::json;
use crate::naming::Key;
use crate::naming::Role;

/// The dialect.
pub const TOY: Dialect = Dialect {
    name: "toy",
    title: "Toy",
    files: &["adapter.safetensors", CONFIG_NAME],
    has_config: |raw| raw.contains_key("toy_scale"),
    read: Some(open),
    write: Some(write),
    ..Dialect::PLAIN
};

fn open(source: Source<'_>) -> Result<Opened> {
    let Source { root, raw, tensors, .. } = source;
    let mut config = AdapterConfig::synthetic(&root.join(CONFIG_NAME), "LORA", None);
    config.alpha_from = Some(AlphaFrom::File(CONFIG_NAME.to_owned()));
    let scale = raw.get("toy_scale").and_then(Value::as_f64);
    let scale = scale.ok_or_else(|| Error::malformed(&config.path, "`toy_scale`", "must be a number"))?;
    let key = |name: &str| {
        let of = |ending: &str, role: Role| Some((name.strip_suffix(ending)?.to_owned(), role));
        let found = of(".toy_down", Role::Down).or_else(|| of(".toy_up", Role::Up));
        let (module, role) = found.unwrap_or_else(|| (name.to_owned(), Role::Unknown(String::new())));
        Key { module, nesting: 0, role }
    };
    let keyed: Vec<_> = tensors.all().map(|stored| (key(&stored.info.name), stored)).collect();
    let modules = gather(keyed.into_iter(), &config, TOY.name, true).map(|gathered| {
        let Gathered { modules, mut scales, .. } = gathered;
        scales.values_mut().for_each(|(rank, alpha)| *alpha = scale * *rank as f64);
        config.scaling = Some(Scaling::exact(scales));
        modules
    });
    config.raw = raw;
    Ok(Opened::new(root, &TOY, config, tensors, modules))
}

fn write(pieces: Pieces, facts: &Facts<'_>) -> Result<Files> {
    let others = pieces.methods.len() + pieces.whole.len();
    if others > 0 {
        return Err(facts.refuse("holds more than LoRA"));
    }
    let mut files = Files::of(&TOY, &[("format", "pt")]);
    let scale = most_frequent(pieces.pairs.iter().map(|pair| pair.scale));
    let mut evened = Evened::new(&pieces.pairs, scale);
    for pair in &pieces.pairs {
        let (down, up) = evened.factors(pair, &mut files);
        files.tensors.push(matrix(format!("{}.toy_down", pair.path), down, facts.float));
        files.tensors.push(matrix(format!("{}.toy_up", pair.path), up, facts.float));
    }
    evened.tell(&mut files);
    files.beside.push((CONFIG_NAME.into(), json::render(&json!({ "toy_scale": scale }))));
    Ok(files)
}
