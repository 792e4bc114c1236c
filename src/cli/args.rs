//! What can be written on the command line. Names here are a contract (`docs/cli.md`).

use clap::{Parser, Subcommand, ValueEnum};

/// Transforms model files: merges LoRA adapters into weights, inspects checkpoints and adapters.
#[derive(Debug, Parser)]
#[command(name = "lorakit", version, max_term_width = 100, propagate_version = true)]
pub struct Args {
    /// When to colour: a terminal's wish and `NO_COLOR` are honoured by `auto`
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
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

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Add adapters to the weights of a model
    Merge(Box<super::merge::Merge>),
    /// Write a checkpoint or an adapter in another container, dtype, layout or dialect
    Convert(Box<super::convert::Convert>),
    /// Turn the change between two models into an adapter, with a certified error
    Extract(Box<super::extract::Extract>),
    /// Make one adapter of several: their weighted sum, exactly or cut to fewer ranks
    Stack(Box<super::stack::Stack>),
    /// Lower or raise the rank of adapters, with the error of each module
    Resize(Box<super::resize::Resize>),
    /// Subtract adapters from an adapter, or take them out of a merged model
    Subtract(Box<super::subtract::Subtract>),
    /// Tell what files are: format, method, modules, ranks, scales, problems
    Inspect(super::inspect::Inspect),
    /// Put together what was written by runs with --part
    Finish(super::tools::Finish),
    /// Print shell completions
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}
