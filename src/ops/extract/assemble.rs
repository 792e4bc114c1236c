//! Factors and whole tensors → a PEFT adapter.

use foldhash::HashMap;
use serde_json::{Map, Value};

use super::class::Layer;
use super::examine::{Examined, Task, Whole};
use super::factor::{Factored, part_shape};
use crate::adapters::BaseRows;
use crate::dialects::peft::new_adapter::NewAdapter;
use crate::error::Result;
use crate::io::name_of;
use crate::llama::RowLayout;
use crate::model::base::Base;
use crate::pairs::{Bytes, NewPair, NewWhole, PairKind};
use crate::tensor::Float;

/// Endings of architecture names and the task PEFT knows them as. Tasks whose heads PEFT saves whole unasked are left out: a head
/// with factors would not be loaded.
const TASKS: [(&str, &str); 2] = [("ForCausalLM", "CAUSAL_LM"), ("LMHeadModel", "CAUSAL_LM")];

/// Puts the adapter together. Changes of rank 0 are left out.
pub fn assemble(
    base: &Base,
    examined: &Examined,
    factored: Vec<Factored>,
    whole: Vec<NewWhole>,
    uniform: bool,
) -> NewAdapter {
    let widest = factored.iter().map(|factored| factored.rank).max().unwrap_or(0);
    let nesting = Nesting::of(&examined.tasks);
    let mut pairs = Vec::new();
    for (task, mut factored) in examined.tasks.iter().zip(factored).filter(|(_, factored)| factored.rank > 0) {
        if uniform {
            pad(&mut factored, task, widest);
        }
        if let Some(head) = &task.tied_head {
            pairs.push(mirrored(head, task, &factored));
        }
        pairs.push(pair(task, factored, nesting.depth(task)));
    }
    NewAdapter { inherited: settings(base, examined), pairs, whole, rslora: false }
}

/// The whole tensors with their values: the tuned file's bytes, FP8 and what lies otherwise in files of llama.cpp as the
/// numbers it means.
///
/// # Errors
/// When a weight cannot be read.
pub fn whole(tuned: &Base, whole: &[Whole]) -> Result<Vec<NewWhole>> {
    let one = |whole: &Whole| {
        let stored = tuned.stored(&whole.tuned);
        let shape = stored.info.shape.clone();
        let packed = stored.info.dtype.float().is_some_and(|float| tuned.scale_of(&whole.tuned, float).is_some());
        let moved = tuned.view.as_ref().is_some_and(|view| view.row_layout(&whole.tuned) != RowLayout::default());
        let bytes = if packed || moved {
            let weight = tuned.weight(&whole.tuned, None)?;
            let mut values = vec![0.0; weight.rows * weight.cols];
            weight.read(0..weight.rows, 0..weight.cols, &mut values)?;
            Bytes::held(&values, Float::F32, (weight.tensor.path(), &whole.tuned))?
        } else {
            Bytes::Stored(stored)
        };
        let (module, parameter) = (whole.module.clone(), whole.parameter.clone());
        Ok(NewWhole { module, parameter, shape, bytes, frozen_bias: whole.frozen_bias })
    };
    whole.iter().map(one).collect()
}

/// What the config says beside the factors.
fn settings(base: &Base, examined: &Examined) -> Map<String, Value> {
    let mut settings = Map::new();
    let config = base.config.as_ref();
    let named = config.and_then(|config| config.text("_name_or_path"));
    let name = named.filter(|name| !name.is_empty()).map_or_else(|| name_of(base.checkpoint.root()), str::to_owned);
    settings.insert("base_model_name_or_path".into(), name.into());
    let class = config.and_then(|config| config.class()).unwrap_or_default();
    if let Some((_, task)) = TASKS.iter().find(|(ending, _)| class.ends_with(ending)) {
        settings.insert("task_type".into(), (*task).into());
    }
    if examined.tasks.iter().any(|task| task.layer == Layer::Conv1d) {
        settings.insert("fan_in_fan_out".into(), true.into());
    }
    if examined.tied {
        settings.insert("ensure_weight_tying".into(), true.into());
    }
    settings
}

