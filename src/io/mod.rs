//! Bytes in, bytes out: inputs are mapped, outputs are staged, written by position from many threads and put in
//! place by one rename.
//!
//! This room has no idea what the bytes mean. It promises three things: an input is never copied to be looked at,
//! nothing appears under the final name before it is complete, and no output is ever mapped (a full disk would then
//! be a SIGBUS instead of an error). The pattern is gix-lock's: drop is rollback, commit is a rename.
//!
//! | file | idea |
//! |---|---|
//! | `inputs` | what a run has opened: kept apart from its output, and unchanged to its end |
//! | `regular` | opening an input, refusing what is not a file |
//! | `mapped` | a file as a byte slice; the only `unsafe` of the room |
//! | `positional` | an output file that many threads write at once |
//! | `space` | asking for disk space before the work |
//! | `payload` | a directory being filled, that nothing escapes |
//! | `earlier` | what stands under the final name already: an output of ours and nothing else? |
//! | `copying` | a whole file copied: in blocks, holes left open |
//! | `system` | what one system can do and another cannot, and the way that goes everywhere |
//! | `target` | the final name, and the renames onto it |
//! | `lock` | is the process that left this alive? |
//! | `staging` | one run: everything or nothing |
//! | `parts` | one output made by several processes, one after another or at once |

mod copying;
mod earlier;
mod inputs;
mod lock;
mod mapped;
mod parts;
mod payload;
mod positional;
mod regular;
mod space;
mod staging;
mod system;
mod target;

pub use earlier::{RECORD, RECORDED_FILES, old_record_beside, record_beside};
pub use inputs::{Inputs, unwatched};
pub use mapped::{MappedFile, exit_on_lost_mapping};
pub use parts::{PartsDir, plain_files};
pub use payload::stays_inside;
pub use positional::PositionalFile;
pub use regular::{is_there, name_of, read_small, read_start};
pub use space::available_bytes;
pub use staging::{Staging, sweep_leftovers};
pub use target::{Form, check_parent, check_place, is_replaceable};

/// A length in memory as a length on disk.
fn disk_length(length: usize) -> u64 {
    const { assert!(usize::BITS <= u64::BITS) };
    u64::try_from(length).expect("because no supported usize is wider than 64 bits, as asserted")
}

/// How much of `left` fits into a piece of at most `most` bytes.
fn piece(left: u64, most: usize) -> usize {
    usize::try_from(left).map_or(most, |left| left.min(most))
}

#[cfg(test)]
mod testing {
    use std::io::{BufRead, BufReader};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    /// A command that runs only the test `name` of this binary, in a process of its own that sees `variable`. That test is
    /// `#[ignore = "is the child of another test"]`.
    /// `umask` is the octal file creation mask of that process.
    pub(super) fn rerun(name: &str, umask: &str, variable: &str, value: &Path) -> Command {
        let (_, name) = name.split_once("::").expect("a test name starts with the crate");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {umask} && exec \"$0\" \"$@\"")]);
        command.arg(std::env::current_exe().unwrap()).args([
            name,
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ]);
        command.env(variable, value);
        command
    }

    /// In a child: says that it has come so far, and waits for its end.
    pub(super) fn hold() {
        println!("held");
        std::io::stdin().lines().for_each(drop);
    }

    /// Starts a child that calls [`hold`], and waits until it does.
    pub(super) fn wait_until_held(mut command: Command) -> Child {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("held")), "the child ended too early");
        child
    }

    /// A small tmpfs. A test that asks for one has `#[cfg_attr(not(mounts), ignore = "needs the right to mount")]`: build.rs.
    pub(super) struct SmallDisk(tempfile::TempDir);

    impl SmallDisk {
        pub(super) fn mount(kibibytes: u32) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let mounted = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={kibibytes}k"), "tmpfs"])
                .arg(directory.path())
                .output()
                .is_ok_and(|output| output.status.success());
            assert!(mounted, "the build was allowed to mount, the test is not");
            Self(directory)
        }

        pub(super) fn path(&self) -> &Path {
            self.0.path()
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            Command::new("umount").arg("-l").arg(self.0.path()).status().unwrap();
        }
    }
}
