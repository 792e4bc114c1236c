//! The description of a file, for a terminal of 80 columns.

use super::{size, table};
use crate::ops::inspect::{AdapterFacts, CheckpointFacts, Inspection, PairGroup, Share, TensorFacts, Weights};

/// Columns of a terminal.
const WIDTH: usize = 80;

/// Columns in front of what a label stands for.
const INDENT: usize = 14;

/// Most rows of a table.
const MAX_ROWS: usize = 12;

/// Most characters of a name in a table that is not asked for.
const MAX_NAME: usize = 44;

/// A checkpoint or adapter as text; `tensors` lists every tensor.
pub fn inspect(found: &Inspection, tensors: bool) -> String {
    let mut page = Page::default();
    match found {
        Inspection::Checkpoint(facts) => checkpoint(&mut page, facts),
        Inspection::Adapter(facts) => adapter(&mut page, facts),
    }
    if tensors {
        let row =
            |tensor: TensorFacts| vec![tensor.name.clone(), tensor.dtype.clone(), shape(&tensor), size(tensor.bytes)];
        page.table(&["tensor", "dtype", "shape", "bytes"], found.listing().map(row), usize::MAX);
    }
    page.text.push_str(if found.problems().is_empty() { "\n  no problems found\n" } else { "\n" });
    found.problems().iter().for_each(|problem| page.line("problem", problem));
    // Names in a file can hold anything, a terminal obeys what it is shown.
    page.text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn checkpoint(page: &mut Page, facts: &CheckpointFacts) {
    let weights = &facts.weights;
    page.title(&format!("{}: checkpoint", facts.path.display()));
    let model = [facts.architectures.join(", "), facts.model_type.clone().unwrap_or_default()];
    page.line("model", &model.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", "));
    let uncounted = match weights.uncounted_tensors {
        0 => String::new(),
        tensors => format!("; {tensors} tensors that are not floating point are not counted"),
    };
    page.line("parameters", &format!("{}{uncounted}", exact(weights.parameters)));
    stored(page, weights);
    if let Some(embedding) = &facts.head_tied_to {
        page.line("head", &format!("tied to `{embedding}`"));
    }
    for found in &facts.quantisation {
        let modules =
            if found.modules > 0 { format!(" in {}", plural(found.modules, "module")) } else { String::new() };
        page.line("quantised", &format!("{}{modules}", found.method));
    }
    dtypes(page, weights);
    let row = |group: &crate::ops::inspect::Group| {
        vec![
            shorten(&group.name),
            group.tensors.to_string(),
            count(group.elements),
            size(group.bytes),
            share(group.bytes, weights),
        ]
    };
    page.table(&["modules", "tensors", "elements", "bytes", "share"], facts.groups.iter().map(row), MAX_ROWS);
    let row =
        |tensor: &TensorFacts| vec![shorten(&tensor.name), tensor.dtype.clone(), shape(tensor), size(tensor.bytes)];
    page.table(&["largest", "dtype", "shape", "bytes"], facts.largest.iter().map(row), MAX_ROWS);
    shards(page, weights);
}

fn adapter(page: &mut Page, facts: &AdapterFacts) {
    page.title(&format!("{}: adapter", facts.path.display()));
    let method = if facts.method == "LORA" { "LoRA" } else { &facts.method };
    let variants = if facts.variants.is_empty() { String::new() } else { format!(" ({})", facts.variants.join(", ")) };
    page.line("method", &format!("{method}{variants}"));
    page.line("base", facts.base_model.as_deref().unwrap_or_default());
    page.line("task", facts.task_type.as_deref().unwrap_or_default());
    let version = facts.peft_version.as_ref().map(|version| format!("PEFT {version}"));
    page.line("written by", version.as_deref().unwrap_or_default());
    page.line("trained", &exact(facts.trainable_parameters));
    stored(page, &facts.weights);
    facts.groups.iter().for_each(|group| pair_group(page, group));
    let with = |count: usize, what: &str| {
        if count > 0 { format!("{count} of {} pairs {what}", facts.pairs) } else { String::new() }
    };
    page.line("magnitudes", &with(facts.magnitudes, "(DoRA)"));
    page.line("biases", &with(facts.biases, "(lora_bias)"));
    page.line("saved whole", &tensors(&facts.whole));
    page.line("frozen", &tensors(&facts.frozen));
    page.line("token rows", &if facts.token_rows > 0 { facts.token_rows.to_string() } else { String::new() });
    page.line("unknown", &unknown(&facts.unknown));
    if facts.weights.dtypes.len() > 1 {
        dtypes(page, &facts.weights);
    }
    if facts.weights.files.len() > 1 {
        shards(page, &facts.weights);
    }
}

