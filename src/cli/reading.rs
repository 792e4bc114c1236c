//! What the files of adapters leave open, and the command line says.

use clap::Args as Group;
use lorakit::adapters::ReadOptions;
use lorakit::error::{Error, Result};

/// For verbs without an alpha of their own.
#[derive(Debug, Group)]
pub struct Reading {
    /// Alpha of adapters that say none, such as those of PEFT without their config, or that say two
    #[arg(long, visible_alias = "input-alpha", value_name = "A")]
    pub alpha: Option<f64>,
    /// Which adapter, where a file or a folder holds several
    #[arg(long, value_name = "NAME")]
    pub adapter_name: Option<String>,
}

/// For verbs whose --alpha is that of the result.
#[derive(Debug, Group)]
pub struct ReadingInputs {
    /// Alpha of adapters that say none, such as those of PEFT without their config, or that say two
    #[arg(long, value_name = "A")]
    pub input_alpha: Option<f64>,
    /// Which adapter, where a file or a folder holds several
    #[arg(long, value_name = "NAME")]
    pub adapter_name: Option<String>,
}

impl Reading {
    /// As the library takes it.
    pub fn options(&self) -> Result<ReadOptions> {
        options("--alpha", self.alpha, self.adapter_name.as_ref())
    }
}

impl ReadingInputs {
    /// As the library takes it.
    pub fn options(&self) -> Result<ReadOptions> {
        options("--input-alpha", self.input_alpha, self.adapter_name.as_ref())
    }
}

fn options(option: &str, alpha: Option<f64>, name: Option<&String>) -> Result<ReadOptions> {
    match alpha.filter(|alpha| !alpha.is_finite()) {
        Some(alpha) => Err(Error::invalid(option, format!("`{alpha}` is not a finite number"))),
        None => {
            let mut options = ReadOptions::default();
            (options.alpha, options.name) = (alpha, name.cloned());
            Ok(options)
        }
    }
}
