//! Manual pages: one of the program and one of every verb.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args as Group, Command};
use clap_mangen::Man;

use super::help;
use super::said::Said;

use crate::error::{Error, Result};

#[derive(Debug, Group)]
pub struct Pages {
    /// The page of one verb; that of the program if not given
    #[arg(value_name = "VERB")]
    pub verb: Option<String>,
    /// Write all pages into this folder, as lorakit.1, lorakit-merge.1 …
    #[arg(long, value_name = "DIR", conflicts_with = "verb")]
    pub dir: Option<PathBuf>,
}

/// Renders a page, or writes all.
pub fn run(args: &Pages) -> Result<Said> {
    let mut command = help::command().disable_help_subcommand(true);
    command.build();
    if let Some(dir) = &args.dir {
        return write(&command, dir);
    }
    let page = match &args.verb {
        None => command,
        Some(name) => command.find_subcommand(name).cloned().ok_or_else(|| {
            let names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
            Error::invalid("VERB", format!("`{name}` is not one of {}", names.join(", ")))
        })?,
    };
    Ok(Said::plain(render(page)?))
}

fn write(command: &Command, dir: &Path) -> Result<Said> {
    fs::create_dir_all(dir).map_err(|source| Error::io(dir, "cannot create", source))?;
    let verbs = command.get_subcommands().cloned();
    let mut names = Vec::new();
    for page in std::iter::once(command.clone()).chain(verbs) {
        let name = format!("{}.1", page.get_display_name().unwrap_or(page.get_name()));
        let path = dir.join(&name);
        fs::write(&path, render(page)?).map_err(|source| Error::io(&path, "cannot write", source))?;
        names.push(name);
    }
    Ok(Said::plain(format!("{}: {}\n", dir.display(), names.join(" ")).into_bytes()))
}

fn render(page: Command) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    Man::new(page).render(&mut text).map_err(|source| Error::io("manual page", "cannot render", source))?;
    Ok(text)
}
