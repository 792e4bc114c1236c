//! Colours of a report on a terminal: its first line, and the labels of what is wrong. They come last, after everything that a file
//! says was cleaned.

use std::io::IsTerminal;

use anstyle::AnsiColor;

use super::args::Color;

/// Labels of what has to be seen, and their colours.
const LABELS: [(&str, AnsiColor); 6] = [
    ("problem", AnsiColor::Red),
    ("FAILED", AnsiColor::Red),
    ("error", AnsiColor::Red),
    ("warning", AnsiColor::Yellow),
    ("privacy", AnsiColor::Yellow),
    ("hint", AnsiColor::Cyan),
];

/// The report with its colours; nothing where no terminal sees them.
pub fn painted(text: &[u8]) -> Option<Vec<u8>> {
    let wanted = match anstream::ColorChoice::global() {
        anstream::ColorChoice::Never => false,
        anstream::ColorChoice::Auto => std::io::stdout().is_terminal(),
        _ => true,
    };
    let text = std::str::from_utf8(text).ok().filter(|_| wanted)?;
    let mut painted = String::with_capacity(text.len());
    for (at, line) in text.split_inclusive('\n').enumerate() {
        if at == 0 {
            let bold = anstyle::Style::new().bold();
            let (line, end) = line.split_at(line.trim_end_matches('\n').len());
            painted.push_str(&format!("{bold}{line}{bold:#}{end}"));
            continue;
        }
        let start = line.len() - line.trim_start().len();
        let label = LABELS.iter().find(|(label, _)| line[start..].starts_with(&format!("{label} ")));
        match label.filter(|_| start == 2) {
            Some((label, color)) => {
                let style = Color::style(*color);
                painted.push_str(&format!("{}{style}{label}{style:#}{}", &line[..start], &line[start + label.len()..]));
            }
            None => painted.push_str(line),
        }
    }
    Some(painted.into_bytes())
}
