//! Words that no verb understands: what is wrong with them, and what was probably meant.

use std::ffi::OsString;
use std::io::Write;

use clap::error::{ContextKind, ContextValue};

use super::args::Color;
use super::guesses;
use super::said::Said;
use super::{DONE, WRONG_USAGE, parse};

use crate::error::shown::{clean, line};
use crate::report::{self, Failure};

/// Most letters in which a name differs from the one that is offered for it.
const FAR: usize = 2;

/// What is never offered: it deletes.
const NEVER: &str = "--force";

/// Whether a document is wanted on stdout.
pub fn wants_json(words: &[OsString]) -> bool {
    words.iter().skip(1).take_while(|word| *word != "--").any(|word| word == "--json")
}

/// What clap has to say: help, or what is wrong with the words. Those may be names of files that a shell put in, so they are
/// cleaned first, and found wrong again.
pub fn refuse(words: &[OsString], error: clap::Error) -> u8 {
    if !error.use_stderr() {
        // Help that nobody reads to its end is no failure.
        let _ = error.print();
        return DONE;
    }
    let (error, problem, hint) = explained(words, error);
    if wants_json(words) {
        let failure = Failure::usage(problem.clone(), hint.clone());
        let _ = Said::plain(report::json(&failure)).print();
    }
    match hint {
        None => {
            let _ = error.print();
        }
        Some(hint) => {
            let (red, cyan) = (Color::style(anstyle::AnsiColor::Red), Color::style(anstyle::AnsiColor::Cyan));
            let mut stderr = anstream::stderr().lock();
            let _ = writeln!(stderr, "{red}error{red:#}: {}", clean(&problem));
            let _ = writeln!(stderr, "\n{cyan}hint{cyan:#}: {}", clean(&hint));
        }
    }
    WRONG_USAGE
}

/// What is wrong with the words, as clap says it and in one sentence, and what was probably meant.
pub fn explained(words: &[OsString], error: clap::Error) -> (clap::Error, String, Option<String>) {
    let cleaned: Vec<OsString> = words.iter().map(|word| line(&word.to_string_lossy()).into()).collect();
    let mut error = parse(&cleaned).err().unwrap_or(error);
    for kind in [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand] {
        keep_near(&mut error, kind);
    }
    // "To pass it as a value": nobody wants that.
    error.remove(ContextKind::Suggested);
    let text = error.render().to_string();
    let problem = text.split("\n\n").next().unwrap_or(&text).trim_end().trim_start_matches("error: ").to_owned();
    (error, problem, guesses::way_out(&cleaned))
}

/// Takes away what clap offers and was not meant; with it the line of usage that is made of it.
fn keep_near(error: &mut clap::Error, kind: ContextKind) {
    let text = |kind: ContextKind| match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    };
    let typed = text(ContextKind::InvalidArg).into_iter().chain(text(ContextKind::InvalidSubcommand)).next();
    let typed = typed.unwrap_or_default();
    let typed = typed.split('=').next().unwrap_or_default();
    let offered = text(kind);
    let is_near = |offered: &String| {
        let name = offered.split(' ').next().unwrap_or_default();
        strsim::damerau_levenshtein(typed, name) <= FAR && name != NEVER
    };
    let near: Vec<String> = offered.iter().filter(|offered| is_near(offered)).cloned().collect();
    if offered.is_empty() || near.len() == offered.len() {
        return;
    }
    error.remove(kind);
    match (near.is_empty(), kind) {
        (true, _) => {
            error.remove(ContextKind::Usage);
        }
        (false, ContextKind::SuggestedArg) => {
            error.insert(kind, ContextValue::String(near[0].clone()));
        }
        (false, _) => {
            error.insert(kind, ContextValue::Strings(near));
        }
    }
}
