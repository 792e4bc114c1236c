//! One file.

use std::path::Path;
use std::sync::Arc;

use super::header::Header;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::io::MappedFile;
use crate::tensor::GgmlType;

/// An opened file: its header read and checked, its data mapped and not touched.
#[derive(Debug)]
pub struct GgufFile {
    /// The mapped bytes.
    pub map: Arc<MappedFile>,
    /// What stands before the data.
    pub header: Header,
}

impl GgufFile {
    /// Opens `path`.
    ///
    /// # Errors
    /// As [`Header::read`], and when the file cannot be mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Arc::new(MappedFile::open(path)?);
        let header = Header::read(path, map.bytes())?;
        map.release(0, header.data_start);
        Ok(Self { map, header })
    }

    /// The tensor at `position` of the header. Blocks of a big-endian file are turned when they are looked at.
    ///
    /// # Errors
    /// When the file is big-endian and the type does not allow its blocks to be turned.
    pub fn stored(&self, position: usize) -> Result<Stored> {
        let info = self.header.tensors[position].clone();
        let start = self.header.data_start + info.offset;
        if !self.header.big_endian {
            return Ok(Stored { map: Arc::clone(&self.map), info, start });
        }
        let can_turn = |ggml: &GgmlType| ggml.swap_bytes(&mut []);
        let Some(ggml) = GgmlType::of(&info.dtype).filter(can_turn) else {
            let what =
                format!("tensor `{}`: blocks of {} cannot be read from a big-endian file", info.name, info.dtype);
            return Err(Error::unsupported(self.map.path(), what));
        };
        self.map.slice(start, info.bytes)?;
        let (source, bytes) = (Arc::clone(&self.map), info.bytes);
        let held = self.map.held_lazily(bytes, move || {
            let mut turned = source.slice(start, bytes).map(<[u8]>::to_vec).unwrap_or_default();
            let _ = ggml.swap_bytes(&mut turned);
            turned
        });
        Ok(Stored { map: Arc::new(held), info, start: 0 })
    }
}
