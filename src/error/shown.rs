//! Text from files on its way to people: a terminal obeys what it is shown, and a name can hold anything and be of any length.
//!
//! Control characters (C0, DEL, C1), and those that turn or hide text (Unicode's bidirectional and default-ignorable ones), are
//! replaced; words and lines beyond any use are cut in the middle. Programs get everything, as JSON.

use std::borrow::Cow;

/// Most characters of one word: more than a long path has, a hundredth of what a hostile name has.
const MAX_WORD: usize = 400;

/// Most characters of one line.
const MAX_LINE: usize = 4000;

/// The share of what is kept that comes from the beginning.
const BEGINNING: (usize, usize) = (2, 3);

/// Whether a terminal might obey a character, or show it in a way that misleads.
pub fn is_hostile(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
            | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// `text` without hostile characters. Ends of lines stay; a tab becomes a space.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|letter| letter != '\n' && is_hostile(letter)) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|letter| if letter == '\n' { letter } else { replaced(letter) }).collect())
}

/// `text` as a part of one line: without hostile characters and ends of lines, and cut.
pub fn line(text: &str) -> String {
    let whole = text.split(' ').map(word).collect::<Vec<Cow<'_, str>>>().join(" ");
    middle_cut(&whole, MAX_LINE).into_owned()
}

fn word(word: &str) -> Cow<'_, str> {
    let cut = middle_cut(word, MAX_WORD);
    if cut.chars().any(is_hostile) { Cow::Owned(cut.chars().map(in_line).collect()) } else { cut }
}

fn in_line(letter: char) -> char {
    if letter == '\n' { ' ' } else { replaced(letter) }
}

fn replaced(letter: char) -> char {
    match letter {
        '\t' => ' ',
        hostile if is_hostile(hostile) => char::REPLACEMENT_CHARACTER,
        letter => letter,
    }
}

/// The beginning and the end of what has more than `most` characters.
fn middle_cut(text: &str, most: usize) -> Cow<'_, str> {
    // A text of so many bytes has at most so many characters.
    if text.len() <= most || text.chars().nth(most).is_none() {
        return Cow::Borrowed(text);
    }
    let head = most * BEGINNING.0 / BEGINNING.1;
    let tail = most - head - 1;
    let end_of_head = text.char_indices().nth(head).map_or(text.len(), |(at, _)| at);
    let start_of_tail = text.char_indices().rev().nth(tail.saturating_sub(1)).map_or(0, |(at, _)| at);
    Cow::Owned(format!("{}…{}", &text[..end_of_head], &text[start_of_tail..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        let hostile = "a\u{1b}]0;x\u{7}b\rc\0d\u{7f}e\u{9b}2Jf\u{202e}g\u{200b}h\u{feff}i\u{2066}j\u{61c}k\tl";
        for cleaned in [clean(hostile).into_owned(), line(hostile)] {
            assert!(!cleaned.chars().any(is_hostile), "{cleaned:?}");
            assert!(cleaned.starts_with('a') && cleaned.ends_with("k l"));
        }
        assert_eq!(clean("ä 漢\nδ"), "ä 漢\nδ");
    }

    #[test]
    fn a_line_stays_one_line() {
        assert_eq!(line("a\nerror: b"), "a error: b");
        assert_eq!(line("  two  words "), "  two  words ");
    }

    #[test]
    fn long_names_and_long_lines_are_cut_in_the_middle() {
        let name = format!("start{}end", "漢".repeat(1 << 20));
        let cut = line(&format!("tensor `{name}` is bad"));
        assert!(cut.chars().count() < MAX_WORD + 20, "{cut}");
        assert!(cut.starts_with("tensor `start漢") && cut.contains('…') && cut.ends_with("漢end` is bad"), "{cut}");
        let words = "word ".repeat(1 << 18);
        assert_eq!(line(&words).chars().count(), MAX_LINE);
        assert_eq!(middle_cut("abcdef", 6), "abcdef");
        assert_eq!(middle_cut("abcdefg", 6), "abcd…g");
    }
}
