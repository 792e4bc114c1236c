//! A file as a byte slice, without reading it: the page cache is the buffer.
//!
//! The only `unsafe` of this room, and why it is sound enough: a map is plain bytes, never references or text; it is
//! read-only; and the two things another process can do to it are dealt with. Bytes that change are found by
//! [`MappedFile::check_unchanged`]; a file that gets shorter raises SIGBUS on the next touch, which a program turns
//! into a message with [`exit_on_lost_mapping`].

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::inputs::{Stamp, note};
use super::regular::open_regular;
use super::system;
use crate::error::{Error, Result};

/// A regular file, mapped read-only; shared freely between threads. Or bytes that were made from one and are held in
/// memory: what was compressed, transposed or strided on disk then looks like a file of its own.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    file: Arc<File>,
    contents: Contents,
    bytes: u64,
    opened: Stamp,
}

/// What stands behind [`MappedFile::bytes`].
enum Contents {
    /// The empty file, which cannot be mapped.
    Empty,
    Mapped(Mmap),
    Held(Box<[u8]>),
    /// Made at the first look.
    Lazy(OnceLock<Box<[u8]>>, Box<dyn Fn() -> Vec<u8> + Send + Sync>),
    /// Made at every look, and not kept.
    Made(Box<Make>),
}

/// Fills a buffer with the bytes from an offset on.
type Make = dyn Fn(u64, &mut [u8]) -> Result<()> + Send + Sync;

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Mapped(_) => "Mapped",
            Self::Held(_) => "Held",
            Self::Lazy(..) => "Lazy",
            Self::Made(_) => "Made",
        })
    }
}

