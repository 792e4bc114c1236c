//! An output file that many threads write at once, each at its own offsets.
//!
//! The bytes of every tensor have their place before the first one is computed, so workers need no order and the
//! file is the same for any number of them. Never a map: on a full disk a store would be a SIGBUS, a write is an
//! error.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::mapped::MappedFile;
use super::{disk_length, piece, space, system};
use crate::error::{Error, Result};

/// Bytes of one write. Larger ones make the system look for larger pages to put them into: on Linux 6.18 with ext4 a merge
/// spent 1.7 s in the system with pieces of 1 MiB, 1.0 s with these.
const WRITE_BYTES: usize = 256 << 10;

/// Most bytes in one request to the kernel's own copying; long enough that the call costs nothing, short enough
/// that an interrupt is not held up for seconds.
const KERNEL_COPY_BYTES: usize = 64 << 20;

/// Buffer of the copying by hand: the block size that the measurements of the merge tile settled on.
const BUFFER_BYTES: usize = 1 << 20;

/// A new file of known length, written by position; shared freely between threads. It lives inside a
/// [`Staging`](super::Staging) or [`PartsDir`](super::PartsDir), which decides about its fate.
#[derive(Debug)]
pub struct PositionalFile {
    path: PathBuf,
    /// `None` while nobody writes: an output may have more files than a process may have open.
    file: Mutex<Option<Arc<File>>>,
    bytes: u64,
}

impl PositionalFile {
    /// Creates `path` (which must not exist) with `bytes` bytes of reserved disk space, and the permissions `mode` as far as the
    /// umask lets them.
    pub(super) fn create(path: PathBuf, bytes: u64, mode: u32) -> Result<Self> {
        // Readable too, because the file system may want to read what it copies onto.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .map_err(|source| Error::io(&path, "cannot create", source))?;
        space::reserve(&file, &path, bytes)?;
        Ok(Self { path, file: Mutex::new(Some(Arc::new(file))), bytes })
    }

