//! The program: words on a command line → typed options → an operation → a report and an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    lorakit::cli::run(std::env::args_os()).into()
}
