//! `lorakit finish`.

use lorakit::error::Result;
use lorakit::{ops, report};

use super::args::Finish;
use super::told;

/// Puts parts together, or throws them away.
pub fn finish(args: &Finish) -> Result<Vec<u8>> {
    if args.discard {
        return ops::finish::discard(&args.dir).map(|result| told(args.talk, &result, report::discard));
    }
    ops::finish::finish(&args.dir, args.force, args.sync).map(|result| told(args.talk, &result, report::finish))
}
