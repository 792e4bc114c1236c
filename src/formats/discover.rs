//! Which file of a directory holds its weights.

use std::path::Path;

use super::format::{FORMATS, Format};
use super::gguf::{self, parse_name};
use super::{below, safetensors};
use crate::error::{Error, Result};
use crate::io::is_there;

/// File stems under which Hugging Face libraries store weights, in the order they are looked for.
pub const WEIGHT_STEMS: [&str; 3] = ["model", "diffusion_pytorch_model", "adapter_model"];

/// What trainers leave beside the weights under the same endings.
const LEFTOVERS: [&str; 6] = ["training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states"];

/// What a directory holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// One file of this name.
    File(String),
    /// Shards, tied together by the index of this name.
    Index(String),
}

/// Looks for the weights with one of `stems` in `directory`; safetensors come first.
///
/// # Errors
/// When there are none that can be read, or several and nothing tells which.
pub fn locate(directory: &Path, stems: &[&str]) -> Result<Place> {
    let there = |name: &str| is_there(&directory.join(name));
    for stem in stems {
        let index = format!("{stem}.safetensors.index.json");
        if there(&index)? {
            return Ok(Place::Index(index));
        }
        let name = format!("{stem}.safetensors");
        if there(&name)? {
            return Ok(Place::File(name));
        }
    }
    for stem in stems.iter().flat_map(|stem| other_stems(stem)) {
        let index = format!("{stem}.bin.index.json");
        if there(&index)? {
            return Ok(Place::Index(index));
        }
        let foreign = FORMATS.iter().filter(|format| format.holds_models && !format.is_written);
        for name in foreign.flat_map(|format| format.endings).map(|ending| format!("{stem}.{ending}")) {
            if there(&name)? {
                refuse_slices(directory, &name)?;
                return Ok(Place::File(name));
            }
        }
    }
    if let Some(place) = variant(directory, stems)? {
        return Ok(place);
    }
    let listing = list_weights(directory)?;
    match (listing.safetensors.as_slice(), listing.readable.as_slice()) {
        ([name], _) | ([], [name]) => Ok(Place::File(name.clone())),
        ([], []) => only_gguf(directory, &listing.gguf),
        ([], names) | (names, _) => {
            let kind = if listing.safetensors.is_empty() { "weight" } else { "safetensors" };
            let what =
                format!("holds {} {kind} files and no index that ties them together: {}", names.len(), join(names));
            Err(Error::unsupported(directory, what)
                .hint("name one of the files, or restore `model.safetensors.index.json`"))
        }
    }
}

/// Copies of the weights in another precision, which diffusers puts beside the plain ones: `model.fp16.safetensors`, shards with
/// `model.fp16.safetensors.index.json` or, as it was until 2024, `model.safetensors.index.fp16.json`.
const VARIANTS: [&str; 2] = ["fp16", "bf16"];

/// The weights where only a variant of them is there.
fn variant(directory: &Path, stems: &[&str]) -> Result<Option<Place>> {
    let there = |name: &String| is_there(&directory.join(name));
    for (stem, variant) in stems.iter().flat_map(|stem| VARIANTS.iter().map(move |variant| (stem, variant))) {
        let indexes =
            [format!("{stem}.{variant}.safetensors.index.json"), format!("{stem}.safetensors.index.{variant}.json")];
        for index in indexes {
            if there(&index)? {
                return Ok(Some(Place::Index(index)));
            }
        }
        let name = format!("{stem}.{variant}.safetensors");
        if there(&name)? {
            return Ok(Some(Place::File(name)));
        }
    }
    Ok(None)
}

/// Whether `directory` holds weights of any kind that can be read.
///
/// # Errors
/// When it cannot be listed.
pub fn holds_weights(directory: &Path) -> Result<bool> {
    let listing = list_weights(directory)?;
    Ok([&listing.safetensors, &listing.readable, &listing.gguf].iter().any(|names| !names.is_empty()))
}

/// The stem of the shards that the index `name` ties together.
pub fn stem_of_index(name: &str) -> String {
    let Some((stem, rest)) = name.split_once(".safetensors.index.") else { return name.to_owned() };
    match rest.strip_suffix(".json") {
        Some(variant) => format!("{stem}.{variant}"),
        None => stem.to_owned(),
    }
}

/// The stems that other containers use where safetensors have `stem`.
fn other_stems<'a>(stem: &&'a str) -> Vec<&'a str> {
    match *stem {
        "model" => vec!["pytorch_model", "model", "consolidated.00", "weights"],
        other => vec![other],
    }
}

/// `consolidated.00.pth`, `consolidated.01.pth` … are slices of every tensor, not shards.
fn refuse_slices(directory: &Path, name: &str) -> Result<()> {
    let next = name.replace("consolidated.00", "consolidated.01");
    if next == name || !is_there(&directory.join(&next))? {
        return Ok(());
    }
    let what = format!(
        "its weights are cut for several processors (`{name}`, `{next}` …): every file holds a slice of every tensor"
    );
    Err(Error::unsupported(directory, what).hint("convert it with the tool it came with to a model of one piece"))
}

