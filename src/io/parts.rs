//! One output made by several processes, one after another or at once.
//!
//! ```text
//! models/
//!   .tuned.lorakit-parts/        shared by all parts of one run; survives them
//!     files/                     finished files only; becomes the target
//!     notes/                     finished notes between the parts; never part of the target
//!     part-3-of-8/               what this part is still writing
//!     part-3-of-8.lock           held while this part lives
//! ```
//!
//! A file of a part becomes visible by a rename, so `files/` holds complete files only. A killed part leaves its own
//! unfinished files and nothing else; the next run of the same part removes them. `files/` is made first and becomes the
//! target last: a shared directory without it is what a killed end left, and the next run removes it.
//!
//! Other users may write to the directory of the target, so no link in here is followed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::lock::{Lock, Owner};
use super::payload::{Payload, remove_any};
use super::positional::PositionalFile;
use super::staging::Staging;
use super::target::{Form, Target, exists};
use crate::error::{Error, Result};

const PURPOSE: &str = "parts";
const FILES: &str = "files";
const NOTES: &str = "notes";
const PART: &str = "part-";
const LOCK: &str = ".lock";

/// What the notes are called once they are not needed any more.
const DONE: &str = "done";

/// The part that puts the others together, or throws them away.
const LAST: &str = "finish";

/// The directory that the parts of one output share, seen by one of them. Dropping it removes what this part did not
/// publish and keeps the rest.
#[derive(Debug)]
pub struct PartsDir {
    root: PathBuf,
    target: Target,
    replace: bool,
    finished: Payload,
    notes: Payload,
    unfinished: Payload,
    lock_path: PathBuf,
    _lock: Lock,
}

impl PartsDir {
    /// Opens (creating it for the first part) the shared directory of `target` as the part `name`, a plain file
    /// name such as `3-of-8`. Unfinished files of an earlier, killed run of the same part are removed.
    ///
    /// # Errors
    /// As [`Staging::begin`]; when the same part is being written by another process, `name` is no file name, or the shared
    /// directory is a link or has been replaced by one.
    pub fn open(target: &Path, name: &str, replace: bool) -> Result<Self> {
        let target = Target::new(target, replace)?;
        target.check(Form::Unknown)?;
        let directory = format!("{PART}{name}");
        if Path::new(&directory).file_name() != Some(directory.as_ref()) {
            return Err(Error::unsupported(target.path(), format!("part name `{name}` is not a file name")));
        }
        sweep(&target);
        let root = root_of(&target);
        check_directories(&root)?;
        let finished = Payload::open(root.join(FILES))?;
        let notes = Payload::open(root.join(NOTES))?;
        let lock_path = root.join(format!("{directory}{LOCK}"));
        let Some(lock) = Lock::create(&lock_path)? else { return Err(still_written(&target, name)) };
        let unfinished = root.join(directory);
        remove_any(&unfinished).map_err(|source| Error::io(&unfinished, "cannot remove", source))?;
        let unfinished = Payload::open(unfinished)?;
        Ok(Self { root, target, replace, finished, notes, unfinished, lock_path, _lock: lock })
    }

    /// Opens the shared directory to put its parts together, where a part was begun before.
    ///
    /// # Errors
    /// When none was, and as [`open`](Self::open).
    pub fn open_last(target: &Path, replace: bool) -> Result<Self> {
        let checked = Target::new(target, replace)?;
        check_begun(&checked)?;
        Self::open(target, LAST, replace)
    }

    /// The notes of an output that was put together and is in place, where the end of that was killed before it had removed them.
    /// [`sweep_leftovers`](super::sweep_leftovers) removes them.
    pub fn left_notes(target: &Path) -> Option<PathBuf> {
        let target = Target::new(target, true).ok()?;
        let root = root_of(&target);
        let notes = root.join(NOTES);
        (target.exists() && is_left(&root) && exists(&notes)).then_some(notes)
    }

    /// Throws away what the parts of `target` have made so far, and counts their notes.
    ///
    /// # Errors
    /// When no part was begun, one is being written by another process, or the system refuses.
    pub fn discard(target: &Path) -> Result<usize> {
        let target = Target::new(target, true)?;
        check_begun(&target)?;
        let root = root_of(&target);
        check_directory(&root)?;
        let lock_path = root.join(format!("{PART}{LAST}{LOCK}"));
        let Some(_lock) = Lock::create(&lock_path)? else { return Err(still_written(&target, LAST)) };
        check_others_done(&root, &lock_path, &target)?;
        let notes = fs::read_dir(root.join(NOTES)).map_or(0, Iterator::count);
        remove_shared(&root).map_err(|source| Error::io(&root, "cannot remove", source))?;
        Ok(notes)
    }

