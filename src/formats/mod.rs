//! Files ↔ tensors: which tensors a checkpoint or adapter file holds, where their bytes lie, and how a new file is laid
//! out. This room knows nothing of adapters: a LoRA factor is a tensor like any other here.
//!
//! * [`safetensors`]: the header of one file, read and rendered.
//! * [`pickle`], [`npy`]: files of PyTorch and numpy, read only.
//! * [`Format`]: the containers, one record each.
//! * [`Checkpoint`]: one file, a directory, a sharded set or a whole pipeline behind one list of tensors.
//! * [`comfyui`]: what says that weights are quantised, in files of ComfyUI.
//! * [`gguf`]: GGUF files, read and written.
//! * [`layout`]: the files an output consists of, known before anything is computed.
//! * [`side`], [`companions`]: what lies beside the weights, and may be taken along.
//! * [`hub`]: `org/name[@rev]` found in the local Hugging Face cache.

mod below;
mod checkpoint;
pub mod comfyui;
pub mod companions;
mod discover;
mod format;
mod found;
pub mod gguf;
mod held;
pub mod hub;
pub mod json;
pub mod layout;
pub mod npy;
pub mod pickle;
mod pipeline;
mod places;
pub mod safetensors;
pub mod side;
#[cfg(test)]
mod toy;
mod values;
mod weight_file;
mod zip;

pub use checkpoint::{Checkpoint, Container};
pub use discover::WEIGHT_STEMS;
pub use format::{FORMATS, Format, endings};
pub use pipeline::{Component, Folder};
pub use weight_file::{Stored, WeightFile, safetensors_name};
