//! The command line. The only place that prints, reads the environment and knows clap.

mod args;
mod convert;
mod extract;
mod inspect;
mod merge;
mod place;
mod progress;
mod rank;
mod reading;
mod resize;
mod stack;
mod subtract;
mod tools;
mod watch;
mod words;
mod write_adapter;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use lorakit::error::{Blame, Error, Result};

use args::{Args, Color, Verb};

/// Exit code of a command that failed.
const FAILED: u8 = 1;

/// Exit code of wrong usage; clap's own.
const WRONG_USAGE: u8 = 2;

/// Runs the program with `words`, the first being its own name.
pub fn run(words: impl Iterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(words) {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { WRONG_USAGE } else { 0 };
            // Help that nobody reads to its end is no failure.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    args.color.apply();
    match perform(&args.verb).and_then(|text| print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(if matches!(error.blame(), Blame::Invalid { .. }) { WRONG_USAGE } else { FAILED })
        }
    }
}

fn perform(verb: &Verb) -> Result<Vec<u8>> {
    match verb {
        Verb::Merge(args) => merge::run(args),
        Verb::Convert(args) => convert::run(args),
        Verb::Extract(args) => extract::run(args),
        Verb::Subtract(args) => subtract::run(args),
        Verb::Stack(args) => stack::run(args),
        Verb::Resize(args) => resize::run(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::Finish(args) => tools::finish(args),
        Verb::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "lorakit", &mut text);
            Ok(text)
        }
        Verb::Man => {
            let mut text = Vec::new();
            let rendered = clap_mangen::Man::new(Args::command()).render(&mut text);
            rendered.map(|()| text).map_err(|source| Error::io("man page", "cannot render", source))
        }
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

/// Writes an error and its way out to stderr.
fn complain(error: &Error) {
    let (red, cyan) = (Color::style(anstyle::AnsiColor::Red), Color::style(anstyle::AnsiColor::Cyan));
    let mut stderr = anstream::stderr().lock();
    let _ = writeln!(stderr, "{red}error{red:#}: {error}");
    if let Some(hint) = error.way_out() {
        let _ = writeln!(stderr, "\n{cyan}hint{cyan:#}: {hint}");
    }
}

/// Writes a notice to stderr.
fn notice(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}
