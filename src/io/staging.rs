//! One run's output: everything or nothing.
//!
//! ```text
//! models/
//!   tuned                        the target: untouched, or absent, until the commit
//!   .tuned.lorakit-tmp-0/        ours, on the same file system so that a rename suffices
//!     lock                       held while we live; removed last
//!     files/                     the payload: becomes the target
//!     replaced                   the old target, only where names cannot be exchanged and only for an instant
//! ```
//!
//! The lock is outside the payload, so it is held through the commit and never part of an output. After an exchange
//! of names `files/` is the old output; removing the staging directory is therefore right before, during and after a
//! commit, and a rollback, a sweep and the end of a commit are one function. The model is gix-lock and gix-tempfile.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::lock::{Lock, Owner};
use super::parts;
use super::payload::{Payload, remove_any};
use super::positional::PositionalFile;
use super::target::{Form, Target, exists};
use crate::error::{Error, Result};

/// Names tried for a staging directory; that many runs to one target at once are a mistake.
const MAX_STAGINGS: u32 = 1000;

const PURPOSE: &str = "tmp-";
const LOCK: &str = "lock";
const FILES: &str = "files";
const REPLACED: &str = "replaced";

/// A directory beside the target in which an output is made. Nothing appears under the final name before a commit,
/// and dropping it removes everything.
///
/// Several runs may stage the same target at once. The first to commit wins; a later one fails, or replaces it if it
/// was begun with `replace`.
#[derive(Debug)]
pub struct Staging {
    root: PathBuf,
    payload: Payload,
    target: Target,
    swept: usize,
    _lock: Lock,
}

impl Staging {
    /// Begins an output that will be `target`, a file or a directory. What runs that did not end well left beside
    /// the same target is removed first; the staging of a run that is still alive is not.
    ///
    /// A `target` that is a link is the link itself: replacing it leaves alone what it leads to.
    ///
    /// # Errors
    /// When the directory of `target` does not exist or cannot be written to, or `target` exists and may not be
    /// replaced.
    pub fn begin(target: &Path, replace: bool) -> Result<Self> {
        let target = Target::new(target, replace)?;
        let swept = sweep(&target);
        target.check(Form::Unknown)?;
        let (root, lock) = claim(&target)?;
        let payload = Payload::open(root.join(FILES)).inspect_err(|_| {
            let _ = clear(&root, &target);
        })?;
        Ok(Self { root, payload, target, swept, _lock: lock })
    }

    /// The same, whose weight files are open to no more people than `mode` says.
    #[must_use]
    pub fn open_to(mut self, mode: u32) -> Self {
        self.payload.limit(mode);
        self
    }

    /// The directory that will be the target; for looking at, and for tools that need a path.
    pub fn path(&self) -> &Path {
        self.payload.root()
    }

    /// How many leftovers of earlier runs were removed by [`begin`](Self::begin).
    pub fn swept(&self) -> usize {
        self.swept
    }

    /// Creates the file `relative` of `bytes` bytes with its disk space reserved. Directories on the way are
    /// created; permissions follow the umask.
    ///
    /// # Errors
    /// When the disk is too full (with the bytes needed and available), `relative` is not a plain relative path
    /// (`..`, absolute), or it was created before.
    pub fn create(&self, relative: &Path, bytes: u64) -> Result<PositionalFile> {
        self.payload.create(relative, bytes)
    }

