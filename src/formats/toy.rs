//! A container that only tests have, of what it takes to add one: this file and its line in [`super::format::FORMATS`].
//!
//! | bytes | contents |
//! |---|---|
//! | 0 … 4 | `TOY1` |
//! | per tensor | length of the name, name, rows and columns (each one byte), then the numbers in f32 |

use std::sync::Arc;

use super::format::Format;
use super::found::Found;
use crate::error::{Error, Result};
use crate::io::MappedFile;
use crate::tensor::{Dtype, Shape, TensorInfo};

const MAGIC: &[u8] = b"TOY1";

/// The toy.
pub static FORMAT: Format = Format {
    name: "toy",
    called: "a toy",
    made: "a toy",
    endings: &["toy"],
    holds_models: true,
    is_written: false,
    read,
};

fn read(map: &Arc<MappedFile>) -> Result<Option<Found>> {
    if !map.bytes().starts_with(MAGIC) {
        return Ok(None);
    }
    let short = || Error::malformed(map.path(), "a tensor", "ends too early");
    let mut found = Found::default();
    let mut at = MAGIC.len();
    while at < map.bytes().len() {
        let rest = &map.bytes()[at..];
        let (length, rest) = rest.split_first().ok_or_else(short)?;
        let (name, rest) = rest.split_at_checked(usize::from(*length)).ok_or_else(short)?;
        let &[rows, cols, ..] = rest else { return Err(short()) };
        let bytes = usize::from(rows) * usize::from(cols) * 4;
        let start = at + 1 + name.len() + 2;
        let info = TensorInfo {
            name: String::from_utf8_lossy(name).into_owned(),
            dtype: Dtype::F32,
            shape: Shape::from(vec![u64::from(rows), u64::from(cols)]),
            offset: start as u64,
            bytes: bytes as u64,
        };
        found.push(info, None);
        at = start + bytes;
    }
    Ok(Some(found))
}
