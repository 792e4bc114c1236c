//! A page of text for a terminal: labels with values that wrap, and tables.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::error::shown::line as line_of;
use crate::report::table;

/// Columns of a terminal.
pub const WIDTH: usize = 80;

/// Columns in front of what a label stands for.
const INDENT: usize = 14;

/// Most rows of a table.
pub const MAX_ROWS: usize = 12;

/// Most columns of a name in a table that is not asked for.
pub const MAX_NAME: usize = 44;

/// Text that grows line by line.
#[derive(Default)]
pub struct Page {
    /// The text so far.
    pub text: String,
}

impl Page {
    /// A line as it is.
    pub fn title(&mut self, title: &str) {
        self.text.push_str(title);
        self.text.push('\n');
    }

    /// A label and what it stands for, wrapped at words; nothing where there is nothing to say.
    pub fn line(&mut self, label: &str, value: &str) {
        let (label, value) = (&line_of(label), &line_of(value));
        let room = WIDTH - INDENT;
        let mut line = format!("  {label:<width$}", width = INDENT - 2);
        // A label that fills its column pushes the value one further.
        if label.width() > INDENT - 3 {
            line = format!("  {label} ");
        }
        let start = line.width();
        let mut is_empty = true;
        let mut any = false;
        for word in value.split_whitespace().flat_map(|word| pieces(word, room)) {
            any = true;
            let length = line.width() + usize::from(!is_empty) + word.width();
            if length > WIDTH && (!is_empty || start > INDENT) {
                self.title(line.trim_end());
                line = " ".repeat(INDENT);
                is_empty = true;
            }
            line.push_str(if is_empty { "" } else { " " });
            line.push_str(word);
            is_empty = false;
        }
        if any {
            self.title(&line);
        }
    }

    /// A table of at most `most` rows; the rest is counted.
    pub fn table(&mut self, header: &[&str], rows: impl Iterator<Item = Vec<String>>, most: usize) {
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

/// A word in pieces that fit.
fn pieces(word: &str, room: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut start, mut width) = (0, 0);
    for (at, letter) in word.char_indices() {
        let wide = letter.width().unwrap_or(1);
        if width + wide > room {
            pieces.push(&word[start..at]);
            (start, width) = (at, 0);
        }
        width += wide;
    }
    pieces.push(&word[start..]);
    pieces
}

/// The beginning and the end of a long name, in at most `most` columns.
pub fn shorten(name: &str, most: usize) -> String {
    if name.width() <= most {
        return name.to_owned();
    }
    let half = most / 2;
    let start = take(name.chars(), half);
    let end: Vec<char> = take(name.chars().rev(), most.saturating_sub(half + 1)).into_iter().rev().collect();
    start.into_iter().chain(['…']).chain(end).collect()
}

/// As many letters as fit.
fn take(letters: impl Iterator<Item = char>, most: usize) -> Vec<char> {
    let mut width = 0;
    letters
        .take_while(|letter| {
            width += letter.width().unwrap_or(1);
            width <= most
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_wrap_under_their_label() {
        let mut page = Page::default();
        page.line("label", &"word ".repeat(30));
        assert!(page.text.lines().all(|line| line.chars().count() <= WIDTH), "{}", page.text);
        assert_eq!(page.text.lines().count(), 3);
        assert!(page.text.lines().nth(1).is_some_and(|line| line.starts_with("              word")));
    }

    #[test]
    fn long_words_are_cut_and_wide_letters_counted() {
        let mut page = Page::default();
        page.line("label", &format!("{} {}", "x".repeat(200), "漢字".repeat(60)));
        assert!(page.text.lines().all(|line| line.width() <= WIDTH), "{}", page.text);
        assert_eq!(page.text.matches('漢').count(), 60);
    }

    #[test]
    fn names_are_cut_in_the_middle() {
        for middle in ["x", "漢"] {
            let name = format!("start{}end", middle.repeat(100));
            let short = shorten(&name, MAX_NAME);
            assert!(short.width() <= MAX_NAME && short.width() > MAX_NAME - 3);
            assert!(short.starts_with("start") && short.ends_with("end"));
        }
    }
}
