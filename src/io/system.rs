//! What one system can do and another cannot. Each of these has a way that goes everywhere; it is taken where the system lacks the call,
//! and on Linux too where `--cfg portable` asks for it, so that the tests prove it.
//!
//! | what | Linux | elsewhere |
//! |---|---|---|
//! | promise of disk space | `fallocate` | the free space is looked at, and the length set |
//! | copy of a range | `copy_file_range` | nothing is copied: the caller reads and writes |
//! | rename onto no other | `renameat2(NOREPLACE)` | a look, then `rename` |
//! | exchange of two names | `renameat2(EXCHANGE)` | the caller sets one aside |
//! | holes of a file | `SEEK_DATA`, `SEEK_HOLE` | all is data |
//! | pages mapped at once | `MADV_POPULATE_READ` | nothing |

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;
use rustix::io::Result;

#[cfg(not(all(target_os = "linux", not(portable))))]
pub(super) use everywhere::*;
#[cfg(all(target_os = "linux", not(portable)))]
pub(super) use linux::*;

#[cfg(all(target_os = "linux", not(portable)))]
mod linux {
    use super::*;
    use rustix::fs::{CWD, FallocateFlags, RenameFlags, SeekFrom, renameat_with, seek};

    /// Gives a file its length and the blocks for all of it.
    pub fn reserve(file: &File, _path: &Path, bytes: u64) -> Result<()> {
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes))
    }

    /// Copies up to `most` bytes inside the kernel, and says how many.
    pub fn copy_range(source: &File, from: u64, target: &File, to: u64, most: usize) -> Result<usize> {
        let (mut from, mut to) = (from, to);
        rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), most)
    }

    /// Renames, and fails with `EXIST` where there is a `target`.
    pub fn rename_no_replace(new: &Path, target: &Path) -> Result<()> {
        renameat_with(CWD, new, CWD, target, RenameFlags::NOREPLACE)
    }

    /// Exchanges two names; `NOENT` where one is not there.
    pub fn exchange_names(one: &Path, other: &Path) -> Result<()> {
        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
    }

    /// The first stored byte from `at` on, and the end of what is stored there; `NXIO` where only a hole is left.
    pub fn stored_from(file: &File, at: u64) -> Result<(u64, Option<u64>)> {
        let start = seek(file, SeekFrom::Data(at))?;
        Ok((start, seek(file, SeekFrom::Hole(start)).ok()))
    }

    /// Maps a range in one go.
    pub fn populate(map: &Mmap, start: usize, len: usize) -> io::Result<()> {
        map.advise_range(memmap2::Advice::PopulateRead, start, len)
    }
}

#[cfg(not(all(target_os = "linux", not(portable))))]
mod everywhere {
    use super::*;
    use rustix::io::Errno;

    /// Gives a file its length, if its disk has the room now.
    pub fn reserve(file: &File, path: &Path, bytes: u64) -> Result<()> {
        let room = path.parent().and_then(|parent| super::super::space::available_bytes(parent).ok());
        if room.is_some_and(|room| room < bytes) {
            return Err(Errno::NOSPC);
        }
        file.set_len(bytes).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// The kernel copies nothing.
    pub fn copy_range(_source: &File, _from: u64, _target: &File, _to: u64, _most: usize) -> Result<usize> {
        Err(Errno::NOSYS)
    }

    /// As where a file system does not know the flag: the caller looks first, and renames.
    pub fn rename_no_replace(_new: &Path, _target: &Path) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// The caller sets the old output aside, and puts it back if the new one cannot take its place.
    pub fn exchange_names(_one: &Path, _other: &Path) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// All is data: nobody is asked for holes.
    pub fn stored_from(_file: &File, _at: u64) -> Result<(u64, Option<u64>)> {
        Err(Errno::NOSYS)
    }

    /// Pages come when they are touched.
    pub fn populate(_map: &Mmap, _start: usize, _len: usize) -> io::Result<()> {
        Ok(())
    }
}
