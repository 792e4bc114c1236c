//! Whether a file or directory is an adapter: by its config, else by the names of its tensors.

use std::path::Path;

use foldhash::HashSet;

use super::beside::STEMS;
use super::gguf::read as gguf;
use super::mistral;
use crate::adapters::config::CONFIG_NAME;
use crate::adapters::keys::{is_adapters, is_frozen, is_strong, scheme_of};
use crate::adapters::peft_keys;
use crate::formats::{Checkpoint, Format, WEIGHT_STEMS, endings};
use crate::naming::Forms;
use crate::naming::scheme::{Scheme, schemes};

/// How diffusers names its file.
const DIFFUSERS_FILE: &str = "pytorch_lora_weights";

/// The model's config, beside which weights are the model's.
const MODEL: &str = "config.json";

/// Whether `path` is an adapter rather than a model. Headers are read at most. A folder is one by its config or the names of its files.
pub fn is_adapter(path: &Path) -> bool {
    if path.is_dir() { is_adapters_folder(path) } else { recognise(path).0 }
}

/// Whether `path` is an adapter rather than a model, and the file itself where it had to be opened to find out.
pub fn recognise(path: &Path) -> (bool, Option<Checkpoint>) {
    if path.is_dir() {
        return (is_adapters_folder(path) || holds_one(path), None);
    }
    if gguf::file_of(path).is_some() {
        let opened = Checkpoint::open(path).ok();
        return (opened.as_ref().is_some_and(gguf::says_so), opened);
    }
    let named = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("adapter"));
    let config = path.parent().is_some_and(|directory| {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        is_named(&directory.join(CONFIG_NAME))
    });
    if named && config {
        return (true, None);
    }
    let opened = Format::is_of_weights(path).then(|| Checkpoint::open(path).ok()).flatten();
    (opened.as_ref().is_some_and(holds_factors), opened)
}

/// Whether anything has that name: what cannot be read is an error of its reader, with the reason.
pub(crate) fn is_named(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

fn is_adapters_folder(path: &Path) -> bool {
    let of_mistral =
        || path.join(mistral::WEIGHTS).is_file() && mistral::settings(path).is_ok_and(|lora| lora.is_some());
    is_named(&path.join(CONFIG_NAME)) || has_adapter_file(path) || gguf::is_adapter(path) || of_mistral()
}

/// Whether the only weights of a directory are an adapter's, and no model's with its adapters still on it.
fn holds_one(path: &Path) -> bool {
    if path.join(MODEL).is_file() {
        return false;
    }
    let stems: Vec<&str> = STEMS.into_iter().chain(WEIGHT_STEMS).collect();
    let opened = Checkpoint::open_directory(path, &stems).ok();
    opened.is_some_and(|tensors| holds_factors(&tensors) && !tensors.tensors().any(|info| is_frozen(&info.name)))
}

/// Whether any tensor is one of an adapter.
pub(crate) fn holds_factors(tensors: &Checkpoint) -> bool {
    let mut forms = Forms::new();
    tensors.tensors().any(|info| forms.of(&info.name, is_adapters))
}

/// Whether some keys are not spelled as PEFT spells them: flattened, with other suffixes, or with α beside the factors.
pub(crate) fn needs_scheme(tensors: &Checkpoint) -> bool {
    let other = |key: &str| {
        let scheme = scheme_of(key).filter(|scheme| scheme.has_alphas());
        scheme.is_some_and(|scheme| scheme.is_flattened() || !is_strong(&peft_keys::parse(key).role))
    };
    tensors.tensors().any(|info| other(&info.name)) || has_own_alphas(tensors)
}

/// Whether α stands beside the factors of some module.
pub(crate) fn has_own_alphas(tensors: &Checkpoint) -> bool {
    let modules: HashSet<&str> = tensors.tensors().filter_map(|info| info.name.strip_suffix(".alpha")).collect();
    let module = |key: &str| [".lora_", ".hada_", ".lokr_"].iter().find_map(|part| key.find(part));
    !modules.is_empty()
        && tensors.tensors().any(|info| module(&info.name).is_some_and(|end| modules.contains(&info.name[..end])))
}

/// Whether a directory without a config holds a file that diffusers would load.
pub(crate) fn has_adapter_file(directory: &Path) -> bool {
    endings().any(|ending| is_named(&directory.join(format!("{DIFFUSERS_FILE}.{ending}"))))
}

/// Whether the names of the tensors belong to a dialect whose files need no config.
pub(crate) fn speaks_for_itself(tensors: &Checkpoint) -> bool {
    tensors.tensors().any(|info| scheme_of(&info.name).is_some_and(Scheme::has_alphas) && !is_pefts(&info.name))
}

/// Keys with PEFT's factors below no component: their α stands in a config.
pub(crate) fn is_pefts(key: &str) -> bool {
    let diffusers = schemes().iter().any(|scheme| scheme.names_component(key));
    let factor = [".lora_A", ".lora_B", ".lora_embedding_", ".lora_magnitude"].iter().any(|part| key.contains(part));
    factor && !diffusers && !key.starts_with("diffusion_model.")
}
