//! The final name of an output, and the renames onto it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, rename, renameat_with};
use rustix::io::Errno;

use super::payload::sync_directory;
use crate::error::{Error, Result};

/// What an output will be called, and whether something of that name may be replaced.
#[derive(Debug, Clone)]
pub(super) struct Target {
    path: PathBuf,
    parent: PathBuf,
    name: OsString,
    replace: bool,
}

impl Target {
    /// Checks that `path` names something in an existing directory.
    pub(super) fn new(path: &Path, replace: bool) -> Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(Error::unsupported(path, "cannot be written: the path ends without a name"));
        };
        let parent = parent_of(path);
        let is_directory = fs::metadata(&parent).and_then(|found| match found.is_dir() {
            true => Ok(()),
            false => Err(Errno::NOTDIR.into()),
        });
        is_directory.map_err(|source| {
            let hint = format!("create it with `mkdir -p {}`", parent.display());
            Error::io(&parent, "cannot write into this directory", source).hint(hint)
        })?;
        Ok(Self { path: path.to_path_buf(), name: name.to_os_string(), parent, replace })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn parent(&self) -> &Path {
        &self.parent
    }

    /// The name of a directory of ours beside the target: `.{name}.lorakit-{purpose}`.
    pub(super) fn sibling_name(&self, purpose: &str) -> OsString {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(".lorakit-");
        name.push(purpose);
        name
    }

    pub(super) fn exists(&self) -> bool {
        exists(&self.path)
    }

    /// Fails when something is there that may not be replaced.
    pub(super) fn check_free(&self) -> Result<()> {
        match fs::symlink_metadata(&self.path) {
            Ok(found) => self.check_replaceable(&self.path, &found),
            Err(_) => Ok(()),
        }
    }

    /// Renames the directory `new` to the target. What was there is then found at `new` or at `aside`; on an
    /// error, it is where it was.
    pub(super) fn put_directory(&self, new: &Path, aside: &Path) -> Result<()> {
        let done = if self.replace { swap(new, &self.path, aside) } else { rename_new(new, &self.path) };
        done.map_err(|errno| cannot_put(&self.path, errno))
    }

    /// As [`put_directory`](Self::put_directory), and what was there is found at `aside`, never at `new`; for that,
    /// the target is absent for an instant.
    pub(super) fn put_directory_in_steps(&self, new: &Path, aside: &Path) -> Result<()> {
        let done = if self.replace { swap_in_steps(new, &self.path, aside) } else { rename_new(new, &self.path) };
        done.map_err(|errno| cannot_put(&self.path, errno))
    }

    /// Fails when the file `path` cannot be an output of this run.
    pub(super) fn check_file(&self, path: &Path) -> Result<()> {
        if path.file_name().is_none() || parent_of(path) != self.parent {
            return Err(Error::unsupported(path, format!("is not in the directory of {}", self.path.display())));
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => {
                let error = Error::unsupported(path, "is a directory, and the output is a single file");
                Err(error.hint("name a file, or remove the directory first"))
            }
            Ok(found) => self.check_replaceable(path, &found),
            Err(_) => Ok(()),
        }
    }

    /// Fails when what is at `path` stays: everything without `--force`, and what is no file, directory or link in any case. A
    /// device that is replaced is gone for the whole machine.
    fn check_replaceable(&self, path: &Path, found: &fs::Metadata) -> Result<()> {
        if !found.is_file() && !found.is_dir() && !found.is_symlink() {
            return Err(Error::unsupported(path, "is a device or a pipe, and is never replaced"));
        }
        if self.replace { Ok(()) } else { Err(already_exists(path)) }
    }

    /// Renames the file `new` to `path`, a name beside the target.
    pub(super) fn put_file(&self, new: &Path, path: &Path) -> Result<()> {
        // Plain rename replaces a file in one step and refuses to replace a directory.
        let done = if self.replace { rename(new, path) } else { rename_new(new, path) };
        done.map_err(|errno| cannot_put(path, errno))
    }

    /// Returns after the renames have reached the disk.
    pub(super) fn sync(&self) -> Result<()> {
        sync_directory(&self.parent)
    }
}

/// Whether there is something of that name, be it a link that leads nowhere.
pub(super) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn already_exists(path: &Path) -> Error {
    Error::unsupported(path, "already exists").hint("pass `--force` to replace it")
}

fn cannot_put(path: &Path, errno: Errno) -> Error {
    match errno {
        Errno::EXIST | Errno::NOTEMPTY => already_exists(path),
        _ => Error::io(path, "cannot put the output in place", io::Error::from(errno)),
    }
}

