//! Vocabularies of SentencePiece: texts with scores, where a text is cut so that the best pairs are joined first.
//!
//! | field | of `ModelProto` and `SentencePiece` |
//! |---|---|
//! | 1, bytes | a piece |
//! | piece 1, bytes | its text |
//! | piece 2, f32 | its score |
//! | piece 3, varint | 1 normal, 2 unknown, 3 control, 4 defined by the user, 5 unused, 6 byte |
//!
//! A `tokenizer.json` made of such a model has merges in place of scores: the sooner a merge, the higher the score of what it
//! makes, so −(number of its first merge) joins the same pairs in the same order.

use std::collections::HashMap;

use super::merges::told;
use super::{Files, Kind, Vocabulary};
use crate::error::Result;
use crate::formats::side;
use crate::io::read_small;
use crate::limits::MAX_JSON_BYTES;
use crate::llama::Family;

const FILE: &str = "tokenizer.model";

/// Score of tokens beside the model, and of numbers that no token has (llama.cpp's converter).
const ADDED_SCORE: f32 = -1000.0;
const PAD_SCORE: f32 = -10_000.0;

/// A piece of a model.
struct Piece {
    text: String,
    score: f32,
    kind: Kind,
}

/// The vocabulary of `tokenizer.model`, with the tokens that other files add.
///
/// # Errors
/// When the file is none of SentencePiece.
pub(super) fn of_model(files: &Files, family: &Family) -> Result<Vocabulary> {
    let bytes = read_small(&files.path(FILE), MAX_JSON_BYTES)?;
    let pieces = pieces(files, &bytes)?;
    let mut table = Table::new(files.size(pieces.len() as u64)?);
    for (id, piece) in pieces.into_iter().enumerate() {
        table.put(id as u64, piece);
    }
    if let Some(tokens) = side::read(&files.directory, "added_tokens.json")? {
        for (text, id) in tokens {
            let piece = Piece { text, score: ADDED_SCORE, kind: Kind::UserDefined };
            id.as_u64().into_iter().for_each(|id| table.put(id, Piece { text: piece.text.clone(), ..piece }));
        }
    }
    // Phi 3 takes its tokens as they stand, and those of tokenizer.json as well.
    let literally = family.arch == "phi3";
    let more = if literally { files.added() } else { Vec::new() };
    for token in files.decoder().into_iter().chain(more) {
        let (text, kind) = match (literally, token.special) {
            (false, special) => told(&token.text, special),
            (true, true) => (token.text, Kind::Control),
            (true, false) => (token.text, Kind::UserDefined),
        };
        table.put(token.id, Piece { text, score: ADDED_SCORE, kind });
    }
    Ok(table.found)
}

/// The vocabulary of a `tokenizer.json` that falls back to bytes.
///
/// # Errors
/// When it has no vocabulary, or more tokens than the model.
pub(super) fn of_json(files: &Files) -> Result<Vocabulary> {
    let mut found = super::merges::vocabulary(files)?;
    let merges = super::merges::merges(files)?;
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, merge) in merges.iter().enumerate() {
        let made = merge.split_once(' ').map(|(left, right)| format!("{left}{right}"));
        made.into_iter().for_each(|made| {
            ranks.entry(made).or_insert(rank);
        });
    }
    let unknown = files.fast.as_ref().and_then(|fast| fast.get("model")?.get("unk_token")?.as_str());
    let mut scores = Vec::with_capacity(found.texts.len());
    for (text, kind) in found.texts.iter().zip(&mut found.kinds) {
        if Some(text.as_str()) == unknown {
            *kind = Kind::Unknown;
        } else if *kind == Kind::Normal && is_byte(text) {
            *kind = Kind::Byte;
        }
        scores.push(match kind {
            Kind::Normal => ranks.get(text).map_or(ADDED_SCORE.min(-(merges.len() as f32)), |rank| -(*rank as f32)),
            Kind::Byte | Kind::Unknown => 0.0,
            Kind::Unused => PAD_SCORE,
            Kind::Control | Kind::UserDefined => ADDED_SCORE,
        });
    }
    found.scores = Some(scores);
    Ok(found)
}