impl MappedFile {
    /// Maps a file; links are followed. An empty file is fine.
    ///
    /// # Errors
    /// When it cannot be opened or mapped, or is a directory, a pipe or a device.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, metadata) = open_regular(path)?;
        note(path, &metadata);
        let cannot_map = |source| Error::io(path, "cannot map into memory", source);
        let contents = if metadata.len() == 0 {
            Contents::Empty
        } else {
            // SAFETY: the map is read-only and seen as `u8` only. Nothing stops another process from changing the
            // file; see the module's text for how that is noticed.
            Contents::Mapped(unsafe { Mmap::map(&file) }.map_err(cannot_map)?)
        };
        // The map's own length: the file can have grown since it was examined.
        let bytes = super::disk_length(contents.as_slice().len());
        Ok(Self { path: path.to_path_buf(), bytes, opened: Stamp::of(&metadata), file: Arc::new(file), contents })
    }

    /// `bytes` that were made from what this file holds. They answer to its path and identity, and
    /// [`check_unchanged`](Self::check_unchanged) asks about it; offsets count from their own start, and there are no
    /// pages to let go or to fetch.
    #[must_use]
    pub fn held(&self, bytes: Vec<u8>) -> Self {
        Self {
            path: self.path.clone(),
            file: Arc::clone(&self.file),
            bytes: super::disk_length(bytes.len()),
            contents: Contents::Held(bytes.into()),
            opened: self.opened.clone(),
        }
    }

    /// As [`held`](Self::held), for `bytes` bytes that `make` gives when they are first looked at.
    #[must_use]
    pub fn held_lazily(&self, bytes: u64, make: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self { contents: Contents::Lazy(OnceLock::new(), Box::new(make)), bytes, ..self.held(Vec::new()) }
    }

    /// As [`held`](Self::held), for `bytes` bytes that are never held: `make` fills a buffer with those from an offset on, and
    /// [`read`](Self::read) alone asks it.
    #[must_use]
    pub fn made(&self, bytes: u64, make: impl Fn(u64, &mut [u8]) -> Result<()> + Send + Sync + 'static) -> Self {
        Self { contents: Contents::Made(Box::new(make)), bytes, ..self.held(Vec::new()) }
    }

    /// Whether the bytes are held in memory or made: they are not those of [`file`](Self::file).
    pub fn is_held(&self) -> bool {
        matches!(self.contents, Contents::Held(_) | Contents::Lazy(..) | Contents::Made(_))
    }

    /// The path as given to [`open`](Self::open).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of bytes: the file's length at the time of opening, or that of what is held.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// All the bytes.
    pub fn bytes(&self) -> &[u8] {
        self.contents.as_slice()
    }

    /// `len` bytes from `offset`.
    ///
    /// # Errors
    /// When the range ends beyond the file; the message has the file and the numbers.
    pub fn slice(&self, offset: u64, len: u64) -> Result<&[u8]> {
        let beyond = || {
            let problem = format!("{len} bytes are wanted there, and {} has {} bytes", self.kind(), self.bytes);
            Error::malformed(&self.path, format!("byte {offset}"), problem)
        };
        let end = offset.checked_add(len).ok_or_else(beyond)?;
        let (Ok(start), Ok(end)) = (usize::try_from(offset), usize::try_from(end)) else { return Err(beyond()) };
        self.bytes().get(start..end).ok_or_else(beyond)
    }

    /// `len` bytes from `offset`, in a buffer of their own where they are made.
    ///
    /// # Errors
    /// As [`slice`](Self::slice), and when they cannot be made.
    pub fn read(&self, offset: u64, len: u64) -> Result<Cow<'_, [u8]>> {
        let Contents::Made(make) = &self.contents else { return self.slice(offset, len).map(Cow::Borrowed) };
        let len = usize::try_from(len).expect("what is made at once fits the address space");
        let mut bytes = vec![0; len];
        make(offset, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    /// Checks that the file still has the length and the time of modification it was opened with. Call it after
    /// the last byte was used and before an output is committed.
    ///
    /// # Errors
    /// When it was changed meanwhile, or cannot be examined.
    pub fn check_unchanged(&self) -> Result<()> {
        let now = self.file.metadata().map_err(|source| Error::io(&self.path, "cannot examine", source))?;
        self.opened.check(&self.path, &now)
    }

    /// All bytes of the file that was opened, also where what is [held](Self::is_held) was made from them: the same file,
    /// wherever its path leads by now.
    ///
    /// # Errors
    /// When it cannot be mapped again.
    pub fn whole(&self) -> Result<Self> {
        let cannot_map = |source| Error::io(&self.path, "cannot map into memory", source);
        let bytes = self.file.metadata().map_err(cannot_map)?.len();
        let contents = if bytes == 0 {
            Contents::Empty
        } else {
            // SAFETY: as in `open`.
            Contents::Mapped(unsafe { Mmap::map(&*self.file) }.map_err(cannot_map)?)
        };
        let bytes = super::disk_length(contents.as_slice().len());
        let (path, file) = (self.path.clone(), Arc::clone(&self.file));
        Ok(Self { path, file, contents, bytes, opened: self.opened.clone() })
    }

    /// Lets go of the whole pages inside a range, so that resident memory stays small in a run over a large file.
    /// The page cache keeps them and a later touch brings them back. It is advice: a refusal changes nothing, and
    /// what lies beyond the file is ignored.
    pub fn release(&self, offset: u64, len: u64) {
        let (Contents::Mapped(map), Some((start, end))) = (&self.contents, self.clamp(offset, len)) else { return };
        let page = rustix::param::page_size();
        let start = start.next_multiple_of(page);
        // The last page of the file belongs to no later range, so it goes although it is not full.
        let end = if end == map.len() { end } else { end - end % page };
        if start < end {
            // SAFETY: the map is shared, read-only and backed by the file, so a page that was let go is read again
            // with the same bytes; borrowed slices stay valid and see no difference.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
        }
    }

    /// Tells the system that a range is read once, from front to back. Advice, like [`release`](Self::release).
    pub fn advise_sequential(&self, offset: u64, len: u64) {
        self.advise(Advice::Sequential, offset, len);
    }

    /// Tells the system that single places of the file are read, so that it fetches nothing around them; or, with
    /// `false`, that this is over. Advice, like [`release`](Self::release).
    pub fn advise_scattered(&self, scattered: bool) {
        self.advise(if scattered { Advice::Random } else { Advice::Normal }, 0, self.bytes);
    }

    /// Asks the system to start reading a range now. Advice, like [`release`](Self::release).
    pub fn will_need(&self, offset: u64, len: u64) {
        self.advise(Advice::WillNeed, offset, len);
    }

    /// Maps a range in one go instead of page by page at the first touch. Advice, like [`release`](Self::release).
    pub fn populate(&self, offset: u64, len: u64) {
        if let (Contents::Mapped(map), Some((start, end))) = (&self.contents, self.clamp(offset, len)) {
            let _ = system::populate(map, start, end - start);
        }
    }

    /// (device, inode): the same pair means the same file, whatever the paths say.
    pub fn identity(&self) -> (u64, u64) {
        self.opened.identity
    }

    /// The open file, for the system's own copying. Its cursor is not used by anyone. What is held lies elsewhere
    /// in it, if at all.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn kind(&self) -> &'static str {
        if self.is_held() { "what is held of it" } else { "the file" }
    }

    fn advise(&self, advice: Advice, offset: u64, len: u64) {
        if let (Contents::Mapped(map), Some((start, end))) = (&self.contents, self.clamp(offset, len)) {
            let _ = map.advise_range(advice, start, end - start);
        }
    }

    /// The part of a range that lies inside the map, if any.
    fn clamp(&self, offset: u64, len: u64) -> Option<(usize, usize)> {
        let end = offset.saturating_add(len).min(self.bytes);
        let range = (usize::try_from(offset).ok()?, usize::try_from(end).ok()?);
        (range.0 < range.1).then_some(range)
    }
}

