//! `lorakit finish`.

use std::path::PathBuf;

use clap::Args as Group;

use super::options::Talk;
use super::said::Said;

use crate::error::Result;
use crate::{ops, report};

#[derive(Debug, Group)]
pub struct Finish {
    /// The output that was given to the runs with --part
    pub dir: PathBuf,
    /// Replace an output that lorakit made
    #[arg(long)]
    pub force: bool,
    /// Throw away the parts that were written, and put nothing together
    #[arg(long, conflicts_with_all = ["force", "sync"])]
    pub discard: bool,
    /// Return only when the output has reached the disk itself
    #[arg(long)]
    pub sync: bool,
    #[command(flatten)]
    pub talk: Talk,
}

/// Puts parts together, or throws them away.
pub fn finish(args: &Finish) -> Result<Said> {
    if args.discard {
        return ops::finish::discard(&args.dir).map(|result| Said::of(args.talk, &result, report::discard));
    }
    ops::finish::finish(&args.dir, args.force, args.sync).map(|result| Said::of(args.talk, &result, report::finish))
}
