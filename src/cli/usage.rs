//! Words that no verb understands: what is wrong with them, and what was probably meant.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use lorakit::error::shown::{clean, line};
use lorakit::report::{self, Failure};

use super::args::Color;
use super::guesses;
use super::said::Said;
use super::{WRONG_USAGE, parse};

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
pub fn refuse(words: &[OsString], error: clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Help that nobody reads to its end is no failure.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let cleaned: Vec<OsString> = words.iter().map(|word| line(&word.to_string_lossy()).into()).collect();
    let mut error = parse(&cleaned).err().unwrap_or(error);
    let hint = guesses::way_out(&cleaned);
    let is_far = is_far(&error);
    if is_far || hint.is_some() {
        for kind in [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::Suggested] {
            error.remove(kind);
        }
        if is_far {
            error.remove(ContextKind::Usage);
        }
    }
    let text = error.render().to_string();
    let problem = text.split("\n\n").next().unwrap_or(&text).trim_end();
    if wants_json(words) {
        let failure = Failure::usage(problem.trim_start_matches("error: ").to_owned(), hint.clone());
        let _ = Said::plain(report::json(&failure)).print();
    }
    match hint {
        None => {
            let _ = error.print();
        }
        Some(hint) => {
            let (red, cyan) = (Color::style(anstyle::AnsiColor::Red), Color::style(anstyle::AnsiColor::Cyan));
            let problem = problem.trim_start_matches("error: ");
            let mut stderr = anstream::stderr().lock();
            let _ = writeln!(stderr, "{red}error{red:#}: {}", clean(problem));
            let _ = writeln!(stderr, "\n{cyan}hint{cyan:#}: {}", clean(&hint));
        }
    }
    ExitCode::from(WRONG_USAGE)
}

/// Whether clap offers what was not meant.
fn is_far(error: &clap::Error) -> bool {
    let text = |kind: ContextKind| match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    };
    let typed = text(ContextKind::InvalidArg).into_iter().chain(text(ContextKind::InvalidSubcommand)).next();
    let typed = typed.unwrap_or_default();
    let typed = typed.split('=').next().unwrap_or_default();
    let offered: Vec<String> =
        text(ContextKind::SuggestedArg).into_iter().chain(text(ContextKind::SuggestedSubcommand)).collect();
    let escape = matches!(error.get(ContextKind::Suggested), Some(ContextValue::StyledStrs(_))) && offered.is_empty();
    escape
        || offered.iter().any(|offered| {
            let distance = strsim::damerau_levenshtein(typed, offered.split(' ').next().unwrap_or_default());
            distance > FAR || offered.starts_with(NEVER)
        })
}
