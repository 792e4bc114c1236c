//! Files that import each other in a circle can only be read together: a circle stays small.
//!
//! An import is followed to the file that holds the name, through what a `mod.rs` hands on.

#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use regex::Regex;

/// Most files of one circle.
const MOST: usize = 6;

/// Module path → text without comments and tests.
fn modules() -> BTreeMap<Vec<String>, String> {
    fn walk(directory: &Path, path: &[String], found: &mut BTreeMap<Vec<String>, String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap().path();
            let stem = entry.file_stem().unwrap().to_string_lossy().into_owned();
            let mut own = path.to_vec();
            if entry.is_dir() {
                own.push(stem);
                walk(&entry, &own, found);
            } else if entry.extension().is_some_and(|ending| ending == "rs") {
                if !["mod", "lib"].contains(&stem.as_str()) {
                    own.push(stem);
                }
                let text = fs::read_to_string(&entry).unwrap();
                let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap().lines();
                let code: Vec<&str> = text.filter(|line| !line.trim_start().starts_with("//")).collect();
                found.insert(own, code.join("\n"));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[], &mut found);
    found
}

/// The paths that the `use` declarations of a text name, each from the root of the crate, with whether it hands them on.
fn imports(module: &[String], text: &str, use_of: &Regex) -> Vec<(Vec<String>, bool)> {
    fn spread(prefix: &str, tree: &str, found: &mut Vec<String>) {
        let Some((before, rest)) = tree.split_once('{') else {
            return found.push(format!("{prefix}{}", tree.split(" as ").next().unwrap().trim()));
        };
        let prefix = format!("{prefix}{}", before.trim());
        let (mut depth, mut begin) = (0, 0);
        let inner = rest.trim_end().trim_end_matches('}');
        for (at, letter) in inner.char_indices().chain([(inner.len(), ',')]) {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    let one = inner[begin..at].trim();
                    if !one.is_empty() {
                        spread(&prefix, one, found);
                    }
                    begin = at + 1;
                }
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    for declaration in use_of.captures_iter(text) {
        let mut paths = Vec::new();
        spread("", &declaration[2].replace('\n', " "), &mut paths);
        for path in paths {
            let mut parts: Vec<String> = path.split("::").map(|part| part.trim().to_owned()).collect();
            parts.retain(|part| part != "self" || parts_begin_with_self(&path));
            let mut from: Vec<String> = match parts[0].as_str() {
                "crate" => Vec::new(),
                "super" => {
                    let ups = parts.iter().take_while(|part| *part == "super").count();
                    module[..module.len() - ups].to_vec()
                }
                _ => module.to_vec(),
            };
            from.extend(parts.into_iter().skip_while(|part| ["crate", "super", "self"].contains(&part.as_str())));
            found.push((from, declaration.get(1).is_some()));
        }
    }
    found
}

fn parts_begin_with_self(path: &str) -> bool {
    path.starts_with("self::")
}

/// The file that holds `path`, from the root of the crate.
fn home<'a>(
    path: &[String],
    all: &'a BTreeMap<Vec<String>, String>,
    handed: &BTreeMap<Vec<String>, Vec<String>>,
    depth: usize,
) -> Option<&'a Vec<String>> {
    if let Some(elsewhere) = handed.get(path).filter(|elsewhere| *elsewhere != path && depth < 8) {
        return home(elsewhere, all, handed, depth + 1);
    }
    (1..=path.len()).rev().find_map(|length| all.get_key_value(&path[..length])).map(|(module, _)| module)
}

#[test]
fn circles_of_files_stay_small() {
    let use_of = Regex::new(r"(?m)^\s*(pub(?:\([^)]*\))? )?use ([^;]+);").unwrap();
    let all = modules();
    let mut handed = BTreeMap::new();
    for (module, text) in &all {
        for (path, _) in imports(module, text, &use_of).into_iter().filter(|(_, on)| *on) {
            let mut name = module.clone();
            name.push(path.last().unwrap().clone());
            handed.insert(name, path);
        }
    }
    let mut edges: BTreeMap<&Vec<String>, BTreeSet<&Vec<String>>> = BTreeMap::new();
    for (module, text) in &all {
        for (path, on) in imports(module, text, &use_of) {
            if let Some(other) = home(&path, &all, &handed, 0).filter(|other| *other != module && !on) {
                edges.entry(module).or_default().insert(other);
            }
        }
    }
    let reach = |from: &Vec<String>| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(one) = next.pop() {
            for other in edges.get(&one).into_iter().flatten() {
                if seen.insert((*other).clone()) {
                    next.push((*other).clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<_, _> = all.keys().map(|module| (module, reach(module))).collect();
    let count: usize = edges.values().map(BTreeSet::len).sum();
    assert!(count > 500, "only {count} imports were followed: the pattern is out of date");
    for (module, seen) in &reached {
        let circle: Vec<String> = seen
            .iter()
            .filter(|other| reached.get(other).is_some_and(|back| back.contains(*module)))
            .map(|other| other.join("/"))
            .collect();
        assert!(circle.len() <= MOST, "a circle of {} files: {}", circle.len(), circle.join(", "));
    }
}
