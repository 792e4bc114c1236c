//! The command line. The only place that prints, reads the environment and knows clap.

mod args;
mod convert;
mod extract;
mod guesses;
mod help;
mod inspect;
mod man;
mod merge;
mod options;
mod paint;
mod place;
mod progress;
mod rank;
mod reading;
mod resize;
mod said;
mod stack;
mod subtract;
mod sum;
mod tools;
mod usage;
mod values;
mod watch;
mod words;
mod write_adapter;

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::Write;

use clap::{FromArgMatches, Subcommand};

use args::{Args, Color};
use said::Said;
pub use watch::Host;

use crate::error::shown::{clean, line};
use crate::error::{Blame, Error, Result};
use crate::report;

/// Exit code of a command that did what was asked.
const DONE: u8 = 0;

/// Exit code of a command that failed.
const FAILED: u8 = 1;

/// Exit code of wrong usage; clap's own.
const WRONG_USAGE: u8 = 2;

/// Exit code of an outcome that a strict caller does not want.
const BAD: u8 = 3;

/// The verbs: a new one is a line here and one in `perform`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Add adapters to the weights of a model
    Merge(Box<merge::Merge>),
    /// Write a checkpoint or an adapter in another container, dtype, layout or dialect
    Convert(Box<convert::Convert>),
    /// Turn the change between two models into an adapter, with a certified error
    Extract(Box<extract::Extract>),
    /// Make one adapter of several: their weighted sum, exactly or cut to fewer ranks
    #[command(aliases = ["combine"])]
    Stack(Box<stack::Stack>),
    /// Lower or raise the rank of adapters, with the error of each module
    Resize(Box<resize::Resize>),
    /// Subtract adapters from an adapter, or take them out of a merged model
    #[command(aliases = ["unmerge"])]
    Subtract(Box<subtract::Subtract>),
    /// Show what is in a model or adapter file: format, method, modules, ranks, scales, problems
    #[command(aliases = ["info", "show", "ls", "list", "describe"])]
    Inspect(inspect::Inspect),
    /// Combine the outputs of runs with --part
    Finish(tools::Finish),
    /// Print shell completions
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print a manual page, or write all of them
    Man(man::Pages),
}

/// Runs the program with `words`, the first being its own name. Gives its exit code.
pub fn run(words: impl Iterator<Item = OsString>) -> u8 {
    let words: Vec<OsString> = words.collect();
    let args = match parse(&words) {
        Ok(args) => args,
        Err(error) => return usage::refuse(&words, error),
    };
    args.color.apply();
    watch::allow_many_files();
    let said = match perform(&args.verb) {
        Ok(said) => said,
        Err(error) => {
            if usage::wants_json(&words) {
                // The error is said on stderr as well, whatever becomes of the document.
                let _ = Said::plain(report::json(&report::Failure::from(&error))).print();
            }
            return fail(&error);
        }
    };
    if let Err(error) = said.print() {
        return fail(&after_all(&args.verb, error));
    }
    match (&said.failed, said.bad.filter(|_| args.verb.is_strict())) {
        (Some(error), _) => fail(error),
        (None, Some(why)) => {
            notice(&format!("--strict: {why}"));
            BAD
        }
        (None, None) => DONE,
    }
}

/// What became of a verb that another program ran.
#[derive(Debug)]
pub struct Ran {
    /// The report, as JSON.
    pub document: String,
    /// What could not be done although there is a report.
    pub failed: Option<Error>,
}

/// Runs the verb that `words` say, for `host`: nothing is printed, and no signal is handled.
///
/// # Errors
/// When the words mean nothing, or the verb fails.
pub fn run_for(host: Host, words: &[OsString]) -> Result<Ran> {
    let args = parse(words).map_err(|error| {
        let (_, problem, hint) = usage::explained(words, error);
        let error = Error::invalid("arguments", problem);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    })?;
    let said = watch::hosted(host, || perform(&args.verb))?;
    Ok(Ran { document: String::from_utf8_lossy(&said.text).into_owned(), failed: said.failed })
}

/// The words as options.
fn parse<I: IntoIterator<Item = W>, W: Into<OsString> + Clone>(words: I) -> std::result::Result<Args, clap::Error> {
    let mut matches = help::command().try_get_matches_from(words)?;
    Args::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut help::command()))
}

/// Says what went wrong, and gives the exit code of it.
fn fail(error: &Error) -> u8 {
    complain(error);
    if matches!(error.blame(), Blame::Invalid { .. }) { WRONG_USAGE } else { FAILED }
}

/// What a verb says on stdout. Reports quote files, so nothing that a terminal obeys passes, wherever in them it came from.
fn perform(verb: &Verb) -> Result<Said> {
    let mut said = match verb {
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
            clap_complete::generate(*shell, &mut help::command(), "lorakit", &mut text);
            return Ok(Said::plain(text));
        }
        Verb::Man(args) => return man::run(args),
    }?;
    said.text = match String::from_utf8_lossy(&said.text) {
        Cow::Borrowed(valid) if matches!(clean(valid), Cow::Borrowed(_)) => return Ok(said),
        valid => clean(&valid).into_owned().into_bytes(),
    };
    Ok(said)
}

impl Verb {
    /// Whether a bad outcome is a failure.
    fn is_strict(&self) -> bool {
        match self {
            Self::Merge(args) => args.write.talk.strict,
            Self::Convert(args) => args.write.talk.strict,
            Self::Extract(args) => args.write.talk.strict,
            Self::Subtract(args) => args.write.talk.strict,
            Self::Stack(args) => args.write.talk.strict,
            Self::Resize(args) => args.write.talk.strict,
            Self::Inspect(args) => args.strict,
            Self::Finish(args) => args.talk.strict,
            Self::Completions { .. } | Self::Man(_) => false,
        }
    }
}

/// What is said where a verb has done its work and its report cannot be written.
fn after_all(verb: &Verb, error: Error) -> Error {
    match verb {
        Verb::Inspect(_) | Verb::Completions { .. } | Verb::Man(_) => error,
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

/// Says warnings on stderr where no report says them.
fn warn(talk: options::Talk, warnings: impl IntoIterator<Item = String>) {
    if talk.json || talk.quiet {
        warnings.into_iter().for_each(|warning| notice(&format!("warning: {warning}")));
    }
}