struct Listing {
    safetensors: Vec<String>,
    readable: Vec<String>,
    gguf: Vec<String>,
}

fn list_weights(directory: &Path) -> Result<Listing> {
    let mut listing = Listing { safetensors: Vec::new(), readable: Vec::new(), gguf: Vec::new() };
    let entries = std::fs::read_dir(directory).map_err(|source| Error::io(directory, "cannot list", source))?;
    for entry in entries {
        let entry = entry.map_err(|source| Error::io(directory, "cannot list", source))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match Format::named(Path::new(&name)).filter(|format| format.holds_models) {
            Some(format) if *format == safetensors::FORMAT => listing.safetensors.push(name),
            // They lie beside each other in several precisions.
            Some(format) if *format == gguf::FORMAT => listing.gguf.push(name),
            Some(_) if !LEFTOVERS.iter().any(|leftover| name.starts_with(leftover)) => listing.readable.push(name),
            _ => {}
        }
    }
    listing.safetensors.sort();
    listing.readable.sort();
    listing.gguf.sort();
    Ok(listing)
}

/// The one GGUF file of a directory, or the first of those that are one checkpoint.
fn only_gguf(directory: &Path, names: &[String]) -> Result<Place> {
    let set = |name: &String| parse_name(name).map(|(prefix, _, count)| (prefix.to_owned(), count));
    match names {
        [] => Err(below::nothing(directory)),
        [first, rest @ ..]
            if rest.is_empty() || set(first).is_some() && rest.iter().all(|name| set(name) == set(first)) =>
        {
            Ok(Place::File(first.clone()))
        }
        names => {
            let what = format!("holds {} GGUF files that are not one checkpoint: {}", names.len(), join(names));
            Err(Error::unsupported(directory, what).hint("name one of the files"))
        }
    }
}

fn join(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(4).map(|name| format!("`{name}`")).collect();
    if names.len() > shown.len() { format!("{} …", shown.join(", ")) } else { shown.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Result<Place> {
        let directory = tempfile::tempdir().expect("a directory");
        for name in names {
            std::fs::write(directory.path().join(name), b"").expect("a file");
        }
        locate(directory.path(), &WEIGHT_STEMS)
    }

    #[test]
    fn safetensors_come_first_and_known_names_before_unknown_ones() {
        let file = |name: &str| Place::File(name.into());
        let index = |name: &str| Place::Index(name.into());
        for (names, wanted) in [
            (&["pytorch_model.bin", "model.safetensors"][..], file("model.safetensors")),
            (&["pytorch_model.bin", "adapter_model.safetensors"], file("adapter_model.safetensors")),
            (&["pytorch_model.bin", "other.safetensors"], file("pytorch_model.bin")),
            (&["model.safetensors.index.json", "model.safetensors"], index("model.safetensors.index.json")),
            (
                &["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
                index("pytorch_model.bin.index.json"),
            ),
            (&["diffusion_pytorch_model.bin"], file("diffusion_pytorch_model.bin")),
            (&["adapter_model.bin", "optimizer.pt", "rng_state.pth"], file("adapter_model.bin")),
            (&["consolidated.00.pth", "params.json"], file("consolidated.00.pth")),
            (&["weights.npz"], file("weights.npz")),
            (&["v1-5-pruned.ckpt", "training_args.bin"], file("v1-5-pruned.ckpt")),
            (&["a.pt", "b.safetensors"], file("b.safetensors")),
            (&["q4.gguf", "b.bin"], file("b.bin")),
            (&["model-q4.gguf", "README.md"], file("model-q4.gguf")),
            (&["m-00002-of-00002.gguf", "m-00001-of-00002.gguf"], file("m-00001-of-00002.gguf")),
            (&["model.fp16.safetensors", "model.safetensors"], file("model.safetensors")),
            (&["model.fp16.safetensors", "model.non_ema.safetensors"], file("model.fp16.safetensors")),
            (
                &["diffusion_pytorch_model.safetensors.index.fp16.json", "x.safetensors", "y.safetensors"],
                index("diffusion_pytorch_model.safetensors.index.fp16.json"),
            ),
        ] {
            assert_eq!(found(names).expect("found"), wanted, "{names:?}");
        }
    }

    #[test]
    fn an_index_names_the_stem_of_its_shards() {
        for (index, stem) in [
            ("model.safetensors.index.json", "model"),
            ("model.fp16.safetensors.index.json", "model.fp16"),
            ("model.safetensors.index.fp16.json", "model.fp16"),
        ] {
            assert_eq!(stem_of_index(index), stem);
        }
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused_with_its_names() {
        for (names, part) in [
            (&["a.pt", "b.bin"][..], "holds 2 weight files and no index that ties them together: `a.pt`, `b.bin`"),
            (&["a.safetensors", "b.safetensors"], "holds 2 safetensors files and no index"),
            (&["consolidated.00.pth", "consolidated.01.pth"], "every file holds a slice of every tensor"),
            (&["model-q4.gguf", "model-q8.gguf"], "holds 2 GGUF files that are not one checkpoint: `model-q4.gguf`"),
            (&["training_args.bin"], "holds no weights that can be read"),
        ] {
            let error = found(names).expect_err("refused").to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
