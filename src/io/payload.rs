//! A directory being filled with the files of an output, that nothing escapes.
//!
//! File names come from inputs (shard indexes, companion files), so they are not trusted.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::copying::copy_whole;
use super::inputs::note;
use super::positional::PositionalFile;
use super::regular::open_regular;
use crate::error::{Error, Result};

/// All may read and write, nobody executes: what the umask takes from.
const READ_WRITE: u32 = 0o666;

/// What is left to its owner of any file.
const OWNER: u32 = 0o600;

/// The directory. Permissions of everything in it follow the umask, as for files a shell writes; a copy is never open to more
/// people than its source.
#[derive(Debug)]
pub(super) struct Payload {
    root: PathBuf,
    /// Permissions of the files that are filled piece by piece.
    mode: u32,
}

impl Payload {
    /// Creates the directory, or takes it as it is.
    pub(super) fn open(root: PathBuf) -> Result<Self> {
        create_directories(&root)?;
        Ok(Self { root, mode: READ_WRITE })
    }

    /// Files that are filled piece by piece are open to no more people than `mode` says; their owner may always write them.
    pub(super) fn limit(&mut self, mode: u32) {
        self.mode = mode & READ_WRITE | OWNER;
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The path of `relative` in here.
    pub(super) fn join(&self, relative: &Path) -> Result<PathBuf> {
        if stays_inside(relative) {
            return Ok(self.root.join(relative));
        }
        Err(Error::unsupported(relative, "is not a file name inside the output directory"))
    }

    /// As [`join`](Self::join), with the directories on the way created.
    pub(super) fn place(&self, relative: &Path) -> Result<PathBuf> {
        let path = self.join(relative)?;
        path.parent().map_or(Ok(()), create_directories)?;
        Ok(path)
    }

    pub(super) fn create(&self, relative: &Path, bytes: u64) -> Result<PositionalFile> {
        PositionalFile::create(self.place(relative)?, bytes, self.mode)
    }

    pub(super) fn write(&self, relative: &Path, contents: &[u8]) -> Result<()> {
        let (path, mut file) = self.create_plain(relative, READ_WRITE)?;
        file.write_all(contents).map_err(|source| Error::io(path, "cannot write", source))
    }

    pub(super) fn copy_in(&self, relative: &Path, source: &Path) -> Result<u64> {
        let (input, found) = open_regular(source)?;
        note(source, &found);
        let (path, file) = self.create_plain(relative, found.permissions().mode() & READ_WRITE)?;
        copy_whole(&input, &file, &path, source, found.len())?;
        Ok(found.len())
    }

    /// Returns after everything in here has reached the disk. Files that were synced before cost nothing again.
    pub(super) fn sync(&self) -> Result<()> {
        sync_tree(&self.root)
    }

    /// A new file with `mode`, as far as the umask lets it.
    fn create_plain(&self, relative: &Path, mode: u32) -> Result<(PathBuf, File)> {
        let path = self.place(relative)?;
        let created = File::options().write(true).create_new(true).mode(mode).open(&path);
        let file = created.map_err(|source| Error::io(&path, "cannot create", source))?;
        Ok((path, file))
    }
}

/// Whether `name` is that of a file inside a directory, with nothing in it that leads elsewhere.
pub fn stays_inside(name: &Path) -> bool {
    name.file_name().is_some() && name.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Returns after the names in a directory have reached the disk.
pub(super) fn sync_directory(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|directory| match rustix::fs::fsync(&directory) {
        // Some network file systems cannot sync a directory; there is nothing more that could be done.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
        outcome => outcome.map_err(io::Error::from),
    });
    synced.map_err(|source| Error::io(path, "cannot sync to disk", source))
}

/// Removes a file, a link (not what it leads to) or a whole directory; what is not there is fine.
pub(super) fn remove_any(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn create_directories(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|source| Error::io(path, "cannot create the directory", source))
}

fn sync_tree(directory: &Path) -> Result<()> {
    let cannot_list = |source| Error::io(directory, "cannot list", source);
    for entry in fs::read_dir(directory).map_err(cannot_list)? {
        let entry = entry.map_err(cannot_list)?;
        let path = entry.path();
        if entry.file_type().map_err(cannot_list)?.is_dir() {
            sync_tree(&path)?;
        } else {
            let synced = File::open(&path).and_then(|file| file.sync_all());
            synced.map_err(|source| Error::io(&path, "cannot sync to disk", source))?;
        }
    }
    sync_directory(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload() -> (tempfile::TempDir, Payload) {
        let directory = tempfile::tempdir().unwrap();
        let payload = Payload::open(directory.path().join("files")).unwrap();
        (directory, payload)
    }

    #[test]
    fn names_that_escape_are_refused() {
        let (directory, payload) = payload();

        for name in ["../x", "a/../../x", "/etc/x", "", ".", "a/..", "./x"] {
            let error = payload.write(Path::new(name), b"x").unwrap_err().to_string();
            assert_eq!(error, format!("{name}: is not a file name inside the output directory"));
            assert!(payload.create(Path::new(name), 1).is_err());
            assert!(payload.copy_in(Path::new(name), Path::new("/proc/self/status")).is_err());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(payload.root()).unwrap().count(), 0);
    }

    #[test]
    fn directories_on_the_way_are_created() {
        let (_directory, payload) = payload();

        payload.write(Path::new("a/b/config.json"), b"{}").unwrap();
        payload.create(Path::new("a/c/model.bin"), 3).unwrap().write_at(0, b"123").unwrap();
        payload.sync().unwrap();

        assert_eq!(fs::read(payload.root().join("a/b/config.json")).unwrap(), b"{}");
        assert_eq!(fs::read(payload.root().join("a/c/model.bin")).unwrap(), b"123");
    }

    #[test]
    fn a_copied_file_follows_links_and_is_open_to_no_more_people() {
        let (directory, payload) = payload();
        let source = directory.path().join("run.sh");
        fs::write(&source, b"#!/bin/sh").unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o700)).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&source, &link).unwrap();

        assert_eq!(payload.copy_in(Path::new("run.sh"), &link).unwrap(), 9);
        payload.write(Path::new("plain"), b"").unwrap();

        let mode = |name: &str| fs::symlink_metadata(payload.root().join(name)).unwrap().mode();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::read(payload.root().join("run.sh")).unwrap(), b"#!/bin/sh");
        assert_eq!(mode("run.sh") & 0o777, 0o600, "nobody else may read it, nobody executes it");
        assert_eq!(mode("plain") & 0o777, mode("plain") & 0o666);
    }

    #[test]
    fn a_name_used_twice_is_refused() {
        let (_directory, payload) = payload();
        payload.write(Path::new("x"), b"1").unwrap();

        let error = payload.write(Path::new("x"), b"2").unwrap_err().to_string();

        assert!(error.ends_with("files/x: cannot create: File exists (os error 17)"), "{error}");
    }
}
