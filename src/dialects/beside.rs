//! What lies beside the weights of an adapter: weights that were trained with it and saved apart, adapters under other names, and files
//! that nobody reads, which are named.
//!
//! Sources: LLaVA `train/train.py` (`non_lora_trainables.bin`), 2U1's trainers (`non_lora_state_dict.bin`), PEFT `save_pretrained`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::adapterhub::HEADS;
use crate::adapters::config::{AdapterConfig, CONFIG_NAME};
use crate::adapters::frozen::TRAINED_BESIDE as TRAINED;
use crate::adapters::peft_keys;
use crate::error::Result;
use crate::formats::{Checkpoint, Format, endings};
use crate::naming::Role;

/// File stems under which the libraries store adapters.
pub(super) const STEMS: [&str; 5] = ["adapter_model", "adapters", "adapter", "pytorch_adapter", "pytorch_lora_weights"];

/// Begins of the names of files and folders in which trainers keep their own state.
const STATE: [&str; 17] = [
    "optimizer",
    "optim",
    "scheduler",
    "lr_scheduler",
    "training_args",
    "rng_state",
    "random_states",
    "scaler",
    "sampler",
    "dl_state_dict",
    "trainer_state",
    "global_step",
    "zero_pp_rank",
    "bf16_zero_pp_rank",
    "fp16_zero_pp_rank",
    "custom_checkpoint",
    "pytorch_model_fsdp",
];

/// How many names are shown.
const SHOWN: usize = 4;

/// The adapter with what was trained beside it.
///
/// # Errors
/// When one of the files cannot be read, or holds a tensor of the same name.
pub(crate) fn join(root: &Path, mut tensors: Checkpoint) -> Result<Checkpoint> {
    for stem in TRAINED {
        let name = endings().map(|ending| format!("{stem}.{ending}")).find(|name| root.join(name).is_file());
        if let Some(name) = name.filter(|name| !tensors.files().iter().any(|file| file.name == *name)) {
            tensors = tensors.with_file(root, &name)?;
            let count = tensors.files().last().map_or(0, |file| file.header.tensors.len());
            tensors.note(format!("`{name}` was trained beside the adapter: its {count} tensors are read along, whole"));
        }
    }
    Ok(tensors)
}

/// Says which weight files beside the adapter are not read.
pub(crate) fn name_the_rest(root: &Path, tensors: &mut Checkpoint) {
    let read: BTreeSet<String> = tensors.files().iter().map(|file| stem(&file.name).to_owned()).collect();
    let rest: Vec<String> = weight_files(root)
        .into_iter()
        .filter(|name| !read.contains(stem(name)) && !HEADS.contains(&name.as_str()))
        .map(|name| format!("`{name}`"))
        .collect();
    if !rest.is_empty() {
        let more = if rest.len() > SHOWN { format!(" and {} more", rest.len() - SHOWN) } else { String::new() };
        let shown = rest.iter().take(SHOWN).cloned().collect::<Vec<String>>().join(", ");
        tensors.note(format!("warning: weights beside the adapter are not read: {shown}{more}"));
    }
    let others: Vec<String> = named_folders(root).into_iter().map(|name| format!("`{name}`")).collect();
    if !others.is_empty() {
        let shown = others.iter().take(SHOWN).cloned().collect::<Vec<String>>().join(", ");
        tensors.note(format!("adapters of other names lie below it: {shown}; `--adapter-name NAME` reads one of them"));
    }
}

/// The names of the weight files in a folder that are no trainer's state.
pub(crate) fn weight_files(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.path().is_file()).map(|entry| entry.file_name());
    let mut names: Vec<String> =
        names.filter_map(|name| name.into_string().ok()).filter(|name| is_weights(name)).collect();
    names.sort();
    names
}

fn is_weights(name: &str) -> bool {
    Format::is_of_weights(Path::new(name)) && !is_state(name)
}

/// Whether a file or folder of this name is a trainer's own state.
pub(crate) fn is_state(name: &str) -> bool {
    STATE.iter().any(|state| name.starts_with(state))
}

fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// Whether `file` is the one that is opened when its folder is named.
pub(crate) fn stands_for(root: &Path, file: &Path) -> bool {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let others = || weight_files(root).into_iter().filter(|other| *other != name && !TRAINED.contains(&stem(other)));
    STEMS.contains(&stem(&name)) || others().next().is_none()
}

/// Whether the first file of `tensors` has one of these stems.
pub(crate) fn has_stem(tensors: &Checkpoint, stems: &[&str]) -> bool {
    let of =
        |name: &str| stems.iter().any(|own| name.strip_prefix(own).is_some_and(|rest| rest.starts_with(['.', '-'])));
    tensors.files().first().is_some_and(|file| of(&file.name) || of(&file.name.replace("pytorch_model", "model")))
}

/// Whether the config in `root` can mean a file: it gives every pair the rank that it has.
pub(crate) fn is_meant(root: &Path, tensors: &Checkpoint) -> bool {
    let Ok(config) = AdapterConfig::read(root) else { return false };
    let Some(scaling) = config.scaling else { return true };
    let ranks = tensors.tensors().filter_map(|info| {
        let key = peft_keys::parse(&info.name);
        (key.role == Role::Down).then(|| (key.module, info.shape.rows_cols().0))
    });
    ranks.into_iter().all(|(module, rank)| scaling.rank(&module) == rank)
}

/// PEFT's folder of the adapter `name` below `directory`, if there is one.
pub(crate) fn folder_of(directory: &Path, name: &str) -> Option<PathBuf> {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    let folder = directory.join(name);
    (plain && folder.join(CONFIG_NAME).is_file()).then_some(folder)
}

/// The adapters that PEFT saved below another, under their names.
fn named_folders(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.path().join(CONFIG_NAME).is_file()).map(|entry| entry.file_name());
    let is_name = |name: &String| !name.starts_with('.') && !name.starts_with("checkpoint");
    let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).filter(is_name).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trainers_state_is_no_weight() {
        for (name, wanted) in [
            ("optimizer.pt", false),
            ("scheduler.pt", false),
            ("rng_state_0.pth", false),
            ("training_args.bin", false),
            ("scaler.pt", false),
            ("zero_pp_rank_0_mp_rank_00_optim_states.pt", false),
            ("README.md", false),
            ("mm_projector.bin", true),
            ("learned_embeds.safetensors", true),
        ] {
            assert_eq!(is_weights(name), wanted, "{name}");
        }
    }

    #[test]
    fn an_adapters_folder_is_a_plain_name() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("in/reference")).expect("folders");
        fs::write(root.path().join("in/reference").join(CONFIG_NAME), "{}").expect("a file");
        let inner = root.path().join("in");
        assert_eq!(folder_of(&inner, "reference"), Some(inner.join("reference")));
        for name in ["default", "../in/reference", "./reference", "", "/reference"] {
            assert_eq!(folder_of(&inner, name), None, "{name}");
        }
    }
}