/// File systems (and kernels) that do not know a flag of renameat2.
fn is_unknown_flag(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

fn rename_new(new: &Path, target: &Path) -> rustix::io::Result<()> {
    match renameat_with(CWD, new, CWD, target, RenameFlags::NOREPLACE) {
        Err(errno) if is_unknown_flag(errno) && exists(target) => Err(Errno::EXIST),
        Err(errno) if is_unknown_flag(errno) => rename(new, target),
        outcome => outcome,
    }
}

fn swap(new: &Path, target: &Path, aside: &Path) -> rustix::io::Result<()> {
    match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
        Err(Errno::NOENT) => rename(new, target),
        Err(errno) if is_unknown_flag(errno) => swap_in_steps(new, target, aside),
        outcome => outcome,
    }
}

fn swap_in_steps(new: &Path, target: &Path, aside: &Path) -> rustix::io::Result<()> {
    match rename(target, aside) {
        Ok(()) => rename(new, target).inspect_err(|_| {
            // If even this fails, what was there stays aside, and the next run to this target puts it back.
            let _ = rename(aside, target);
        }),
        Err(Errno::NOENT) => rename(new, target),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory_with(root: &Path, name: &str, contents: &str) -> PathBuf {
        let path = root.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), contents).unwrap();
        path
    }

    fn contents(path: &Path) -> String {
        fs::read_to_string(path.join("file")).unwrap()
    }

    #[test]
    fn a_missing_parent_is_an_error_with_a_way_out() {
        let error = Target::new(Path::new("/nowhere/at/all/out"), false).unwrap_err();

        let text = "/nowhere/at/all: cannot write into this directory: No such file or directory (os error 2)";
        assert_eq!(error.to_string(), text);
        assert_eq!(error.way_out(), Some("create it with `mkdir -p /nowhere/at/all`"));
    }

    #[test]
    fn a_parent_that_is_a_file_and_a_path_without_name_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();

        let error = Target::new(&file.path().join("out"), false).unwrap_err().to_string();

        assert!(error.ends_with(": cannot write into this directory: Not a directory (os error 20)"), "{error}");
        for path in ["/", "..", "", "x/.."] {
            let error = Target::new(Path::new(path), true).unwrap_err().to_string();
            assert_eq!(error, format!("{path}: cannot be written: the path ends without a name"));
        }
    }

    #[test]
    fn a_bare_name_lies_in_the_current_directory() {
        let target = Target::new(Path::new("no-such-output"), false).unwrap();

        assert_eq!(target.parent(), Path::new("."));
        assert_eq!(target.sibling_name("parts"), ".no-such-output.lorakit-parts");
    }

    #[test]
    fn a_swap_leaves_the_old_where_it_can_be_found() {
        for (swap, left_at) in [(swap as fn(&Path, &Path, &Path) -> _, "new"), (swap_in_steps, "aside")] {
            let root = tempfile::tempdir().unwrap();
            let new = directory_with(root.path(), "new", "new");
            let target = directory_with(root.path(), "target", "old");

            swap(&new, &target, &root.path().join("aside")).unwrap();

            assert_eq!(contents(&target), "new");
            assert_eq!(contents(&root.path().join(left_at)), "old");
        }
    }

    #[test]
    fn a_swap_with_nothing_is_a_rename() {
        for swap in [swap as fn(&Path, &Path, &Path) -> _, swap_in_steps] {
            let root = tempfile::tempdir().unwrap();
            let new = directory_with(root.path(), "new", "new");

            swap(&new, &root.path().join("target"), &root.path().join("aside")).unwrap();

            assert_eq!(contents(&root.path().join("target")), "new");
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_failed_swap_in_steps_puts_the_old_back() {
        let root = tempfile::tempdir().unwrap();
        let target = directory_with(root.path(), "target", "old");

        let outcome = swap_in_steps(&root.path().join("missing"), &target, &root.path().join("aside"));

        assert_eq!(outcome, Err(Errno::NOENT));
        assert_eq!(contents(&target), "old");
        assert!(!exists(&root.path().join("aside")));
    }

    #[test]
    fn what_is_no_file_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let pipe = root.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let target = Target::new(&pipe, true).unwrap();

        for outcome in [target.check_free(), target.check_file(&pipe)] {
            let error = outcome.unwrap_err().to_string();
            assert!(error.ends_with("pipe: is a device or a pipe, and is never replaced"), "{error}");
        }
    }

    #[test]
    fn a_name_taken_meanwhile_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let target = Target::new(&root.path().join("target"), false).unwrap();
        let new = directory_with(root.path(), "new", "new");
        fs::create_dir(target.path()).unwrap();

        let error = target.put_directory(&new, &root.path().join("aside")).unwrap_err();

        assert!(error.to_string().ends_with("target: already exists"), "{error}");
        assert_eq!(error.way_out(), Some("pass `--force` to replace it"));
        assert_eq!(contents(&new), "new");
    }

    #[test]
    fn a_rename_that_the_system_refuses_names_the_target() {
        let root = tempfile::tempdir().unwrap();
        let target = Target::new(&root.path().join("target"), false).unwrap();

        let error = target.put_directory(&root.path().join("missing"), Path::new("")).unwrap_err().to_string();

        let text = "target: cannot put the output in place: No such file or directory (os error 2)";
        assert!(error.ends_with(text), "{error}");
    }
}
