//! What a pickle describes: values in one arena, each told once however often it is used.
//!
//! Nothing is nested in memory, so a value can be as deep as it likes, or contain itself, without a cost when it is
//! looked at or dropped.

use std::path::Path;

use super::globals::Known;
use crate::error::{Error, Result};
use crate::limits::MAX_PICKLE_VALUES;

/// A value, or where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number of at most 64 bits.
    Int(i64),
    /// A text: a range of the pickle's bytes.
    Text {
        /// First byte.
        start: u32,
        /// Number of bytes.
        len: u32,
    },
    /// Index of a [`Node`].
    Node(u32),
    /// What no tensor is made of: floats, byte strings, objects that are not built.
    Opaque,
}

/// A value that consists of others.
#[derive(Debug)]
pub enum Node {
    /// `(…)`.
    Tuple(Box<[Value]>),
    /// `[…]`.
    List(Vec<Value>),
    /// `{…}`, in the order of the pickle.
    Dict(Vec<(Value, Value)>),
    /// A function or class that is known here.
    Global(Known),
    /// A persistent id: the tuple that names a storage.
    Persistent(Value),
    /// A known function, as the index of its global, and the tuple of its arguments; it is not called.
    Call(u32, Value),
}

/// All nodes of a pickle.
#[derive(Debug)]
pub struct Heap<'a> {
    bytes: &'a [u8],
    nodes: Vec<Node>,
}

impl<'a> Heap<'a> {
    /// The arena of the pickle `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, nodes: Vec::new() }
    }

    /// Adds a node.
    ///
    /// # Errors
    /// `Limit`, when there are too many.
    pub fn add(&mut self, file: &Path, node: Node) -> Result<Value> {
        let count = self.nodes.len() as u64;
        if count >= MAX_PICKLE_VALUES {
            return Err(Error::limit(file, "the number of values in its pickle", count + 1, MAX_PICKLE_VALUES));
        }
        self.nodes.push(node);
        Ok(Value::Node(u32::try_from(count).expect("the accepted number of values fits 32 bits")))
    }

    /// Adds `values` to the list `at`; tells whether it is one.
    pub fn append(&mut self, at: u32, values: &[Value]) -> bool {
        let Node::List(list) = &mut self.nodes[at as usize] else { return false };
        list.extend_from_slice(values);
        true
    }

    /// Adds `pairs`, keys and values in turn, to the dict `at`; tells whether it is one.
    pub fn insert(&mut self, at: u32, pairs: &[Value]) -> bool {
        let Node::Dict(dict) = &mut self.nodes[at as usize] else { return false };
        dict.extend(pairs.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        true
    }

    /// The node behind a value.
    pub fn node(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Node(at) => self.nodes.get(at as usize),
            _ => None,
        }
    }

    /// The elements of a tuple or list.
    pub fn sequence(&self, value: Value) -> Option<&[Value]> {
        match self.node(value)? {
            Node::Tuple(values) => Some(values),
            Node::List(values) => Some(values),
            _ => None,
        }
    }

    /// A text.
    pub fn text(&self, value: Value) -> Option<&'a str> {
        let Value::Text { start, len } = value else { return None };
        let bytes = self.bytes.get(start as usize..start as usize + len as usize)?;
        std::str::from_utf8(bytes).ok()
    }

    /// The function and the arguments of a call.
    pub fn call(&self, value: Value) -> Option<(&Known, &[Value])> {
        let Node::Call(function, arguments) = self.node(value)? else { return None };
        match &self.nodes[*function as usize] {
            Node::Global(known) => Some((known, self.sequence(*arguments)?)),
            _ => None,
        }
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
}
