//! `lorakit finish`.

use lorakit::error::Result;
use lorakit::{ops, report};
use serde::Serialize;

use super::args::{Finish, Talk};

/// Puts parts together, or throws them away.
pub fn finish(args: &Finish) -> Result<Vec<u8>> {
    if args.discard {
        return ops::finish::discard(&args.dir).map(|result| told(args.talk, &result, report::discard));
    }
    ops::finish::finish(&args.dir, args.force, args.sync).map(|result| told(args.talk, &result, report::finish))
}

fn told<T: Serialize>(talk: Talk, result: &T, text: impl Fn(&T) -> String) -> Vec<u8> {
    match (talk.json, talk.quiet) {
        (true, _) => report::json(result),
        (false, true) => Vec::new(),
        (false, false) => text(result).into_bytes(),
    }
}
