//! What was found where an adapter was expected: adapters further down, a model, a config alone, weights that name no module. Each with
//! the way to what was probably meant.

use std::fs;
use std::path::{Path, PathBuf};

use super::beside;
use super::recognise;
use crate::adapters::config::CONFIG_NAME;
use crate::error::Error;
use crate::formats::{Checkpoint, json};

/// Deepest folder that is looked into.
const MAX_DEPTH: usize = 3;

/// Most entries of folders that are looked at.
const MAX_ENTRIES: usize = 4096;

/// How many names are shown.
const SHOWN: usize = 4;

/// The model's config, and the one of a pipeline.
const MODEL: [&str; 2] = ["config.json", "model_index.json"];

/// Names of parts that only models have.
const OF_MODELS: [&str; 8] =
    ["embed_tokens", "lm_head", "layers.0.", "layer.0.", "blocks.0.", ".h.0.", "tok_embeddings", "down_blocks."];

/// The refusal of a folder without an adapter; `tensors` is what it holds, if that could be read.
pub(crate) fn nothing(path: &Path, tensors: Option<&Checkpoint>) -> Error {
    let below = below(path);
    if is_model(path) || tensors.is_some_and(looks_like_model) {
        return of_a_model(path);
    }
    if !below.is_empty() {
        return adapters_below(path, &below);
    }
    if let Some(tensors) = tensors {
        return no_names(tensors);
    }
    let files = beside::weight_files(path);
    if files.len() > 1 {
        let what = format!("holds {} weight files and no `{CONFIG_NAME}`: {}", files.len(), listed(&files));
        return Error::unsupported(path, what).hint("name one of the files");
    }
    let mut entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.by_ref().take(SHOWN).map(|entry| entry.file_name().to_string_lossy().into()).collect();
    names.sort();
    let what = if names.is_empty() {
        "is an empty folder".to_owned()
    } else {
        format!("holds no adapter: no `{CONFIG_NAME}`, and no weights that can be read; it holds {}", listed(&names))
    };
    Error::unsupported(path, what).hint("name the adapter's folder or its weight file")
}

fn adapters_below(path: &Path, below: &[PathBuf]) -> Error {
    let names: Vec<String> =
        below.iter().map(|folder| folder.strip_prefix(path).unwrap_or(folder).display().to_string()).collect();
    let last = below.last().expect("there is one");
    let checkpoints =
        names.iter().all(|name| name.rsplit('/').next().is_some_and(|name| name.starts_with("checkpoint")));
    match names.as_slice() {
        [one] => Error::unsupported(path, format!("is no adapter; the folder `{one}` in it is one"))
            .hint(format!("name that: `{}`", last.display())),
        several if checkpoints => {
            let what = format!("is no adapter, but holds {} checkpoints of one: {}", several.len(), listed(several));
            Error::unsupported(path, what).hint(format!("name one of them; the last is `{}`", last.display()))
        }
        several => {
            let what = format!("is no adapter, but holds {}: {}", several.len(), listed(several));
            Error::unsupported(path, what).hint(format!("name one of them, as `{}`", last.display()))
        }
    }
}

/// The refusal of a model where an adapter is expected.
pub fn of_a_model(path: &Path) -> Error {
    let class = MODEL.iter().find_map(|name| {
        let config = json::read_object(&path.join(name)).ok()?;
        let class = config.get("architectures").and_then(|all| all.get(0)).or_else(|| config.get("_class_name"))?;
        class.as_str().map(|class| format!(" (`{class}`)"))
    });
    let what = format!("is a model{}, and an adapter is expected here", class.unwrap_or_default());
    Error::unsupported(path, what).hint(extract_hint(path))
}

fn extract_hint(path: &Path) -> String {
    format!("of a model that was tuned whole, `lorakit extract BASE {} -o OUT` makes an adapter", path.display())
}

/// Why a folder without weights of its own is nothing that can be read, where that is known.
pub fn of_a_folder(path: &Path) -> Option<Error> {
    let empty = path.is_dir() && !path.join(MODEL[1]).is_file() && has_no_weights(path);
    empty.then(|| nothing(path, None))
}

/// Whether a folder holds a model, or a file the tensors of one and of no adapter.
pub fn is_model(path: &Path) -> bool {
    if path.is_dir() {
        let said = MODEL.iter().any(|name| path.join(name).is_file());
        return said && !recognise::is_adapter(path) && (path.join(MODEL[1]).is_file() || !has_no_weights(path));
    }
    Checkpoint::open(path).is_ok_and(|tensors| looks_like_model(&tensors))
}

fn looks_like_model(tensors: &Checkpoint) -> bool {
    !recognise::holds_factors(tensors)
        && tensors.tensors().any(|info| OF_MODELS.iter().any(|part| info.name.contains(part)))
}

/// Whether a folder holds no weights at all.
pub(crate) fn has_no_weights(directory: &Path) -> bool {
    beside::weight_files(directory).is_empty()
}

