//! The real program on real files: every test runs the executable in a temporary directory, and reads what it wrote with the
//! `safetensors` crate, which lorakit does not use for reading.

#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

mod adapters_as_found;
mod alpha;
mod archs;
mod bad;
mod blocks;
mod changed;
mod combined;
mod companions;
mod containers;
mod convert;
mod convert_adapters;
mod convert_gguf;
mod convert_trainers;
mod delta;
mod dense;
mod dialects;
mod diffusion;
mod dtypes;
mod elementwise;
mod experts;
mod experts_ungated;
mod extract;
mod gguf_adapters;
mod golden;
mod heads;
mod hints;
mod hostile_names;
mod initial;
mod kohya;
mod layout;
mod limited;
mod machine;
mod merge_gguf;
mod methods;
mod mlx;
mod options;
mod outputs;
mod parts;
mod pickle;
mod pickles_as_found;
mod pipeline;
mod range;
mod resize;
mod robust;
mod stack;
mod stack_dialects;
mod support;
mod ties;
mod to;
mod tools;
mod unmerge;
mod vocabulary;
mod wrapped_bases;
