//! What stands under the final name already: an earlier output of ours and nothing else, or something that must stay.
//!
//! A directory of ours holds the record [`RECORD`], which lists the files of the output. Such a directory may be replaced if every
//! file in it is listed there or is one that the new output has as well. (Records of versions before the list name no files.)

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::regular::open_regular;
use crate::error::{Error, Result};
use crate::limits::MAX_JSON_BYTES;

/// The file that tells how an output was made. It makes a directory ours.
pub const RECORD: &str = "lorakit.json";

/// The key of the record under which the files of the output stand.
pub const RECORDED_FILES: &str = "files";

/// Most files of a directory that is looked through before it is replaced.
const MAX_ENTRIES: u64 = 1 << 20;

/// Names of files that a message lists.
const LISTED: usize = 10;

/// How far into a file its maker is looked for: the free text of a header comes first.
const HEAD_BYTES: u64 = 1 << 20;

/// The record of the output `out`, where that is one file: its whole name and `.lorakit.json`.
pub fn record_beside(out: &Path) -> PathBuf {
    let mut name = out.file_name().map(OsString::from).unwrap_or_default();
    name.push(format!(".{RECORD}"));
    out.with_file_name(name)
}

/// What versions before called that record: `model.gguf` and `model.safetensors` had one name.
pub fn old_record_beside(out: &Path) -> PathBuf {
    let mut name = out.file_stem().map(OsString::from).unwrap_or_default();
    name.push(format!(".{RECORD}"));
    out.with_file_name(name)
}

/// The record at `path`, if it is one of ours.
fn read_record(path: &Path) -> Option<Map<String, Value>> {
    let found = fs::symlink_metadata(path).ok().filter(Metadata::is_file)?;
    if found.len() > MAX_JSON_BYTES {
        return None;
    }
    let record: Map<String, Value> = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let says = |key: &str| record.get(key).is_some_and(Value::is_string);
    (says("lorakit") && says("operation")).then_some(record)
}

/// Whether `path` is a record of ours.
pub(super) fn is_record(path: &Path) -> bool {
    read_record(path).is_some()
}

/// Whether the file `path` says that it was made by us, in its header or beside it.
pub(super) fn is_our_file(path: &Path) -> bool {
    let mut head = Vec::new();
    // A pipe is not waited for.
    let read = open_regular(path).is_ok_and(|(file, _)| file.take(HEAD_BYTES).read_to_end(&mut head).is_ok());
    let said = b"lorakit";
    read && head.windows(said.len()).any(|window| window == said)
        || is_record(&record_beside(path))
        || is_record(&old_record_beside(path))
}

/// Calls `visit` for everything below `root` that is no directory, and for directories that are empty. Links are not followed,
/// but for `root` itself.
///
/// # Errors
/// Those of `visit`; when a directory cannot be listed, or there are more than [`MAX_ENTRIES`] files.
pub(super) fn each_entry(root: &Path, mut visit: impl FnMut(&Path, &Metadata) -> Result<()>) -> Result<()> {
    let mut left = vec![PathBuf::new()];
    let mut count = 0;
    while let Some(below) = left.pop() {
        let directory = root.join(&below);
        let cannot = |source| Error::io(&directory, "cannot list", source);
        let mut is_empty = true;
        for entry in fs::read_dir(&directory).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            is_empty = false;
            count += 1;
            if count > MAX_ENTRIES {
                return Err(Error::limit(root, "the number of files in what would be replaced", count, MAX_ENTRIES));
            }
            let found = entry.metadata().map_err(cannot)?;
            let relative = below.join(entry.file_name());
            if found.is_dir() {
                left.push(relative);
            } else {
                visit(&relative, &found)?;
            }
        }
        if is_empty && !below.as_os_str().is_empty() {
            let found = fs::symlink_metadata(&directory).map_err(cannot)?;
            visit(&below, &found)?;
        }
    }
    Ok(())
}

/// What a directory would lose for good if an output took its place.
#[derive(Debug)]
pub(super) struct Lost {
    /// The directory holds a record of ours.
    is_ours: bool,
    /// Some of the files.
    some: Vec<PathBuf>,
    count: u64,
}

impl Lost {
    /// Looks through `directory`; `writes` tells whether the new output has a file of that name.
    ///
    /// # Errors
    /// When the directory cannot be listed, or holds too many files.
    pub(super) fn of(directory: &Path, writes: &dyn Fn(&Path) -> bool) -> Result<Self> {
        let record = read_record(&directory.join(RECORD));
        let files = record.as_ref().and_then(|record| record.get(RECORDED_FILES)?.as_array());
        let listed: HashSet<&Path> =
            files.into_iter().flatten().filter_map(Value::as_str).chain([RECORD]).map(Path::new).collect();
        let is_ours = record.is_some();
        let mut lost = Self { is_ours, some: Vec::new(), count: 0 };
        each_entry(directory, |relative, found| {
            let is_known = if found.is_dir() {
                listed.iter().any(|path| path.starts_with(relative))
            } else {
                listed.contains(relative) || writes(relative)
            };
            if !(is_ours && is_known) {
                lost.count += 1;
                lost.some.push(relative.to_path_buf());
                // The first by name, whatever the order of the directory.
                if lost.some.len() > 2 * LISTED {
                    lost.shorten();
                }
            }
            Ok(())
        })?;
        lost.shorten();
        Ok(lost)
    }

