//! `docs/report.svg`: the first command of README as a terminal shows it, drawn from what the program prints with `--color always`.

use std::process::Command;

use crate::commands::masked;
use crate::{hold, root, updates};

/// Typed in the checkout; OUT is somewhere else.
const TYPED: &str = "lorakit merge fixtures/tiny/base fixtures/tiny/adapter -o merged";

/// Sizes in px: a letter of the font at its size, a line, the border.
const LETTER: usize = 8;
const LINE: usize = 20;
const BORDER: usize = 18;

#[test]
fn the_picture_is_what_the_program_prints() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("fixtures"), folder.path().join("fixtures")).unwrap();
    let words: Vec<&str> = TYPED.split(' ').skip(1).collect();
    let output = Command::new(env!("CARGO_BIN_EXE_lorakit"))
        .args(["--color", "always"])
        .args(words)
        .env_remove("NO_COLOR")
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success());
    let today = drawn(&String::from_utf8(output.stdout).unwrap());
    let path = root().join("docs/report.svg");
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    if masked(&old) == masked(&today) {
        return;
    }
    let held = hold(&path, &old, &today);
    assert!(updates() || held.is_ok(), "{}", held.unwrap_err());
}

#[test]
fn colours_and_letters_of_a_picture() {
    let picture = drawn("\u{1b}[1mmerged\u{1b}[0m a < b");
    assert!(picture.contains(r#"<tspan class="b">merged</tspan> a &lt; b</text>"#), "{picture}");
}

/// A terminal with the command and `printed` in it.
fn drawn(printed: &str) -> String {
    let lines: Vec<&str> = printed.trim_end().lines().collect();
    let plain = |line: &str| spans(line).iter().map(|(_, text)| text.chars().count()).sum::<usize>();
    let columns = lines.iter().map(|line| plain(line)).chain([TYPED.len() + 2]).max().unwrap_or(0);
    let (width, height) = (columns * LETTER + 2 * BORDER, (lines.len() + 1) * LINE + 2 * BORDER);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" aria-label=\"The report of a merge in a terminal\">\n\
         <style>text {{ font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #d4d4d4; white-space: pre }} \
         .b {{ font-weight: bold; fill: #fff }} .d {{ fill: #8a8a8a }} .r {{ fill: #f48771 }} .g {{ fill: #8cd88c }} \
         .y {{ fill: #e5c07b }} .c {{ fill: #6cc7d9 }}</style>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#1e1e1e\"/>\n"
    );
    let typed = format!("\u{1b}[2m$\u{1b}[0m {TYPED}");
    for (at, line) in std::iter::once(typed.as_str()).chain(lines).enumerate() {
        let y = BORDER + LINE * at + LINE * 3 / 4;
        svg.push_str(&format!("<text x=\"{BORDER}\" y=\"{y}\" xml:space=\"preserve\">"));
        for (class, text) in spans(line) {
            let text = text.replace('&', "&amp;").replace('<', "&lt;");
            match class {
                "" => svg.push_str(&text),
                class => svg.push_str(&format!("<tspan class=\"{class}\">{text}</tspan>")),
            }
        }
        svg.push_str("</text>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

/// The pieces of a line by the style that the escape in front of each sets.
fn spans(line: &str) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut class = "";
    for (at, piece) in line.split("\u{1b}[").enumerate() {
        let text = match (at, piece.split_once('m')) {
            (0, _) | (_, None) => piece,
            (_, Some((codes, text))) => {
                class = codes.split(';').fold(class, |before, code| match code {
                    "0" | "" => "",
                    "1" if before.is_empty() => "b",
                    "2" => "d",
                    "31" | "91" => "r",
                    "32" | "92" => "g",
                    "33" | "93" => "y",
                    "34" | "36" | "94" | "96" => "c",
                    _ => before,
                });
                text
            }
        };
        if !text.is_empty() {
            found.push((class, text.to_owned()));
        }
    }
    found
}
