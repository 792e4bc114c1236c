//! The stack machine of a pickle, as far as `torch.save` uses it.
//!
//! Source: CPython `Lib/pickletools.py` and torch's `weights_only` subset, with what protocols 4 and 5 add. It builds a
//! description ([`Heap`]) and calls nothing; time and memory are linear in the bytes that are read. An opcode that is not
//! in [`Machine::step`] refuses the file.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::path::Path;

use super::globals::{Known, find};
use super::value::{Heap, Node, Value};
use crate::error::{Error, Result};
use crate::limits::{MAX_PICKLE_BYTES, MAX_PICKLE_PUSHES, MAX_PICKLE_VALUES};

/// Newest protocol of Python 3.14.
const NEWEST_PROTOCOL: u8 = 5;

/// Most marks that are open at once: one per nested collection.
const MAX_MARKS: usize = 1000;

/// A pickle that was read.
pub struct Unpickled<'a> {
    /// What it consists of.
    pub heap: Heap<'a>,
    /// What it is.
    pub root: Value,
    /// Bytes it took.
    pub len: usize,
}

/// Reads the pickle at the front of `bytes`, which stand in `place` of `file`.
///
/// # Errors
/// `Malformed` with the position in `place`, `Limit`, or `Unsupported` for a global that no weights need.
pub fn read<'a>(file: &Path, place: &str, bytes: &'a [u8]) -> Result<Unpickled<'a>> {
    let most = usize::try_from(MAX_PICKLE_BYTES).unwrap_or(usize::MAX);
    let bytes = &bytes[..bytes.len().min(most)];
    let mut machine = Machine {
        file,
        place,
        bytes,
        at: 0,
        opcode_at: 0,
        stack: Vec::new(),
        pushed: 0,
        marks: Vec::new(),
        memo: Vec::new(),
        sparse: HashMap::new(),
        heap: Heap::new(bytes),
    };
    loop {
        if let Some(root) = machine.step()? {
            return Ok(Unpickled { heap: machine.heap, root, len: machine.at });
        }
        if machine.pushed > MAX_PICKLE_PUSHES {
            return Err(Error::limit(file, "the number of values its pickle names", machine.pushed, MAX_PICKLE_PUSHES));
        }
    }
}

struct Machine<'m, 'a> {
    file: &'m Path,
    place: &'m str,
    bytes: &'a [u8],
    at: usize,
    opcode_at: usize,
    stack: Vec<Value>,
    /// How many values were ever put on the stack.
    pushed: u64,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    /// Remembered values by number, as far as the numbers follow each other from 0 on, as picklers give them.
    memo: Vec<Value>,
    /// The others.
    sparse: HashMap<u32, Value>,
    heap: Heap<'a>,
}

