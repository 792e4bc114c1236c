//! Links between the pages lead to pages and headings that there are, and the index leads to every page.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

use crate::{none, pages_of, root};

/// All pages that are for reading.
fn pages() -> Vec<PathBuf> {
    let folders = ["docs", "docs/guides", "docs/reference", "docs/inside", "docs/inside/decisions"];
    let mut pages: Vec<PathBuf> = folders.iter().flat_map(|folder| pages_of(folder)).collect();
    pages.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(|name| root().join(name)));
    pages
}

#[test]
fn every_link_leads_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let mut problems = Vec::new();
    for page in pages() {
        let text = prose(&fs::read_to_string(&page).unwrap());
        for found in link.captures_iter(&text) {
            let target = &found[1];
            if target.starts_with("https://") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let leads_to = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let name = page.strip_prefix(root()).unwrap().display();
            if !leads_to.exists() {
                problems.push(format!("{name}: {target} is not there"));
            } else if !anchor.is_empty() && !anchors(&leads_to).iter().any(|own| own == anchor) {
                problems.push(format!("{name}: {target}: no such heading"));
            }
        }
    }
    none(&problems);
}

#[test]
fn the_index_leads_to_every_page() {
    let index = fs::read_to_string(root().join("docs/README.md")).unwrap();
    for folder in ["guides", "reference", "inside"] {
        for page in pages_of(&format!("docs/{folder}")) {
            let link = format!("({folder}/{})", page.file_name().unwrap().to_str().unwrap());
            assert!(index.contains(&link), "docs/README.md has no link {link}");
        }
    }
}

/// The page without its blocks.
pub fn prose(text: &str) -> String {
    let mut in_block = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim().starts_with("```");
        in_block ^= is_fence;
        !in_block && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Anchors of the headings, as the hosts of repositories make them, and those that a page sets itself.
fn anchors(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap_or_default();
    let own = Regex::new(r#"<a id="([^"]+)">"#).unwrap();
    let mut found: Vec<String> = own.captures_iter(&text).map(|found| found[1].to_owned()).collect();
    for heading in prose(&text).lines().filter(|line| line.starts_with('#')) {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
        found.push(kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect());
    }
    found
}
