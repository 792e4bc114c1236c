//! What a run has read: no output may take the place of it, and nothing may be written once it has changed.
//!
//! Opening a file notes it in every [`Inputs`] that is alive on the thread, so no option of no verb can be forgotten: a verb begins
//! with [`Inputs::watch`] and opens its inputs on its own thread. Runs of other threads do not see each other.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::earlier::each_entry;
use crate::error::{Error, Result};

/// Path and state of every file that was opened, in order.
type Seen = RefCell<Vec<(PathBuf, Stamp)>>;

thread_local! {
    static WATCHING: RefCell<Vec<Rc<Seen>>> = const { RefCell::new(Vec::new()) };
}

/// A file as it was when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    /// (device, inode).
    pub(super) identity: (u64, u64),
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    mode: u32,
}

impl Stamp {
    pub(super) fn of(found: &Metadata) -> Self {
        Self {
            identity: (found.dev(), found.ino()),
            bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            mode: found.mode(),
        }
    }

    /// Fails when what is `now` at `path`, or behind an open file, is not this.
    pub(super) fn check(&self, path: &Path, now: &Metadata) -> Result<()> {
        let now = Self::of(now);
        if now.identity != self.identity {
            return Err(Error::unsupported(path, "was replaced by another file while it was being read"));
        }
        let opened = self.bytes;
        if now.bytes != opened {
            let what = format!("changed while it was being read: {opened} bytes at open, {} now", now.bytes);
            return Err(Error::unsupported(path, what));
        }
        if now.modified != self.modified {
            let what = format!("changed while it was being read: {opened} bytes as at open, but written to since");
            return Err(Error::unsupported(path, what));
        }
        Ok(())
    }
}

/// Notes that `path` was opened and is `found`.
pub(super) fn note(path: &Path, found: &Metadata) {
    WATCHING.with_borrow(|watching| watching.iter().for_each(|seen| add(seen, path, found)));
}

fn add(seen: &Seen, path: &Path, found: &Metadata) {
    let stamp = Stamp::of(found);
    let mut seen = seen.borrow_mut();
    // The same file is often opened several times, one time after the other.
    if !seen.iter().rev().take(LATEST).any(|(other, known)| other == path && *known == stamp) {
        seen.push((path.to_path_buf(), stamp));
    }
}

/// How far back a file that is opened again is looked for.
const LATEST: usize = 8;

/// Calls `look` without noting what it opens: what is looked at to learn about the output is no input.
pub fn unwatched<T>(look: impl FnOnce() -> T) -> T {
    struct Restore(Vec<Rc<Seen>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            WATCHING.set(std::mem::take(&mut self.0));
        }
    }
    let _restore = Restore(WATCHING.take());
    look()
}

/// The files that were opened on this thread while it was alive.
#[derive(Debug)]
pub struct Inputs {
    seen: Rc<Seen>,
    kept: RefCell<Vec<PathBuf>>,
}

impl Inputs {
    /// Begins to watch what this thread opens.
    pub fn watch() -> Self {
        let seen = Rc::new(Seen::default());
        WATCHING.with_borrow_mut(|watching| watching.push(Rc::clone(&seen)));
        Self { seen, kept: RefCell::default() }
    }

    /// Counts `path` among the inputs as it is now: a file that is copied later.
    ///
    /// # Errors
    /// When it cannot be examined.
    pub fn add(&self, path: &Path) -> Result<()> {
        let found = fs::metadata(path).map_err(|source| Error::io(path, "cannot examine", source))?;
        add(&self.seen, path, &found);
        Ok(())
    }

    /// Counts `path` among what no output may take the place of, whether anything of it is opened or not.
    pub fn keep(&self, path: &Path) {
        // What is not there cannot be lost.
        self.kept.borrow_mut().extend(fs::canonicalize(path).ok());
    }

    /// The permissions that every input has: what is made of them is open to nobody that one of them is closed to.
    pub fn permissions(&self) -> u32 {
        self.seen.borrow().iter().fold(0o666, |mode, (_, stamp)| mode & stamp.mode)
    }

    /// Checks that every input is still the file it was: the same device and inode, length and time of modification. Call it
    /// after the last byte was used and right before the output is put in place.
    ///
    /// # Errors
    /// When one was changed, replaced or removed meanwhile.
    pub fn check_unchanged(&self) -> Result<()> {
        for (path, stamp) in self.seen.borrow().iter() {
            let now = fs::metadata(path);
            let gone = |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound => Error::io(path, "was removed while it was being read", source),
                _ => Error::io(path, "cannot examine", source),
            };
            let checked = now.map_err(gone).and_then(|now| stamp.check(path, &now));
            checked.map_err(|error| error.hint("nothing was written; run it again when nothing changes its inputs"))?;
        }
        Ok(())
    }

    /// Checks that what would be replaced at `out` is no input and holds none, under whatever names and links.
    ///
    /// # Errors
    /// When it is or does, naming both; when a directory there cannot be listed.
    pub fn check_apart(&self, out: &Path) -> Result<()> {
        let Ok(found) = fs::metadata(out) else { return Ok(()) };
        let in_the_way = |input: &Path| {
            let what = format!("the output would take the place of the input `{}`", input.display());
            Err(Error::unsupported(out, what).hint("name another output"))
        };
        let place = fs::canonicalize(out).ok();
        let within = |input: &&PathBuf| place.as_ref().is_some_and(|place| input.starts_with(place));
        if let Some(input) = self.kept.borrow().iter().find(within) {
            return in_the_way(input);
        }
        let seen = self.seen.borrow();
        let inputs: HashMap<(u64, u64), &Path> =
            seen.iter().map(|(path, stamp)| (stamp.identity, path.as_path())).collect();
        let check = |found: &Metadata| match inputs.get(&Stamp::of(found).identity) {
            Some(input) => in_the_way(input),
            None => Ok(()),
        };
        if found.is_dir() { each_entry(out, |_, found| check(found)) } else { check(&found) }
    }
}

