//! What a file says about itself: keys and typed values, in an order.

use super::cursor::Cursor;
use crate::error::Result;

/// Deepest nesting of arrays that is read; ggml itself reads none, and nobody is known to write any.
const MAX_DEPTH: u32 = 8;

/// Longest key, in bytes (ggml `docs/gguf.md`).
pub(super) const MAX_KEY: usize = 65_535;

/// The types of values.
#[allow(missing_docs, reason = "the variants are the names that ggml has for them")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

/// By the number that stands for them in a file.
const KINDS: [(Kind, &str); 13] = [
    (Kind::U8, "u8"),
    (Kind::I8, "i8"),
    (Kind::U16, "u16"),
    (Kind::I16, "i16"),
    (Kind::U32, "u32"),
    (Kind::I32, "i32"),
    (Kind::F32, "f32"),
    (Kind::Bool, "bool"),
    (Kind::Text, "text"),
    (Kind::Array, "array"),
    (Kind::U64, "u64"),
    (Kind::I64, "i64"),
    (Kind::F64, "f64"),
];

impl Kind {
    /// As people write it.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    /// The number that stands for it in a file.
    fn id(self) -> u32 {
        let at = KINDS.iter().position(|(kind, _)| *kind == self);
        at.and_then(|at| u32::try_from(at).ok()).expect("every kind is in the list of thirteen")
    }

    /// Fewest bytes of a value.
    fn least(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Text => 8,
            Self::Array => 12,
        }
    }
}

/// A value with its type.
#[allow(missing_docs, reason = "the variants are those of `Kind`")]
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// UTF-8 in every file that keeps to the format; kept as it is in the others.
    Text(Box<[u8]>),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// Values of one type. They are kept as they are written, so that they take no more memory than in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Array {
    kind: Kind,
    count: u64,
    /// The values as a little-endian file has them.
    bytes: Box<[u8]>,
}

impl Array {
    /// An array of these texts.
    pub fn of_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        Self::of(Kind::Text, texts.into_iter().map(Value::from))
    }

    /// An array of u32.
    pub fn of_u32(values: impl IntoIterator<Item = u32>) -> Self {
        Self::of(Kind::U32, values.into_iter().map(Value::U32))
    }

    /// An array of i32.
    pub fn of_i32(values: impl IntoIterator<Item = i32>) -> Self {
        Self::of(Kind::I32, values.into_iter().map(Value::I32))
    }

    /// An array of f32.
    pub fn of_f32(values: impl IntoIterator<Item = f32>) -> Self {
        Self::of(Kind::F32, values.into_iter().map(Value::F32))
    }

    fn of(kind: Kind, values: impl Iterator<Item = Value>) -> Self {
        let (mut bytes, mut count) = (Vec::new(), 0);
        for value in values {
            value.render(&mut bytes);
            count += 1;
        }
        Self { kind, count, bytes: bytes.into() }
    }

    /// The type of its values.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Number of values.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The values, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Value> + '_ {
        let mut cursor = Cursor::new(std::path::Path::new(""), &self.bytes);
        (0..self.count).map_while(move |_| Value::read(&mut cursor, self.kind, 0).ok())
    }

    /// The values as texts; those of other types or in no UTF-8 are left out.
    pub fn texts(&self) -> impl Iterator<Item = String> + '_ {
        self.iter().filter_map(|value| value.as_text().map(str::to_owned))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.as_bytes().into())
    }
}

impl Value {
    /// Its type.
    pub fn kind(&self) -> Kind {
        match self {
            Self::U8(_) => Kind::U8,
            Self::I8(_) => Kind::I8,
            Self::U16(_) => Kind::U16,
            Self::I16(_) => Kind::I16,
            Self::U32(_) => Kind::U32,
            Self::I32(_) => Kind::I32,
            Self::F32(_) => Kind::F32,
            Self::Bool(_) => Kind::Bool,
            Self::Text(_) => Kind::Text,
            Self::Array(_) => Kind::Array,
            Self::U64(_) => Kind::U64,
            Self::I64(_) => Kind::I64,
            Self::F64(_) => Kind::F64,
        }
    }

