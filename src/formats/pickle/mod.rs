//! Weights that PyTorch saved (`.bin`, `.pt`, `.pth`, `.ckpt`), read without running anything.
//!
//! A pickle is a program for a stack machine that can call any Python function. Here a machine of our own
//! reads it as a description: the few functions that rebuild a tensor are known by name (`globals`) and their
//! arguments looked at; every other name refuses the file.
//!
//! * `archive`: the zip container, since torch 1.6.
//! * `legacy`: the one before.

mod archive;
mod collect;
mod globals;
mod legacy;
mod machine;
mod state;
mod tensor;
mod value;

pub use archive::{is_torch, read as read_archive};
pub use legacy::{is_legacy, read as read_legacy};
