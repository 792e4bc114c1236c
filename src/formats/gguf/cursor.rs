//! Numbers and texts of a file, one after the other, and never more than there is.

use std::path::Path;

use crate::error::{Error, Result};

/// A place in the bytes of a file.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    /// Whether numbers have their highest byte first.
    pub big: bool,
}

impl<'a> Cursor<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0, big: false }
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.at as u64
    }

    /// Bytes that follow.
    pub fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// `count` bytes.
    pub fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8]> {
        let taken = usize::try_from(count).ok().and_then(|count| self.bytes[self.at..].get(..count));
        let taken = taken
            .ok_or_else(|| self.wrong(format!("{what} takes {count} bytes, {} are left of the file", self.left())))?;
        self.at += taken.len();
        Ok(taken)
    }

    /// The bytes of one number, lowest first.
    pub fn number<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, what)?);
        if self.big {
            bytes.reverse();
        }
        Ok(bytes)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32> {
        self.number(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64> {
        self.number(what).map(u64::from_le_bytes)
    }

    /// The number of things of `least` bytes or more that follow.
    pub fn count(&mut self, least: u64, what: &str) -> Result<u64> {
        let at = self.at;
        let count = self.u64(what)?;
        if count.checked_mul(least).is_none_or(|bytes| bytes > self.left()) {
            let left = self.left();
            self.at = at;
            let problem = format!("{what} is {count}, each takes {least} bytes or more, {left} are left of the file");
            return Err(self.wrong(problem));
        }
        Ok(count)
    }

    /// A text as its bytes.
    pub fn text(&mut self, what: &str) -> Result<&'a [u8]> {
        let length = self.count(1, &format!("the length of {what}"))?;
        self.take(length, what)
    }

    /// A name: UTF-8, neither empty nor longer than `max` bytes.
    pub fn name(&mut self, max: usize, what: &str) -> Result<&'a str> {
        let at = self.at;
        let text = self.text(what)?;
        let problem = match std::str::from_utf8(text) {
            Ok("") => format!("{what} is empty"),
            Ok(name) if name.len() > max => format!("{what} has {} bytes, more than {max}", name.len()),
            Ok(name) => return Ok(name),
            Err(_) => format!("{what}, `{}`, is not UTF-8", String::from_utf8_lossy(&text[..text.len().min(80)])),
        };
        self.at = at;
        Err(self.wrong(problem))
    }

    /// The file breaks its format here.
    pub fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::malformed(self.path, format!("byte {}", self.at), problem)
    }
}
