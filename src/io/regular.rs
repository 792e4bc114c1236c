//! Opening an input, refusing what is not a regular file.
//!
//! Maps, positions and lengths mean something for regular files only; a pipe given by mistake must be a clear error
//! and not a process that waits for ever.

use std::fs::{File, FileType, Metadata};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::inputs::note;
use crate::error::{Error, Result};

/// Whether something has the name `path`, a link that leads somewhere included.
///
/// # Errors
/// When that cannot be told, or a link leads nowhere: then what should be there is not, which is not the same as absent.
pub fn is_there(path: &Path) -> Result<bool> {
    let cannot = |source| Error::io(path, "cannot open", source);
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => match std::fs::metadata(path) {
            Err(error) if is_nothing(&error) => Err(leads_nowhere(path)),
            outcome => outcome.map(|_| true).map_err(cannot),
        },
        Ok(_) => Ok(true),
        Err(error) if is_nothing(&error) => Ok(false),
        Err(error) => Err(cannot(error)),
    }
}

/// Whether the system says that there is nothing of that name.
fn is_nothing(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

fn leads_nowhere(path: &Path) -> Error {
    let target = std::fs::read_link(path).unwrap_or_default();
    Error::unsupported(path, format!("is a link to `{}`, and nothing is there", target.display()))
        .hint("the download or copy it belongs to is incomplete")
}

/// Reads a side file (a config, an index) whole, if it has at most `max_bytes`.
///
/// # Errors
/// When it cannot be opened or read, is not a regular file (links are followed), or is longer than `max_bytes`.
pub fn read_small(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let (file, metadata) = open_regular(path)?;
    note(path, &metadata);
    let too_long = |bytes| Error::limit(path, "the size in bytes", bytes, max_bytes);
    if metadata.len() > max_bytes {
        return Err(too_long(metadata.len()));
    }
    let mut contents = Vec::new();
    // One byte more than accepted, because the file can grow (and files of /proc claim to be empty).
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut contents)
        .map_err(|source| Error::io(path, "cannot read", source))?;
    let bytes = super::disk_length(contents.len());
    if bytes > max_bytes { Err(too_long(bytes)) } else { Ok(contents) }
}

/// The first `count` bytes of a file, or all where it has fewer; to find out what it is. It does not become an input by that.
///
/// # Errors
/// When it cannot be opened or read, or is not a regular file.
pub fn read_start(path: &Path, count: u64) -> Result<Vec<u8>> {
    let (file, _) = open_regular(path)?;
    let mut start = Vec::new();
    file.take(count).read_to_end(&mut start).map_err(|source| Error::io(path, "cannot read", source))?;
    Ok(start)
}

/// Opens `path` for reading, and tells its length and times.
pub(super) fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    // NONBLOCK: opening a pipe that nobody writes to returns at once. It changes nothing for regular files.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|errno| Error::io(path, "cannot open", errno.into()))?;
    let metadata = file.metadata().map_err(|source| Error::io(path, "cannot examine", source))?;
    if metadata.is_file() { Ok((file, metadata)) } else { Err(not_regular(path, metadata.file_type())) }
}

fn not_regular(path: &Path, kind: FileType) -> Error {
    if kind.is_dir() {
        Error::unsupported(path, "is a directory, not a file")
    } else if kind.is_fifo() {
        Error::unsupported(path, "is a pipe, not a file").hint("write its contents to a file first")
    } else if kind.is_socket() {
        Error::unsupported(path, "is a socket, not a file")
    } else {
        Error::unsupported(path, "is a device, not a file")
    }
}

/// The last component of a path, which is all that is told of it.
pub fn name_of(path: &Path) -> String {
    let full = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    full.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_of_exactly_the_limit_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, b"12345678").unwrap();

        assert_eq!(read_small(&path, 8).unwrap(), b"12345678");
    }

    #[test]
    fn a_longer_file_is_refused_with_both_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, b"123456789").unwrap();

        let error = read_small(&path, 8).unwrap_err().to_string();

        assert!(error.ends_with("config.json: the size in bytes is 9, more than the accepted 8"), "{error}");
    }

    #[test]
    fn a_file_that_claims_to_be_empty_is_bounded_too() {
        let error = read_small(Path::new("/proc/self/status"), 8).unwrap_err().to_string();

        assert_eq!(error, "/proc/self/status: the size in bytes is 9, more than the accepted 8");
    }

    #[test]
    fn a_link_to_nothing_is_not_absent() {
        let directory = tempfile::tempdir().unwrap();
        let [file, dangling, ring] = ["file", "dangling", "ring"].map(|name| directory.path().join(name));
        fs::write(&file, b"").unwrap();
        std::os::unix::fs::symlink("gone", &dangling).unwrap();
        std::os::unix::fs::symlink("ring", &ring).unwrap();

        assert!(is_there(&file).unwrap());
        assert!(!is_there(&directory.path().join("none")).unwrap());
        assert!(!is_there(&file.join("config.json")).unwrap());
        let text = is_there(&dangling).unwrap_err().to_string();
        assert!(text.ends_with("dangling: is a link to `gone`, and nothing is there"), "{text}");
        let text = is_there(&ring).unwrap_err().to_string();
        assert!(text.contains("ring: cannot open: Too many levels of symbolic links"), "{text}");
    }

    #[test]
    fn what_is_not_a_file_is_refused_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());

        let error = |path: &Path| open_regular(path).unwrap_err();

        assert!(error(directory.path()).to_string().ends_with(": is a directory, not a file"));
        assert!(error(&pipe).to_string().ends_with(": is a pipe, not a file"));
        assert_eq!(error(&pipe).way_out(), Some("write its contents to a file first"));
        assert_eq!(error(Path::new("/dev/null")).to_string(), "/dev/null: is a device, not a file");
        assert_eq!(
            error(Path::new("/nowhere/x")).to_string(),
            "/nowhere/x: cannot open: No such file or directory (os error 2)"
        );
    }
}
