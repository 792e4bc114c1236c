//! The dialects that adapters are written in: one record per dialect, in a file or folder of its own.
//!
//! A reader turns files into changes by module, a writer takes pairs and gives [`files::Files`]; no pair of dialects has code of
//! its own. A new dialect is a file with its [`Dialect`] and a line of [`ALL`].
//!
//! | file | idea |
//! |---|---|
//! | `dialect` | what there is to know of a dialect |
//! | `open`, `opened`, `recognise` | any adapter on disk → its modules |
//! | `beside`, `found` | what lies beside the weights; what was found where an adapter was expected |
//! | `find` | what a path stands for: one thing, or a folder of them |
//! | `alphas` | where the α of an adapter without a config of its own stands |
//! | `peft`, `mlx`, `gguf`, `adapterhub`, `torchtune` | dialects with a reader of their own |
//! | `kohya`, `diffusers`, `xlabs`, `mistral`, `unaided` | dialects whose files need no config |
//! | `translate` | an adapter in another dialect |
//! | `text_encoders` | which text encoder of a pipeline bare names belong to |
//! | `made` | an adapter that lies in no file yet |
//! | `experts` | every form of adapters of experts |
//! | `pieces`, `evened`, `spell` | changes on their way to a writer |
//! | `family` | which family of models names belong to |
//! | `as_lora` | another method as LoRA |
//! | `same`, `files`, `hashes` | what is written |

pub mod adapterhub;
mod alphas;
pub mod as_lora;
mod beside;
pub mod denoisers;
mod dialect;
pub mod diffusers;
mod evened;
pub mod experts;
pub mod family;
pub mod files;
pub mod find;
mod fit;
mod found;
pub mod gguf;
pub mod hashes;
pub mod kohya;
mod made;
mod metadata;
pub mod metadata_hashes;
mod mistral;
pub mod mlx;
mod open;
mod opened;
pub mod peft;
pub mod pieces;
mod recognise;
pub mod same;
pub mod spell;
mod target;
pub mod text_encoders;
pub mod torchtune;
#[cfg(test)]
mod toy;
pub mod translate;
mod turn;
mod unaided;
pub mod xlabs;

pub use dialect::{Dialect, Form};
pub use found::{is_model, of_a_folder, of_a_model};
pub use made::made;
pub use recognise::{is_adapter, recognise};
pub use target::Target;

/// Every dialect. A config beside the weights belongs to the first one that knows it.
pub const ALL: &[&Dialect] = &[
    &peft::PEFT,
    &kohya::KOHYA,
    &kohya::COMFYUI,
    &diffusers::DIFFUSERS,
    &mlx::MLX,
    &gguf::GGUF,
    &adapterhub::ADAPTERHUB,
    &xlabs::XLABS,
    &torchtune::TORCHTUNE,
    &mlx::MLX_VLM,
    &mistral::MISTRAL,
    #[cfg(test)]
    &toy::TOY,
];
