//! Runs the program under ptrace(2), counts its calls that change files, and does something at one of them.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::ptr;

use libc::{c_int, c_long, pid_t, user_regs_struct};

/// What happens at a call.
#[derive(Debug, Clone, Copy)]
pub enum Fault<'a> {
    /// The process dies in front of it.
    Kill,
    /// The process dies when it has just been made.
    KillBehind,
    /// It is not made, and this error is told.
    Fail(c_int),
    /// In front of it an input gets other bytes, in place.
    Overwrite(&'a str),
    /// In front of it another file of the same length takes the place of an input.
    Replace(&'a str),
    /// In front of it an input is removed.
    Remove(&'a str),
}

impl Fault<'_> {
    pub fn kills(self) -> bool {
        matches!(self, Self::Kill | Self::KillBehind)
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy)]
pub enum End {
    Code(c_int),
    Signal(c_int),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// What a run did.
pub struct Run {
    /// The names of its calls that change files, in order.
    pub calls: Vec<&'static str>,
    pub end: End,
    pub stderr: String,
}

/// Bit of the stop signal that marks the stop of a system call.
const SYSCALL_STOP: c_int = 0x80;

/// Runs the program with `words` in `place`, with `fault` at the call of that number.
#[allow(clippy::zombie_processes, reason = "it is waited for by its number, as its threads are")]
pub fn traced(place: &Path, words: &[&str], fault: Option<(usize, Fault<'_>)>) -> Run {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("lorakit"));
    command.args(words).current_dir(place).env("NO_COLOR", "1").env_remove("HF_HOME");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: between fork and exec one system call is made, which allocates nothing.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().expect("the program can be started under ptrace");
    let main = pid_t::try_from(child.id()).unwrap();
    let (first, _) = wait(main).expect("it stops at its first instruction");
    assert_eq!(first, main);
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACECLONE;
    ptrace(libc::PTRACE_SETOPTIONS, main, options.into()).expect("options of ptrace");
    resume(main, 0);

    let mut calls = Vec::new();
    // Of every thread inside a call: what is to be done at its end.
    let mut inside: HashMap<pid_t, Option<AtEnd>> = HashMap::new();
    let end = loop {
        let (thread, status) = wait(-1).expect("the program has not ended yet");
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            if thread != main {
                continue;
            }
            break if libc::WIFEXITED(status) {
                End::Code(libc::WEXITSTATUS(status))
            } else {
                End::Signal(libc::WTERMSIG(status))
            };
        }
        let signal = libc::WSTOPSIG(status);
        if signal != libc::SIGTRAP | SYSCALL_STOP {
            // The stop of a new thread or at its birth is ours, every other signal the program's.
            let ours = status >> 16 != 0 || signal == libc::SIGTRAP || signal == libc::SIGSTOP;
            resume(thread, if ours { 0 } else { signal });
            continue;
        }
        if let Some(at_end) = inside.remove(&thread) {
            match at_end {
                Some(AtEnd::Fail(errno)) => {
                    let mut registers = registers(thread);
                    registers.rax = u64::from(errno.unsigned_abs()).wrapping_neg();
                    set_registers(thread, registers);
                }
                Some(AtEnd::Kill) => kill(main),
                None => {}
            }
        } else {
            let mut registers = registers(thread);
            let mut at_end = None;
            if let Some(name) = changes_files(&registers) {
                if let Some((_, fault)) = fault.filter(|(at, _)| *at == calls.len()) {
                    match fault {
                        Fault::Kill => kill(main),
                        Fault::KillBehind => at_end = Some(AtEnd::Kill),
                        Fault::Fail(errno) => {
                            // No call has this number, so none is made.
                            registers.orig_rax = u64::MAX;
                            set_registers(thread, registers);
                            at_end = Some(AtEnd::Fail(errno));
                        }
                        Fault::Overwrite(input) => overwrite(&place.join(input)),
                        Fault::Replace(input) => replace(&place.join(input)),
                        Fault::Remove(input) => fs::remove_file(place.join(input)).unwrap(),
                    }
                }
                calls.push(name);
            }
            inside.insert(thread, at_end);
        }
        resume(thread, 0);
    };
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    Run { calls, end, stderr }
}

enum AtEnd {
    Fail(c_int),
    Kill,
}

/// The name of a call that changes a file, or would: writes to the standard streams are none.
fn changes_files(registers: &user_regs_struct) -> Option<&'static str> {
    let creates = |flags: u64| flags & u64::from((libc::O_CREAT | libc::O_TRUNC).unsigned_abs()) != 0;
    let is_file = registers.rdi > 2;
    let number = c_long::try_from(registers.orig_rax).ok()?;
    match number {
        libc::SYS_open if creates(registers.rsi) => Some("open"),
        libc::SYS_openat if creates(registers.rdx) => Some("openat"),
        libc::SYS_creat => Some("creat"),
        libc::SYS_mkdir | libc::SYS_mkdirat => Some("mkdir"),
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => Some("rename"),
        libc::SYS_unlink | libc::SYS_unlinkat => Some("unlink"),
        libc::SYS_rmdir => Some("rmdir"),
        libc::SYS_truncate | libc::SYS_ftruncate => Some("truncate"),
        libc::SYS_fallocate => Some("fallocate"),
        libc::SYS_write | libc::SYS_writev if is_file => Some("write"),
        libc::SYS_pwrite64 | libc::SYS_pwritev | libc::SYS_pwritev2 => Some("pwrite"),
        libc::SYS_copy_file_range => Some("copy_file_range"),
        libc::SYS_sendfile if is_file => Some("sendfile"),
        libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_sync_file_range => Some("fsync"),
        libc::SYS_link | libc::SYS_linkat => Some("link"),
        libc::SYS_symlink | libc::SYS_symlinkat => Some("symlink"),
        libc::SYS_chmod | libc::SYS_fchmod | libc::SYS_fchmodat => Some("chmod"),
        _ => None,
    }
}

/// Every byte of the second half is another one.
fn changed(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].iter_mut().for_each(|byte| *byte ^= 1);
    bytes
}