impl<'a> Machine<'_, 'a> {
    /// Does one opcode; gives the root at the last one.
    fn step(&mut self) -> Result<Option<Value>> {
        self.opcode_at = self.at;
        match self.byte()? {
            0x80 => self.protocol()?,
            b'.' => return self.pop().map(Some),
            b'(' => self.mark()?,
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()));
            }
            0x8a => {
                let len = self.length(1)?;
                self.long(len)?;
            }
            0x8b => {
                let len = i32::from_le_bytes(self.array()?);
                let len = usize::try_from(len).map_err(|_| self.wrong(format!("a number of {len} bytes")))?;
                self.long(len)?;
            }
            b'G' => self.skip(8)?,
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            0x8d => self.text(8)?,
            b'U' => self.text(1)?,
            b'T' => self.text(4)?,
            b'S' => {
                self.line()?;
                self.push(Value::Opaque);
            }
            b'C' => self.byte_string(1)?,
            b'B' => self.byte_string(4)?,
            0x8e | 0x96 => self.byte_string(8)?,
            b')' => self.node(Node::Tuple(Box::default()))?,
            0x85..=0x87 => {
                let count = usize::from(self.bytes[self.opcode_at] - 0x84);
                let from = self.below(count)?;
                self.tuple(from)?;
            }
            b't' => {
                let from = self.since_mark()?;
                self.tuple(from)?;
            }
            b']' => self.node(Node::List(Vec::new()))?,
            b'l' => {
                let from = self.since_mark()?;
                let values = self.stack.split_off(from);
                self.node(Node::List(values))?;
            }
            b'}' => self.node(Node::Dict(Vec::new()))?,
            b'd' => {
                let from = self.since_mark()?;
                let pairs = self.stack.split_off(from);
                self.node(Node::Dict(Vec::new()))?;
                self.insert(&pairs)?;
            }
            0x8f => self.push(Value::Opaque),
            0x90 => {
                let from = self.since_mark()?;
                self.stack.truncate(from);
            }
            0x91 => {
                let from = self.since_mark()?;
                self.stack.truncate(from);
                self.push(Value::Opaque);
            }
            b'a' => {
                let from = self.below(1)?;
                let values = self.stack.split_off(from);
                self.append(&values)?;
            }
            b'e' => {
                let from = self.since_mark()?;
                let values = self.stack.split_off(from);
                self.append(&values)?;
            }
            b's' => {
                let from = self.below(2)?;
                let pair = self.stack.split_off(from);
                self.insert(&pair)?;
            }
            b'u' => {
                let from = self.since_mark()?;
                let pairs = self.stack.split_off(from);
                self.insert(&pairs)?;
            }
            b'q' => {
                let at = self.length(1)?;
                self.remember(at)?;
            }
            b'r' => {
                let at = self.length(4)?;
                self.remember(at)?;
            }
            0x94 => self.remember(self.memo.len() + self.sparse.len())?,
            b'h' => {
                let at = self.length(1)?;
                self.recall(at)?;
            }
            b'j' => {
                let at = self.length(4)?;
                self.recall(at)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => self.stack_global()?,
            b'i' => return self.instance(),
            b'Q' => {
                let id = self.pop()?;
                if self.heap.sequence(id).is_none() {
                    return Err(self.wrong("a persistent id that is no tuple"));
                }
                self.node(Node::Persistent(id))?;
            }
            b'R' => self.reduce()?,
            0x81 => self.reduce()?,
            0x92 => {
                // The named arguments go with those of an object that is not built.
                self.pop()?;
                self.reduce()?;
            }
            b'b' => {
                // The state of an object: `_metadata` of a state dict, attributes of what is not built.
                self.pop()?;
                self.top()?;
            }
            0x95 => {
                let len = self.length(8)?;
                if len > self.bytes.len() - self.at {
                    let left = self.bytes.len() - self.at;
                    return Err(self.wrong(format!("a frame of {len} bytes where {left} are left")));
                }
            }
            other => return Err(self.wrong(format!("opcode {other:#04x}, which no file of `torch.save` holds"))),
        }
        Ok(None)
    }

    fn protocol(&mut self) -> Result<()> {
        match self.byte()? {
            version if version <= NEWEST_PROTOCOL => Ok(()),
            version => Err(self.wrong(format!("protocol {version}; the newest known is {NEWEST_PROTOCOL}"))),
        }
    }

    fn mark(&mut self) -> Result<()> {
        if self.marks.len() == MAX_MARKS {
            return Err(self.wrong(format!("more than {MAX_MARKS} marks that are open at once")));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn int(&mut self, width: usize) -> Result<()> {
        let value = self.length(width)?;
        let value = i64::try_from(value).map_err(|_| self.wrong("a number beyond 64 bits"))?;
        self.push(Value::Int(value));
        Ok(())
    }

    /// A number of `len` bytes in two's complement.
    fn long(&mut self, len: usize) -> Result<()> {
        let bytes = self.take(len)?;
        let value = if len > 8 {
            Value::Opaque
        } else {
            let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
            let mut whole = [sign; 8];
            whole[..len].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(whole))
        };
        self.push(value);
        Ok(())
    }

    /// A text behind a length of `width` bytes. Python 2 wrote texts as bytes; what is no UTF-8 names no tensor.
    fn text(&mut self, width: usize) -> Result<()> {
        let len = self.length(width)?;
        let start = self.at;
        let text = std::str::from_utf8(self.take(len)?).is_ok();
        let place = u32::try_from(start).ok().zip(u32::try_from(len).ok()).filter(|_| text);
        self.push(place.map_or(Value::Opaque, |(start, len)| Value::Text { start, len }));
        Ok(())
    }

    fn byte_string(&mut self, width: usize) -> Result<()> {
        let len = self.length(width)?;
        self.skip(len)
    }

    fn skip(&mut self, len: usize) -> Result<()> {
        self.take(len)?;
        self.push(Value::Opaque);
        Ok(())
    }

    fn tuple(&mut self, from: usize) -> Result<()> {
        let values = self.stack.split_off(from);
        self.node(Node::Tuple(values.into()))
    }

    fn append(&mut self, values: &[Value]) -> Result<()> {
        match self.top()? {
            // A deque or another collection that is not built.
            Value::Opaque => Ok(()),
            Value::Node(at) if self.heap.append(at, values) => Ok(()),
            _ => Err(self.wrong("an element for something that is no list")),
        }
    }

    fn insert(&mut self, pairs: &[Value]) -> Result<()> {
        if !pairs.len().is_multiple_of(2) {
            return Err(self.wrong("a key without a value"));
        }
        match self.top()? {
            Value::Opaque => Ok(()),
            Value::Node(at) if self.heap.insert(at, pairs) => Ok(()),
            _ => Err(self.wrong("an entry for something that is no dict")),
        }
    }

    fn remember(&mut self, at: usize) -> Result<()> {
        let at = u32::try_from(at).map_err(|_| self.wrong("a memo number beyond 32 bits"))?;
        let value = self.top()?;
        match (at as usize).cmp(&self.memo.len()) {
            Ordering::Less => self.memo[at as usize] = value,
            Ordering::Equal => self.memo.push(value),
            Ordering::Greater => drop(self.sparse.insert(at, value)),
        }
        let count = (self.memo.len() + self.sparse.len()) as u64;
        if count > MAX_PICKLE_VALUES {
            return Err(Error::limit(self.file, "the number of memo entries in its pickle", count, MAX_PICKLE_VALUES));
        }
        Ok(())
    }

    fn recall(&mut self, at: usize) -> Result<()> {
        let sparse = || u32::try_from(at).ok().and_then(|at| self.sparse.get(&at));
        let value = self.memo.get(at).or_else(sparse).copied();
        let value = value.ok_or_else(|| self.wrong(format!("memo entry {at}, which was never made")))?;
        self.push(value);
        Ok(())
    }

    fn stack_global(&mut self) -> Result<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (self.heap.text(module), self.heap.text(name)) {
            (Some(module), Some(name)) => self.global(module, name),
            _ => Err(self.wrong("a global whose name is no text")),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        match find(self.file, module, name)? {
            Known::Inert => self.push(Value::Opaque),
            known => self.node(Node::Global(known))?,
        }
        Ok(())
    }

    /// `INST` builds an object of the class it names: an opcode of protocol 0, which torch never used.
    fn instance(&mut self) -> Result<Option<Value>> {
        let (module, name) = (self.line()?, self.line()?);
        find(self.file, module, name)?;
        Err(self.wrong("opcode INST, which no file of `torch.save` holds"))
    }

    /// A function and its arguments: known functions are noted, what is not built stays so.
    fn reduce(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Node(at) = function else {
            return match function {
                Value::Opaque => {
                    self.push(Value::Opaque);
                    Ok(())
                }
                _ => Err(self.wrong("a call of something that is no global")),
            };
        };
        let Some(values) = self.heap.sequence(arguments) else {
            return Err(self.wrong("a call whose arguments are no tuple"));
        };
        let first = values.first().copied();
        match &self.heap.nodes()[at as usize] {
            Node::Global(Known::Mapping) => {
                let pairs = self.pairs(values);
                self.node(Node::Dict(Vec::new()))?;
                self.insert(&pairs)?;
            }
            Node::Global(Known::Size) => {
                let sizes = first.ok_or_else(|| self.wrong("a torch.Size of nothing"))?;
                self.push(sizes);
            }
            Node::Global(Known::Encode) => self.push(Value::Opaque),
            Node::Global(Known::Tensor | Known::TensorOfDtype | Known::Parameter | Known::FromType) => {
                self.node(Node::Call(at, arguments))?;
            }
            _ => return Err(self.wrong("a call of something that is no function")),
        }
        Ok(())
    }

    /// Keys and values in turn of a dict that is built from a list of pairs, as Python 2 saved it.
    fn pairs(&self, arguments: &[Value]) -> Vec<Value> {
        let lists = arguments.iter().filter_map(|argument| self.heap.sequence(*argument)).flatten();
        lists.filter_map(|pair| self.heap.sequence(*pair)).filter(|pair| pair.len() == 2).flatten().copied().collect()
    }

    fn node(&mut self, node: Node) -> Result<()> {
        let value = self.heap.add(self.file, node)?;
        self.push(value);
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.pushed += 1;
        self.stack.push(value);
    }

    fn pop(&mut self) -> Result<Value> {
        let from = self.below(1)?;
        let value = self.stack[from];
        self.stack.truncate(from);
        Ok(value)
    }

    fn top(&self) -> Result<Value> {
        self.below(1).map(|at| self.stack[at])
    }

    /// Height of the stack below `count` values, which may not reach beyond the last mark.
    fn below(&self, count: usize) -> Result<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(height) if height >= floor => Ok(height),
            _ => Err(self.wrong("an opcode for more values than the stack holds")),
        }
    }

    fn since_mark(&mut self) -> Result<usize> {
        self.marks.pop().ok_or_else(|| self.wrong("the end of a collection that has no begin"))
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N)?;
        Ok(*bytes.first_chunk().expect("as many bytes as were taken"))
    }

    /// A number without sign in `width` bytes.
    fn length(&mut self, width: usize) -> Result<usize> {
        let mut whole = [0; 8];
        whole[..width].copy_from_slice(self.take(width)?);
        let value = u64::from_le_bytes(whole);
        usize::try_from(value).map_err(|_| self.wrong(format!("a length of {value}")))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        if len > left {
            let problem = format!("an opcode that needs {len} bytes more where {left} are left");
            return Err(self.wrong(problem).hint("the file was cut short, or is damaged"));
        }
        let bytes = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(bytes)
    }

    /// Bytes up to a line feed, as text.
    fn line(&mut self) -> Result<&'a str> {
        /// Longer than any name of a module or class.
        const LONGEST: usize = 1000;
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(LONGEST).position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| self.wrong(format!("a name without an end in {LONGEST} bytes")))?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| self.wrong("a name that is no text"))
    }

    fn wrong(&self, problem: impl Into<String>) -> Error {
        let at = self.opcode_at;
        Error::malformed(self.file, format!("{}, byte {at}", self.place), format!("the pickle has {}", problem.into()))
    }
}