    /// The text, where it is one in UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(bytes) = self { std::str::from_utf8(bytes).ok() } else { None }
    }

    /// The number, where it is a whole one that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The number, where it is a floating-point one.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The array, where it is one.
    pub fn as_array(&self) -> Option<&Array> {
        if let Self::Array(array) = self { Some(array) } else { None }
    }

    /// A value of type `kind`, inside `depth` arrays.
    fn read(cursor: &mut Cursor<'_>, kind: Kind, depth: u32) -> Result<Self> {
        let what = "the value";
        Ok(match kind {
            Kind::U8 => Self::U8(u8::from_le_bytes(cursor.number(what)?)),
            Kind::I8 => Self::I8(i8::from_le_bytes(cursor.number(what)?)),
            Kind::U16 => Self::U16(u16::from_le_bytes(cursor.number(what)?)),
            Kind::I16 => Self::I16(i16::from_le_bytes(cursor.number(what)?)),
            Kind::U32 => Self::U32(cursor.u32(what)?),
            Kind::I32 => Self::I32(i32::from_le_bytes(cursor.number(what)?)),
            Kind::F32 => Self::F32(f32::from_le_bytes(cursor.number(what)?)),
            Kind::U64 => Self::U64(cursor.u64(what)?),
            Kind::I64 => Self::I64(i64::from_le_bytes(cursor.number(what)?)),
            Kind::F64 => Self::F64(f64::from_le_bytes(cursor.number(what)?)),
            Kind::Bool => Self::Bool(match cursor.number(what)? {
                [0] => false,
                [1] => true,
                [other] => return Err(cursor.wrong(format!("the value of type bool is {other}, neither 0 nor 1"))),
            }),
            Kind::Text => Self::Text(cursor.text("the text")?.into()),
            Kind::Array => Self::Array(read_array(cursor, depth)?),
        })
    }

    /// Appends the value as a little-endian file has it.
    fn render(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(value) => out.push(*value),
            Self::I8(value) => out.extend(value.to_le_bytes()),
            Self::U16(value) => out.extend(value.to_le_bytes()),
            Self::I16(value) => out.extend(value.to_le_bytes()),
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::I32(value) => out.extend(value.to_le_bytes()),
            Self::F32(value) => out.extend(value.to_le_bytes()),
            Self::U64(value) => out.extend(value.to_le_bytes()),
            Self::I64(value) => out.extend(value.to_le_bytes()),
            Self::F64(value) => out.extend(value.to_le_bytes()),
            Self::Bool(value) => out.push((*value).into()),
            Self::Text(bytes) => render_text(bytes, out),
            Self::Array(array) => {
                out.extend(array.kind.id().to_le_bytes());
                out.extend(array.count.to_le_bytes());
                out.extend_from_slice(&array.bytes);
            }
        }
    }
}

pub(super) fn render_text(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn read_kind(cursor: &mut Cursor<'_>) -> Result<Kind> {
    let id = cursor.u32("the type of a value")?;
    let known = usize::try_from(id).ok().and_then(|at| KINDS.get(at));
    known.map(|(kind, _)| *kind).ok_or_else(|| cursor.wrong(format!("a value has type {id}, the last known one is 12")))
}

fn read_array(cursor: &mut Cursor<'_>, depth: u32) -> Result<Array> {
    if depth >= MAX_DEPTH {
        return Err(cursor.wrong(format!("arrays are nested deeper than {MAX_DEPTH}")));
    }
    let kind = read_kind(cursor)?;
    let count = cursor.count(kind.least(), "the length of an array")?;
    let mut bytes = Vec::new();
    if matches!(kind, Kind::Text | Kind::Array | Kind::Bool) || cursor.big {
        for _ in 0..count {
            Value::read(cursor, kind, depth + 1)?.render(&mut bytes);
        }
    } else {
        bytes.extend_from_slice(cursor.take(count * kind.least(), "an array")?);
    }
    Ok(Array { kind, count, bytes: bytes.into() })
}

/// The entries of a file, in its order. No key stands there twice.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
}

impl Metadata {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// The entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(other, _)| other == key).map(|(_, value)| value)
    }

    /// The text of a key.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_text()
    }

    /// The whole number of a key.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    /// Gives a key a value: in the place it has, or at the end.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.entries.iter_mut().find(|(other, _)| other == key) {
            Some((_, old)) => *old = value,
            None => self.entries.push((key.to_owned(), value)),
        }
    }

    /// Keeps the entries whose keys are wanted.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.entries.retain(|(key, _)| wanted(key));
    }

    /// Reads `count` entries.
    pub(super) fn read(cursor: &mut Cursor<'_>, count: u64) -> Result<Self> {
        let mut entries = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..count {
            let key = cursor.name(MAX_KEY, "a key")?;
            if !seen.insert(key) {
                return Err(cursor.wrong(format!("the key `{key}` stands there twice")));
            }
            let kind = read_kind(cursor)?;
            entries.push((key.to_owned(), Value::read(cursor, kind, 0)?));
        }
        Ok(Self { entries })
    }

    /// Appends the entries as a little-endian file has them.
    pub(super) fn render(&self, out: &mut Vec<u8>) {
        for (key, value) in &self.entries {
            render_text(key.as_bytes(), out);
            out.extend(value.kind().id().to_le_bytes());
            value.render(out);
        }
    }
}
