//! The real program on real files: every test runs the executable in a temporary directory, and reads what it wrote with the
//! `safetensors` crate, which lorakit does not use for reading.

#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

mod archs;
mod bad;
mod blocks;
mod combined;
mod comfyui_marks;
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
mod extract;
mod families;
mod gguf_adapters;
mod golden;
mod initial;
mod kohya;
mod layout;
mod merge_gguf;
mod methods;
mod mlx;
mod options;
mod pickle;
mod pipeline;
mod prefixes;
mod resize;
mod robust;
mod stack;
mod stack_dialects;
mod support;
mod ties;
mod to;
mod tools;
mod two_denoisers;
mod unmerge;
mod vocabulary;
