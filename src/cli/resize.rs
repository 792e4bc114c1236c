//! `lorakit resize`.

use std::ffi::OsString;

use clap::{Args as Group, ValueEnum};
use lorakit::error::{Error, Result};
use lorakit::ops::Run;
use lorakit::ops::merge::Selection;
use lorakit::ops::resize::{Outcome, ResizeOptions, resize};
use lorakit::report;

use super::progress::Bar;
use super::rank::Rank;
use super::reading::ReadingInputs;
use super::write_adapter::{To, WriteAdapter};
use super::{notice, place, print, watch, words};

/// Options of `resize`.
#[derive(Debug, Group)]
pub struct Resize {
    /// Adapters, or folders of adapters; with several, OUT is a folder
    #[arg(required = true, value_name = "ADAPTER")]
    pub adapters: Vec<OsString>,
    #[command(flatten)]
    pub write: WriteAdapter,
    #[command(flatten)]
    pub to: To,
    #[command(flatten)]
    pub read: ReadingInputs,
    /// The model the adapters are for: for methods that need its weights, names and heads for --to, and what PiSSA or OLoRA took
    /// out of it
    #[arg(long, value_name = "PATH")]
    pub base: Option<OsString>,
    #[command(flatten)]
    pub rank: Rank,
    /// Alpha of what is computed; its rank if not given
    #[arg(long, value_name = "A")]
    pub alpha: Option<f64>,
    /// The same rank for all modules, filled up with zeros
    #[arg(long)]
    pub uniform_rank: bool,
    /// Choose ranks as another tool does: kohya's --rank-method keeps one more
    #[arg(long, value_enum, value_name = "TOOL")]
    pub compat: Option<Compat>,
    /// The adapter as it was before training, for PiSSA, OLoRA, CorDA and LoRA-GA
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Option<OsString>,
}

/// Tools whose choices can be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compat {
    /// sd-scripts' resize_lora.py
    Kohya,
}

/// Resizes, and gives the report.
pub fn run(args: &Resize) -> Result<Vec<u8>> {
    let mut options = ResizeOptions::new(
        args.adapters.iter().map(|written| place::path(written)).collect::<Result<_>>()?,
        args.rank.required()?,
        args.write.options()?,
    );
    options.read = args.read.options()?;
    options.init_adapters = args.init_adapter.iter().map(|written| place::path(written)).collect::<Result<_>>()?;
    options.alpha = args.alpha;
    options.uniform_rank = args.uniform_rank;
    options.kohya = args.compat == Some(Compat::Kohya);
    options.selection = Selection {
        include: words::patterns("--include", &args.write.include)?,
        exclude: words::patterns("--exclude", &args.write.exclude)?,
        weights: Vec::new(),
        blocks: None,
    };
    options.base = args.base.as_deref().map(place::path).transpose()?;
    options.dialect = args.to.dialect()?;
    let cancel = watch::interruptible()?;
    let talk = args.write.talk;
    let bar = Bar::new(talk.quiet);
    let mut result = resize(&options, &Run { cancel: &cancel, progress: &bar })?;
    result.peak_resident_bytes = watch::peak_resident_bytes();
    let text = match (talk.json, talk.quiet) {
        (true, _) => report::json(&result),
        (false, true) => Vec::new(),
        (false, false) => report::resize(&result, talk.verbose).into_bytes(),
    };
    if result.failed == 0 {
        return Ok(text);
    }
    print(&text)?;
    for adapter in &result.adapters {
        if let Outcome::Failed { problem, hint } = &adapter.outcome {
            notice(problem);
            hint.iter().for_each(|hint| notice(&format!("  hint: {hint}")));
        }
    }
    let what = format!("{} of {} adapters could not be resized", result.failed, result.adapters.len());
    let error = Error::unsupported(&result.out, what);
    Err(match result.failed < result.adapters.len() {
        true => error.hint("the others are done; a second run does only what is missing"),
        false => error,
    })
}