fn pair_group(page: &mut Page, group: &PairGroup) {
    let number =
        |name: &str, value: Option<f64>| value.map_or_else(String::new, |value| format!(" {name}={}", rounded(value)));
    let (alpha, scale) = (number("alpha", group.alpha), number("scale", group.scale));
    let experts = if group.experts > 1 { format!(" × {} experts", group.experts) } else { String::new() };
    let embedding = if group.embedding { " (embedding)" } else { "" };
    let pairs = plural(group.pairs, "pair");
    page.line("LoRA", &format!("{pairs}{experts}: r={}{alpha}{scale} {}{embedding}", group.rank, group.dtype));
    let names: Vec<&str> = group.names.iter().take(MAX_ROWS).map(String::as_str).collect();
    let more = if group.names.len() > names.len() {
        format!(" and {} more", group.names.len() - names.len())
    } else {
        String::new()
    };
    page.line("", &format!("{}{more}", names.join(", ")));
}

/// Files, tensors, bytes.
fn stored(page: &mut Page, weights: &Weights) {
    let container = match weights.container {
        "sharded" => format!("{} shards", weights.files.len()),
        "directory" => format!("directory with `{}`", weights.files.first().map_or("", |file| file.name.as_str())),
        _ => "single file".to_owned(),
    };
    page.line("container", &format!("{container}, {}", size(weights.file_bytes())));
    page.line("tensors", &weights.tensor_count.to_string());
    let keys: Vec<&str> = weights.metadata_keys.iter().take(MAX_ROWS).map(String::as_str).collect();
    page.line("metadata", &keys.join(", "));
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

/// What some tensors take, and what they are called.
fn tensors(share: &Share) -> String {
    if share.tensors == 0 {
        return String::new();
    }
    format!("{} elements, {}: {}", count(share.elements), size(share.bytes), first(&share.names))
}

fn unknown(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("{}: {}", plural(names.len(), "tensor"), first(names)) }
}

/// The first few names, and how many more there are.
fn first(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Text that grows line by line.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn title(&mut self, title: &str) {
        self.text.push_str(title);
        self.text.push('\n');
    }

    /// A label and what it stands for, wrapped at words; nothing where there is nothing to say.
    fn line(&mut self, label: &str, value: &str) {
        let mut words = value.split_whitespace().peekable();
        if words.peek().is_none() {
            return;
        }
        let mut line = format!("  {label:<width$}", width = INDENT - 2);
        let mut is_empty = true;
        for word in words {
            let length = line.chars().count() + 1 + word.chars().count();
            if !is_empty && length > WIDTH {
                self.title(&line);
                line = " ".repeat(INDENT);
                is_empty = true;
            }
            line.push_str(if is_empty { "" } else { " " });
            line.push_str(word);
            is_empty = false;
        }
        self.title(&line);
    }

    /// A table of at most `most` rows; the rest is counted.
    fn table(&mut self, header: &[&str], rows: impl Iterator<Item = Vec<String>>, most: usize) {
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return;
        }
        self.text.push('\n');
        for line in table(header, rows.by_ref().take(most)).lines() {
            self.title(&format!(" {line}"));
        }
        match rows.count() {
            0 => {}
            more => self.title(&format!("  … and {more} more")),
        }
    }
}

fn shape(tensor: &TensorFacts) -> String {
    format!("{:?}", tensor.shape)
}

fn share(bytes: u64, weights: &Weights) -> String {
    format!("{:.1} %", 100.0 * bytes as f64 / weights.bytes.max(1) as f64)
}

/// The beginning and the end of a long name.
fn shorten(name: &str) -> String {
    let length = name.chars().count();
    if length <= MAX_NAME {
        return name.to_owned();
    }
    let half = MAX_NAME / 2;
    let start: String = name.chars().take(half).collect();
    let end: String = name.chars().skip(length - (MAX_NAME - half - 1)).collect();
    format!("{start}…{end}")
}

/// A count of elements with three digits.
fn count(elements: u64) -> String {
    const UNITS: [(&str, f64); 4] = [("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)];
    let value = elements as f64;
    match UNITS.iter().find(|(_, unit)| value >= *unit) {
        Some((name, unit)) => {
            let value = value / unit;
            let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
            format!("{value:.digits$} {name}")
        }
        None => elements.to_string(),
    }
}

/// A count with three digits and in full.
fn exact(elements: u64) -> String {
    let short = count(elements);
    if short == elements.to_string() { short } else { format!("{short} ({elements})") }
}

/// Up to six decimals, without zeros at the end.
fn rounded(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_three_digits_and_a_unit() {
        for (elements, text) in
            [(0, "0"), (999, "999"), (98_624, "98.6 k"), (134_515_008, "135 M"), (8_030_261_248, "8.03 B")]
        {
            assert_eq!(count(elements), text);
        }
    }

    #[test]
    fn long_lines_wrap_under_their_label() {
        let mut page = Page::default();
        page.line("label", &"word ".repeat(30));
        assert!(page.text.lines().all(|line| line.chars().count() <= WIDTH), "{}", page.text);
        assert_eq!(page.text.lines().count(), 3);
        assert!(page.text.lines().nth(1).is_some_and(|line| line.starts_with("              word")));
    }

    #[test]
    fn names_are_cut_in_the_middle() {
        let name = format!("start{}end", "x".repeat(100));
        let short = shorten(&name);
        assert_eq!(short.chars().count(), MAX_NAME);
        assert!(short.starts_with("start") && short.ends_with("end"));
    }
}