    /// Where the file is while it is being written; not its final path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all of `bytes` at `offset`. What two calls write to one place is the last one's.
    ///
    /// # Errors
    /// When the system refuses (disk full, quota, failed disk), or the range ends beyond the length the file was
    /// created with; the message has the offset.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_range(offset, disk_length(bytes.len()))?;
        let (file, mut place) = (self.open()?, offset);
        for piece in bytes.chunks(WRITE_BYTES) {
            file.write_all_at(piece, place).map_err(|source| self.cannot_write(offset, bytes.len(), source))?;
            place += disk_length(piece.len());
        }
        Ok(())
    }

    /// Copies `len` bytes of `source` from `source_offset` to `offset`, inside the kernel where it can (shared
    /// blocks on btrfs and XFS), through a buffer where it cannot. The map of `source` is not touched. What is held
    /// in memory is written from there.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); when the range ends beyond the source, or the source got shorter.
    pub fn copy_from(&self, source: &MappedFile, source_offset: u64, offset: u64, len: u64) -> Result<()> {
        if source.is_held() {
            // What is made of it is made in pieces.
            let mut done = 0;
            while done < len {
                let piece = (len - done).min(BUFFER_BYTES as u64);
                self.write_at(offset + done, &source.read(source_offset + done, piece)?)?;
                done += piece;
            }
            return Ok(());
        }
        source.slice(source_offset, len)?;
        self.check_range(offset, len)?;
        let done = self.copy_in_kernel(source, source_offset, offset, len)?;
        self.copy_by_hand(source, source_offset + done, offset + done, len - done)
    }

    /// Ends the writing; with `durable`, returns only after the bytes have reached the disk.
    ///
    /// # Errors
    /// When the disk refuses what was written.
    pub fn finish(&self, durable: bool) -> Result<()> {
        if durable {
            self.open()?.sync_all().map_err(|source| Error::io(&self.path, "cannot sync to disk", source))?;
        }
        self.close();
        Ok(())
    }

    /// Closes the file until somebody writes to it again.
    pub fn close(&self) {
        self.slot().take();
    }

    /// The open file, opened again if it was closed.
    fn open(&self) -> Result<Arc<File>> {
        let mut slot = self.slot();
        if let Some(file) = slot.as_ref() {
            return Ok(Arc::clone(file));
        }
        let opened = OpenOptions::new().read(true).write(true).open(&self.path);
        let file = Arc::new(opened.map_err(|source| Error::io(&self.path, "cannot open", source))?);
        Ok(Arc::clone(slot.insert(file)))
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<File>>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => {
                let problem = format!("{len} bytes do not fit there, the file was planned with {} bytes", self.bytes);
                Err(Error::malformed(&self.path, format!("byte {offset}"), problem))
            }
        }
    }

    fn cannot_write(&self, offset: u64, len: usize, source: io::Error) -> Error {
        Error::io(&self.path, format!("cannot write {len} bytes at byte {offset}"), source)
    }

    /// How many of `len` bytes the kernel copied before it was done or declined.
    fn copy_in_kernel(&self, source: &MappedFile, source_offset: u64, offset: u64, len: u64) -> Result<u64> {
        use rustix::io::Errno;

        let (target, mut done) = (self.open()?, 0);
        while done < len {
            let (from, to) = (source_offset + done, offset + done);
            let most = piece(len - done, KERNEL_COPY_BYTES);
            match system::copy_range(source.file(), from, &target, to, most) {
                // The source ends here, or an old kernel is confused; reading by hand tells which.
                Ok(0) => break,
                Ok(copied) => done += disk_length(copied),
                Err(Errno::INTR) => {}
                // Another file system, an old kernel, a sandbox: none of them is a fault of the files.
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => break,
                Err(errno) => {
                    let action = format!("cannot copy {most} bytes to byte {to} from {}", source.path().display());
                    return Err(Error::io(&self.path, action, errno.into()));
                }
            }
        }
        Ok(done)
    }

    fn copy_by_hand(&self, source: &MappedFile, source_offset: u64, offset: u64, len: u64) -> Result<()> {
        let target = self.open()?;
        let mut buffer = vec![0; piece(len, BUFFER_BYTES)];
        let mut done = 0;
        while done < len {
            let block = &mut buffer[..piece(len - done, BUFFER_BYTES)];
            if let Err(error) = source.file().read_exact_at(block, source_offset + done) {
                // A shorter source says so itself, with both lengths.
                source.check_unchanged()?;
                let action = format!("cannot read {} bytes at byte {}", block.len(), source_offset + done);
                return Err(Error::io(source.path(), action, error));
            }
            let to = offset + done;
            target.write_all_at(block, to).map_err(|error| self.cannot_write(to, block.len(), error))?;
            done += disk_length(block.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::SmallDisk;
    use super::*;
    use std::fs;

    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 1_u32;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(bytes)
        .collect()
    }

    fn source_of(directory: &Path, contents: &[u8]) -> MappedFile {
        let path = directory.join("base.bin");
        fs::write(&path, contents).unwrap();
        MappedFile::open(&path).unwrap()
    }

    #[test]
    fn a_file_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<PositionalFile>();
    }

    #[test]
    fn a_closed_file_is_opened_by_the_next_write() {
        let directory = tempfile::tempdir().unwrap();
        let source = source_of(directory.path(), b"56789");
        let file = PositionalFile::create(directory.path().join("out.bin"), 10, 0o666).unwrap();

        file.close();
        file.write_at(0, b"01234").unwrap();
        file.close();
        file.copy_from(&source, 0, 5, 5).unwrap();
        file.finish(true).unwrap();

        assert_eq!(fs::read(file.path()).unwrap(), b"0123456789");
    }

    #[test]
    fn threads_write_their_own_places_in_any_order() {
        let directory = tempfile::tempdir().unwrap();
        let contents = noise(1_000_003);
        let file = PositionalFile::create(directory.path().join("out.bin"), 1_000_003, 0o666).unwrap();

        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (file, contents) = (&file, &contents);
                scope.spawn(move || {
                    for (index, block) in contents.chunks(997).enumerate().filter(|(index, _)| index % 8 == thread) {
                        file.write_at(disk_length(index * 997), block).unwrap();
                    }
                });
            }
        });
        file.finish(true).unwrap();

        assert!(fs::read(file.path()).unwrap() == contents);
    }

    #[test]
    fn a_write_beyond_the_planned_length_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = PositionalFile::create(directory.path().join("out.bin"), 10, 0o666).unwrap();
        let source = source_of(directory.path(), b"12345");

        let text = "out.bin: byte 8: 3 bytes do not fit there, the file was planned with 10 bytes";
        assert!(file.write_at(8, b"123").unwrap_err().to_string().ends_with(text));
        assert!(file.copy_from(&source, 0, 8, 3).unwrap_err().to_string().ends_with(text));
        assert!(file.write_at(u64::MAX, b"123").is_err());
    }

    #[test]
    fn a_file_is_never_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.bin");
        fs::write(&path, b"kept").unwrap();

        let error = PositionalFile::create(path.clone(), 10, 0o666).unwrap_err().to_string();

        assert!(error.ends_with("out.bin: cannot create: File exists (os error 17)"), "{error}");
        assert_eq!(fs::read(path).unwrap(), b"kept");
    }

    #[test]
    fn a_copy_is_equal_by_either_way() {
        let directory = tempfile::tempdir().unwrap();
        let contents = noise(3 * BUFFER_BYTES + 5);
        let source = source_of(directory.path(), &contents);
        let len = disk_length(contents.len()) - 11;

        for (name, way) in [
            ("kernel", PositionalFile::copy_from as fn(&PositionalFile, &MappedFile, u64, u64, u64) -> _),
            ("hand", PositionalFile::copy_by_hand),
        ] {
            let file = PositionalFile::create(directory.path().join(name), len + 3, 0o666).unwrap();
            way(&file, &source, 11, 3, len).unwrap();
            let written = fs::read(file.path()).unwrap();
            assert!(written[..3] == [0; 3] && written[3..] == contents[11..], "{name}");
        }
    }

    #[test]
    #[cfg_attr(not(mounts), ignore = "needs the right to mount")]
    fn a_copy_between_file_systems_is_equal() {
        let directory = tempfile::tempdir().unwrap();
        let disk = SmallDisk::mount(1024);
        let contents = noise(100_000);
        let source = source_of(directory.path(), &contents);

        let file = PositionalFile::create(disk.path().join("out.bin"), 100_000, 0o666).unwrap();
        file.copy_from(&source, 0, 0, 100_000).unwrap();

        assert!(fs::read(file.path()).unwrap() == contents);
    }

    #[test]
    fn what_is_held_is_written_from_memory() {
        let directory = tempfile::tempdir().unwrap();
        let source = source_of(directory.path(), b"0123456789").held(b"abcdef".to_vec());
        let file = PositionalFile::create(directory.path().join("out.bin"), 5, 0o666).unwrap();

        file.copy_from(&source, 1, 1, 4).unwrap();

        assert_eq!(fs::read(file.path()).unwrap(), b"\0bcde");
        let text = "base.bin: byte 5: 3 bytes are wanted there, and what is held of it has 6 bytes";
        assert!(file.copy_from(&source, 5, 0, 3).unwrap_err().to_string().ends_with(text));
    }

    #[test]
    fn a_copy_of_nothing_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let source = source_of(directory.path(), b"");
        let file = PositionalFile::create(directory.path().join("out.bin"), 0, 0o666).unwrap();

        file.copy_from(&source, 0, 0, 0).unwrap();
        file.write_at(0, b"").unwrap();

        assert_eq!(fs::read(file.path()).unwrap(), b"");
    }

    #[test]
    fn a_source_that_got_shorter_is_an_error_with_both_lengths() {
        let directory = tempfile::tempdir().unwrap();
        let source = source_of(directory.path(), &noise(100_000));
        let file = PositionalFile::create(directory.path().join("out.bin"), 100_000, 0o666).unwrap();

        File::options().write(true).open(source.path()).unwrap().set_len(50_000).unwrap();

        let error = file.copy_from(&source, 0, 0, 100_000).unwrap_err().to_string();
        let text = "base.bin: changed while it was being read: 100000 bytes at open, 50000 now";
        assert!(error.ends_with(text), "{error}");
    }

    #[test]
    fn a_copy_beyond_the_source_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let source = source_of(directory.path(), b"12345");
        let file = PositionalFile::create(directory.path().join("out.bin"), 10, 0o666).unwrap();

        let error = file.copy_from(&source, 3, 0, 3).unwrap_err().to_string();

        assert!(error.ends_with("base.bin: byte 3: 3 bytes are wanted there, and the file has 5 bytes"), "{error}");
    }

    #[test]
    #[cfg_attr(not(mounts), ignore = "needs the right to mount")]
    fn a_disk_that_is_full_after_all_is_an_error_with_the_place() {
        let disk = SmallDisk::mount(256);
        let file = PositionalFile::create(disk.path().join("out.bin"), 4096, 0o666).unwrap();
        // The length without the reservation, as on a file system that cannot promise.
        let file = PositionalFile { bytes: 1 << 20, ..file };

        let error = file.write_at(4096, &noise(500_000)).unwrap_err().to_string();

        let text = "out.bin: cannot write 500000 bytes at byte 4096: No space left on device (os error 28)";
        assert!(error.ends_with(text), "{error}");
    }
}
