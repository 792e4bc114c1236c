//! Which tensors of a pickle are the weights, and what they are called.
//!
//! A file of `torch.save` is a state dict, or a training checkpoint that holds one beside optimiser states and settings.
//! Nested dicts give dotted names.

use std::path::Path;

use super::tensor::tensor_call;
use super::value::{Heap, Node, Value};
use crate::error::{Error, Result};
use crate::limits::{MAX_HEADER_BYTES, MAX_PICKLE_DEPTH};

/// Keys of a checkpoint that hold its weights, best first.
const WRAPPERS: [&str; 12] = [
    "state_dict",
    "model_state_dict",
    "module",
    "model",
    "net",
    "network",
    "params",
    "weights",
    "params_ema",
    "ema",
    "model_ema",
    "ema_state_dict",
];

/// Keys of a checkpoint whose tensors are no weights.
const ASIDES: [&str; 30] = [
    "optimizer",
    "optimizers",
    "optimizer_states",
    "optimizer_state_dict",
    "optim",
    "optim_state_dict",
    "scheduler",
    "lr_scheduler",
    "lr_schedulers",
    "scaler",
    "scalers",
    "callbacks",
    "loops",
    "rng",
    "rng_state",
    "cpu_rng_state",
    "torch_rng_state",
    "cuda_rng_state_all",
    "cuda_rng_states",
    "np_rng_state",
    "numpy_rng_state",
    "random_state",
    "rng_states",
    "cuda_rng_state",
    "random_rng_state",
    "hyper_parameters",
    "epoch",
    "step",
    "global_step",
    "iteration",
];

/// What a tensor takes in a safetensors header beside its name.
const HEADER_BYTES: u64 = 60;

/// The weights of a pickle.
#[derive(Debug, Default)]
pub struct State {
    /// Names and tensors, in the order of the pickle.
    pub tensors: Vec<(String, Value)>,
    /// What was read and what was not.
    pub notes: Vec<String>,
}

/// Finds the weights in the pickle with this `root`; a tensor that stands alone is called `alone`.
///
/// # Errors
/// When there are none, or they are nested too deep.
pub fn find(file: &Path, heap: &Heap<'_>, root: Value, alone: &str) -> Result<State> {
    let mut search = Search { file, heap, holding: vec![Holding::Unknown; heap.nodes().len()], header_bytes: 0 };
    let mut state = State::default();
    if tensor_call(heap, root).is_some() {
        state.tensors.push((alone.to_owned(), root));
        return Ok(state);
    }
    let (weights, path, asides) = search.weights(root)?;
    let empty = matches!(heap.node(weights), Some(Node::Dict(entries)) if entries.is_empty());
    if !empty && !search.holds(weights, 0)? {
        let what = "is a PyTorch file that holds no tensors";
        return Err(Error::unsupported(file, what));
    }
    if !path.is_empty() {
        let aside = if asides.is_empty() { String::new() } else { format!("; left aside: {}", listed(&asides)) };
        state.notes.push(format!("{}: the weights are its `{}`{aside}", file.display(), path.join(".")));
    }
    let others = search.others(weights)?;
    if !others.is_empty() {
        let text = format!("{}: {} of its values are no tensors: {}", file.display(), others.len(), listed(&others));
        state.notes.push(text);
    }
    search.collect(weights, String::new(), 0, &mut state.tensors)?;
    Ok(state)
}

/// What is known of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holding {
    Unknown,
    Tensors,
    /// Nothing, or it is being looked at further up.
    Nothing,
}

struct Search<'h, 'a> {
    file: &'h Path,
    heap: &'h Heap<'a>,
    holding: Vec<Holding>,
    /// About what a safetensors header for the tensors found so far takes.
    header_bytes: u64,
}

/// The dict with the weights, the keys that lead there, and the keys beside them that hold tensors too.
type Weights = (Value, Vec<String>, Vec<String>);

impl Search<'_, '_> {
    fn weights(&mut self, root: Value) -> Result<Weights> {
        let (mut at, mut path, mut asides) = (root, Vec::new(), Vec::new());
        while let Some((key, value, beside)) = self.wrapped(at)? {
            // A dict can hold itself.
            self.check_depth(u32::try_from(path.len()).unwrap_or(u32::MAX))?;
            at = value;
            path.push(key);
            asides.extend(beside);
        }
        Ok((at, path, asides))
    }

