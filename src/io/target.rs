//! The final name of an output, what may stand there before, and the renames onto it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::rename;
use rustix::io::Errno;

use super::earlier::{Lost, is_our_file, is_record};
use super::payload::sync_directory;
use super::system;
use crate::error::{Error, Result};

/// Longest name of an output: the staging directory beside it is called `.{name}.lorakit-tmp-0`, and names have 255 bytes.
const MAX_NAME_BYTES: u64 = 240;

/// How often an exchange is tried that other runs to the same name came before.
const TRIES: u32 = 16;

/// What an output will be.
#[derive(Clone, Copy)]
pub enum Form<'a> {
    /// Not known yet.
    Unknown,
    /// One file.
    File,
    /// A directory with the files that this is true of, told by their paths below it.
    Directory(&'a dyn Fn(&Path) -> bool),
}

/// Checks that an output can be put at `out`: its directory exists, and what stands there already may be replaced. Nothing is
/// ever replaced without `replace`; with it a file is replaced by a file, and a directory by a directory if it is an earlier
/// output of ours and holds nothing else that the new one does not have.
///
/// # Errors
/// When it cannot, with what would be lost.
pub fn check_place(out: &Path, replace: bool, form: Form<'_>) -> Result<()> {
    Target::new(out, replace)?.check(form)
}

/// Checks that `out` names something in a directory that is there.
///
/// # Errors
/// When it does not.
pub fn check_parent(out: &Path) -> Result<()> {
    Target::new(out, true).map(drop)
}

