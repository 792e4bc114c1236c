//! The dialects that adapters are written in: one place per dialect, with its reader, its writer and its facts.
//!
//! A reader turns files into changes by module, a writer takes pairs and gives [`files::Files`]; no pair of dialects has code of
//! its own.
//!
//! | file | idea |
//! |---|---|
//! | `open`, `recognise` | any adapter on disk → its modules |
//! | `beside`, `found` | what lies beside the weights; what was found where an adapter was expected |
//! | `alphas` | where the α of an adapter without a config of its own stands |
//! | `peft`, `mlx`, `gguf`, `adapterhub`, `torchtune` | dialects with a reader of their own |
//! | `kohya`, `diffusers`, `xlabs`, `mistral`, `unaided` | dialects whose files need no config |
//! | `pieces`, `expert_pairs`, `evened`, `spell` | changes on their way to a writer |
//! | `family` | which family of models names belong to |
//! | `as_lora` | another method as LoRA |
//! | `same`, `files`, `hashes` | what is written |

pub mod adapterhub;
mod alphas;
pub mod as_lora;
mod beside;
pub mod denoisers;
pub mod diffusers;
mod evened;
mod expert_pairs;
pub mod family;
pub mod files;
mod found;
pub mod gguf;
pub mod hashes;
pub mod kohya;
mod metadata;
pub mod metadata_hashes;
mod mistral;
pub mod mlx;
mod open;
pub mod peft;
pub mod pieces;
mod recognise;
pub mod same;
pub mod spell;
pub mod torchtune;
mod turn;
mod unaided;
pub mod xlabs;

pub use adapterhub::read::ADAPTERHUB_HEADS;
pub use found::{is_model, of_a_folder, of_a_model};
pub use recognise::{is_adapter, recognise};
pub use torchtune::read::head_of as torchtune_heads;
