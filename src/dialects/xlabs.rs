//! XLabs' trainer for Flux.1: pairs inside the attention processors of a block, without α. Source: diffusers 0.42
//! `loaders/lora_conversion_utils.py`, XLabs-AI's x-flux.
//!
//! Their loader takes one rank for all, and a processor has all its pairs or none: ranks are filled up, and missing pairs of a
//! block that is changed are zeros. The scale goes into B.

use std::collections::BTreeMap;

use super::dialect::{Dialect, Form};
use super::evened::Evened;
use super::files::{Facts, Files};
use super::pieces::{Pair, Pieces};
use super::spell::{self, Respelled, Wanted};
use crate::error::Result;
use crate::naming::arch::arch;
use crate::naming::scheme::scheme;

/// XLabs, known by the names of processors.
pub const XLABS: Dialect = Dialect {
    name: "xlabs",
    title: "XLabs",
    form: Form::File("safetensors"),
    // Split first: the processors hold a part of a fused weight.
    names: Wanted::Diffusers,
    pipelines: true,
    family: Some("flux"),
    fit,
    write: Some(|pieces, facts| write(&pieces, facts)),
    ..Dialect::PLAIN
};

/// What a processor of a block changes, below the block.
const BLOCKS: [(&str, &[&str]); 2] = [
    ("transformer.double_blocks.", &["img_attn.qkv", "img_attn.proj", "txt_attn.qkv", "txt_attn.proj"]),
    ("transformer.single_blocks.", &["linear1_qkv", "linear2"]),
];

/// Inputs of Flux.1's `linear2` for every output: the attention's and four times as many of the MLP.
const WIDE: u64 = 5;

/// Makes the modules those of the processors; `pieces` are in the names of diffusers.
///
/// # Errors
/// When parts cannot be fused.
fn fit(pieces: &mut Pieces, facts: &Facts<'_>, done: &mut Respelled) -> Result<()> {
    let [xlabs, flux] = ["xlabs", "flux"].map(|name| arch(name).expect("the tables are part of the program"));
    let spots = |pair: &Pair| {
        let size = (pair.up.size.0, pair.down.size.1);
        let of = |arch: &crate::naming::arch::Arch| arch.translate(&pair.path, size.0, size.1).into_iter().next();
        if pair.path.contains("_transformer_blocks.") || pair.path.contains(".transformer_blocks.") {
            of(xlabs).or_else(|| of(flux))
        } else {
            None
        }
    };
    spell::move_pairs(facts.adapter, pieces, spots, done)
}

/// The file.
///
/// # Errors
/// When a change is none that a processor holds.
fn write(pieces: &Pieces, facts: &Facts<'_>) -> Result<Files> {
    let scheme = scheme("xlabs").expect("the tables are part of the program");
    let mut files = Files::of(&XLABS, &[("format", "pt")]);
    facts.only_pairs(pieces, "and XLabs stores LoRA only", "which XLabs has no place for")?;
    let mut evened = Evened::new(&pieces.pairs, 1.0);
    let mut blocks: BTreeMap<(usize, u64), Vec<&str>> = BTreeMap::new();
    let width = pieces.pairs.first().map_or(0, width);
    for pair in &pieces.pairs {
        let Some((block, module)) = place(&pair.path) else {
            let what = format!(
                "`{}` is nothing that XLabs' processors hold: they change the attention of Flux.1's blocks and the projection \
                 behind it",
                pair.path
            );
            return Err(facts.refuse(what));
        };
        if pair.magnitude.is_some() || pair.bias.is_some() {
            let what = format!("`{}` has magnitudes of DoRA or a bias, which XLabs has no place for", pair.path);
            return Err(facts.refuse(what));
        }
        blocks.entry(block).or_default().push(module);
        let factors = evened.factors(pair, &mut files);
        files.add(scheme, &pair.path, factors, facts.float);
    }
    let mut filled = 0;
    let float = facts.float.or_else(|| pieces.pairs.first().map(|pair| pair.up.float()));
    for ((kind, block), present) in blocks {
        let (start, modules) = BLOCKS[kind];
        for module in modules.iter().filter(|module| !present.contains(*module)) {
            let path = format!("{start}{block}.{module}");
            let inputs = if *module == "linear2" { wide_inputs(pieces).unwrap_or(WIDE * width) } else { width };
            let outputs = if module.ends_with("qkv") { 3 * width } else { width };
            files.add(scheme, &path, evened.nothing(inputs, outputs), float);
            filled += 1;
        }
    }
    if filled > 0 {
        files.notes.push(format!(
            "{filled} modules that are not changed, beside others of their block, were filled up with zeros"
        ));
    }
    evened.tell(&mut files);
    Ok(files)
}

/// Kind and number of a module's block, and the module below it.
fn place(path: &str) -> Option<((usize, u64), &str)> {
    BLOCKS.iter().enumerate().find_map(|(kind, (start, modules))| {
        let (block, module) = path.strip_prefix(start)?.split_once('.')?;
        modules.contains(&module).then_some(((kind, block.parse().ok()?), module))
    })
}

/// The width of the model.
fn width(pair: &Pair) -> u64 {
    if pair.path.ends_with(".linear2") { pair.up.size.0 } else { pair.down.size.1 }
}

fn wide_inputs(pieces: &Pieces) -> Option<u64> {
    pieces.pairs.iter().find(|pair| pair.path.ends_with(".linear2")).map(|pair| pair.down.size.1)
}
