//! Is the process that left this directory alive?
//!
//! An advisory lock (flock) on a file answers it without process numbers: the system lets go of it when its owner
//! ends, however it ends, and on NFS it is seen by the other machines. A lock counts only while its path still leads
//! to the locked file, because whoever removes a leftover removes its lock file last.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::error::{Error, Result};

/// A lock file that is ours until this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

/// Who owns an existing lock file.
#[derive(Debug)]
pub(super) enum Owner {
    /// Nobody any more; now it is ours.
    Dead(Lock),
    /// A running process.
    Alive,
    /// There is no lock file, or this file system has no locks.
    Unknown,
}

impl Lock {
    /// Creates and takes the lock file, or `None` when another process has it or removed its directory. Where the
    /// file system has no locks the file is only created: nobody will then think its owner dead.
    pub(super) fn create(path: &Path) -> Result<Option<Self>> {
        loop {
            let file = match options().create(true).truncate(false).open(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                opened => opened.map_err(|source| Error::io(path, "cannot create", source))?,
            };
            match file.try_lock() {
                Ok(()) if !leads_to(path, &file) => {}
                Ok(()) => return Ok(Some(Self { file })),
                Err(TryLockError::Error(error)) if has_no_locks(&error) => return Ok(Some(Self { file })),
                Err(TryLockError::Error(source)) => return Err(Error::io(path, "cannot lock", source)),
                Err(TryLockError::WouldBlock) => return Ok(None),
            }
        }
    }

    /// Finds out who owns the lock file, and takes it if nobody does.
    pub(super) fn owner(path: &Path) -> Owner {
        let Ok(file) = options().open(path) else { return Owner::Unknown };
        match file.try_lock() {
            Ok(()) if leads_to(path, &file) => Owner::Dead(Self { file }),
            Ok(()) | Err(TryLockError::Error(_)) => Owner::Unknown,
            Err(TryLockError::WouldBlock) => Owner::Alive,
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough while a child process, forked a moment ago, still has a copy of the descriptor.
        let _ = self.file.unlock();
    }
}

/// Writable, because NFS asks for it before an exclusive lock. A link is not followed.
fn options() -> OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

fn leads_to(path: &Path, file: &File) -> bool {
    let identity = |metadata: io::Result<fs::Metadata>| metadata.map(|found| (found.dev(), found.ino())).ok();
    identity(fs::symlink_metadata(path)) == identity(file.metadata())
}

fn has_no_locks(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_owner_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");

        let lock = Lock::create(&path).unwrap().unwrap();
        assert!(Lock::create(&path).unwrap().is_none());
        assert!(matches!(Lock::owner(&path), Owner::Alive));

        drop(lock);
        assert!(matches!(Lock::owner(&path), Owner::Dead(_)));
        assert!(Lock::create(&path).unwrap().is_some());
    }

    #[test]
    fn a_missing_lock_says_nothing_about_its_owner() {
        let directory = tempfile::tempdir().unwrap();

        assert!(matches!(Lock::owner(&directory.path().join("lock")), Owner::Unknown));
        assert!(Lock::create(&directory.path().join("gone/lock")).unwrap().is_none());
    }

    #[test]
    fn a_link_is_no_lock() {
        let directory = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (directory.path().join("lock"), directory.path().join("elsewhere"));
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();

        let error = Lock::create(&path).unwrap_err().to_string();

        assert!(error.ends_with("lock: cannot create: Too many levels of symbolic links (os error 40)"), "{error}");
        assert!(matches!(Lock::owner(&path), Owner::Unknown));
        assert!(!elsewhere.exists());
    }

    #[test]
    fn a_lock_whose_file_was_removed_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let removed = Lock::create(&path).unwrap().unwrap();
        fs::remove_file(&path).unwrap();

        assert!(!leads_to(&path, &removed.file));
        assert!(Lock::create(&path).unwrap().is_some());
    }
}