impl Contents {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Empty | Self::Made(_) => &[],
            Self::Mapped(map) => map,
            Self::Held(bytes) => bytes,
            Self::Lazy(bytes, make) => bytes.get_or_init(|| make().into()),
        }
    }
}

/// Makes the loss of a mapped file an orderly end: on SIGBUS, `message` and a line feed go to standard error and the
/// process ends with exit code 1.
///
/// An input that gets shorter while it is mapped, or a disk that fails under it, raises SIGBUS at the next touch; no
/// check can come before it. For programs, not for libraries: it is the one place of this crate that prints and
/// exits. No destructor runs, so a [`Staging`](super::Staging) stays behind; the next run to the same target
/// removes it.
///
/// # Errors
/// When the handler cannot be installed.
pub fn exit_on_lost_mapping(message: &'static str) -> Result<()> {
    let cannot_install = |source| Error::io("SIGBUS", "cannot install a signal handler", source);
    // Everything the handler needs is made now: inside it, nothing may allocate or lock.
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map_err(cannot_install)?;
    let text = format!("{message}\n");
    let handler = move || {
        let _ = rustix::io::write(&stderr, text.as_bytes());
        signal_hook::low_level::exit(1);
    };
    // SAFETY: the handler makes two system calls, write(2) and _exit(2), both async-signal-safe, and never returns
    // to the code that touched the lost page.
    unsafe { signal_hook::low_level::register(signal_hook::consts::SIGBUS, handler) }.map(drop).map_err(cannot_install)
}

#[cfg(test)]
mod tests {
    use super::super::testing::rerun;
    use super::*;
    use std::fs;
    use std::time::SystemTime;

    const LOST_FILE: &str = "LORAKIT_TEST_LOST_FILE";

    fn file_of(contents: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.bin");
        fs::write(&path, contents).unwrap();
        (directory, path)
    }

