//! The description of files, for a terminal of 80 columns: the most important first.

mod adapter;
mod checkpoint;
mod gguf;
mod made_by;
mod many;
pub(super) mod numbers;
mod page;
mod spectrum;
mod training;

use self::numbers::{count, plural, shape, share};
use self::page::{MAX_ROWS, Page};
use super::size;
use crate::error::shown::clean;
use crate::ops::inspect::{Entry, HeaderFacts, Inspection, TensorFacts, Weights};

/// A page for each entry; `tensors` lists every tensor, `modules` every module.
pub fn inspect(entries: &[Entry], tensors: bool, modules: bool) -> String {
    let page = |entry: &Entry| match entry {
        Entry::Found(found) => one(found, tensors, modules),
        Entry::Failed { error, .. } => plain(&format!("error: {error}\n")),
    };
    entries.iter().map(page).collect::<Vec<_>>().join("\n")
}

/// One line for each entry; in `width` columns where there is a terminal, else nothing is cut.
pub fn inspected(entries: &[Entry], width: Option<usize>) -> String {
    plain(&many::table(entries, width))
}

fn one(found: &Inspection, tensors: bool, modules: bool) -> String {
    let mut page = Page::default();
    let verdict = match found.problems().len() {
        0 => "no problems found".to_owned(),
        count => plural(count, "problem"),
    };
    match found {
        Inspection::Checkpoint(facts) => checkpoint::describe(&mut page, facts, &verdict),
        Inspection::Adapter(facts) => adapter::describe(&mut page, facts, &verdict, modules || tensors),
    }
    found.gguf().iter().for_each(|facts| gguf::metadata(&mut page, facts));
    if tensors {
        let row =
            |tensor: TensorFacts| vec![tensor.name.clone(), tensor.dtype.clone(), shape(&tensor), size(tensor.bytes)];
        page.table(&["tensor", "dtype", "shape", "bytes"], found.listing().map(row), usize::MAX);
    }
    plain(&page.text)
}

/// What is wrong, and what tells about people: before everything else.
fn problems(page: &mut Page, problems: &[String], header: &HeaderFacts) {
    problems.iter().for_each(|problem| page.line("problem", problem));
    if !header.privacy.is_empty() {
        let telling: Vec<String> =
            header.privacy.iter().map(|telling| format!("`{}` ({})", telling.key, telling.tells)).collect();
        page.line("privacy", &format!("metadata tells about people or machines: {}", telling.join(", ")));
    }
}

/// Names in a file can hold anything, a terminal obeys what it is shown.
fn plain(text: &str) -> String {
    clean(text).into_owned()
}

/// Files, tensors, bytes.
fn stored(page: &mut Page, weights: &Weights) {
    let container = match weights.container {
        "sharded" => format!("{} shards", weights.files.len()),
        "split" => plural(weights.files.len(), "file"),
        "pipeline" => format!("pipeline with {} weight files", weights.files.len()),
        "directory" => format!("directory with `{}`", weights.files.first().map_or("", |file| file.name.as_str())),
        _ => "single file".to_owned(),
    };
    let tensors = plural(weights.tensor_count, "tensor");
    let format = weights.files.first().map_or("", |file| file.format);
    let container = if format == "safetensors" { container } else { format!("{container} of {format}") };
    let dtypes: Vec<&str> = weights.dtypes.iter().map(|facts| facts.dtype.as_str()).collect();
    weights.notes.iter().for_each(|note| page.line("note", note));
    page.line("container", &format!("{container}, {}, {tensors} of {}", size(weights.file_bytes()), dtypes.join(", ")));
}

fn dtypes(page: &mut Page, weights: &Weights) {
    let rows = weights.dtypes.iter().map(|facts| {
        let elements = facts.elements.map_or_else(|| "unknown".to_owned(), count);
        vec![facts.dtype.clone(), facts.tensors.to_string(), elements, size(facts.bytes), share(facts.bytes, weights)]
    });
    page.table(&["dtype", "tensors", "elements", "bytes", "share"], rows, MAX_ROWS);
}

fn shards(page: &mut Page, weights: &Weights) {
    let rows = weights.files.iter().map(|file| vec![file.name.clone(), file.tensors.to_string(), size(file.bytes)]);
    page.table(&["file", "tensors", "bytes"], rows, MAX_ROWS);
}
