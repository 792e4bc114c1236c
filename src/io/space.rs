//! Asking for disk space before the work, so that a full disk is found in the first second and not in the last.

use std::fs::File;
use std::path::Path;

use rustix::io::Errno;

use super::system;
use crate::error::{Error, Result};

/// Bytes that a user without privileges can still write to the file system of `directory`.
///
/// # Errors
/// When the directory cannot be examined.
pub fn available_bytes(directory: &Path) -> Result<u64> {
    let space = rustix::fs::statvfs(directory).map_err(|errno| {
        let error = Error::io(directory, "cannot measure the free space", errno.into());
        if errno == Errno::NOENT {
            error.hint(format!("create it with `mkdir -p {}`", directory.display()))
        } else {
            error
        }
    })?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Gives the new file `path` its length, and disk blocks for all of it where the file system can promise them.
pub(super) fn reserve(file: &File, path: &Path, bytes: u64) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    // Measured first: an attempt that fails half-way can hold on to what it got.
    let available = path.parent().map(available_bytes);
    match system::reserve(file, path, bytes) {
        Ok(()) => Ok(()),
        // NFS before 4.2, some FUSE file systems: the length without the promise.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            file.set_len(bytes).map_err(|source| Error::io(path, format!("cannot set {bytes} bytes"), source))
        }
        Err(errno) => {
            let known = match available {
                Some(Ok(available)) if errno == Errno::NOSPC => format!(" ({available} bytes are available)"),
                _ => String::new(),
            };
            Err(Error::io(path, format!("cannot reserve {bytes} bytes{known}"), errno.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::SmallDisk;
    use super::*;

    #[test]
    fn a_directory_has_some_space_and_a_missing_one_is_named() {
        assert!(available_bytes(Path::new("/")).unwrap() > 0);
        let error = available_bytes(Path::new("/nowhere")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/nowhere: cannot measure the free space: No such file or directory (os error 2)"
        );
        assert_eq!(error.way_out(), Some("create it with `mkdir -p /nowhere`"));
    }

    #[test]
    #[cfg_attr(portable, ignore = "needs a promise of blocks")]
    fn a_reserved_file_has_its_length_and_its_blocks() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::NamedTempFile::new().unwrap();

        reserve(file.as_file(), file.path(), 1 << 20).unwrap();

        let metadata = file.as_file().metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 20);
        assert!(metadata.blocks() * 512 >= 1 << 20);
    }

    #[test]
    #[cfg_attr(not(mounts), ignore = "needs the right to mount")]
    fn a_full_disk_is_an_error_with_both_numbers() {
        let disk = SmallDisk::mount(256);
        let path = disk.path().join("model.bin");
        let file = File::create(&path).unwrap();

        let error = reserve(&file, &path, 1 << 20).unwrap_err().to_string();

        let text = "model.bin: cannot reserve 1048576 bytes (262144 bytes are available): \
                    No space left on device (os error 28)";
        assert!(error.ends_with(text), "{error}");
    }
}
