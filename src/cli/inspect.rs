//! `lorakit inspect`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::Args as Group;

use super::options::Talk;
use super::reading::Reading;
use super::said::Said;
use super::{place, watch, words};

use crate::error::{Error, Result};
use crate::ops::Run;
use crate::ops::inspect::{Entry, InspectOptions, Inspection, find, inspect, inspect_all};
use crate::plan::Quiet;
use crate::report;

#[derive(Debug, Group)]
pub struct Inspect {
    /// Files, directories, folders of them, patterns, or org/name[@rev] in the Hugging Face cache
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<OsString>,
    /// List every tensor, and every module of an adapter
    #[arg(long)]
    pub tensors: bool,
    /// Singular values of what adapters add, effective ranks, norms; with --base against the weights
    #[arg(long)]
    pub spectrum: bool,
    /// The model that the adapters are for: their share of it, and whether every module has a place
    #[arg(long, value_name = "PATH")]
    pub base: Option<OsString>,
    #[command(flatten)]
    pub read: Reading,
    /// The component of the pipeline that is meant: of --base where that is given, else of PATH
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// Read the values too, of models as well: NaN, infinities, zeros, duplicates, hashes
    #[arg(long)]
    pub check: bool,
    /// Worker threads; all processors if not given
    #[arg(short = 'j', long, value_name = "N")]
    pub threads: Option<usize>,
    /// Memory the workers may hold together
    #[arg(long, default_value = "2GiB", value_name = "SIZE")]
    pub max_memory: String,
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
    /// No report: the exit code tells, with --strict
    #[arg(short, long)]
    pub quiet: bool,
    /// A page for each of several, and every module of an adapter
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Exit with 3 where there are problems, or modules without a place in --base
    #[arg(long)]
    pub strict: bool,
}

/// Length up to which hashes of a single file are computed without being asked for: some milliseconds.
const HASHED: u64 = 8 << 20;

/// Looks at each path, and gives the descriptions.
pub fn run(args: &Inspect) -> Result<Said> {
    let component = args.component.as_deref();
    let of_path = component.filter(|_| args.base.is_none());
    let mut named: Vec<Result<PathBuf>> = args.paths.iter().flat_map(|written| expand(written)).collect();
    if of_path.is_some() {
        named = named.into_iter().map(|path| place::model(path?.as_os_str(), of_path)).collect();
    }
    let mut options = InspectOptions::default();
    options.read = args.read.options()?;
    options.base = args.base.as_deref().map(|written| place::model(written, component)).transpose()?;
    options.caches = place::caches();
    options.spectrum = args.spectrum;
    options.check = args.check;
    options.hash_up_to = HASHED;
    options.budget = words::budget(args.threads, &args.max_memory)?;
    let run = &Run { cancel: &*watch::interruptible()?, progress: &Quiet };
    if let [Ok(path)] = named.as_slice()
        && args.paths.len() == 1
        && !args.paths[0].to_str().is_some_and(is_pattern)
        && find(path)?.is_none()
    {
        let found = inspect(path, &options, run)?;
        if args.spectrum && matches!(found, Inspection::Checkpoint(_)) {
            let problem = format!("`{}` is a model; singular values are those of what an adapter adds", path.display());
            let shown = path.display();
            return Err(Error::invalid("--spectrum", problem)
                .hint(format!("`lorakit inspect ADAPTER --spectrum --base {shown}` holds an adapter against it")));
        }
        let entries = vec![Entry::Found(found)];
        return Ok(describe(args, entries, false));
    }
    options.hash_up_to = 0;
    let (mut entries, mut failed) = (Vec::new(), None);
    for path in named {
        match path.and_then(|path| look(path, &options, run)) {
            Ok(found) => entries.extend(found),
            Err(error) if args.paths.len() == 1 => return Err(error),
            Err(error) => {
                entries.push(Entry::failed(&error));
                failed = failed.or(Some(error));
            }
        }
    }
    let mut said = describe(args, entries, true);
    said.failed = failed;
    Ok(said)
}

/// What a named path holds. A file of a folder that cannot be read is an entry of its own.
fn look(path: PathBuf, options: &InspectOptions, run: &Run<'_>) -> Result<Vec<Entry>> {
    match find(&path)? {
        None => Ok(vec![Entry::Found(inspect(&path, options, run)?)]),
        Some(found) => inspect_all(&found, options, run),
    }
}

fn describe(args: &Inspect, entries: Vec<Entry>, is_list: bool) -> Said {
    let talk = Talk { json: args.json, quiet: args.quiet, verbose: args.verbose, strict: args.strict };
    let said = match entries.as_slice() {
        [one] if !is_list && args.json => Said::plain(report::json(&one.to_json(args.tensors))),
        all if args.json => {
            let all: Vec<_> = all.iter().map(|entry| entry.to_json(args.tensors)).collect();
            Said::plain(report::json(&serde_json::json!({ "entries": all })))
        }
        all => Said::of(talk, &(), |()| match !is_list || args.verbose || args.tensors {
            true => report::inspect(all, args.tensors, args.verbose),
            false => report::inspected(all, watch::columns()),
        }),
    };
    let bad = entries.iter().find_map(Entry::bad);
    // Hundreds of thousands of names are let go of faster by the system, when the process ends.
    std::mem::forget(entries);
    said.bad(bad)
}

/// The paths a word stands for: itself, a model in the Hugging Face cache, or what matches it as a pattern.
fn expand(written: &OsStr) -> Vec<Result<PathBuf>> {
    let Some(written) = written.to_str().filter(|text| is_pattern(text)) else { return vec![place::path(written)] };
    let wrong = |problem: String| Error::invalid("PATH", format!("`{written}` {problem}"));
    let matches = match glob::glob(written) {
        Ok(matches) => matches,
        Err(problem) => return vec![Err(wrong(format!("is not a usable pattern: {}", problem.msg)))],
    };
    let path = |found: glob::GlobResult| {
        found.map_err(|problem| {
            let path = problem.path().to_path_buf();
            Error::io(path, "cannot list", problem.into())
        })
    };
    let found: Vec<Result<PathBuf>> = matches.map(path).collect();
    if found.is_empty() { vec![Err(wrong("matches nothing".to_owned()))] } else { found }
}

/// Whether a word has to be compared with what there is.
fn is_pattern(written: &str) -> bool {
    written.contains(['*', '?', '[']) && std::fs::symlink_metadata(written).is_err()
}