/// Whether a token stands for one byte: `<0x0A>`.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// A vocabulary of a fixed size that is filled by number.
struct Table {
    found: Vocabulary,
}

impl Table {
    fn new(size: u64) -> Self {
        let texts: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
        let (scores, kinds) = (Some(vec![PAD_SCORE; texts.len()]), vec![Kind::Unused; texts.len()]);
        Self { found: Vocabulary { texts, scores, kinds } }
    }

    /// Puts a piece in its place; what has none in the model is left out.
    fn put(&mut self, id: u64, piece: Piece) {
        let Some(at) = usize::try_from(id).ok().filter(|at| *at < self.found.texts.len()) else { return };
        self.found.texts[at] = piece.text;
        self.found.kinds[at] = piece.kind;
        if let Some(scores) = &mut self.found.scores {
            scores[at] = piece.score;
        }
    }
}

fn pieces(files: &Files, bytes: &[u8]) -> Result<Vec<Piece>> {
    let wrong = |at: usize| files.wrong(FILE, &format!("byte {at}"), "the file is no model of SentencePiece");
    let mut found = Vec::new();
    let mut message = Message { bytes, at: 0 };
    while message.at < bytes.len() {
        let at = message.at;
        if let (1, Field::Bytes(piece)) = message.field().ok_or_else(|| wrong(at))? {
            found.push(read_piece(piece).ok_or_else(|| wrong(at))?);
        }
    }
    if found.is_empty() {
        return Err(wrong(0));
    }
    Ok(found)
}

fn read_piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    let mut message = Message { bytes, at: 0 };
    while message.at < bytes.len() {
        match message.field()? {
            (1, Field::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.to_owned(),
            (2, Field::Four(score)) => piece.score = f32::from_le_bytes(score),
            (3, Field::Number(kind)) => {
                piece.kind = match kind {
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    // The converter knows no tokens of the user here.
                    _ => Kind::Normal,
                }
            }
            _ => {}
        }
    }
    Some(piece)
}

/// A message of protocol buffers.
struct Message<'a> {
    bytes: &'a [u8],
    at: usize,
}

enum Field<'a> {
    Number(u64),
    Eight,
    Bytes(&'a [u8]),
    Four([u8; 4]),
}

impl<'a> Message<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// The next field and its number.
    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Eight
            }
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Four(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, Value as Json, json};

    fn files(fast: Json, directory: &std::path::Path) -> Files {
        let Json::Object(fast) = fast else { panic!("an object") };
        Files { directory: directory.to_owned(), fast: Some(fast), config: Map::new(), model: Map::new() }
    }

    #[test]
    fn scores_follow_the_merges() {
        let vocabulary = json!({"<unk>": 0, "<s>": 1, "<0x0A>": 2, "a": 3, "b": 4, "c": 5, "ab": 6, "abc": 7, "bc": 8});
        let fast = json!({
            "added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true}],
            "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "vocab": vocabulary,
                "merges": [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]]},
        });
        let found = of_json(&files(fast, std::path::Path::new("x"))).unwrap();
        assert_eq!(found.kinds[..4], [Kind::Unknown, Kind::Control, Kind::Byte, Kind::Normal]);
        let scores = found.scores.unwrap();
        assert_eq!((scores[6], scores[8], scores[7]), (0.0, -1.0, -2.0), "the first of two merges counts");
        assert!(scores[3] < scores[7], "what no merge makes is joined last");
    }

    #[test]
    fn damaged_models_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(json!({}), directory.path());
        let mut piece = vec![0x0A, 9, 0x0A, 2, b'h', b'i', 0x15];
        piece.extend((-1.5_f32).to_le_bytes());
        let found = pieces(&files, &piece).map(|found| (found[0].text.clone(), found[0].score)).unwrap();
        assert_eq!(found, ("hi".into(), -1.5));
        for bytes in [
            &b""[..],
            &piece[..5],
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x0a\xff\xff\xff\xff\x0f",
            b"\x0b",
        ] {
            let error = pieces(&files, bytes).err().expect("a refusal").to_string();
            assert!(error.contains("tokenizer.model: byte") && error.contains("no model of SentencePiece"), "{error}");
        }
    }
}