    fn shorten(&mut self) {
        self.some.sort();
        self.some.truncate(LISTED);
    }

    /// Whether nothing would be lost.
    pub(super) fn is_nothing(&self) -> bool {
        self.count == 0
    }

    /// Whether the directory is somebody else's.
    pub(super) fn is_foreign(&self) -> bool {
        !self.is_ours && self.count > 0
    }

    /// Fails when something would be lost, and lists it.
    pub(super) fn refuse(&self, path: &Path) -> Result<()> {
        if self.is_nothing() {
            return Ok(());
        }
        let names: Vec<String> = self.some.iter().map(|path| format!("`{}`", path.display())).collect();
        let more = match self.count - names.len() as u64 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let files = if self.count == 1 { "1 file".into() } else { format!("{} files", self.count) };
        let names = names.join(", ");
        let what = if self.is_ours {
            format!("is not replaced: it holds {files} that lorakit did not make: {names}{more}")
        } else {
            format!("is not replaced: it has no `{RECORD}` that says lorakit made it, and holds {files}: {names}{more}")
        };
        Err(Error::unsupported(path, what).hint("name another output, or move away what is to be kept"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with a record that lists `listed` (or no list), and the files `there`.
    fn earlier(listed: Option<&[&str]>, there: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for name in there {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let mut record = serde_json::json!({ "lorakit": "0.1.0", "operation": "merge" });
        if let Some(listed) = listed {
            record[RECORDED_FILES] = listed.into();
        }
        fs::write(directory.path().join(RECORD), record.to_string()).unwrap();
        directory
    }

    fn lost(directory: &tempfile::TempDir, writes: &[&str]) -> Vec<String> {
        let lost = Lost::of(directory.path(), &|path| writes.iter().any(|name| Path::new(name) == path)).unwrap();
        assert_eq!(lost.count, lost.some.len() as u64);
        lost.some.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn listed_files_and_those_that_are_written_again_are_not_lost() {
        let old = earlier(Some(&["a", "unet/b"]), &["a", "unet/b", "c", "unet/c", ".hidden", "deep/er/x"]);

        assert_eq!(lost(&old, &[]), [".hidden", "c", "deep/er/x", "unet/c"]);
        assert_eq!(lost(&old, &["c", "unet/c", ".hidden", "deep/er/x"]), [""; 0]);
    }

    #[test]
    fn a_record_without_a_list_leaves_what_is_written_again() {
        let old = earlier(None, &["model.safetensors", "notes.txt"]);

        assert_eq!(lost(&old, &["model.safetensors"]), ["notes.txt"]);
    }

    #[test]
    fn folders_count_if_they_are_empty_and_nobodys() {
        let old = earlier(Some(&["unet/b"]), &[]);
        fs::create_dir(old.path().join("unet")).unwrap();
        fs::create_dir(old.path().join("mine")).unwrap();

        assert_eq!(lost(&old, &[]), ["mine"]);
    }

    #[test]
    fn without_a_record_of_ours_everything_is_lost_and_ten_are_listed() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Lost::of(directory.path(), &|_| false).unwrap().refuse(directory.path()).is_ok());
        for number in 10..25 {
            fs::write(directory.path().join(format!("{number}")), b"x").unwrap();
        }
        for foreign in ["{}", "[1]", "no json", r#"{"lorakit": 1, "operation": "merge"}"#] {
            fs::write(directory.path().join(RECORD), foreign).unwrap();
            let found = Lost::of(directory.path(), &|_| true).unwrap();
            assert!(found.is_foreign());
            let error = found.refuse(directory.path()).unwrap_err();
            let text = ": is not replaced: it has no `lorakit.json` that says lorakit made it, and holds 16 files: \
                        `10`, `11`, `12`, `13`, `14`, `15`, `16`, `17`, `18`, `19` and 6 more";
            assert!(error.to_string().ends_with(text), "{error}");
            assert!(!error.way_out().unwrap().contains("--force"));
        }
    }

    #[test]
    fn a_link_is_no_record() {
        let old = earlier(Some(&["a"]), &["a"]);
        fs::rename(old.path().join(RECORD), old.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", old.path().join(RECORD)).unwrap();

        assert!(Lost::of(old.path(), &|_| true).unwrap().is_foreign());
    }

    #[test]
    fn a_record_beside_a_file_has_its_whole_name() {
        let beside = |out: &str| record_beside(Path::new(out)).display().to_string();

        assert_eq!(beside("x.gguf"), "x.gguf.lorakit.json");
        assert_eq!(beside("a/x.safetensors"), "a/x.safetensors.lorakit.json");
        assert_eq!(old_record_beside(Path::new("a/x.gguf")), Path::new("a/x.lorakit.json"));
    }
}
