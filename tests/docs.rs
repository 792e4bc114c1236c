//! The pages that users read, held to the program: commands of README and guides run on the fixtures and print what the pages
//! show, tables of options are those of `--help`, keys of reports are documented, links lead somewhere, sentences are short.
//!
//! `LORAKIT_UPDATE_DOCS=1 cargo test --test docs` writes outputs, tables and the picture anew; `tests/docs/README.md` tells how
//! a page is written.

#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::fs;
use std::path::{Path, PathBuf};

#[path = "docs/commands.rs"]
mod commands;
#[path = "docs/keys.rs"]
mod keys;
#[path = "docs/links.rs"]
mod links;
#[path = "docs/options.rs"]
mod options;
#[path = "docs/page.rs"]
mod page;
#[path = "docs/picture.rs"]
mod picture;
#[path = "docs/words.rs"]
mod words;

/// The checkout.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Whether pages are to be written anew.
fn updates() -> bool {
    std::env::var_os("LORAKIT_UPDATE_DOCS").is_some_and(|value| !value.is_empty() && value != "0")
}

/// README.md and the guides, by name.
fn user_pages() -> Vec<PathBuf> {
    let mut pages = pages_of("docs/guides");
    pages.insert(0, root().join("README.md"));
    pages
}

/// The pages of a folder, by name.
fn pages_of(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut pages: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    pages.retain(|path| path.extension().is_some_and(|ending| ending == "md"));
    pages.sort();
    pages
}

/// Holds a page against what it should be: writes that, or fails with the first line that differs.
fn hold(path: &Path, is: &str, should: &str) -> Result<(), String> {
    if is == should {
        return Ok(());
    }
    if updates() {
        fs::write(path, should).unwrap();
        return Ok(());
    }
    let at = is
        .lines()
        .zip(should.lines())
        .position(|(a, b)| a != b)
        .unwrap_or(is.lines().count().min(should.lines().count()));
    let line = |text: &str| text.lines().nth(at).unwrap_or("(end of the page)").to_owned();
    let name = path.strip_prefix(root()).unwrap_or(path).display();
    Err(format!("{name}:{}\n  page:  {}\n  today: {}", at + 1, line(is), line(should)))
}

/// Fails with all problems at once.
fn none(problems: &[String]) {
    assert!(
        problems.is_empty(),
        "{}\n\n`LORAKIT_UPDATE_DOCS=1 cargo test --test docs` writes outputs and tables anew",
        problems.join("\n")
    );
}