    /// Writes a small file whole.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn write(&self, relative: &Path, contents: &[u8]) -> Result<()> {
        self.payload.write(relative, contents)
    }

    /// Copies a companion file, and returns its length in bytes. Links are followed; permissions are the source's
    /// for reading and writing, as far as the umask lets them.
    ///
    /// # Errors
    /// As [`create`](Self::create), and when `source` is not a readable regular file.
    pub fn copy_in(&self, relative: &Path, source: &Path) -> Result<u64> {
        self.payload.copy_in(relative, source)
    }

    /// Makes the whole directory the target. An existing target is exchanged in one step and then removed, if it is an
    /// earlier output of ours and holds nothing that would be lost; where the file system cannot exchange names there is
    /// an instant without a target.
    ///
    /// With `durable`, returns only after all of it has reached the disk.
    ///
    /// # Errors
    /// When the target appeared meanwhile and may not be replaced, or the system refuses; nothing is then changed.
    /// When what was replaced cannot be removed; the output is then in place, and the message says so.
    pub fn commit_directory(self, durable: bool) -> Result<()> {
        if durable {
            self.payload.sync()?;
        }
        self.target.put_directory(self.payload.root(), &self.aside())?;
        self.end(durable)
    }

    /// Renames single files into place, in order: each move is a path inside the staging and a final path in the directory
    /// of the target. Everything is checked before the first rename. Beside the target, a record of ours that was left alone
    /// is always replaced.
    ///
    /// With `durable`, returns only after all of it has reached the disk.
    ///
    /// # Errors
    /// When a final path is a directory, is elsewhere, or exists and may not be replaced, or a staged file is
    /// missing; nothing is then changed. When the system refuses a later rename of several, the message says how
    /// many are in place.
    pub fn commit_files(self, moves: &[(PathBuf, PathBuf)], durable: bool) -> Result<()> {
        let mut renames = Vec::with_capacity(moves.len());
        for (relative, path) in moves {
            let staged = self.payload.join(relative)?;
            fs::symlink_metadata(&staged).map_err(|source| Error::io(&staged, "cannot commit", source))?;
            renames.push((staged, path, self.target.check_file(path)?));
        }
        if durable {
            self.payload.sync()?;
        }
        for (done, (staged, path, replace)) in renames.iter().enumerate() {
            self.target.put_file(staged, path, *replace).map_err(|error| match done {
                0 => error,
                _ => error.hint(format!("{done} of {} files are already in place", renames.len())),
            })?;
        }
        self.end(durable)
    }

    /// Where an old target goes that is replaced in steps.
    pub(super) fn aside(&self) -> PathBuf {
        self.root.join(REPLACED)
    }

    /// Ends a staging whose output is in place.
    pub(super) fn end(self, durable: bool) -> Result<()> {
        if durable {
            self.target.sync()?;
        }
        let not_removed = "the output is in place, but what it replaced cannot be removed";
        clear(&self.root, &self.target).map_err(|source| Error::io(&self.root, not_removed, source))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A leftover is not worth an error on top of the one that led here: the next run removes it.
        let _ = clear(&self.root, &self.target);
    }
}

/// Creates and locks a staging directory of a name that nobody uses.
fn claim(target: &Target) -> Result<(PathBuf, Lock)> {
    for number in 0..MAX_STAGINGS {
        let root = target.parent().join(target.sibling_name(&format!("{PURPOSE}{number}")));
        match fs::create_dir(&root) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            outcome => outcome.map_err(|source| Error::io(&root, "cannot create the staging directory", source))?,
        }
        // None: a sweep of another run took it for a leftover in the instant before it was locked.
        let lock = Lock::create(&root.join(LOCK)).inspect_err(|_| {
            let _ = clear(&root, target);
        })?;
        if let Some(lock) = lock {
            return Ok((root, lock));
        }
    }
    let what = format!("has {MAX_STAGINGS} staging directories already");
    Err(Error::unsupported(target.path(), what).hint("remove the `.lorakit-tmp-` directories beside it"))
}

/// Removes what runs to `target` that did not end well left beside it, and counts it. What belongs to a run that is
/// still alive stays.
pub fn sweep_leftovers(target: &Path) -> usize {
    Target::new(target, false).map_or(0, |target| sweep(&target))
}

/// Removes the stagings of this target whose runs are dead, and counts them; and what a `finish` that was killed at its end left.
fn sweep(target: &Target) -> usize {
    let parts = usize::from(parts::sweep(target));
    let prefix = target.sibling_name(PURPOSE);
    let is_ours = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let number = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
    };
    let remove = |root: PathBuf| match Lock::owner(&root.join(LOCK)) {
        Owner::Dead(_lock) => clear(&root, target).is_ok(),
        Owner::Alive => false,
        // Died, or is being born, between its directory and its lock: it goes only if it is empty.
        Owner::Unknown => fs::remove_dir(&root).is_ok(),
    };
    let entries = fs::read_dir(target.parent()).into_iter().flatten().flatten();
    entries.filter(is_ours).filter(|entry| remove(entry.path())).count() + parts
}

