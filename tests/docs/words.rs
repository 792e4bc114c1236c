//! How long the sentences of README and guides are, and words that are not for users.
//!
//! `cargo test --test docs sentences -- --nocapture` prints the figures of every page.

use std::fs;

use regex::Regex;

use crate::page::paragraphs;
use crate::{root, user_pages};

/// Words of a sentence, on average over all pages.
const MEAN: f64 = 15.0;
/// A sentence of more words is long.
const LONG: usize = 25;
/// Share of long sentences over all pages.
const SHARE: f64 = 0.05;

/// Words of the authors, not of the field.
const PRIVATE: [&str; 10] =
    ["room", "rooms", "homeless", "drowned", "drowns", "landed", "lands", "lie", "taken along", "by chance"];

#[test]
fn sentences_are_short() {
    let mut all = Vec::new();
    for page in user_pages() {
        let text = fs::read_to_string(&page).unwrap();
        let own: Vec<usize> = sentences(&text).iter().map(|sentence| sentence.split_whitespace().count()).collect();
        let name = page.strip_prefix(root()).unwrap().display().to_string();
        println!("{name}: {}", figures(&own));
        all.extend(own);
    }
    println!("together: {}", figures(&all));
    assert!(mean(&all) <= MEAN, "mean of {:.1} words", mean(&all));
    assert!(share(&all) <= SHARE, "{:.1} % of the sentences have more than {LONG} words", share(&all) * 100.0);
}

#[test]
fn no_private_words() {
    for page in user_pages() {
        let text = fs::read_to_string(&page).unwrap();
        for sentence in sentences(&text) {
            for word in PRIVATE {
                let pattern = Regex::new(&format!(r"(?i)\b{word}\b")).unwrap();
                assert!(!pattern.is_match(&sentence), "{}: `{word}` in: {sentence}", page.display());
            }
        }
    }
}

#[test]
fn a_sentence_ends_where_it_ends() {
    let text = "# No\nOne `a.b` is 2.5 MB. Two\ngo [on](x.md): here!\n\n* Three.\n| no |\n```sh\nno.\n```\n<!-- no. -->\n1. Four.";
    let expected = ["One `a.b` is 2.5 MB.", "Two go on: here!", "Three.", "Four."];
    assert_eq!(sentences(text), expected);
}

/// The sentences of a page. A link counts by its words.
fn sentences(text: &str) -> Vec<String> {
    let link = Regex::new(r"!?\[([^\]]*)\]\([^)]*\)").unwrap();
    let end = Regex::new(r"[.!?][*)_]*(\s+|$)").unwrap();
    let mut found = Vec::new();
    for paragraph in paragraphs(text) {
        let words = link.replace_all(&paragraph, "$1");
        let mut from = 0;
        for stop in end.find_iter(&words) {
            found.push(words[from..stop.end()].trim().to_owned());
            from = stop.end();
        }
        found.push(words[from..].trim().to_owned());
    }
    found.retain(|sentence| !sentence.is_empty());
    found
}

fn figures(lengths: &[usize]) -> String {
    format!("{} sentences, mean {:.1} words, {:.1} % over {LONG}", lengths.len(), mean(lengths), share(lengths) * 100.0)
}

fn mean(lengths: &[usize]) -> f64 {
    lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64
}

fn share(lengths: &[usize]) -> f64 {
    lengths.iter().filter(|words| **words > LONG).count() as f64 / lengths.len().max(1) as f64
}
