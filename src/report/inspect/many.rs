//! Several models and adapters: one line each.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::adapter::{base, method};
use super::numbers::{count, plural};
use super::page::{Page, shorten};
use crate::dialects::Dialect;
use crate::ops::inspect::{AdapterFacts, Entry, Inspection};
use crate::report::{shown, size, table_of_texts};

/// Fewest columns of a path.
const MIN_PATH: usize = 20;

/// Columns that are left away where no line has anything to say in them.
const HEADER: [&str; 8] = ["what", "type", "rank", "params", "size", "problems", "base", "path"];

/// Where names of bases and paths stand.
const BASE: usize = 6;
const PATH: usize = 7;

/// Columns between columns.
const GAPS: usize = 2;

/// Most columns of a base on a terminal.
const MAX_BASE: usize = 24;

/// The table, the path last; what could not be read stands after it. On a terminal of `width` columns long names are cut.
pub fn table(entries: &[Entry], width: Option<usize>) -> String {
    let found = entries.iter().filter_map(|entry| match entry {
        Entry::Found(found) => Some(found),
        Entry::Failed { .. } => None,
    });
    let mut rows: Vec<Vec<String>> = found.map(row).collect();
    let common = common_folder(&rows);
    rows.iter_mut().for_each(|row| row[PATH] = row[PATH][common.len()..].to_owned());
    if let Some(columns) = width {
        rows.iter_mut().for_each(|row| row[BASE] = shorten(&row[BASE], MAX_BASE));
        let of = |at: usize| rows.iter().map(|row| row[at].width()).max().unwrap_or(0);
        let others = (0..PATH).map(|at| (of(at), HEADER[at].len()));
        let others: usize = others.filter(|(own, _)| *own > 0).map(|(own, title)| own.max(title) + GAPS).sum();
        let room = columns.saturating_sub(others + GAPS).max(MIN_PATH);
        rows.iter_mut().for_each(|row| row[PATH] = ending(&row[PATH], room));
    }
    let kept: Vec<usize> = (0..HEADER.len()).filter(|at| rows.iter().any(|row| !row[*at].is_empty())).collect();
    let pick = |row: &[String]| kept.iter().map(|at| row[*at].clone()).collect::<Vec<String>>();
    let header: Vec<&str> = kept.iter().map(|at| HEADER[*at]).collect();
    let left: Vec<bool> = kept.iter().map(|at| matches!(HEADER[*at], "what" | "type" | "base" | "path")).collect();
    let mut page = Page::default();
    let problems: usize = entries.iter().filter(|entry| entry.bad().is_some()).count();
    let verdict = match problems {
        0 => "no problems found".to_owned(),
        some => format!("{some} of {} with problems", entries.len()),
    };
    let place = if common.is_empty() { String::new() } else { format!(" in {common}") };
    page.title(&format!("{}{place}: {verdict}", models_and_adapters(entries)));
    if !rows.is_empty() {
        page.text.push_str(&table_of_texts(&header, rows.iter().map(|row| pick(row)), &left));
    }
    for entry in entries {
        if let Entry::Failed { error, .. } = entry {
            page.line("error", error);
        }
    }
    page.text
}

/// How many there are of each.
fn models_and_adapters(entries: &[Entry]) -> String {
    let count = |which: fn(&Entry) -> bool| entries.iter().filter(|entry| which(entry)).count();
    let parts = [
        (count(|entry| matches!(entry, Entry::Found(Inspection::Adapter(_)))), "adapter"),
        (count(|entry| matches!(entry, Entry::Found(Inspection::Checkpoint(_)))), "model"),
        (count(|entry| matches!(entry, Entry::Failed { .. })), "unreadable file"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| plural(*count, what));
    parts.collect::<Vec<_>>().join(", ")
}

/// The folder that all paths begin with, with its slash; nothing for a single path.
fn common_folder(rows: &[Vec<String>]) -> String {
    let mut paths = rows.iter().map(|row| row[PATH].as_str());
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
    let base = match found {
        Inspection::Adapter(facts) => base(facts),
        Inspection::Checkpoint(_) => String::new(),
    };
    vec![what, stored(found), rank, count(elements), size(weights.file_bytes()), problems, base, shown(path)]
}

/// The type of a GGUF file, or the dtype of most bytes.
fn stored(found: &Inspection) -> String {
    let said = found.gguf().and_then(|facts| facts.file_type.as_ref()).and_then(|said| said.name);
    let most = found.weights().dtypes.iter().max_by_key(|facts| facts.bytes).map(|facts| facts.dtype.clone());
    said.map(str::to_owned).or(most).unwrap_or_default()
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
        let row = |path: &str| [vec![String::new(); PATH], vec![path.to_owned()]].concat();
        let rows: Vec<Vec<String>> = ["/a/bé/x1", "/a/bé/x2/y"].map(row).to_vec();
        assert_eq!(common_folder(&rows), "/a/bé/");
        assert_eq!(common_folder(&rows[..1]), "");
        assert_eq!(ending("some/long/path", 8), "…ng/path");
        assert_eq!(ending("漢字漢字", 5), "…漢字");
    }
}