/// The refusal of a config whose weights are not there.
pub(crate) fn config_alone(directory: &Path) -> Error {
    Error::unsupported(directory, format!("has `{CONFIG_NAME}`, and no weights beside it"))
        .hint("`adapter_model.safetensors` is missing: an incomplete download, or Git LFS without `git lfs pull`")
}

/// The refusal of a config that lies beside a model.
pub(crate) fn config_beside_model(directory: &Path) -> Error {
    let what = format!("has `{CONFIG_NAME}`, and the weights beside it are a model's, not an adapter's");
    Error::unsupported(directory, what)
        .hint("merged already? `lorakit extract BASE TUNED -o OUT` makes an adapter of a tuned model")
}

/// The refusal of tensors none of which has the name of an adapter's.
pub(crate) fn no_names(tensors: &Checkpoint) -> Error {
    const KEYS: usize = 3;
    let keys: Vec<String> = tensors.tensors().take(KEYS).map(|info| format!("`{}`", info.name)).collect();
    if looks_like_model(tensors) {
        let what = format!("is a model, and an adapter is expected here; it holds {} …", keys.join(", "));
        return Error::unsupported(tensors.root(), what).hint(extract_hint(tensors.root()));
    }
    let what =
        format!("holds {} tensors and none with the name of an adapter's: {} …", tensors.count(), keys.join(", "));
    Error::unsupported(tensors.root(), what).hint(
        "known are PEFT, kohya, LyCORIS, ComfyUI, diffusers, XLabs, MLX, torchtune and AdapterHub; the config of the first and \
         the last two lies beside the weights",
    )
}

/// The refusal of files of tools whose layout no weight of a model follows from, by the names of their tensors.
pub(crate) fn foreign(tensors: &Checkpoint) -> Option<Error> {
    let any = |test: &dyn Fn(&str) -> bool| tensors.tensors().any(|info| test(&info.name));
    let all = |test: &dyn Fn(&str) -> bool| tensors.count() > 0 && tensors.tensors().all(|info| test(&info.name));
    let refuse = |what: &str, hint: &str| Some(Error::unsupported(tensors.root(), what).hint(hint));
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    if all(&is_number) {
        return refuse(
            "is a list of tensors without names, as cloneofsimo's `lora` saves up, down, up, down …: nothing says which modules they \
             change",
            "load it with that tool and the model, and save it as safetensors with the names of the modules",
        );
    }
    if any(&|name| name.starts_with("string_to_param.")) || all(&|name| name == "emb_params") {
        return refuse(
            "is a textual inversion: trained vectors for new tokens of a prompt, which change no weight of the model",
            "it is loaded beside the model, as an embedding",
        );
    }
    let of_hypernetwork = |name: &str| {
        let mut parts = name.split('.');
        let sizes = parts.next().is_some_and(is_number) && matches!(parts.next(), Some("0" | "1"));
        sizes && parts.next() == Some("linear")
    };
    if any(&of_hypernetwork) {
        return refuse(
            "is a hypernetwork: small networks in front of the keys and values of attention, which no weight can hold",
            "it is loaded beside the model",
        );
    }
    let of_litgpt = |name: &str| {
        let module = name.strip_suffix(".lora_A").or_else(|| name.strip_suffix(".lora_B"));
        let module = module.filter(|module| module.starts_with("transformer.h."));
        module.is_some_and(|module| module.ends_with(".attn.qkv") || module.ends_with(".attn.attn"))
    };
    if any(&of_litgpt) {
        return refuse(
            "is LitGPT's LoRA: its factors of queries, keys and values are one, cut by a config that is not in the file",
            "`litgpt merge_lora` and `litgpt convert_from_litgpt` give the model, and `lorakit extract` an adapter of it",
        );
    }
    None
}

/// Folders with adapters below `path`, the last checkpoint last.
fn below(path: &Path) -> Vec<PathBuf> {
    let (mut found, mut left) = (Vec::new(), MAX_ENTRIES);
    walk(path, 0, &mut left, &mut found);
    let number = |folder: &PathBuf| {
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let digits = name.trim_end_matches(|letter: char| letter.is_ascii_digit()).len();
        (folder.parent().map(Path::to_path_buf), name[..digits].to_owned(), name[digits..].parse::<u64>().unwrap_or(0))
    };
    found.sort_by_cached_key(number);
    found
}

fn walk(folder: &Path, depth: usize, left: &mut usize, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Some(rest) = left.checked_sub(1) else { return };
        *left = rest;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Links can lead back.
        if name.starts_with('.') || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let inner = entry.path();
        if recognise::is_adapter(&inner) {
            found.push(inner);
        } else if depth + 1 < MAX_DEPTH {
            walk(&inner, depth + 1, left, found);
        }
    }
}

fn listed(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    if names.len() > SHOWN { format!("{} …", shown.join(", ")) } else { shown.join(", ") }
}