    /// The same, whose weight files are open to no more people than `mode` says.
    #[must_use]
    pub fn open_to(mut self, mode: u32) -> Self {
        self.unfinished.limit(mode);
        self
    }

    /// The directory of the finished files of all parts so far.
    pub fn path(&self) -> &Path {
        self.finished.root()
    }

    /// The directory of the notes of all parts so far.
    pub fn notes(&self) -> &Path {
        self.notes.root()
    }

    /// Creates a file as [`Staging::create`] does. It becomes visible by [`publish`](Self::publish).
    ///
    /// # Errors
    /// As [`Staging::create`].
    pub fn create(&self, relative: &Path, bytes: u64) -> Result<PositionalFile> {
        self.unfinished.create(relative, bytes)
    }

    /// Makes a complete file visible, in place of one that an earlier run of the same part published.
    ///
    /// # Errors
    /// When it was not created by this part, or the system refuses.
    pub fn publish(&self, relative: &Path) -> Result<()> {
        self.publish_in(&self.finished, relative)
    }

    /// Writes and publishes a small file.
    ///
    /// # Errors
    /// As [`create`](Self::create) and [`publish`](Self::publish).
    pub fn write(&self, relative: &Path, contents: &[u8]) -> Result<()> {
        self.unfinished.write(relative, contents)?;
        self.publish(relative)
    }

    /// Copies and publishes a companion file; see [`Staging::copy_in`].
    ///
    /// # Errors
    /// As [`Staging::copy_in`] and [`publish`](Self::publish).
    pub fn copy_in(&self, relative: &Path, source: &Path) -> Result<u64> {
        let bytes = self.unfinished.copy_in(relative, source)?;
        self.publish(relative)?;
        Ok(bytes)
    }

    /// Writes a note for the other parts: what this one did, from which inputs. It never becomes part of the target.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_note(&self, relative: &Path, contents: &[u8]) -> Result<()> {
        self.unfinished.write(relative, contents)?;
        self.publish_in(&self.notes, relative)
    }

    /// Removes a note. A part does so with its own before it publishes anything anew: until it is done again, it is not done.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove_note(&self, relative: &Path) -> Result<()> {
        let path = self.notes.join(relative)?;
        remove_any(&path).map_err(|source| Error::io(path, "cannot remove", source))
    }

    /// Makes the finished files the target and removes everything else. Whether they are complete is the caller's
    /// knowledge. With `durable`, returns only after all of it has reached the disk.
    ///
    /// An existing target is moved aside first, so for an instant there is none: unlike an exchange of names, no
    /// crash can leave old files among the finished ones.
    ///
    /// # Errors
    /// When another part is still being written, and as [`Staging::commit_directory`]; the finished files stay.
    pub fn commit_directory(self, durable: bool) -> Result<()> {
        check_others_done(&self.root, &self.lock_path, &self.target)?;
        let staging = Staging::begin(self.target.path(), self.replace)?;
        if durable {
            self.finished.sync()?;
        }
        self.target.put_directory_in_steps(self.finished.root(), &staging.aside())?;
        staging.end(durable)?;
        let not_removed = "the output is in place, but its parts directory cannot be removed";
        remove_shared(&self.root).map_err(|source| Error::io(&self.root, not_removed, source))
    }

    fn publish_in(&self, payload: &Payload, relative: &Path) -> Result<()> {
        let path = payload.place(relative)?;
        for folder in relative.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
            check_directory(&payload.join(folder)?)?;
        }
        let unfinished = self.unfinished.join(relative)?;
        fs::rename(unfinished, &path).map_err(|source| Error::io(path, "cannot publish", source))
    }
}

impl Drop for PartsDir {
    fn drop(&mut self) {
        // What cannot be removed is removed by the next run of this part.
        let _ = remove_any(self.unfinished.root());
        let _ = remove_any(&self.lock_path);
    }
}

