//! Several models and adapters: one line each.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::adapter::method;
use super::numbers::count;
use super::page::{Page, WIDTH, shorten};
use crate::dialects::Dialect;
use crate::ops::inspect::{AdapterFacts, Entry, Inspection};
use crate::report::{shown, size, table_of_texts};

/// Fewest columns of a path.
const MIN_PATH: usize = 20;

/// Most columns of a method.
const MAX_METHOD: usize = 20;

/// Columns of texts: path and what it is.
const TEXTS: usize = 2;

/// Columns between columns.
const GAPS: usize = 2;

/// The table, under `!` the number of problems; what could not be read stands after it.
pub fn table(entries: &[Entry]) -> String {
    const HEADER: [&str; 6] = ["path", "what", "rank", "params", "size", "!"];
    let found = entries.iter().filter_map(|entry| match entry {
        Entry::Found(found) => Some(found),
        Entry::Failed { .. } => None,
    });
    let mut rows: Vec<Vec<String>> = found.map(row).collect();
    let common = common_folder(&rows);
    let width = |at: usize| rows.iter().map(|row| row[at].width()).chain([HEADER[at].len()]).max().unwrap_or(0);
    let others: usize = (1..HEADER.len()).map(|at| width(at) + GAPS).sum();
    let room = WIDTH.saturating_sub(others + GAPS).max(MIN_PATH);
    rows.iter_mut().for_each(|row| row[0] = ending(&row[0][common.len()..], room));
    let mut page = Page::default();
    if !common.is_empty() {
        page.title(&format!("in {common}"));
    }
    if !rows.is_empty() {
        page.text.push_str(&table_of_texts(&HEADER, rows, TEXTS));
    }
    for entry in entries {
        if let Entry::Failed { error, .. } = entry {
            page.line("error", error);
        }
    }
    page.text
}

/// The folder that all paths begin with, with its slash; nothing for a single path.
fn common_folder(rows: &[Vec<String>]) -> String {
    let mut paths = rows.iter().map(|row| row[0].as_str());
    let (Some(first), true) = (paths.next(), rows.len() > 1) else { return String::new() };
    let shared = paths.fold(first.len(), |shared, path| {
        let same = first.char_indices().zip(path.chars()).take_while(|((_, left), right)| left == right);
        shared.min(same.last().map_or(0, |((at, letter), _)| at + letter.len_utf8()))
    });
    first[..shared].rfind('/').map_or(String::new(), |slash| first[..=slash].to_owned())
}

/// The end of a path, in at most `most` columns: that is where paths differ.
fn ending(path: &str, most: usize) -> String {
    if path.width() <= most {
        return path.to_owned();
    }
    let mut width = 1;
    let fits = |letter: &(usize, char)| {
        width += letter.1.width().unwrap_or(1);
        width <= most
    };
    let start = path.char_indices().rev().take_while(fits).last().map_or(path.len(), |(at, _)| at);
    format!("…{}", &path[start..])
}

fn row(found: &Inspection) -> Vec<String> {
    let weights = found.weights();
    let (path, what, rank, elements) = match found {
        Inspection::Checkpoint(facts) => {
            let said = facts.gguf.as_ref().and_then(|own| own.architecture.clone());
            let model = said.or_else(|| facts.model_type.clone()).or_else(|| facts.architectures.first().cloned());
            let guessed = facts.family.and_then(|family| family.split(',').next());
            let model = model.or_else(|| guessed.map(str::to_owned));
            let what = model.map_or_else(|| "checkpoint".to_owned(), |model| format!("model {model}"));
            (&facts.path, what, String::new(), weights.parameters)
        }
        Inspection::Adapter(facts) => {
            let what = format!("{} {}", Dialect::of(facts.dialect).title, method(facts));
            (&facts.path, what, ranks(facts), facts.trainable_parameters)
        }
    };
    let problems = match found.problems().len() {
        0 => String::new(),
        some => some.to_string(),
    };
    let what = shorten(&what, MAX_METHOD);
    vec![shown(path), what, rank, count(elements), size(weights.file_bytes()), problems]
}

fn ranks(facts: &AdapterFacts) -> String {
    let ranks = facts.module_groups.iter().filter_map(|group| group.rank);
    match (ranks.clone().min(), ranks.max()) {
        (Some(least), Some(most)) if least == most => least.to_string(),
        (Some(least), Some(most)) => format!("{least}–{most}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_their_common_folder_and_keep_their_end() {
        let rows: Vec<Vec<String>> = ["/a/bé/x1", "/a/bé/x2/y"].map(|path| vec![path.to_owned()]).to_vec();
        assert_eq!(common_folder(&rows), "/a/bé/");
        assert_eq!(common_folder(&rows[..1]), "");
        assert_eq!(ending("some/long/path", 8), "…ng/path");
        assert_eq!(ending("漢字漢字", 5), "…漢字");
    }
}
