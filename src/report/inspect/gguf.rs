//! What a GGUF file says about itself.

use unicode_width::UnicodeWidthStr;

use super::numbers::{digits, percent, plural};
use super::page::{Page, WIDTH, shorten};
use crate::error::shown::line as line_of;
use crate::ops::inspect::{GgufEntry, GgufFacts, Given};

/// Most columns of a key.
const MAX_KEY: usize = 44;

/// Fewest columns of a value.
const MIN_VALUE: usize = 16;

/// Architecture, name and size.
pub fn model(facts: &GgufFacts) -> String {
    let size = facts.size_label.as_ref().map(|size| format!("({size})"));
    let name = [facts.name.clone(), size].into_iter().flatten().collect::<Vec<_>>().join(" ");
    let parts = [facts.architecture.clone().unwrap_or_default(), name];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

/// Everything on a few lines.
pub fn lines(page: &mut Page, facts: &GgufFacts) {
    let order = if facts.big_endian { ", big-endian" } else { "" };
    page.line("gguf", &format!("version {}{order}, aligned to {} bytes", facts.version, facts.alignment));
    if facts.is_adapter() {
        page.line("for", &format!("architecture {}", facts.architecture.as_deref().unwrap_or("unknown")));
    } else {
        page.line("stored as", &stored_as(facts));
    }
    page.line("sizes", &sizes(facts));
    let Some(tokenizer) = &facts.tokenizer else { return };
    let pre = tokenizer.pre.as_ref().map(|pre| format!("split as {pre}"));
    let count = |count: Option<u64>, noun: &str| count.map(|count| format!("{count} {noun}"));
    let template = if tokenizer.chat_template { "chat template" } else { "no chat template" };
    let parts = [
        tokenizer.model.clone(),
        pre,
        count(tokenizer.tokens, "tokens"),
        count(tokenizer.merges, "merges"),
        Some(template.to_owned()),
    ];
    page.line("tokenizer", &parts.into_iter().flatten().collect::<Vec<_>>().join(", "));
}

fn stored_as(facts: &GgufFacts) -> String {
    let said = facts.file_type.as_ref().map(|said| {
        let name = said.name.map_or_else(|| format!("file type {}", said.number), str::to_owned);
        format!("{name} ({} of the weights)", percent(said.share))
    });
    let bits = facts.bits_per_weight.map(|bits| format!("{} bits per weight", digits(bits)));
    [said, bits].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn sizes(facts: &GgufFacts) -> String {
    let sizes = &facts.sizes;
    let heads = match (sizes.heads, sizes.kv_heads) {
        (Some(heads), Some(shared)) if shared != heads => Some(format!("{heads} heads on {shared} of keys and values")),
        (heads, _) => heads.map(|heads| format!("{heads} heads")),
    };
    let experts = sizes.experts.filter(|count| *count > 0).map(|count| match sizes.experts_used {
        Some(used) => format!("{used} of {count} experts"),
        None => format!("{count} experts"),
    });
    let layers = sizes.layers.map(|count| plural(usize::try_from(count).unwrap_or(usize::MAX), "layer"));
    let width = sizes.width.map(|width| match sizes.inner {
        Some(inner) => format!("width {width} ({inner} in the MLP)"),
        None => format!("width {width}"),
    });
    let context = sizes.context.map(|tokens| format!("context {tokens}"));
    [layers, width, heads, experts, context].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// All entries with their types; values are cut at the end of the line.
pub fn metadata(page: &mut Page, facts: &GgufFacts) {
    const HEADER: [&str; 3] = ["metadata", "type", "value"];
    if facts.metadata.is_empty() {
        return;
    }
    let keys: Vec<String> = facts.metadata.iter().map(|entry| shorten(&line_of(&entry.key), MAX_KEY)).collect();
    let column = |widths: &mut dyn Iterator<Item = usize>, header: &str| widths.max().unwrap_or(0).max(header.len());
    let key_width = column(&mut keys.iter().map(|key| key.width()), HEADER[0]);
    let type_width = column(&mut facts.metadata.iter().map(|entry| entry.kind.len()), HEADER[1]);
    let room = WIDTH.saturating_sub(key_width + type_width + 6).max(MIN_VALUE);
    let mut line = |key: &str, kind: &str, value: &str| {
        let pad = " ".repeat(key_width.saturating_sub(key.width()));
        page.title(format!("  {key}{pad}  {kind:<type_width$}  {value}").trim_end());
    };
    line("", "", "");
    line(HEADER[0], HEADER[1], HEADER[2]);
    for (key, entry) in keys.iter().zip(&facts.metadata) {
        line(key, entry.kind, &cut(&line_of(&value(entry)), room));
    }
}

fn value(entry: &GgufEntry) -> String {
    match &entry.given {
        Given::One { value, .. } => plain(value),
        Given::Several { of, count, first } => {
            let first = first.iter().map(plain).collect::<Vec<_>>().join(", ");
            let more = if *count > 4 { " …" } else { "" };
            format!("{count} {of}: {first}{more}")
        }
    }
}

/// On one line.
fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => {
            // Enough for every line: the rest of a long template is not looked at.
            let start = text.char_indices().nth(4 * WIDTH).map_or(text.as_str(), |(at, _)| &text[..at]);
            start.replace('\n', "⏎").replace('\r', "").replace('\t', " ")
        }
        other => other.to_string(),
    }
}

/// The beginning, in at most `most` columns.
fn cut(text: &str, most: usize) -> String {
    if text.width() <= most {
        return text.to_owned();
    }
    let mut kept = String::new();
    for letter in text.chars() {
        kept.push(letter);
        if kept.width() >= most {
            kept.pop();
            break;
        }
    }
    kept + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_end_with_the_line() {
        assert_eq!(cut("short", 8), "short");
        assert_eq!(cut("a longer text", 8), "a longe…");
        assert!(cut(&"漢".repeat(40), 9).width() <= 9);
    }
}