/// Outputs and inputs, a convolution's without its kernel.
fn outer(task: &Task) -> (u64, u64) {
    let (rows, cols) = part_shape(task);
    let (rows, cols) = (rows as u64, cols as u64 / task.layer.positions().max(1));
    if task.layer.is_turned() { (cols, rows) } else { (rows, cols) }
}

fn pair(task: &Task, factored: Factored, nesting: usize) -> NewPair {
    let kind = match &task.layer {
        Layer::Linear | Layer::Conv1d => PairKind::Linear,
        Layer::Conv(kernel) => PairKind::Conv { kernel: kernel.clone() },
        Layer::Embedding => PairKind::Embedding,
        Layer::Parameter { name, experts, .. } => {
            PairKind::Parameter { name: name.clone(), nesting, experts: *experts }
        }
    };
    let Factored { rank, alpha, float, down, up, .. } = factored;
    NewPair {
        path: task.path.clone(),
        kind,
        rank,
        alpha,
        down: Bytes::Held { bytes: down, float },
        up: Bytes::Held { bytes: up, float },
        outer: outer(task),
        up_bias: None,
    }
}

/// The head's share of a change of the tensor that it has in common with its embedding: the same factors, turned around, as
/// PEFT keeps them where head and embedding are trained as one.
fn mirrored(head: &str, task: &Task, factored: &Factored) -> NewPair {
    let (dim, vocabulary) = outer(task);
    let width = factored.float.bytes();
    let held = |bytes| Bytes::Held { bytes, float: factored.float };
    NewPair {
        path: head.into(),
        kind: PairKind::Linear,
        rank: factored.rank,
        alpha: factored.alpha,
        down: held(transposed(&factored.up, factored.rank, width)),
        up: held(transposed(&factored.down, count(vocabulary), width)),
        outer: (vocabulary, dim),
        up_bias: None,
    }
}

/// The transpose of a matrix of `cols` columns with elements of `width` bytes.
fn transposed(bytes: &[u8], cols: usize, width: usize) -> Vec<u8> {
    let rows = bytes.len() / (cols * width).max(1);
    let mut turned = Vec::with_capacity(bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * width;
            turned.extend_from_slice(&bytes[at..at + width]);
        }
    }
    turned
}

/// The adapted parameters of every module, in the order they are wrapped.
struct Nesting<'a>(HashMap<&'a str, Vec<Place<'a>>>);

/// Where a parameter stands among those of its module.
type Place<'a> = (usize, &'a str);

impl<'a> Nesting<'a> {
    fn of(tasks: &'a [Task]) -> Self {
        let mut places: HashMap<&str, Vec<Place<'_>>> = HashMap::default();
        for task in tasks.iter().filter(|task| matches!(task.layer, Layer::Parameter { .. })) {
            places.entry(&task.path).or_default().push(place(task));
        }
        places.values_mut().for_each(|own| own.sort_unstable());
        Self(places)
    }

    /// How many adapted parameters of the same module are wrapped around this one.
    fn depth(&self, task: &Task) -> usize {
        let own = self.0.get(task.path.as_str()).map_or(&[][..], Vec::as_slice);
        own.len() - own.partition_point(|other| *other <= place(task))
    }
}

fn place(task: &Task) -> Place<'_> {
    (task.layer.definition_order(), &task.name)
}

/// Fills a pair with zeros up to `rank`; the scale becomes 1 by an alpha of as much.
fn pad(factored: &mut Factored, task: &Task, rank: usize) {
    let (out, inputs) = outer(task);
    let (experts, width) = (count(task.layer.experts()), factored.float.bytes());
    let row = count(inputs) * count(task.layer.positions()) * width;
    let (old, new) = (factored.rank * row, rank * row);
    let mut down = vec![0; experts * new];
    for (from, to) in factored.down.chunks_exact(old).zip(down.chunks_exact_mut(new)) {
        to[..old].copy_from_slice(from);
    }
    let (old, new) = (factored.rank * experts * width, rank * experts * width);
    let mut up = vec![0; count(out) * new];
    for (from, to) in factored.up.chunks_exact(old).zip(up.chunks_exact_mut(new)) {
        to[..old].copy_from_slice(from);
    }
    (factored.down, factored.up, factored.rank, factored.alpha) = (down, up, rank, rank as f64);
}

fn count(size: u64) -> usize {
    usize::try_from(size).expect("sizes of mapped tensors fit the address space")
}
