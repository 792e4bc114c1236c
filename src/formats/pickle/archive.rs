//! Files of `torch.save` since 1.6: a zip archive.
//!
//! | entry | contents |
//! |---|---|
//! | `NAME/data.pkl` | the pickle; its persistent ids name storages |
//! | `NAME/data/KEY` | one storage, stored as it is |
//! | `NAME/byteorder` | `little` or `big`; older files lack it |
//! | `NAME/version` | `3` |
//!
//! Source: torch `serialization.py` and `caffe2/serialize/inline_container.cc`.

use std::sync::Arc;

use super::collect::{Storage, Storages, collect, stem};
use super::{machine, state};
use crate::error::{Error, Result};
use crate::formats::found::Found;
use crate::formats::held::Budget;
use crate::formats::zip::Archive;
use crate::io::MappedFile;
use crate::limits::MAX_PICKLE_BYTES;

/// The entry with the pickle.
const PICKLE: &str = "data.pkl";

fn pickle_name<'a>(archive: &Archive<'a>) -> Option<&'a str> {
    let mut names = archive.entries().iter().map(|entry| entry.name);
    names.find(|name| name.strip_suffix(PICKLE).is_some_and(|top| top.is_empty() || top.ends_with('/')))
}

/// Reads the tensors of the archive in `map`; `None` if it is another file.
///
/// # Errors
/// When it is damaged, or is or asks for something that no weights need.
pub fn read(map: &Arc<MappedFile>) -> Result<Option<Found>> {
    let path = map.path();
    if !Archive::begins(map.bytes()) {
        return Ok(None);
    }
    let archive = Archive::read(path, map.bytes())?;
    let mut budget = Budget::new(path, map.len());
    let Some(name) = pickle_name(&archive) else { return Ok(None) };
    let top = name.strip_suffix(PICKLE).unwrap_or_default();
    if let Some(entry) = archive.find(&format!("{top}byteorder"))
        && archive.contents(entry, &mut budget)?.trim_ascii() != b"little"
    {
        let what = "was saved by a big-endian machine, whose numbers cannot be read";
        return Err(Error::unsupported(path, what));
    }
    let entry = archive.find(name).expect("its name was taken from the archive");
    if entry.size > MAX_PICKLE_BYTES {
        return Err(Error::limit(path, "length of its pickle in bytes", entry.size, MAX_PICKLE_BYTES));
    }
    let pickle = archive.contents(entry, &mut budget)?;
    let unpickled = machine::read(path, &entry.place(), &pickle)?;
    let state = state::find(path, &unpickled.heap, unpickled.root, &stem(path))?;
    let storages = Entries { map, archive: &archive, folder: format!("{top}data/") };
    collect(map, &unpickled.heap, state, &storages, &mut budget).map(Some)
}

struct Entries<'a> {
    map: &'a Arc<MappedFile>,
    archive: &'a Archive<'a>,
    folder: String,
}

impl Storages for Entries<'_> {
    fn find(&self, key: &str, budget: &mut Budget<'_>) -> Result<Option<Storage>> {
        let Some(entry) = self.archive.find(&format!("{}{key}", self.folder)) else { return Ok(None) };
        if let Some(start) = self.archive.start(entry)? {
            return Ok(Some(Storage { held: None, start, len: entry.size }));
        }
        let contents = self.archive.contents(entry, budget)?.into_owned();
        Ok(Some(Storage { held: Some(Arc::new(self.map.held(contents))), start: 0, len: entry.size }))
    }
}
