//! Results as text for people. Programs get the same facts as JSON.

mod convert;
mod extract;
mod inspect;
mod merge;
mod resize;
mod stack;
mod unmerge;

use serde::Serialize;

use crate::ops::finish::{DiscardReport, FinishReport};

pub use convert::convert;
pub use extract::extract;
pub use inspect::{inspect, inspected};
pub use merge::{drowned, merge};
pub use resize::resize;
pub use stack::stack;
pub use unmerge::{subtracted, unmerge};

/// One JSON document with a line end.
pub fn json(result: &impl Serialize) -> Vec<u8> {
    crate::formats::json::render(result)
}

/// What `finish` did.
pub fn finish(report: &FinishReport) -> String {
    let FinishReport { out, parts, files, bytes } = report;
    format!("{}: {parts} parts, {files} weight files, {}\n", out.display(), size(*bytes))
}

/// What `finish --discard` threw away.
pub fn discard(report: &DiscardReport) -> String {
    let DiscardReport { out, discarded } = report;
    format!("{}: {discarded} parts thrown away; nothing was put together\n", out.display())
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
    table_of_texts(header, rows, 1)
}

/// As [`table`], with so many columns of texts in front, which are aligned to the left.
pub(crate) fn table_of_texts(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>, texts: usize) -> String {
    use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_cell_alignment(if at < texts { CellAlignment::Left } else { CellAlignment::Right });
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        for (bytes, text) in [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (2_080_374_784, "2.08 GB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
