//! `lorakit merge`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lorakit::error::{Error, Result};
use lorakit::ops::merge::{MergeOptions, Selection, merge};
use lorakit::ops::{Rounding, Run, WriteOptions};
use lorakit::plan::Budget;
use lorakit::report;
use lorakit::tensor::Float;
use regex::Regex;

use super::args::{Merge, RoundingMode, Write};
use super::progress::Bar;
use super::{notice, place};

/// What is said when an input shrinks under the map.
const LOST: &str =
    "error: an input file became shorter while it was being read, or its disk failed; nothing was written";

/// Merges, and gives the report.
pub fn run(args: &Merge) -> Result<Vec<u8>> {
    let options = MergeOptions {
        base: place::path(&args.base)?,
        adapters: args.adapters.iter().map(|written| place::adapter(written)).collect::<Result<_>>()?,
        init_adapters: args.init_adapter.iter().map(|written| place::path(written)).collect::<Result<_>>()?,
        residual_base: args.residual_base,
        selection: Selection {
            include: patterns("--include", &args.write.include)?,
            exclude: patterns("--exclude", &args.write.exclude)?,
            weights: args.weight_for.iter().map(|written| weight(written)).collect::<Result<_>>()?,
        },
        allow_unused: args.write.allow_unused.clone(),
        hash_base: args.hash_base,
        write: write_options(&args.write)?,
    };
    lorakit::io::exit_on_lost_mapping(LOST)?;
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second signal ends the process at once.
        let twice = signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&cancel));
        let once = signal_hook::flag::register(signal, Arc::clone(&cancel));
        twice.and(once).map_err(|source| Error::io("signals", "cannot be handled", source))?;
    }
    let talk = args.write.talk;
    let bar = Bar::new(talk.quiet);
    let mut result = merge(&options, &Run { cancel: &cancel, progress: &bar })?;
    result.peak_resident_bytes = peak_resident_bytes();
    if result.changes_nothing {
        notice("warning: the merge changes nothing: the result equals the base");
    }
    Ok(match (talk.json, talk.quiet) {
        (true, _) => report::json(&result),
        (false, true) => Vec::new(),
        (false, false) => report::merge(&result, talk.verbose).into_bytes(),
    })
}

/// Options shared by all writing verbs.
pub fn write_options(args: &Write) -> Result<WriteOptions> {
    let dtype = match args.dtype.to_lowercase().as_str() {
        "keep" => None,
        name => Some(Float::from_option(name).ok_or_else(|| {
            Error::invalid(
                "--dtype",
                format!("`{}` is not one of keep, f32, f16, bf16, f64, f8_e4m3, f8_e5m2", args.dtype),
            )
        })?),
    };
    if args.cast_all && dtype.is_none() {
        return Err(Error::invalid("--cast-all", "needs a `--dtype` other than `keep`"));
    }
    let keep = args.max_shard_size == "keep";
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.unwrap_or(processors);
    if threads == 0 {
        return Err(Error::invalid("--threads", "must be at least 1"));
    }
    Ok(WriteOptions {
        out: args.out.clone(),
        force: args.force,
        dtype,
        cast_all: args.cast_all,
        rounding: match args.rounding {
            RoundingMode::Nearest => Rounding::Nearest,
            RoundingMode::Stochastic => Rounding::Stochastic { seed: args.seed },
            RoundingMode::PeftSafe => Rounding::PeftSafe,
        },
        max_shard_bytes: if keep { None } else { Some(place::size("--max-shard-size", &args.max_shard_size)?) },
        budget: Budget { threads, max_bytes: place::size("--max-memory", &args.max_memory)? },
        dry_run: args.dry_run,
        part: args.part.as_deref().map(str::parse).transpose()?,
        durable: args.sync,
    })
}

fn patterns(option: &str, written: &[String]) -> Result<Vec<Regex>> {
    written.iter().map(|pattern| compile(option, pattern)).collect()
}

fn compile(option: &str, pattern: &str) -> Result<Regex> {
    Regex::new(pattern)
        .map_err(|problem| Error::invalid(option, format!("`{pattern}` is not a regular expression: {problem}")))
}

fn weight(written: &str) -> Result<(Regex, f64)> {
    let wrong = || Error::invalid("--weight-for", format!("`{written}` is not REGEX=W with a finite number W"));
    let (pattern, weight) = written.rsplit_once('=').ok_or_else(wrong)?;
    let weight: f64 = weight.parse().map_err(|_| wrong())?;
    if weight.is_finite() { Ok((compile("--weight-for", pattern)?, weight)) } else { Err(wrong()) }
}

/// Largest resident memory of this process so far, where the system tells (Linux: `VmHWM`).
fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes << 10)
}
