//! The program: words on a command line → typed options → an operation → a report and an exit code.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run(std::env::args_os())
}
