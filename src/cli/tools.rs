//! `lorakit finish`.

use lorakit::error::Result;
use lorakit::{ops, report};

use super::args::Finish;

/// Puts parts together.
pub fn finish(args: &Finish) -> Result<Vec<u8>> {
    let result = ops::finish::finish(&args.dir, args.force, args.sync)?;
    Ok(match (args.talk.json, args.talk.quiet) {
        (true, _) => report::json(&result),
        (false, true) => Vec::new(),
        (false, false) => report::finish(&result).into_bytes(),
    })
}
