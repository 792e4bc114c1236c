//! What can be written on the command line. Names here are a contract (`docs/cli.md`).

use clap::{Parser, ValueEnum};

use super::Verb;

/// Merge, extract, combine, resize, convert and inspect LoRA adapters and model files
#[derive(Debug, Parser)]
#[command(name = "lorakit", version, max_term_width = 100, propagate_version = true)]
pub struct Args {
    /// Colour output: auto (only on a terminal, respects NO_COLOR), always, never
    #[arg(long, global = true, value_enum, hide_possible_values = true, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,
    #[command(subcommand)]
    pub verb: Verb,
}

/// When output is coloured.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

impl Color {
    /// Decides for the whole process.
    pub fn apply(self) {
        match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::Always,
            Self::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }

    /// A bold style in `color`.
    pub fn style(color: anstyle::AnsiColor) -> anstyle::Style {
        color.on_default().bold()
    }
}
