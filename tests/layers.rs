//! Keeps the drawing of the rooms true: every `use crate::` and `lorakit::` goes downward, and the crates that belong to one
//! room are named nowhere else.

#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// Rooms by layer; a room may import rooms of lower layers only.
const LAYERS: [(&str, u32); 23] = [
    ("error", 0),
    ("limits", 0),
    ("interrupt", 1),
    ("tensor", 1),
    ("io", 2),
    ("linalg", 2),
    ("naming", 2),
    ("formats", 3),
    ("llama", 4),
    ("adapters", 5),
    ("plan", 5),
    ("model", 6),
    ("pairs", 6),
    ("dialects", 7),
    ("placement", 8),
    ("output", 9),
    ("inserted", 10),
    ("truncate", 9),
    ("ops", 11),
    ("face", 12),
    ("report", 12),
    ("cli", 13),
    ("main", 14),
];

/// Crates that only some rooms may name.
const OWNED: [(&str, &[&str]); 7] = [
    ("clap", &["cli"]),
    ("indicatif", &["cli"]),
    ("ndarray", &["linalg"]),
    ("faer", &["linalg"]),
    ("ndarray_linalg", &["linalg"]),
    ("memmap2", &["io"]),
    ("comfy_table", &["report"]),
];

fn layer(room: &str) -> Option<u32> {
    LAYERS.iter().find(|(name, _)| *name == room).map(|(_, layer)| *layer)
}

/// Source files with the room they belong to.
fn sources() -> Vec<(String, PathBuf)> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    let room = |path: &Path| {
        let first = path.strip_prefix(&root).unwrap().components().next().unwrap();
        first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
    };
    found.into_iter().map(|path| (room(&path), path)).filter(|(room, _)| room != "lib").collect()
}

/// The code of a file without its comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_file_belongs_to_a_room_on_the_drawing() {
    for (room, path) in sources() {
        assert!(layer(&room).is_some(), "{}: room `{room}` is not on the drawing", path.display());
    }
}

#[test]
fn rooms_import_downward_only() {
    let import = Regex::new(r"\b(?:crate|lorakit)::(\w+)").unwrap();
    let grouped = Regex::new(r"\b(?:crate|lorakit)::\{([^}]*)\}").unwrap();
    let mut checked = 0;
    for (room, path) in sources() {
        let code = code(&path);
        let singles = import.captures_iter(&code).map(|found| found[1].to_owned());
        let groups = grouped.captures_iter(&code).flat_map(|found| {
            found[1].split(',').map(|name| name.trim().split("::").next().unwrap().to_owned()).collect::<Vec<_>>()
        });
        for other in singles.chain(groups) {
            let Some(theirs) = layer(&other) else { continue };
            checked += 1;
            let down = theirs < layer(&room).unwrap();
            assert!(other == room || down, "{}: `{room}` imports `{other}`, which is not below it", path.display());
        }
    }
    assert!(checked > 100, "only {checked} imports were found: the pattern is out of date");
}

#[test]
fn crates_stay_in_their_rooms() {
    for (name, rooms) in OWNED {
        let used = Regex::new(&format!(r"\b{name}::")).unwrap();
        for (room, path) in sources() {
            assert!(rooms.contains(&room.as_str()) || !used.is_match(&code(&path)), "{}: uses {name}", path.display());
        }
    }
}

/// What several verbs share: all else in `ops` is a verb, a folder or a file.
const SHARED: [&str; 1] = ["mod"];

/// The names in `ops` that are verbs.
fn verbs() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let names = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let stems = names.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned());
    stems.filter(|name| !SHARED.contains(&name.as_str())).collect()
}

#[test]
fn no_verb_imports_another_verb() {
    let import = Regex::new(r"\b(?:crate::ops|super|super::super|super::super::super)::(\w+)").unwrap();
    let verbs = verbs();
    let mut checked = 0;
    for (_, path) in sources().into_iter().filter(|(room, _)| room == "ops") {
        let place = path.to_string_lossy().replace('\\', "/");
        let Some((_, below)) = place.split_once("/src/ops/") else { continue };
        let own = below.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        if !verbs.contains(&own) {
            continue;
        }
        checked += 1;
        for found in import.captures_iter(&code(&path)) {
            let other = &found[1];
            let is_own_file =
                path.with_file_name(format!("{other}.rs")).is_file() || path.with_file_name(other).is_dir();
            let through_root = found[0].starts_with("crate::ops") || !is_own_file;
            let foreign = verbs.contains(other) && other != own && through_root;
            assert!(!foreign, "{below}: `{own}` imports the verb `{other}`");
        }
    }
    assert!(checked > 50, "only {checked} files of verbs were found");
}

#[test]
fn unsafe_code_stays_where_it_is_explained() {
    let allowed = ["io/mapped.rs", "tensor/simd.rs", "src/interrupt.rs"];
    let used = Regex::new(r"\bunsafe\b").unwrap();
    for (_, path) in sources() {
        let place = path.to_string_lossy().into_owned();
        assert!(allowed.iter().any(|end| place.ends_with(end)) || !used.is_match(&code(&path)), "{place}: unsafe");
    }
}

#[test]
fn no_file_passes_the_hard_stop() {
    for (_, path) in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        assert!(lines <= 500, "{}: {lines} lines without tests", path.display());
    }
}