/// Whether what stands at `out` was made by us and holds nothing else, so that it may be said how to replace it.
pub fn is_replaceable(out: &Path) -> bool {
    match fs::metadata(out) {
        Ok(found) if found.is_dir() => Lost::of(out, &|_| false).is_ok_and(|lost| lost.is_nothing()),
        Ok(found) => found.is_file() && is_our_file(out),
        Err(_) => false,
    }
}

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
        let bytes = super::disk_length(name.len());
        if bytes > MAX_NAME_BYTES {
            return Err(Error::limit(path, "the length of the name in bytes", bytes, MAX_NAME_BYTES));
        }
        let parent = parent_of(path);
        let is_directory = fs::metadata(&parent).and_then(|found| match found.is_dir() {
            true => Ok(()),
            false => Err(Errno::NOTDIR.into()),
        });
        is_directory.map_err(|source| {
            let hint = format!("create it with `mkdir -p {}`", parent.display());
            Error::io(&parent, "cannot write into this directory", source).hint(hint)
        })?;
        // Without what may stand behind the name, as in `out/` and `out/.`.
        Ok(Self { path: path.with_file_name(name), name: name.to_os_string(), parent, replace })
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

    /// Fails when something is there that may not be replaced by an output of that form.
    pub(super) fn check(&self, form: Form<'_>) -> Result<()> {
        let Ok(found) = fs::symlink_metadata(&self.path) else { return Ok(()) };
        refuse_devices(&self.path, &found)?;
        let is_directory = fs::metadata(&self.path).is_ok_and(|found| found.is_dir());
        match form {
            Form::File if is_directory => Err(is_a_directory(&self.path)),
            Form::Directory(_) if found.is_file() || found.is_symlink() && self.path.is_file() => {
                let error = Error::unsupported(&self.path, "is a file, and the output is a directory");
                Err(error.hint("name a directory, or remove the file first"))
            }
            Form::Directory(writes) if is_directory => {
                let lost = Lost::of(&self.path, writes)?;
                if self.replace { lost.refuse(&self.path) } else { Err(already_exists(&self.path, lost.is_nothing())) }
            }
            _ if !self.replace => Err(already_exists(&self.path, is_replaceable(&self.path))),
            Form::Unknown if is_directory => {
                let lost = Lost::of(&self.path, &|_| true)?;
                if lost.is_foreign() { lost.refuse(&self.path) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// Renames the directory `new` to the target. What was there is then found at `new` or at `aside`; on an
    /// error, it is where it was.
    ///
    /// It is looked through once more, before the exchange and after it: a file that appeared meanwhile brings it back.
    pub(super) fn put_directory(&self, new: &Path, aside: &Path) -> Result<()> {
        if !self.replace {
            return rename_new(new, &self.path).map_err(|errno| self.cannot_put(&self.path, errno));
        }
        self.check(Form::Directory(&|path| exists(&new.join(path))))?;
        match exchange(new, &self.path) {
            Err(errno) if is_unknown_flag(errno) => self.put_directory_in_steps(new, aside),
            Err(errno) => Err(self.cannot_put(&self.path, errno)),
            Ok(()) => self.check_replaced(new, &self.path).inspect_err(|_| {
                let _ = exchange(new, &self.path);
            }),
        }
    }

    /// As [`put_directory`](Self::put_directory), and what was there is found at `aside`, never at `new`; for that,
    /// the target is absent for an instant.
    pub(super) fn put_directory_in_steps(&self, new: &Path, aside: &Path) -> Result<()> {
        if !self.replace {
            return rename_new(new, &self.path).map_err(|errno| self.cannot_put(&self.path, errno));
        }
        self.check(Form::Directory(&|path| exists(&new.join(path))))?;
        // If even putting it back fails, what was there stays aside, and the next run to this target puts it back.
        let put_back = || {
            let _ = rename(aside, &self.path);
        };
        for _ in 0..TRIES {
            match rename(&self.path, aside) {
                Ok(()) => self.check_replaced(aside, new).inspect_err(|_| put_back())?,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.cannot_put(&self.path, errno)),
            }
            match rename_new(new, &self.path) {
                // Another run was faster: its output is replaced as well.
                Err(Errno::EXIST | Errno::NOTEMPTY) if !exists(aside) => {}
                outcome => {
                    return outcome.inspect_err(|_| put_back()).map_err(|errno| self.cannot_put(&self.path, errno));
                }
            }
        }
        Err(already_exists(&self.path, is_replaceable(&self.path)))
    }

    /// Fails when `old`, which `new` took the place of, holds what would be lost with it.
    fn check_replaced(&self, old: &Path, new: &Path) -> Result<()> {
        if !fs::symlink_metadata(old).is_ok_and(|found| found.is_dir()) {
            return Ok(());
        }
        Lost::of(old, &|path| exists(&new.join(path)))?.refuse(&self.path)
    }

    /// Fails when the file `path` cannot be an output of this run; else tells whether it may replace what is there.
    ///
    /// A record beside the target replaces one that was left alone, whose output is gone.
    pub(super) fn check_file(&self, path: &Path) -> Result<bool> {
        if path.file_name().is_none() || parent_of(path) != self.parent {
            return Err(Error::unsupported(path, format!("is not in the directory of {}", self.path.display())));
        }
        let Ok(found) = fs::symlink_metadata(path) else { return Ok(self.replace) };
        refuse_devices(path, &found)?;
        if found.is_dir() {
            return Err(is_a_directory(path));
        }
        match self.replace || path.file_name() != Some(&self.name) && is_record(path) {
            true => Ok(true),
            false => Err(already_exists(path, is_replaceable(path))),
        }
    }

    /// Renames the file `new` to `path`, a name beside the target.
    pub(super) fn put_file(&self, new: &Path, path: &Path, replace: bool) -> Result<()> {
        // Plain rename replaces a file in one step and refuses to replace a directory.
        let done = if replace { rename(new, path) } else { rename_new(new, path) };
        done.map_err(|errno| self.cannot_put(path, errno))
    }

    fn cannot_put(&self, path: &Path, errno: Errno) -> Error {
        match errno {
            Errno::EXIST | Errno::NOTEMPTY => already_exists(path, is_replaceable(path)),
            _ => Error::io(path, "cannot put the output in place", io::Error::from(errno)),
        }
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

/// `is_ours`: it was made by us, and nothing that somebody else made is lost with it.
fn already_exists(path: &Path, is_ours: bool) -> Error {
    let hint = if is_ours { "pass `--force` to replace it" } else { "name another output" };
    Error::unsupported(path, "already exists").hint(hint)
}

fn is_a_directory(path: &Path) -> Error {
    let error = Error::unsupported(path, "is a directory, and the output is a single file");
    error.hint("name a file")
}

/// What is no file, directory or link is never replaced: a device would be gone for the whole machine.
fn refuse_devices(path: &Path, found: &fs::Metadata) -> Result<()> {
    if found.is_file() || found.is_dir() || found.is_symlink() {
        return Ok(());
    }
    Err(Error::unsupported(path, "is a device or a pipe, and is never replaced"))
}

/// File systems (and kernels) that do not know a flag of renameat2.
fn is_unknown_flag(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

fn rename_new(new: &Path, target: &Path) -> rustix::io::Result<()> {
    match system::rename_no_replace(new, target) {
        Err(errno) if is_unknown_flag(errno) && exists(target) => Err(Errno::EXIST),
        Err(errno) if is_unknown_flag(errno) => rename(new, target),
        outcome => outcome,
    }
}

/// Exchanges the names of two directories, or renames `new` where there is no `target`.
fn exchange(new: &Path, target: &Path) -> rustix::io::Result<()> {
    for _ in 0..TRIES {
        match system::exchange_names(new, target) {
            // Another run may put its output there in the same instant.
            Err(Errno::NOENT) => match rename_new(new, target) {
                Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                outcome => return outcome,
            },
            outcome => return outcome,
        }
    }
    Err(Errno::EXIST)
}

#[cfg(test)]
mod tests {
    use super::super::earlier::RECORD;
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

    /// A directory as we leave it.
    fn earlier_output(root: &Path) -> PathBuf {
        let target = directory_with(root, "target", "old");
        fs::write(target.join(RECORD), r#"{"lorakit": "0.1.0", "operation": "merge", "files": ["file"]}"#).unwrap();
        target
    }

    type Put = fn(&Target, &Path, &Path) -> Result<()>;

    const WAYS: [(Put, &str); 2] = [(Target::put_directory, "new"), (Target::put_directory_in_steps, "aside")];

    #[test]
    #[cfg_attr(portable, ignore = "needs the exchange of two names")]
    fn what_is_replaced_is_left_where_it_can_be_found() {
        for (put, left_at) in WAYS {
            let root = tempfile::tempdir().unwrap();
            let new = directory_with(root.path(), "new", "new");
            let path = earlier_output(root.path());
            let target = Target::new(&path, true).unwrap();

            put(&target, &new, &root.path().join("aside")).unwrap();

            assert_eq!(contents(&path), "new");
            assert_eq!(contents(&root.path().join(left_at)), "old");
        }
    }

    #[test]
    fn replacing_nothing_is_a_rename() {
        for (put, _) in WAYS {
            let root = tempfile::tempdir().unwrap();
            let new = directory_with(root.path(), "new", "new");
            let target = Target::new(&root.path().join("target"), true).unwrap();

            put(&target, &new, &root.path().join("aside")).unwrap();

            assert_eq!(contents(target.path()), "new");
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_failed_replacement_puts_the_old_back() {
        for (put, _) in WAYS {
            let root = tempfile::tempdir().unwrap();
            let path = earlier_output(root.path());
            // What is there is known, so only the rename can fail.
            fs::remove_file(path.join("file")).unwrap();
            let target = Target::new(&path, true).unwrap();

            let error = put(&target, &root.path().join("missing"), &root.path().join("aside")).unwrap_err();

            assert!(error.to_string().contains("target: cannot put the output in place: No such file"), "{error}");
            assert!(path.join(RECORD).exists());
            assert!(!exists(&root.path().join("aside")));
        }
    }

    #[test]
    fn a_file_that_appeared_meanwhile_is_never_lost() {
        for (put, _) in WAYS {
            let root = tempfile::tempdir().unwrap();
            let new = directory_with(root.path(), "new", "new");
            let path = earlier_output(root.path());
            let target = Target::new(&path, true).unwrap();
            target.check(Form::Directory(&|path| path == Path::new("file"))).unwrap();
            fs::write(path.join("thesis.tex"), b"x").unwrap();

            let error = put(&target, &new, &root.path().join("aside")).unwrap_err();

            let text = "target: is not replaced: it holds 1 file that lorakit did not make: `thesis.tex`";
            assert!(error.to_string().ends_with(text), "{error}");
            assert_eq!(error.way_out(), Some("name another output, or move away what is to be kept"));
            assert_eq!((contents(&path).as_str(), contents(&new).as_str()), ("old", "new"));
        }
    }

    #[test]
    #[cfg_attr(portable, ignore = "needs the exchange of two names")]
    fn a_file_that_appeared_at_the_exchange_brings_the_old_back() {
        let root = tempfile::tempdir().unwrap();
        let (new, path) = (directory_with(root.path(), "new", "new"), earlier_output(root.path()));
        let target = Target::new(&path, true).unwrap();
        fs::write(path.join("thesis.tex"), b"x").unwrap();
        exchange(&new, &path).unwrap();

        assert!(target.check_replaced(&new, &path).is_err());
        fs::remove_file(new.join("thesis.tex")).unwrap();
        assert!(target.check_replaced(&new, &path).is_ok());
    }

    #[test]
    #[cfg_attr(portable, ignore = "needs the exchange of two names")]
    fn another_run_that_puts_its_output_there_first_is_waited_out() {
        let root = tempfile::tempdir().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        let path = root.path().join("target");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = fs::create_dir(&path);
                    let _ = fs::remove_dir(&path);
                }
            });
            for _ in 0..200 {
                let new = root.path().join("new");
                fs::create_dir(&new).unwrap();
                exchange(&new, &path).unwrap();
                let _ = fs::remove_dir(&new);
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn a_hint_names_force_only_for_what_is_ours() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let hint = |name: &str| {
            let error = check_place(&at(name), false, Form::Unknown).unwrap_err();
            assert!(error.to_string().ends_with(": already exists"), "{error}");
            error.way_out().unwrap().to_owned()
        };
        let ours = earlier_output(root.path());
        assert_eq!(hint("target"), "pass `--force` to replace it");
        fs::write(ours.join("mine"), b"x").unwrap();
        assert_eq!(hint("target"), "name another output");
        directory_with(root.path(), "models", "x");
        assert_eq!(hint("models"), "name another output");
        fs::create_dir(at("empty")).unwrap();
        assert_eq!(hint("empty"), "pass `--force` to replace it");
        fs::write(at("thesis.tex"), b"lora").unwrap();
        assert_eq!(hint("thesis.tex"), "name another output");
        fs::write(at("kohya.safetensors"), b"\0\0{\"__metadata__\":{\"lorakit\":\"{}\"}}").unwrap();
        assert_eq!(hint("kohya.safetensors"), "pass `--force` to replace it");
        fs::write(at("x.gguf"), b"GGUF").unwrap();
        assert_eq!(hint("x.gguf"), "name another output");
        fs::write(at("x.gguf.lorakit.json"), r#"{"lorakit": "0.1.0", "operation": "merge"}"#).unwrap();
        assert_eq!(hint("x.gguf"), "pass `--force` to replace it");
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        assert_eq!(hint("dangling"), "name another output");
    }

    #[test]
    fn a_file_is_replaced_by_a_file_and_a_directory_by_a_directory() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        directory_with(root.path(), "models", "x");
        fs::write(at("file"), b"x").unwrap();
        std::os::unix::fs::symlink("models", at("link")).unwrap();
        let check = |name: &str, form: Form<'_>| match check_place(&at(name), true, form) {
            Ok(()) => String::new(),
            Err(error) => error.to_string().rsplit(&format!("{name}: ")).next().unwrap().to_owned(),
        };
        let foreign = "is not replaced: it has no `lorakit.json` that says lorakit made it, and holds 1 file: `file`";
        for name in ["models", "link"] {
            assert_eq!(check(name, Form::Unknown), foreign);
            assert_eq!(check(name, Form::Directory(&|_| true)), foreign);
            assert_eq!(check(name, Form::File), "is a directory, and the output is a single file");
        }
        assert_eq!(check("file", Form::Unknown), "");
        assert_eq!(check("file", Form::File), "");
        assert_eq!(check("file", Form::Directory(&|_| true)), "is a file, and the output is a directory");
        assert_eq!(check("new", Form::Directory(&|_| true)), "");
    }

    #[test]
    fn what_stands_behind_the_name_does_not_count() {
        let root = tempfile::tempdir().unwrap();
        for end in ["out", "out/", "out/.", "out/./", "./out/."] {
            let target = Target::new(&root.path().join(end), false).unwrap();
            assert!(target.path().as_os_str().to_string_lossy().ends_with("/out"), "{}", target.path().display());
            assert_eq!(target.sibling_name("parts"), ".out.lorakit-parts");
        }
        let long = "x".repeat(241);
        let error = Target::new(&root.path().join(long), false).unwrap_err().to_string();
        assert!(error.ends_with("the length of the name in bytes is 241, more than the accepted 240"), "{error}");
    }

    #[test]
    fn what_is_no_file_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let pipe = root.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let target = Target::new(&pipe, true).unwrap();

        for outcome in [target.check(Form::Unknown), target.check(Form::File), target.check_file(&pipe).map(drop)] {
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