/// The files below `directory`, as paths seen from there, in order.
///
/// # Errors
/// When it cannot be listed, or is or holds a link, a pipe or a device: none of them is written by a part.
pub fn plain_files(directory: &Path) -> Result<Vec<PathBuf>> {
    check_directory(directory)?;
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        let place = directory.join(&folder);
        let cannot_list = |source| Error::io(&place, "cannot list", source);
        for entry in fs::read_dir(&place).map_err(cannot_list)? {
            let entry = entry.map_err(cannot_list)?;
            let (kind, relative) = (entry.file_type().map_err(cannot_list)?, folder.join(entry.file_name()));
            if kind.is_dir() {
                folders.push(relative);
            } else if kind.is_file() {
                found.push(relative);
            } else {
                return Err(not_ours(&entry.path(), kind.is_symlink()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what the killed end of an output left: its notes, the files being in place.
pub(super) fn sweep(target: &Target) -> bool {
    let root = root_of(target);
    // An empty one may be about to be filled: it goes in one step, or not.
    is_left(&root) && (fs::remove_dir(&root).is_ok() || remove_shared(&root).is_ok())
}

fn root_of(target: &Target) -> PathBuf {
    target.parent().join(target.sibling_name(PURPOSE))
}

fn is_left(root: &Path) -> bool {
    check_directory(root).is_ok() && !exists(&root.join(FILES))
}

/// Removes a shared directory. The notes go in one step, so that nobody takes some of them for all.
fn remove_shared(root: &Path) -> io::Result<()> {
    let (notes, done) = (root.join(NOTES), root.join(DONE));
    remove_any(&done)?;
    match fs::rename(&notes, &done) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for entry in fs::read_dir(root)? {
        remove_any(&entry?.path())?;
    }
    fs::remove_dir(root)
}

fn check_begun(target: &Target) -> Result<()> {
    let root = root_of(target);
    match fs::symlink_metadata(&root) {
        Ok(_) => check_directory(&root),
        Err(_) => {
            let what = format!("no part of it was begun: there is no `{}`", root.display());
            Err(Error::unsupported(target.path(), what))
        }
    }
}

/// Fails when a place in the shared directory is taken by something else than a directory.
fn check_directories(root: &Path) -> Result<()> {
    for place in [root.to_path_buf(), root.join(FILES), root.join(NOTES)] {
        if exists(&place) {
            check_directory(&place)?;
        }
    }
    Ok(())
}

fn check_directory(path: &Path) -> Result<()> {
    let found = fs::symlink_metadata(path).map_err(|source| Error::io(path, "cannot examine", source))?;
    if found.is_dir() { Ok(()) } else { Err(not_ours(path, found.is_symlink())) }
}

fn not_ours(path: &Path, link: bool) -> Error {
    let what = if link { "is a link, and parts write none" } else { "was not written by a part" };
    Error::unsupported(path, what).hint("find out who put it there, and remove it")
}

fn check_others_done(root: &Path, own: &Path, target: &Target) -> Result<()> {
    let cannot_list = |source| Error::io(root, "cannot list", source);
    for entry in fs::read_dir(root).map_err(cannot_list)? {
        let path = entry.map_err(cannot_list)?.path();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        let part = file_name.strip_prefix(PART).and_then(|name| name.strip_suffix(LOCK));
        if let (Some(part), true) = (part, path != own)
            && matches!(Lock::owner(&path), Owner::Alive)
        {
            return Err(still_written(target, part));
        }
    }
    Ok(())
}

fn still_written(target: &Target, part: &str) -> Error {
    Error::unsupported(target.path(), format!("part `{part}` is being written by another process"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{hold, rerun, wait_until_held};
    use super::*;

    const TARGET: &str = "LORAKIT_TEST_PARTS_TARGET";

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn parts_one_after_another_make_one_output() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("tuned");

        for part in ["1-of-2", "2-of-2"] {
            let parts = PartsDir::open(&target, part, false).unwrap();
            let name = format!("shard/{part}.bin");
            let file = parts.create(Path::new(&name), 3).unwrap();
            file.write_at(0, b"abc").unwrap();
            assert!(!parts.path().join(&name).exists());
            parts.publish(Path::new(&name)).unwrap();
            parts.write_note(Path::new(part), b"done").unwrap();
            assert!(!target.exists());
        }
        let last = PartsDir::open(&target, "finish", false).unwrap();
        assert_eq!(names(last.notes()), ["1-of-2", "2-of-2"]);
        last.write(Path::new("index.json"), b"{}").unwrap();
        assert_eq!(last.copy_in(Path::new("copy.json"), &last.path().join("index.json")).unwrap(), 2);
        last.commit_directory(true).unwrap();

        assert_eq!(names(root.path()), ["tuned"]);
        assert_eq!(names(&target), ["copy.json", "index.json", "shard"]);
        assert_eq!(fs::read(target.join("shard/1-of-2.bin")).unwrap(), b"abc");
    }

    #[test]
    fn two_parts_write_at_once_and_the_end_waits_for_both() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("tuned");
        let one = PartsDir::open(&target, "1", false).unwrap();
        let two = PartsDir::open(&target, "2", false).unwrap();
        one.write(Path::new("one"), b"1").unwrap();
        two.write(Path::new("two"), b"2").unwrap();

        let error = one.commit_directory(false).unwrap_err().to_string();
        assert!(error.ends_with("tuned: part `2` is being written by another process"), "{error}");
        two.commit_directory(false).unwrap();

        assert_eq!(names(&target), ["one", "two"]);
    }

    #[test]
    fn a_part_has_one_writer() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("tuned");
        let _first = PartsDir::open(&target, "1", false).unwrap();

        let error = PartsDir::open(&target, "1", false).unwrap_err().to_string();

        assert!(error.ends_with("tuned: part `1` is being written by another process"), "{error}");
    }

    #[test]
    fn a_dropped_part_keeps_what_it_published_and_no_more() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("tuned");
        let part = PartsDir::open(&target, "1", false).unwrap();
        part.write(Path::new("done"), b"1").unwrap();
        part.create(Path::new("half"), 10).unwrap();
        drop(part);

        let shared = root.path().join(".tuned.lorakit-parts");
        assert_eq!(names(&shared), ["files", "notes"]);
        assert_eq!(names(&shared.join("files")), ["done"]);
    }

    #[test]
    #[ignore = "is the child of another test"]
    fn parts_killed_child() {
        let target = std::env::var(TARGET).unwrap();
        let part = PartsDir::open(Path::new(&target), "1", false).unwrap();
        part.write(Path::new("done"), b"1").unwrap();
        part.create(Path::new("half"), 10).unwrap();
        hold();
    }

    #[test]
    fn a_killed_part_is_run_again() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("tuned");
        let name = concat!(module_path!(), "::parts_killed_child");
        let mut child = wait_until_held(rerun(name, "022", TARGET, &target));
        assert!(PartsDir::open(&target, "1", false).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(names(&root.path().join(".tuned.lorakit-parts/part-1")), ["half"]);

        let again = PartsDir::open(&target, "1", false).unwrap();
        again.create(Path::new("half"), 1).unwrap().write_at(0, b"2").unwrap();
        again.publish(Path::new("half")).unwrap();
        again.write(Path::new("done"), b"again").unwrap();
        again.commit_directory(false).unwrap();

        assert_eq!(names(&target), ["done", "half"]);
        assert_eq!(fs::read(target.join("done")).unwrap(), b"again");
    }

    #[test]
    fn an_existing_target_is_replaced_only_if_asked() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("tuned");
        fs::create_dir(&target).unwrap();
        let record = r#"{"lorakit": "0.1.0", "operation": "merge", "files": ["old"]}"#;
        fs::write(target.join("old"), b"old").unwrap();
        fs::write(target.join("lorakit.json"), record).unwrap();

        let error = PartsDir::open(&target, "1", false).unwrap_err().to_string();
        assert!(error.ends_with("tuned: already exists"), "{error}");
        let part = PartsDir::open(&target, "1", true).unwrap();
        part.write(Path::new("new"), b"new").unwrap();
        fs::write(target.join("mine"), b"mine").unwrap();
        let error = part.commit_directory(false).unwrap_err().to_string();
        assert!(error.ends_with("it holds 1 file that lorakit did not make: `mine`"), "{error}");
        assert_eq!(names(&target), ["lorakit.json", "mine", "old"]);
        fs::remove_file(target.join("mine")).unwrap();
        PartsDir::open(&target, "1", true).unwrap().commit_directory(false).unwrap();

        assert_eq!(names(&target), ["new"]);
        assert_eq!(names(root.path()), ["tuned"]);
    }

    #[test]
    fn a_target_that_appeared_meanwhile_costs_no_finished_file() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("tuned");
        let part = PartsDir::open(&target, "1", false).unwrap();
        part.write(Path::new("new"), b"new").unwrap();
        fs::create_dir(&target).unwrap();

        let error = part.commit_directory(false).unwrap_err().to_string();

        assert!(error.ends_with("tuned: already exists"), "{error}");
        assert_eq!(names(root.path()), [".tuned.lorakit-parts", "tuned"]);
        assert_eq!(names(&root.path().join(".tuned.lorakit-parts/files")), ["new"]);
    }

    #[test]
    fn a_part_name_is_a_file_name() {
        let root = tempfile::tempdir().unwrap();

        for name in ["a/b", "../x", "a/", "a/."] {
            let error = PartsDir::open(&root.path().join("tuned"), name, false).unwrap_err().to_string();
            assert!(error.ends_with(&format!("tuned: part name `{name}` is not a file name")), "{error}");
        }
        assert_eq!(names(root.path()), [""; 0]);
    }

    #[test]
    fn a_link_in_place_of_a_shared_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let (target, shared) = (root.path().join("tuned"), root.path().join(".tuned.lorakit-parts"));
        let victim = root.path().join("victim");
        fs::create_dir_all(victim.join("files")).unwrap();
        fs::write(victim.join("files/thesis"), b"x").unwrap();

        std::os::unix::fs::symlink(&victim, &shared).unwrap();
        for error in [
            PartsDir::open(&target, "1", false).unwrap_err(),
            PartsDir::open_last(&target, false).unwrap_err(),
            PartsDir::discard(&target).unwrap_err(),
        ] {
            assert!(error.to_string().ends_with(".tuned.lorakit-parts: is a link, and parts write none"), "{error}");
        }
        fs::remove_file(&shared).unwrap();
        fs::create_dir(&shared).unwrap();
        std::os::unix::fs::symlink(victim.join("files"), shared.join("files")).unwrap();
        let error = PartsDir::open(&target, "1", false).unwrap_err().to_string();
        assert!(error.ends_with("files: is a link, and parts write none"), "{error}");
        fs::remove_file(shared.join("files")).unwrap();
        let part = PartsDir::open(&target, "1", false).unwrap();
        std::os::unix::fs::symlink(&victim, part.path().join("vae")).unwrap();
        let error = part.write(Path::new("vae/x"), b"1").unwrap_err().to_string();
        assert!(error.ends_with("vae: is a link, and parts write none"), "{error}");
        assert!(plain_files(part.path()).unwrap_err().to_string().ends_with("vae: is a link, and parts write none"));

        assert_eq!(names(&victim), ["files"]);
        assert_eq!(names(&victim.join("files")), ["thesis"]);
    }

    #[test]
    fn what_a_killed_end_left_is_removed_by_the_next_run() {
        let root = tempfile::tempdir().unwrap();
        let (target, shared) = (root.path().join("tuned"), root.path().join(".tuned.lorakit-parts"));
        let part = PartsDir::open(&target, "1", false).unwrap();
        part.write(Path::new("done"), b"1").unwrap();
        part.write(Path::new("lorakit.json"), br#"{"lorakit": "0.1.0", "operation": "merge", "files": ["done"]}"#)
            .unwrap();
        part.write_note(Path::new("1.json"), b"{}").unwrap();
        drop(part);
        assert_eq!(PartsDir::left_notes(&target), None);
        assert!(!sweep(&Target::new(&target, false).unwrap()), "parts that wait are kept");

        fs::rename(shared.join("files"), &target).unwrap();
        assert_eq!(PartsDir::left_notes(&target), Some(shared.join("notes")));
        drop(Staging::begin(&target, true).unwrap());

        assert_eq!(names(root.path()), ["tuned"]);
        fs::create_dir(&shared).unwrap();
        assert_eq!(super::super::sweep_leftovers(&target), 1);
        assert_eq!(names(root.path()), ["tuned"]);
    }

    #[test]
    fn parts_are_thrown_away_on_request_unless_one_is_written() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("tuned");
        assert!(PartsDir::discard(&target).unwrap_err().to_string().contains("no part of it was begun"));
        let part = PartsDir::open(&target, "1", false).unwrap();
        part.write_note(Path::new("1.json"), b"{}").unwrap();
        let error = PartsDir::discard(&target).unwrap_err().to_string();
        assert!(error.ends_with("tuned: part `1` is being written by another process"), "{error}");
        drop(part);

        assert_eq!(PartsDir::discard(&target).unwrap(), 1);
        assert_eq!(names(root.path()), [""; 0]);
    }

    #[test]
    fn a_note_that_was_removed_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let part = PartsDir::open(&root.path().join("tuned"), "1", false).unwrap();
        part.write_note(Path::new("1.json"), b"{}").unwrap();
        part.remove_note(Path::new("1.json")).unwrap();
        part.remove_note(Path::new("1.json")).unwrap();
        assert!(part.remove_note(Path::new("../x")).is_err());
        assert_eq!(names(part.notes()), [""; 0]);
    }

    #[test]
    fn only_what_was_created_can_be_published() {
        let root = tempfile::tempdir().unwrap();
        let part = PartsDir::open(&root.path().join("tuned"), "1", false).unwrap();

        let error = part.publish(Path::new("x")).unwrap_err().to_string();

        assert!(error.ends_with("files/x: cannot publish: No such file or directory (os error 2)"), "{error}");
        assert!(part.publish(Path::new("../x")).is_err());
    }
}