/// Removes a staging directory, the lock last. An old target that was set aside is put back if it is the only one.
fn clear(root: &Path, target: &Target) -> io::Result<()> {
    let aside = root.join(REPLACED);
    if exists(&aside) && !target.exists() {
        fs::rename(&aside, target.path())?;
    }
    for name in [FILES, REPLACED, LOCK] {
        remove_any(&root.join(name))?;
    }
    match fs::remove_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::super::earlier::RECORD;
    use super::super::testing::{SmallDisk, hold, rerun, wait_until_held};
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    const TARGET: &str = "LORAKIT_TEST_STAGING_TARGET";

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn old_target(root: &Path) -> PathBuf {
        let target = root.join("tuned");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("old"), b"old").unwrap();
        target
    }

    /// As [`old_target`], made by us.
    fn earlier_output(root: &Path) -> PathBuf {
        let target = old_target(root);
        fs::write(target.join(RECORD), r#"{"lorakit": "0.1.0", "operation": "merge", "files": ["old", "busy/x"]}"#)
            .unwrap();
        target
    }

    #[test]
    fn nothing_appears_before_the_commit_and_all_of_it_after() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("tuned");
        fs::write(root.path().join("tokenizer.json"), b"{}").unwrap();

        let staging = Staging::begin(&target, false).unwrap();
        let file = staging.create(Path::new("model.bin"), 6).unwrap();
        file.write_at(3, b"def").unwrap();
        file.write_at(0, b"abc").unwrap();
        file.finish(true).unwrap();
        staging.write(Path::new("unet/config.json"), b"[]").unwrap();
        staging.copy_in(Path::new("tokenizer.json"), &root.path().join("tokenizer.json")).unwrap();
        assert!(!target.exists());
        assert_eq!(staging.path(), root.path().join(".tuned.lorakit-tmp-0/files"));
        staging.commit_directory(true).unwrap();

        assert_eq!(names(root.path()), ["tokenizer.json", "tuned"]);
        assert_eq!(names(&target), ["model.bin", "tokenizer.json", "unet"]);
        assert_eq!(fs::read(target.join("model.bin")).unwrap(), b"abcdef");
    }

    #[test]
    fn a_dropped_staging_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let staging = Staging::begin(&root.path().join("tuned"), false).unwrap();
        staging.write(Path::new("a/b"), b"x").unwrap();

        drop(staging);

        assert_eq!(names(root.path()), [""; 0]);
    }

    #[test]
    fn an_existing_target_is_refused_before_any_work() {
        let root = tempfile::tempdir().unwrap();
        let target = old_target(root.path());

        let error = Staging::begin(&target, false).unwrap_err();

        assert_eq!(error.to_string(), format!("{}: already exists", target.display()));
        assert_eq!(error.way_out(), Some("name another output"));
        let error = Staging::begin(&target, true).unwrap_err().to_string();
        assert!(error.ends_with("that says lorakit made it, and holds 1 file: `old`"), "{error}");
        assert_eq!(names(root.path()), ["tuned"]);
    }

    #[test]
    fn an_existing_output_is_replaced_whole() {
        let root = tempfile::tempdir().unwrap();
        let target = earlier_output(root.path());

        let staging = Staging::begin(&target, true).unwrap();
        staging.write(Path::new("new"), b"new").unwrap();
        assert_eq!(names(&target), [RECORD, "old"]);
        staging.commit_directory(false).unwrap();

        assert_eq!(names(&target), ["new"]);
        assert_eq!(names(root.path()), ["tuned"]);
    }

    #[test]
    fn a_replaced_link_leaves_alone_what_it_leads_to() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = earlier_output(root.path());
        let target = root.path().join("link");
        symlink(&elsewhere, &target).unwrap();

        assert!(Staging::begin(&target, false).is_err());
        let staging = Staging::begin(&target, true).unwrap();
        staging.write(Path::new("new"), b"new").unwrap();
        staging.commit_directory(false).unwrap();

        assert_eq!(names(&target), ["new"]);
        assert_eq!(names(&elsewhere), [RECORD, "old"]);
        assert_eq!(names(root.path()), ["link", "tuned"]);
    }

    #[test]
    fn a_target_that_appeared_meanwhile_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let staging = Staging::begin(&root.path().join("tuned"), false).unwrap();
        let target = old_target(root.path());

        let error = staging.commit_directory(false).unwrap_err().to_string();

        assert!(error.ends_with("tuned: already exists"), "{error}");
        assert_eq!(names(&target), ["old"]);
        assert_eq!(names(root.path()), ["tuned"]);
    }

    #[test]
    fn files_are_put_beside_the_target() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("adapter.safetensors");
        let other = root.path().join("adapter.json");
        let moves = [("a".into(), target.clone()), ("b".into(), other.clone())];

        for (replace, contents) in [(false, b"1"), (true, b"2")] {
            let staging = Staging::begin(&target, replace).unwrap();
            staging.write(Path::new("a"), contents).unwrap();
            staging.write(Path::new("b"), contents).unwrap();
            staging.commit_files(&moves, true).unwrap();

            assert_eq!(fs::read(&target).unwrap(), contents);
            assert_eq!(fs::read(&other).unwrap(), contents);
            assert_eq!(names(root.path()), ["adapter.json", "adapter.safetensors"]);
        }
    }

    #[test]
    fn a_record_that_was_left_alone_is_replaced_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (target, record) = (root.path().join("x.gguf"), root.path().join("x.gguf.lorakit.json"));
        let moves = [("a".into(), target.clone()), ("b".into(), record.clone())];
        for (stale, goes) in [(r#"{"lorakit": "0.1.0", "operation": "merge"}"#, true), ("mine", false)] {
            fs::write(&record, stale).unwrap();
            let staging = Staging::begin(&target, false).unwrap();
            staging.write(Path::new("a"), b"1").unwrap();
            staging.write(Path::new("b"), b"2").unwrap();
            let outcome = staging.commit_files(&moves, false);

            assert_eq!(outcome.is_ok(), goes);
            assert_eq!(fs::read(&record).unwrap(), if goes { b"2" } else { stale.as_bytes() });
            assert_eq!(fs::remove_file(&target).is_ok(), goes);
        }
    }

    #[test]
    fn files_that_cannot_all_be_put_in_place_change_nothing() {
        let root = tempfile::tempdir().unwrap();
        let directory = old_target(root.path());
        let target = root.path().join("out.bin");
        fs::write(root.path().join("taken"), b"kept").unwrap();
        let cases = [
            ("a", directory.clone(), true, "tuned: is a directory, and the output is a single file"),
            ("a", root.path().join("taken"), false, "taken: already exists"),
            ("a", directory.join("x"), true, "x: is not in the directory of "),
            ("missing", root.path().join("x"), true, "missing: cannot commit: No such file"),
            ("../lock", root.path().join("x"), true, "../lock: is not a file name inside the output directory"),
        ];

        for (relative, path, replace, text) in cases {
            let staging = Staging::begin(&target, replace).unwrap();
            staging.write(Path::new("a"), b"new").unwrap();
            let moves = [("a".into(), target.clone()), (relative.into(), path)];

            let error = staging.commit_files(&moves, false).unwrap_err().to_string();

            assert!(error.contains(text), "{error}");
            assert_eq!(names(root.path()), ["taken", "tuned"]);
        }
        assert_eq!(fs::read(root.path().join("taken")).unwrap(), b"kept");
    }

    #[test]
    fn a_commit_that_stops_half_way_says_how_far_it_came() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("a.bin");
        let staging = Staging::begin(&target, false).unwrap();
        staging.write(Path::new("a"), b"1").unwrap();
        staging.write(Path::new("b"), b"2").unwrap();

        let error = staging.commit_files(&[("a".into(), target.clone()), ("b".into(), target)], false).unwrap_err();

        assert!(error.to_string().ends_with("a.bin: already exists"), "{error}");
        assert_eq!(error.way_out(), Some("1 of 2 files are already in place"));
    }

    #[test]
    #[ignore = "is the child of another test"]
    fn staging_killed_child() {
        let target = std::env::var(TARGET).unwrap();
        let staging = Staging::begin(Path::new(&target), false).unwrap();
        staging.write(Path::new("a/half"), b"x").unwrap();
        hold();
    }

    #[test]
    fn a_killed_run_is_swept_and_a_live_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("tuned");
        let name = concat!(module_path!(), "::staging_killed_child");
        let mut child = wait_until_held(rerun(name, "022", TARGET, &target));

        let beside_a_live_one = Staging::begin(&target, false).unwrap();
        assert_eq!(beside_a_live_one.swept(), 0);
        assert!(root.path().join(".tuned.lorakit-tmp-0/files/a/half").exists());

        child.kill().unwrap();
        child.wait().unwrap();
        let after_it = Staging::begin(&target, false).unwrap();
        assert_eq!(after_it.swept(), 1);
        assert!(beside_a_live_one.path().exists());
        drop((after_it, beside_a_live_one));
        assert_eq!(names(root.path()), [""; 0]);
    }

    #[test]
    fn only_leftovers_of_the_same_target_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let dead = |name: &str| {
            fs::create_dir_all(root.path().join(name).join("files")).unwrap();
            fs::write(root.path().join(name).join("lock"), b"").unwrap();
        };
        dead(".tuned.lorakit-tmp-7");
        dead(".tuned2.lorakit-tmp-0");
        dead(".tuned.lorakit-tmp-x");
        dead(".tuned.lorakit-tmp-");
        fs::create_dir(root.path().join(".tuned.lorakit-tmp-8")).unwrap();
        fs::create_dir_all(root.path().join(".tuned.lorakit-tmp-9/no-lock")).unwrap();
        symlink(".tuned2.lorakit-tmp-0", root.path().join(".tuned.lorakit-tmp-10")).unwrap();

        let staging = Staging::begin(&root.path().join("tuned"), false).unwrap();

        assert_eq!(staging.swept(), 2);
        drop(staging);
        let kept = [
            ".tuned.lorakit-tmp-",
            ".tuned.lorakit-tmp-10",
            ".tuned.lorakit-tmp-9",
            ".tuned.lorakit-tmp-x",
            ".tuned2.lorakit-tmp-0",
        ];
        assert_eq!(names(root.path()), kept);
    }

    #[test]
    fn an_old_target_set_aside_by_a_killed_commit_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let target = old_target(root.path());
        let left = root.path().join(".tuned.lorakit-tmp-0");
        fs::create_dir_all(left.join("files")).unwrap();
        fs::write(left.join("lock"), b"").unwrap();
        fs::rename(&target, left.join("replaced")).unwrap();

        let error = Staging::begin(&target, false).unwrap_err().to_string();

        assert!(error.ends_with("tuned: already exists"), "{error}");
        assert_eq!(names(&target), ["old"]);
        assert_eq!(names(root.path()), ["tuned"]);
    }

    #[test]
    #[ignore = "is the child of another test"]
    fn umask_child() {
        let target = std::env::var(TARGET).unwrap();
        let staging = Staging::begin(Path::new(&target), false).unwrap();
        staging.create(Path::new("created"), 1).unwrap();
        staging.write(Path::new("written"), b"x").unwrap();
        staging.copy_in(Path::new("copied"), &std::env::current_exe().unwrap()).unwrap();
        staging.commit_directory(false).unwrap();
    }

    #[test]
    fn permissions_follow_the_umask() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("tuned");
        let name = concat!(module_path!(), "::umask_child");

        let status = rerun(name, "027", TARGET, &target).output().unwrap().status;

        assert!(status.success());
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&target), 0o750);
        for file in ["created", "written", "copied"] {
            assert_eq!(mode(&target.join(file)), 0o640, "{file}");
        }
    }

    #[test]
    #[cfg_attr(not(mounts), ignore = "needs the right to mount")]
    fn a_full_disk_is_found_before_the_work_and_leaves_nothing() {
        let disk = SmallDisk::mount(1024);
        let staging = Staging::begin(&disk.path().join("tuned"), false).unwrap();
        let error = staging.create(Path::new("model.bin"), 1 << 30).unwrap_err().to_string();

        assert!(error.contains("model.bin: cannot reserve 1073741824 bytes ("), "{error}");
        assert!(error.ends_with(" bytes are available): No space left on device (os error 28)"), "{error}");
        drop(staging);
        assert_eq!(names(disk.path()), [""; 0]);
    }

    #[test]
    #[cfg_attr(any(not(mounts), portable), ignore = "needs the right to mount, and the exchange of two names")]
    fn an_old_target_that_cannot_be_removed_is_reported_after_the_commit() {
        let root = tempfile::tempdir().unwrap();
        let target = earlier_output(root.path());
        // A mount point cannot be removed, not even by root.
        let disk = SmallDisk::mount(64);
        fs::create_dir(target.join("busy")).unwrap();
        let busy = Bound::at(disk.path(), &target.join("busy"));

        let staging = Staging::begin(&target, true).unwrap();
        staging.write(Path::new("new"), b"new").unwrap();
        staging.write(Path::new(RECORD), br#"{"lorakit": "0.1.0", "operation": "merge"}"#).unwrap();
        let error = staging.commit_directory(false).unwrap_err().to_string();

        let text = ".tuned.lorakit-tmp-0: the output is in place, but what it replaced cannot be removed: ";
        assert!(error.contains(text), "{error}");
        assert_eq!(names(&target), [RECORD, "new"]);
        drop(busy);
        assert_eq!(Staging::begin(&target, true).unwrap().swept(), 1);
        assert_eq!(names(root.path()), ["tuned"]);
    }

    /// A bind mount that moves with its directory.
    struct Bound(PathBuf);

    impl Bound {
        fn at(source: &Path, path: &Path) -> Self {
            let done = std::process::Command::new("mount").arg("--bind").args([source, path]).status().unwrap();
            assert!(done.success());
            Self(path.parent().unwrap().with_file_name(".tuned.lorakit-tmp-0/files/busy"))
        }
    }

    impl Drop for Bound {
        fn drop(&mut self) {
            std::process::Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
        }
    }
}
