//! The copy of a whole small or large file: in blocks, so that an interrupt is seen, and without filling its holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::io::Errno;

use super::{disk_length, piece, system};
use crate::error::{Error, Result};
use crate::interrupt;

/// Bytes that are copied between two looks at whether the copy is still wanted.
const BLOCK_BYTES: usize = 8 << 20;

/// Buffer of the copying by hand.
const BUFFER_BYTES: usize = 1 << 20;

/// Copies the first `bytes` bytes of `source` to the new file `target`, which is at `path`.
///
/// # Errors
/// When the system refuses, the source ends early, or the run is interrupted.
pub(super) fn copy_whole(source: &File, target: &File, path: &Path, from: &Path, bytes: u64) -> Result<()> {
    let cannot = |error| Error::io(path, format!("cannot copy from {}", from.display()), error);
    let (mut at, mut end) = (0, 0);
    while let Some((start, stop)) = data_from(source, at, bytes).map_err(cannot)? {
        at = start;
        while at < stop {
            interrupt::check()?;
            let copied = copy_block(source, target, at, piece(stop - at, BLOCK_BYTES)).map_err(cannot)?;
            at += disk_length(copied);
        }
        end = stop;
    }
    // What is left is a hole.
    if end < bytes { target.set_len(bytes).map_err(cannot) } else { Ok(()) }
}

/// Where the next bytes that are stored begin and end, from `at` on; all of the rest where the file system does not tell.
fn data_from(source: &File, at: u64, bytes: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= bytes {
        return Ok(None);
    }
    let (start, end) = match system::stored_from(source, at) {
        Ok(found) => found,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Some((at, bytes))),
        Err(errno) => return Err(errno.into()),
    };
    Ok((start < bytes).then(|| (start, end.unwrap_or(bytes).min(bytes))))
}

/// Copies up to `most` bytes at `at`, inside the kernel where it can.
fn copy_block(source: &File, target: &File, at: u64, most: usize) -> io::Result<usize> {
    match system::copy_range(source, at, target, at, most) {
        Ok(copied) if copied > 0 => return Ok(copied),
        // The source ends here, or an old kernel is confused; reading by hand tells which. Another file system, an old kernel, a
        // sandbox: none of them is a fault of the files.
        Ok(_) | Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::INTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut buffer = vec![0; most.min(BUFFER_BYTES)];
    source.read_exact_at(&mut buffer, at)?;
    target.write_all_at(&buffer, at)?;
    Ok(buffer.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::AtomicBool;

    fn copied(contents: impl Fn(&File)) -> (tempfile::TempDir, File, Result<()>) {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        contents(&File::create(&from).unwrap());
        let (source, target) = (File::open(&from).unwrap(), File::create_new(&to).unwrap());
        let bytes = source.metadata().unwrap().len();
        let outcome = copy_whole(&source, &target, &to, &from, bytes);
        (directory, target, outcome)
    }

    #[test]
    #[cfg_attr(portable, ignore = "needs the holes of files")]
    fn a_copy_has_the_same_bytes_and_its_holes_stay_holes() {
        const FAR: u64 = 256 << 20;
        let (directory, target, outcome) = copied(|file| {
            file.write_all_at(b"head", 0).unwrap();
            file.write_all_at(b"middle", FAR).unwrap();
            file.set_len(2 * FAR).unwrap();
        });
        outcome.unwrap();
        let metadata = target.metadata().unwrap();
        assert_eq!(metadata.len(), 2 * FAR);
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        let read = File::open(directory.path().join("to")).unwrap();
        let mut bytes = [0; 6];
        read.read_exact_at(&mut bytes, FAR).unwrap();
        assert_eq!(&bytes, b"middle");
        read.read_exact_at(&mut bytes[..4], 0).unwrap();
        assert_eq!(&bytes[..4], b"head");
    }

    #[test]
    fn an_empty_file_and_one_of_several_blocks_are_copied() {
        let long: Vec<u8> = (0..BLOCK_BYTES + 12_345).map(|at| (at % 251).to_le_bytes()[0]).collect();
        for contents in [&[][..], &long] {
            let (directory, _, outcome) = copied(|file| file.write_all_at(contents, 0).unwrap());
            outcome.unwrap();
            assert!(fs::read(directory.path().join("to")).unwrap() == contents);
        }
    }

    #[test]
    fn an_interrupt_ends_a_copy() {
        let (_directory, target, outcome) =
            interrupt::watching(&AtomicBool::new(true), || copied(|file| file.write_all_at(b"long", 0).unwrap()));
        assert_eq!(outcome.unwrap_err().to_string(), "interrupted; nothing was written");
        assert_eq!(target.metadata().unwrap().len(), 0);
    }
}
