//! The tables of options in `docs/reference/<verb>.md` are those of `lorakit <verb> --help`.

use std::path::Path;
use std::process::Command;

use crate::{hold, none, root};

/// Verbs with a page of their own.
const VERBS: [&str; 8] = ["merge", "extract", "stack", "subtract", "resize", "convert", "inspect", "finish"];

const BEGIN: &str = "<!-- options -->";
const END: &str = "<!-- end of options -->";

#[test]
fn every_table_of_options_is_that_of_the_help() {
    let mut problems = Vec::new();
    for verb in VERBS {
        let path = root().join(format!("docs/reference/{verb}.md"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (before, rest) = text.split_once(BEGIN).unwrap_or_else(|| panic!("{verb}.md has no `{BEGIN}`"));
        let (_, after) = rest.split_once(END).unwrap_or_else(|| panic!("{verb}.md has no `{END}`"));
        let should = format!("{before}{BEGIN}\n{}{END}{after}", tables(&help(verb)));
        problems.extend(hold(&path, &text, &should).err());
    }
    none(&problems);
}

#[test]
fn every_verb_has_a_page() {
    let help = help("");
    let (_, verbs) = help.split_once("Commands:\n").unwrap();
    // Deeper lines go on with what stands above.
    let lines = verbs.lines().take_while(|line| line.starts_with("  ")).filter(|line| !line.starts_with("   "));
    let names = lines.filter_map(|line| line.split_whitespace().next());
    let without_page = ["completions", "man", "help"];
    let names: Vec<&str> = names.filter(|name| !without_page.contains(name)).collect();
    let mut expected = VERBS.to_vec();
    expected.sort_unstable();
    let mut found = names.clone();
    found.sort_unstable();
    assert_eq!(found, expected);
}

/// What `lorakit VERB --help` prints.
fn help(verb: &str) -> String {
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_lorakit")));
    command.args((!verb.is_empty()).then_some(verb)).arg("--help").env("COLUMNS", "100");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{verb} --help");
    String::from_utf8(output.stdout).unwrap()
}

/// One table for each group of options.
fn tables(help: &str) -> String {
    let mut text = String::new();
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut heading: Option<String> = None;
    for line in help.lines().chain(std::iter::once("end:")) {
        let is_heading = line.ends_with(':') && !line.starts_with(' ');
        if is_heading {
            if let Some(title) = heading.filter(|_| !rows.is_empty()) {
                text.push_str(&format!("\n**{title}**\n\n| option | meaning |\n|---|---|\n"));
                rows.iter().for_each(|(option, meaning)| text.push_str(&format!("| `{option}` | {meaning} |\n")));
            }
            rows.clear();
            let title = line.trim_end_matches(':');
            heading = (title != "Examples")
                .then(|| if title == "Options" { "Everyday".to_owned() } else { title.to_owned() });
        } else if heading.is_some() {
            row(line, &mut rows);
        }
    }
    text.push('\n');
    text
}

/// A line of the help: a new option, or more about the last one.
fn row(line: &str, rows: &mut Vec<(String, String)>) {
    let (words, depth) = (line.trim(), line.len() - line.trim_start().len());
    let begins = depth <= 6 && words.starts_with(['-', '<', '[']);
    if words.is_empty() {
    } else if begins {
        let (option, meaning) = words.split_once("  ").unwrap_or((words, ""));
        rows.push((option.trim().replace('|', r"\|"), cell(meaning)));
    } else if let Some((_, meaning)) = rows.last_mut() {
        if !meaning.is_empty() {
            meaning.push(' ');
        }
        meaning.push_str(&cell(words));
    }
}

/// Text of the help in a cell of a table.
fn cell(text: &str) -> String {
    text.trim().replace('|', r"\|").replace('<', "&lt;").replace('*', r"\*")
}
