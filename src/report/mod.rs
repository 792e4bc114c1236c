//! Results as text for people. Programs get the same facts as JSON.

mod convert;
mod failure;
mod inspect;
mod lines;
mod made;
mod merge;
mod unmerge;

use std::path::Path;

use serde::Serialize;

use crate::error::shown::{is_hostile, line};
use crate::ops::finish::{DiscardReport, FinishReport};

pub use convert::convert;
pub use failure::Failure;
pub use inspect::{inspect, inspected};
pub use made::{extract, resize, sum};
pub use merge::{merge, warnings};
pub use unmerge::{subtracted, unmerge};

/// Version of the keys in every document: it rises when one changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// What programs read: the version of its keys in front of them.
#[derive(Serialize)]
struct Document<'a, T> {
    schema: u32,
    #[serde(flatten)]
    result: &'a T,
}

/// One JSON document with a line end. `result` has named keys.
pub fn json(result: &impl Serialize) -> Vec<u8> {
    escaped(crate::formats::json::render(&Document { schema: SCHEMA, result }))
}

/// JSON escapes C0 only: what else a terminal obeys can stand in texts alone, where a number says the same.
fn escaped(rendered: Vec<u8>) -> Vec<u8> {
    let text = match String::from_utf8(rendered) {
        Ok(text) if text.chars().any(|letter| letter != '\n' && is_hostile(letter)) => text,
        Ok(text) => return text.into_bytes(),
        Err(odd) => return odd.into_bytes(),
    };
    let mut safe = String::with_capacity(text.len());
    let mut units = [0; 2];
    for letter in text.chars() {
        if letter != '\n' && is_hostile(letter) {
            letter.encode_utf16(&mut units).iter().for_each(|unit| safe.push_str(&format!("\\u{unit:04x}")));
        } else {
            safe.push(letter);
        }
    }
    safe.into_bytes()
}

/// A path on a line of a report.
pub(crate) fn shown(path: &Path) -> String {
    line(&path.display().to_string())
}

/// What `finish` did.
pub fn finish(report: &FinishReport) -> String {
    let FinishReport { out, parts, files, bytes } = report;
    format!(
        "finished: {parts} parts are one output\n  out      {}\n  size     {}\n",
        shown(out),
        lines::bytes(*bytes, *files)
    )
}

/// What `finish --discard` threw away.
pub fn discard(report: &DiscardReport) -> String {
    let DiscardReport { out, discarded } = report;
    format!("discarded: {discarded} parts thrown away; nothing was put together\n  out      {}\n", shown(out))
}

/// Bytes in decimal units, as disks and downloads count.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(&str, f64); 4] = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    let value = bytes as f64;
    match UNITS.iter().find(|(_, unit)| value >= *unit) {
        Some((name, unit)) => format!("{:.2} {name}", value / unit),
        None => format!("{bytes} B"),
    }
}

/// What stands behind the name of a new adapter, unless it is one of PEFT's.
pub(crate) fn of_dialect(to: &str) -> String {
    if to == "peft" { String::new() } else { format!(" ({to})") }
}

/// A table without borders whose columns are aligned, all but the first to the right.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    table_of_texts(header, rows, &[true])
}

/// As [`table`], with columns of texts, which are aligned to the left, where `texts` says so.
pub(crate) fn table_of_texts(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>, texts: &[bool]) -> String {
    use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    rows.into_iter().for_each(|row| {
        table.add_row(row.iter().map(|cell| line(cell)));
    });
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_cell_alignment(if texts.get(at).copied().unwrap_or(false) {
            CellAlignment::Left
        } else {
            CellAlignment::Right
        });
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_say_in_numbers_what_a_terminal_obeys() {
        let name = "a\u{202e}b\u{9b}c\u{7f}d\u{1b}e\u{e0001}\n";
        let document = String::from_utf8(json(&serde_json::json!({ "name": name }))).expect("a text");
        assert!(document.contains(r"a\u202eb\u009bc\u007fd\u001be\udb40\udc01\n"), "{document}");
        let back: serde_json::Value = serde_json::from_str(&document).expect("JSON");
        assert_eq!(back["name"], name);
    }

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        for (bytes, text) in [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (2_080_374_784, "2.08 GB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