fn overwrite(path: &Path) {
    use std::os::unix::fs::FileExt;
    let bytes = changed(path);
    fs::File::options().write(true).open(path).unwrap().write_all_at(&bytes, 0).unwrap();
}

fn replace(path: &Path) {
    let other = path.with_extension("other");
    fs::write(&other, changed(path)).unwrap();
    fs::rename(other, path).unwrap();
}

/// Waits for a child of this thread, `which` or any.
fn wait(which: pid_t) -> std::io::Result<(pid_t, c_int)> {
    let mut status = 0;
    loop {
        // SAFETY: the status is a number on this stack.
        let found = unsafe { libc::waitpid(which, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        if found >= 0 {
            return Ok((found, status));
        }
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}

fn ptrace(request: libc::c_uint, thread: pid_t, data: c_long) -> std::io::Result<()> {
    // SAFETY: these requests take a number and touch no memory of ours.
    match unsafe { libc::ptrace(request, thread, ptr::null_mut::<libc::c_void>(), data) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Lets a thread run to its next call. One that was killed meanwhile cannot.
fn resume(thread: pid_t, signal: c_int) {
    let _ = ptrace(libc::PTRACE_SYSCALL, thread, signal.into());
}

fn kill(process: pid_t) {
    // SAFETY: a signal to a child that was not waited for.
    unsafe { libc::kill(process, libc::SIGKILL) };
}

fn registers(thread: pid_t) -> user_regs_struct {
    let mut registers = MaybeUninit::<user_regs_struct>::zeroed();
    // SAFETY: the structure is what the request fills, and zeros are a value of it.
    unsafe {
        libc::ptrace(libc::PTRACE_GETREGS, thread, ptr::null_mut::<libc::c_void>(), registers.as_mut_ptr());
        registers.assume_init()
    }
}

fn set_registers(thread: pid_t, registers: user_regs_struct) {
    // SAFETY: the structure outlives the call, which reads it.
    unsafe { libc::ptrace(libc::PTRACE_SETREGS, thread, ptr::null_mut::<libc::c_void>(), &raw const registers) };
}
