//! The command line. The only place that prints, reads the environment and knows clap.

mod args;
mod convert;
mod extract;
mod inspect;
mod merge;
mod options;
mod place;
mod progress;
mod rank;
mod reading;
mod resize;
mod stack;
mod subtract;
mod sum;
mod tools;
mod watch;
mod words;
mod write_adapter;

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use lorakit::error::shown::{clean, line};
use lorakit::error::{Blame, Error, Result};
use lorakit::report;
use serde::Serialize;

use args::{Args, Color};
use options::Talk;

/// Exit code of a command that failed.
const FAILED: u8 = 1;

/// Exit code of wrong usage; clap's own.
const WRONG_USAGE: u8 = 2;

/// The verbs: a new one is a line here and one in [`perform`].
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Add adapters to the weights of a model
    Merge(Box<merge::Merge>),
    /// Write a checkpoint or an adapter in another container, dtype, layout or dialect
    Convert(Box<convert::Convert>),
    /// Turn the change between two models into an adapter, with a certified error
    Extract(Box<extract::Extract>),
    /// Make one adapter of several: their weighted sum, exactly or cut to fewer ranks
    Stack(Box<stack::Stack>),
    /// Lower or raise the rank of adapters, with the error of each module
    Resize(Box<resize::Resize>),
    /// Subtract adapters from an adapter, or take them out of a merged model
    Subtract(Box<subtract::Subtract>),
    /// Tell what files are: format, method, modules, ranks, scales, problems
    Inspect(inspect::Inspect),
    /// Put together what was written by runs with --part
    Finish(tools::Finish),
    /// Print shell completions
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// Runs the program with `words`, the first being its own name.
pub fn run(words: impl Iterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = words.collect();
    let args = match Args::try_parse_from(&words) {
        Ok(args) => args,
        Err(error) => return refuse(&words, error),
    };
    args.color.apply();
    watch::allow_many_files();
    match perform(&args.verb).and_then(|text| print(&text).map_err(|error| after_all(&args.verb, error))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(if matches!(error.blame(), Blame::Invalid { .. }) { WRONG_USAGE } else { FAILED })
        }
    }
}

/// What clap has to say: help, or what is wrong with the words. Those may be names of files that a shell put in, so they are
/// cleaned first, and found wrong again.
fn refuse(words: &[OsString], error: clap::Error) -> ExitCode {
    let cleaned = words.iter().map(|word| line(&word.to_string_lossy()));
    let error = Args::try_parse_from(cleaned).err().unwrap_or(error);
    // Help that nobody reads to its end is no failure.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { WRONG_USAGE } else { 0 })
}

/// What a verb says on stdout. Reports quote files, so nothing that a terminal obeys passes, wherever in them it came from.
fn perform(verb: &Verb) -> Result<Vec<u8>> {
    let text = match verb {
        Verb::Merge(args) => merge::run(args),
        Verb::Convert(args) => convert::run(args),
        Verb::Extract(args) => extract::run(args),
        Verb::Subtract(args) => subtract::run(args),
        Verb::Stack(args) => stack::run(args),
        Verb::Resize(args) => resize::run(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::Finish(args) => tools::finish(args),
        // These are made of words of the program alone.
        Verb::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "lorakit", &mut text);
            return Ok(text);
        }
        Verb::Man => {
            let mut text = Vec::new();
            let rendered = clap_mangen::Man::new(Args::command()).render(&mut text);
            return rendered.map(|()| text).map_err(|source| Error::io("man page", "cannot render", source));
        }
    }?;
    Ok(match String::from_utf8_lossy(&text) {
        Cow::Borrowed(valid) if matches!(clean(valid), Cow::Borrowed(_)) => text,
        valid => clean(&valid).into_owned().into_bytes(),
    })
}

/// What a verb says of `result`: a document, a text, or nothing.
fn told<T: Serialize>(talk: Talk, result: &T, text: impl Fn(&T) -> String) -> Vec<u8> {
    match (talk.json, talk.quiet) {
        (true, _) => report::json(result),
        (false, true) => Vec::new(),
        (false, false) => text(result).into_bytes(),
    }
}

/// Writes a result to stdout. A reader that went away is no failure.
fn print(text: &[u8]) -> Result<()> {
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("stdout", "cannot write", source)),
        _ => Ok(()),
    }
}

/// What is said where a verb has done its work and its report cannot be written.
fn after_all(verb: &Verb, error: Error) -> Error {
    match verb {
        Verb::Inspect(_) | Verb::Completions { .. } | Verb::Man => error,
        _ => error.hint("only the report is lost: the output, if one was asked for, is in place"),
    }
}

/// Writes an error and its way out to stderr.
fn complain(error: &Error) {
    let (red, cyan) = (Color::style(anstyle::AnsiColor::Red), Color::style(anstyle::AnsiColor::Cyan));
    let mut stderr = anstream::stderr().lock();
    // The colours are ours and come last: what is quoted has none.
    let _ = writeln!(stderr, "{red}error{red:#}: {}", clean(&error.to_string()));
    if let Some(hint) = error.way_out() {
        let _ = writeln!(stderr, "\n{cyan}hint{cyan:#}: {}", clean(hint));
    }
}

/// Writes a notice to stderr.
fn notice(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{}", line(text));
}
