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

use std::sync::Arc;

use super::format::Format;
use super::found::Found;
use crate::error::Result;
use crate::io::MappedFile;

/// Files of PyTorch since 1.6.
pub static FORMAT: Format = of_pytorch("pytorch", &["bin", "pt", "pth", "ckpt"], archive::read);

/// Those before, which have the same endings.
pub static LEGACY: Format = of_pytorch("pytorch-legacy", &[], legacy::read);

const fn of_pytorch(
    name: &'static str,
    endings: &'static [&'static str],
    read: fn(&Arc<MappedFile>) -> Result<Option<Found>>,
) -> Format {
    let (called, made) = ("a PyTorch file", "a file of `torch.save`");
    Format { name, called, made, endings, holds_models: true, is_written: false, read }
}
