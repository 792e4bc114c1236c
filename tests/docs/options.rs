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

/// Groups in the order of a page; `Options` are the everyday ones.
const GROUPS: [&str; 8] = ["Arguments", "Options", "Rank", "Intruders", "Selection", "Precision", "Advanced", "Output"];

/// One table for each group of options.
fn tables(help: &str) -> String {
    let mut groups: Vec<(&str, Vec<Row>)> = Vec::new();
    for line in help.lines() {
        let heading = line.strip_suffix(':').filter(|line| !line.starts_with(' '));
        match (heading, groups.last_mut()) {
            (Some(heading), _) => groups.push((heading, Vec::new())),
            (None, Some((_, rows))) => read(line, rows),
            (None, None) => {}
        }
    }
    groups.retain(|(heading, rows)| *heading != "Examples" && !rows.is_empty());
    let place = |heading: &str| GROUPS.iter().position(|known| *known == heading).expect("a group of the help");
    groups.sort_by_key(|(heading, _)| place(heading));
    let mut text = String::new();
    for (heading, rows) in groups {
        let title = if heading == "Options" { "Everyday" } else { heading };
        text.push_str(&format!("\n**{title}**\n\n| option | meaning |\n|---|---|\n"));
        rows.iter().filter(|row| !row.is_everywhere()).for_each(|row| text.push_str(&row.shown()));
    }
    text.push('\n');
    text
}

/// An option as the help shows it: how it is written, what it does, and its values, each with what it does.
struct Row {
    option: String,
    meaning: String,
    values: Vec<String>,
}

impl Row {
    /// What every verb has, and nobody looks up.
    fn is_everywhere(&self) -> bool {
        self.option.ends_with("--help") || self.option.ends_with("--version")
    }

    fn shown(&self) -> String {
        let values: Vec<String> = self.values.iter().map(|value| cell(value)).collect();
        let values = if values.is_empty() { String::new() } else { format!("<br>{}", values.join("<br>")) };
        format!("| `{}` | {}{values} |\n", self.option.replace('|', r"\|"), cell(&self.meaning))
    }
}

/// A line of the help: a new option, or more about the last one.
fn read(line: &str, rows: &mut Vec<Row>) {
    let (words, depth) = (line.trim(), line.len() - line.trim_start().len());
    if words.is_empty() || words == "Possible values:" {
        return;
    }
    if depth <= 6 && words.starts_with(['-', '<', '[']) {
        let (option, meaning) = words.split_once("  ").unwrap_or((words, ""));
        let (option, meaning) = (option.trim().to_owned(), meaning.trim().to_owned());
        return rows.push(Row { option, meaning, values: Vec::new() });
    }
    let Some(row) = rows.last_mut() else { return };
    match (words.strip_prefix("- "), row.values.last_mut()) {
        (Some(value), _) => {
            let (name, meaning) = value.split_once(':').unwrap_or((value, ""));
            row.values.push(format!("`{name}`: {}", meaning.trim()));
        }
        (None, Some(value)) if !words.starts_with('[') => {
            value.push(' ');
            value.push_str(words);
        }
        (None, _) => {
            let space = if row.meaning.is_empty() { "" } else { " " };
            row.meaning = format!("{}{space}{words}", row.meaning);
        }
    }
}

/// Text of the help in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', r"\|").replace('<', "&lt;").replace('*', r"\*")
}
