//! A page as a list of lines with the places that are held to the program.

/// What a page has the program do, in the order of the page.
#[derive(Debug)]
pub enum Step {
    /// `<!-- run … -->`: commands that prepare the folder, one a line; not shown.
    Prepare(Vec<String>),
    /// A fenced block.
    Block(Block),
}

/// A fenced block: its language, the lines between the fences, and where the first of them stands.
#[derive(Debug)]
pub struct Block {
    pub language: String,
    pub lines: Vec<String>,
    pub first: usize,
}

/// The steps of a page. Blocks within comments do not count.
pub fn steps(text: &str) -> Vec<Step> {
    let lines: Vec<&str> = text.lines().collect();
    let mut steps = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at].trim();
        let end = |mark: &str| (at + 1..lines.len()).find(|next| lines[*next].trim() == mark);
        if let Some(language) = line.strip_prefix("```") {
            let last = end("```").unwrap_or_else(|| panic!("line {}: the block does not end", at + 1));
            let body = lines[at + 1..last].iter().map(|line| (*line).to_owned()).collect();
            steps.push(Step::Block(Block { language: language.to_owned(), lines: body, first: at + 1 }));
            at = last;
        } else if line == "<!-- run" {
            let last = end("-->").unwrap_or_else(|| panic!("line {}: the comment does not end", at + 1));
            steps.push(Step::Prepare(lines[at + 1..last].iter().map(|line| (*line).to_owned()).collect()));
            at = last;
        }
        at += 1;
    }
    steps
}

/// The text of a page that people read: no blocks, comments, tables, headings; lines of a paragraph or an item joined.
pub fn paragraphs(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let (mut in_block, mut in_comment, mut is_open) = (false, false, false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("```") {
            (in_block, is_open) = (!in_block, false);
            continue;
        }
        in_comment |= !in_block && line.starts_with("<!--");
        if in_block || in_comment {
            in_comment &= !line.ends_with("-->");
            is_open = false;
            continue;
        }
        let item = ["* ", "- ", "> "].iter().find_map(|mark| line.strip_prefix(mark)).or_else(|| numbered(line));
        if line.is_empty() || line.starts_with(['|', '#', '<', '!']) {
            is_open = false;
        } else if let (Some(last), true, None) = (found.last_mut(), is_open, item) {
            last.push(' ');
            last.push_str(line);
        } else {
            found.push(item.unwrap_or(line).to_owned());
            is_open = true;
        }
    }
    found
}

/// What follows `1. `.
fn numbered(line: &str) -> Option<&str> {
    let (number, rest) = line.split_once(". ")?;
    (!number.is_empty() && number.chars().all(|letter| letter.is_ascii_digit())).then_some(rest)
}