    /// The entry of a dict that holds the weights: where it is called so, where the others are known, or where they show that
    /// training left them.
    fn wrapped(&mut self, value: Value) -> Result<Option<(String, Value, Vec<String>)>> {
        let heap = self.heap;
        let Some(Node::Dict(entries)) = heap.node(value) else { return Ok(None) };
        let mut candidates = Vec::new();
        let mut holding = Vec::new();
        let mut training = false;
        for (key, value) in entries {
            let name = self.key(*key);
            training |= ASIDES.contains(&name.as_str());
            let dict = matches!(heap.node(*value), Some(Node::Dict(_)));
            let holds = self.holds(*value, 0)?;
            if holds {
                holding.push(name.clone());
            }
            let rank = WRAPPERS.iter().position(|wrapper| *wrapper == name);
            if let Some(rank) = rank.filter(|_| dict) {
                candidates.push((rank, name, *value, holds));
            }
        }
        // A state dict without a tensor is one, unless the tensors are elsewhere.
        candidates.retain(|(rank, .., holds)| *holds || *rank == 0 && holding.is_empty());
        candidates.sort_by_key(|(rank, ..)| *rank);
        let Some((rank, name, value, _)) = candidates.into_iter().next() else { return Ok(None) };
        holding.retain(|other| *other != name);
        let known = |other: &String| ASIDES.contains(&other.as_str()) || WRAPPERS.contains(&other.as_str());
        Ok((rank == 0 || training || holding.iter().all(known)).then_some((name, value, holding)))
    }

    /// Whether a value is or contains a tensor.
    fn holds(&mut self, value: Value, depth: u32) -> Result<bool> {
        let Value::Node(at) = value else { return Ok(false) };
        let at = at as usize;
        if self.holding[at] != Holding::Unknown {
            return Ok(self.holding[at] == Holding::Tensors);
        }
        self.check_depth(depth)?;
        self.holding[at] = Holding::Nothing;
        let heap = self.heap;
        let mut found = tensor_call(heap, value).is_some();
        match &heap.nodes()[at] {
            Node::Dict(entries) => {
                for (_, value) in entries {
                    found |= self.holds(*value, depth + 1)?;
                }
            }
            Node::Tuple(_) | Node::List(_) => {
                for value in heap.sequence(value).unwrap_or_default() {
                    found |= self.holds(*value, depth + 1)?;
                }
            }
            Node::Global(_) | Node::Persistent(_) | Node::Call(..) => {}
        }
        if found {
            self.holding[at] = Holding::Tensors;
        }
        Ok(found)
    }

    /// Keys of a dict whose values are no tensors and hold none.
    fn others(&mut self, value: Value) -> Result<Vec<String>> {
        let heap = self.heap;
        let Some(Node::Dict(entries)) = heap.node(value) else { return Ok(Vec::new()) };
        let mut others = Vec::new();
        for (key, value) in entries {
            if !self.holds(*value, 0)? {
                others.push(self.key(*key));
            }
        }
        Ok(others)
    }

    fn collect(&mut self, value: Value, name: String, depth: u32, found: &mut Vec<(String, Value)>) -> Result<()> {
        self.check_depth(depth)?;
        if tensor_call(self.heap, value).is_some() {
            // A dict that is used twice gives its tensors twice, so the names can be longer than the file.
            self.header_bytes += name.len() as u64 + HEADER_BYTES;
            if self.header_bytes > MAX_HEADER_BYTES {
                let what = "the length of a header for its tensors, in bytes";
                return Err(Error::limit(self.file, what, self.header_bytes, MAX_HEADER_BYTES));
            }
            found.push((name, value));
            return Ok(());
        }
        let heap = self.heap;
        let below = |key: &str| if depth == 0 { key.to_owned() } else { format!("{name}.{key}") };
        match heap.node(value) {
            Some(Node::Dict(entries)) => {
                for (key, value) in entries {
                    if self.holds(*value, 0)? {
                        self.collect(*value, below(&self.key(*key)), depth + 1, found)?;
                    }
                }
            }
            _ => {
                for (at, value) in heap.sequence(value).unwrap_or_default().iter().enumerate() {
                    if self.holds(*value, 0)? {
                        self.collect(*value, below(&at.to_string()), depth + 1, found)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn key(&self, key: Value) -> String {
        match key {
            Value::Int(number) => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            other => self.heap.text(other).unwrap_or("?").to_owned(),
        }
    }

    fn check_depth(&self, depth: u32) -> Result<()> {
        if depth <= MAX_PICKLE_DEPTH {
            return Ok(());
        }
        let (what, most) = ("the nesting of its pickle in levels", MAX_PICKLE_DEPTH.into());
        Err(Error::limit(self.file, what, depth.into(), most).hint("the file is damaged, or made to do harm"))
    }
}

/// The first of many keys, fit for a message.
fn listed(keys: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown = |key: &String| {
        let text: String = key.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect();
        format!("`{text}`")
    };
    let text = keys.iter().take(SHOWN).map(shown).collect::<Vec<_>>().join(", ");
    if keys.len() > SHOWN { format!("{text} …") } else { text }
}
