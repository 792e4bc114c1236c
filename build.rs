//! Tells the tests what this machine has, so that cargo reports as ignored what cannot run here.
//!
//! The program and the library do not depend on it, and the packaged crate, which holds no tests, comes without it.
//!
//! | `cfg` | when | without it |
//! |---|---|---|
//! | `reference` | `../shared/reference` exists, and `LORAKIT_NO_REFERENCE` is not set | tests against the whole reference data |
//! | `portable` | `LORAKIT_PORTABLE` is set | Linux takes Linux's calls: `src/io/system.rs` |
//! | `mounts` | Linux lets this process mount | tests of full disks |

use std::path::Path;

const REFERENCE: &str = "../shared/reference";
/// Set to anything, tests run as if the reference data were not there.
const WITHOUT: &str = "LORAKIT_NO_REFERENCE";
/// Set to anything, Linux takes the ways that go everywhere, as with `RUSTFLAGS="--cfg portable"`, and no dependency is built anew.
const PORTABLE: &str = "LORAKIT_PORTABLE";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={WITHOUT}");
    if Path::new(REFERENCE).is_dir() {
        // One file and not the folder, which cargo would walk. A path that does not exist would build anew every time.
        println!("cargo::rerun-if-changed={REFERENCE}/README.md");
        if std::env::var_os(WITHOUT).is_none() {
            println!("cargo::rustc-cfg=reference");
        }
    }
    println!("cargo::rerun-if-env-changed={PORTABLE}");
    if std::env::var_os(PORTABLE).is_some() {
        println!("cargo::rustc-cfg=portable");
    }
    if may_mount() {
        println!("cargo::rustc-cfg=mounts");
    }
}

/// Whether this process has `CAP_SYS_ADMIN`, bit 21 (linux/capability.h).
fn may_mount() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).is_some_and(|bits| bits >> 21 & 1 == 1)
}