    /// Kibibytes of `path`'s map that are resident in this process.
    #[cfg(target_os = "linux")]
    fn resident_kib(path: &Path) -> u64 {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
        let line = lines.find(|line| line.starts_with("Rss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn a_map_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<MappedFile>();
    }

    #[test]
    fn a_slice_is_the_bytes_of_the_file() {
        let (_directory, path) = file_of(b"0123456789");
        let file = MappedFile::open(&path).unwrap();

        assert_eq!((file.len(), file.is_empty(), file.path()), (10, false, path.as_path()));
        assert_eq!(file.bytes(), b"0123456789");
        assert_eq!(file.slice(3, 4).unwrap(), b"3456");
        assert_eq!(file.slice(10, 0).unwrap(), b"");
    }

    #[test]
    fn a_slice_beyond_the_end_is_refused_with_its_numbers() {
        let (_directory, path) = file_of(b"0123456789");
        let file = MappedFile::open(&path).unwrap();

        for (offset, len) in [(8, 3), (11, 0), (u64::MAX, 1), (1, u64::MAX)] {
            let error = file.slice(offset, len).unwrap_err().to_string();
            let text = format!("model.bin: byte {offset}: {len} bytes are wanted there, and the file has 10 bytes");
            assert!(error.ends_with(&text), "{error}");
        }
    }

    #[test]
    fn an_empty_file_is_an_empty_slice() {
        let (_directory, path) = file_of(b"");
        let file = MappedFile::open(&path).unwrap();
        file.release(0, 1);
        file.will_need(0, 1);

        assert!(file.is_empty());
        assert_eq!(file.bytes(), b"");
        assert_eq!(file.slice(0, 0).unwrap(), b"");
        file.check_unchanged().unwrap();
    }

    #[test]
    fn two_paths_of_one_file_have_one_identity() {
        let (directory, path) = file_of(b"x");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let other = directory.path().join("other");
        fs::write(&other, b"x").unwrap();

        let identity = |path: &Path| MappedFile::open(path).unwrap().identity();

        assert_eq!(identity(&path), identity(&link));
        assert_ne!(identity(&path), identity(&other));
    }

    #[test]
    fn held_bytes_behave_as_a_file_and_ask_about_the_one_they_came_from() {
        let (_directory, path) = file_of(b"0123456789");
        let file = MappedFile::open(&path).unwrap();

        let held = file.held(b"abc".to_vec());
        held.release(0, 3);
        held.will_need(1, u64::MAX);
        held.populate(0, 3);

        assert!(held.is_held() && !file.is_held());
        assert_eq!((held.len(), held.path(), held.identity()), (3, path.as_path(), file.identity()));
        assert_eq!((held.bytes(), held.slice(1, 2).unwrap()), (&b"abc"[..], &b"bc"[..]));
        assert!(held.slice(2, 2).unwrap_err().to_string().contains("2 bytes are wanted there"));
        held.check_unchanged().unwrap();

        File::options().write(true).open(&path).unwrap().set_len(4).unwrap();
        let error = held.check_unchanged().unwrap_err().to_string();
        assert!(error.ends_with("changed while it was being read: 10 bytes at open, 4 now"), "{error}");
    }

    #[test]
    fn lazy_bytes_are_made_once_and_when_they_are_looked_at() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let (_directory, path) = file_of(b"0123456789");
        let file = Arc::new(MappedFile::open(&path).unwrap());
        let made = Arc::new(AtomicUsize::new(0));
        let (source, count) = (Arc::clone(&file), Arc::clone(&made));

        let lazy = file.held_lazily(3, move || {
            count.fetch_add(1, Ordering::Relaxed);
            source.bytes()[..3].iter().rev().copied().collect()
        });
        lazy.release(0, 3);
        lazy.check_unchanged().unwrap();

        assert!(lazy.is_held() && lazy.len() == 3 && made.load(Ordering::Relaxed) == 0);
        assert_eq!((lazy.bytes(), lazy.slice(1, 2).unwrap()), (&b"210"[..], &b"10"[..]));
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_file_that_got_shorter_is_noticed() {
        let (_directory, path) = file_of(b"0123456789");
        let file = MappedFile::open(&path).unwrap();
        file.check_unchanged().unwrap();

        File::options().write(true).open(&path).unwrap().set_len(4).unwrap();

        let error = file.check_unchanged().unwrap_err().to_string();
        assert!(error.ends_with("model.bin: changed while it was being read: 10 bytes at open, 4 now"), "{error}");
    }

    #[test]
    fn a_file_written_to_at_equal_length_is_noticed() {
        let (_directory, path) = file_of(b"0123456789");
        let file = MappedFile::open(&path).unwrap();

        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();

        let error = file.check_unchanged().unwrap_err().to_string();
        assert!(error.ends_with("changed while it was being read: 10 bytes as at open, but written to since"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn released_pages_leave_memory_and_come_back_equal() {
        let page = rustix::param::page_size();
        let contents: Vec<u8> = (0..64 * page + 100).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let (_directory, path) = file_of(&contents);
        let file = MappedFile::open(&path).unwrap();
        assert_eq!(file.bytes(), contents);
        let touched = resident_kib(&path);

        // Everything but the first page, which the range only touches.
        file.release(1, u64::MAX - 1);

        let page_kib = u64::try_from(page).unwrap() / 1024;
        assert_eq!((touched, resident_kib(&path)), (65 * page_kib, page_kib));
        assert_eq!(file.bytes(), contents);
    }

    #[test]
    fn advice_about_any_range_is_harmless() {
        let (_directory, path) = file_of(&[7; 10_000]);
        let file = MappedFile::open(&path).unwrap();

        for (offset, len) in [(0, 0), (1, 10), (4096, 4096), (9_999, u64::MAX), (20_000, 5), (u64::MAX, u64::MAX)] {
            file.release(offset, len);
            file.will_need(offset, len);
            file.advise_sequential(offset, len);
        }
        file.advise_scattered(true);
        file.advise_scattered(false);

        assert_eq!(file.bytes(), [7; 10_000]);
    }

    #[test]
    #[ignore = "is the child of another test"]
    fn lost_mapping_child() {
        let path = std::env::var(LOST_FILE).unwrap();
        exit_on_lost_mapping("an input became shorter while it was being read").unwrap();
        let file = MappedFile::open(Path::new(&path)).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        let sum: u64 = file.bytes().iter().map(|&byte| u64::from(byte)).sum();
        panic!("the lost page could be read: {sum}");
    }

    #[test]
    fn a_lost_mapping_ends_the_program_with_the_message() {
        let (_directory, path) = file_of(&[1; 10_000]);
        let name = concat!(module_path!(), "::lost_mapping_child");

        let output = rerun(name, "022", LOST_FILE, &path).output().unwrap();

        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr, "an input became shorter while it was being read\n");
    }
}
