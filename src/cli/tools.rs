//! `lorakit inspect` and `lorakit finish`.

use lorakit::error::Result;
use lorakit::{ops, report};

use super::args::{Finish, Inspect};
use super::place;

/// Looks at each path, and gives the descriptions.
pub fn inspect(args: &Inspect) -> Result<Vec<u8>> {
    let paths = args.paths.iter().map(|written| place::path(written)).collect::<Result<Vec<_>>>()?;
    let found = paths.iter().map(|path| ops::inspect::inspect(path)).collect::<Result<Vec<_>>>()?;
    let text = describe(args, &found);
    // Hundreds of thousands of names are let go of faster by the system, when the process ends.
    std::mem::forget(found);
    Ok(text)
}

fn describe(args: &Inspect, found: &[ops::inspect::Inspection]) -> Vec<u8> {
    if args.json {
        let listed: Vec<_> = found.iter().map(|found| found.to_json(args.tensors)).collect();
        return match listed.as_slice() {
            [one] => report::json(one),
            several => report::json(&several),
        };
    }
    let texts: Vec<String> = found.iter().map(|found| report::inspect(found, args.tensors)).collect();
    texts.join("\n").into_bytes()
}

/// Puts parts together.
pub fn finish(args: &Finish) -> Result<Vec<u8>> {
    let result = ops::finish::finish(&args.dir, args.force, args.sync)?;
    Ok(match (args.talk.json, args.talk.quiet) {
        (true, _) => report::json(&result),
        (false, true) => Vec::new(),
        (false, false) => report::finish(&result).into_bytes(),
    })
}