impl Drop for Inputs {
    fn drop(&mut self) {
        WATCHING.with_borrow_mut(|watching| watching.retain(|seen| !Rc::ptr_eq(seen, &self.seen)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MappedFile, read_small, read_start};
    use super::*;
    use std::time::{Duration, SystemTime};

    fn file(directory: &tempfile::TempDir, name: &str) -> PathBuf {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, name).unwrap();
        path
    }

    fn touch(path: &Path) {
        let later = SystemTime::now() + Duration::from_secs(60);
        fs::File::options().write(true).open(path).unwrap().set_modified(later).unwrap();
    }

    #[test]
    fn every_way_to_change_an_input_is_noticed() {
        type Way = (&'static str, fn(&Path));
        let ways: [Way; 5] = [
            ("4 bytes at open, 5 now", |path| fs::write(path, "other").unwrap()),
            ("4 bytes as at open, but written to since", touch),
            ("was replaced by another file while it was being read", |path| {
                let other = path.with_extension("new");
                fs::copy(path, &other).unwrap();
                fs::rename(other, path).unwrap();
            }),
            ("was removed while it was being read: No such file", |path| fs::remove_file(path).unwrap()),
            ("was replaced by another file", |path| {
                fs::rename(path, path.with_extension("old")).unwrap();
                fs::create_dir(path).unwrap();
            }),
        ];
        for (text, change) in ways {
            for open in [|path: &Path| MappedFile::open(path).map(drop), |path: &Path| read_small(path, 100).map(drop)]
            {
                let directory = tempfile::tempdir().unwrap();
                let path = file(&directory, "base");
                let inputs = Inputs::watch();
                open(&path).unwrap();
                inputs.check_unchanged().unwrap();
                change(&path);
                let error = inputs.check_unchanged().unwrap_err().to_string();
                assert!(error.contains(text), "{error}");
            }
        }
    }

    #[test]
    fn a_copied_file_counts_from_when_it_was_added() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(&directory, "tokenizer.json");
        let inputs = Inputs::watch();
        inputs.add(&path).unwrap();
        touch(&path);
        assert!(inputs.check_unchanged().is_err());
        assert!(inputs.add(&directory.path().join("missing")).is_err());
    }

    #[test]
    fn what_is_kept_need_not_be_opened() {
        let directory = tempfile::tempdir().unwrap();
        let base = file(&directory, "out/model/weights").with_file_name("");
        let inputs = Inputs::watch();
        inputs.keep(&base);
        inputs.keep(Path::new("/nowhere/at/all"));
        for out in ["out", "out/model"] {
            assert!(inputs.check_apart(&directory.path().join(out)).is_err(), "{out}");
        }
        inputs.check_apart(&directory.path().join("out/model/weights")).unwrap();
        inputs.check_unchanged().unwrap();
    }

    #[test]
    fn runs_see_their_own_inputs_only() {
        let directory = tempfile::tempdir().unwrap();
        let (ours, theirs) = (file(&directory, "ours"), file(&directory, "theirs"));
        let before = Inputs::watch();
        drop(before);
        let outer = Inputs::watch();
        {
            let inner = Inputs::watch();
            MappedFile::open(&ours).unwrap();
            assert_eq!(inner.seen.borrow().len(), 1);
        }
        unwatched(|| MappedFile::open(&theirs).unwrap());
        // Telling what a file is opens it, and uses nothing of it.
        read_start(&theirs, 4).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| MappedFile::open(&theirs).unwrap());
        });
        MappedFile::open(&ours).unwrap();
        assert_eq!(outer.seen.borrow().len(), 1);
        touch(&theirs);
        outer.check_unchanged().unwrap();
    }

    #[test]
    fn an_input_is_found_in_the_output_by_any_name() {
        use std::os::unix::fs::symlink;
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let base = file(&directory, "out/deep/base");
        symlink(&base, at("link")).unwrap();
        fs::hard_link(&base, at("hard")).unwrap();
        symlink(at("out"), at("linked-out")).unwrap();
        file(&directory, "other/base");
        for path in [&base, &at("link"), &at("hard")] {
            let inputs = Inputs::watch();
            MappedFile::open(path).unwrap();
            for out in ["out", "out/deep", "out/deep/base", "linked-out", "hard", "link", "."] {
                let error = inputs.check_apart(&at(out)).unwrap_err();
                let text = format!("the output would take the place of the input `{}`", path.display());
                assert!(error.to_string().ends_with(&text), "{error}");
                assert_eq!(error.way_out(), Some("name another output"));
            }
            for out in ["other", "other/base", "new", "out/new"] {
                inputs.check_apart(&at(out)).unwrap();
            }
        }
    }
}
