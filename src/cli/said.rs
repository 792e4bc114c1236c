//! What a verb has to say: a text for stdout, what failed beside it, and why a strict caller does not like the outcome.

use std::io::{self, Write};

use serde::Serialize;

use super::options::Talk;
use super::paint::painted;

use crate::error::{Error, Result};
use crate::report;

/// What stands on stdout, and what follows from it.
#[derive(Default)]
pub struct Said {
    /// The report, as a document or as a text.
    pub text: Vec<u8>,
    /// What could not be done although there is a report.
    pub failed: Option<Error>,
    /// Why `--strict` does not take this for a success.
    pub bad: Option<String>,
    /// The text is for people.
    pub is_report: bool,
}

impl Said {
    /// A text that is no report: completions, manual pages.
    pub fn plain(text: Vec<u8>) -> Self {
        Self { text, ..Self::default() }
    }

    /// What a verb says of `result`: a document, a text, or nothing.
    pub fn of<T: Serialize>(talk: Talk, result: &T, text: impl Fn(&T) -> String) -> Self {
        let (text, is_report) = match (talk.json, talk.quiet) {
            (true, _) => (report::json(result), false),
            (false, true) => (Vec::new(), false),
            (false, false) => (text(result).into_bytes(), true),
        };
        Self { text, is_report, ..Self::default() }
    }

    /// The same, bad for the reason `why` if there is one.
    #[must_use]
    pub fn bad(mut self, why: Option<String>) -> Self {
        self.bad = self.bad.or(why);
        self
    }

    /// Writes the text to stdout. A reader that went away is no failure.
    pub fn print(&self) -> Result<()> {
        let text = if self.is_report { painted(&self.text) } else { None };
        let mut stdout = anstream::stdout().lock();
        let text = text.as_deref().unwrap_or(&self.text);
        match stdout.write_all(text).and_then(|()| stdout.flush()) {
            Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::io("stdout", "cannot write", source))
            }
            _ => Ok(()),
        }
    }
}
