//! Factors and whole tensors → a PEFT adapter.

use foldhash::HashMap;
use serde_json::{Map, Value};

use super::class::Layer;
use super::examine::{Examined, Whole};
use super::task::Task;
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

/// Puts the adapter together of the pairs of all tasks.
pub fn assemble(
    base: &Base,
    examined: &Examined,
    made: Vec<Option<NewPair>>,
    whole: Vec<NewWhole>,
    base_name: Option<&str>,
) -> NewAdapter {
    let order = Nesting::of(&examined.tasks);
    let mut pairs = Vec::new();
    for (task, mut pair) in examined.tasks.iter().zip(made).filter_map(|(task, pair)| Some((task, pair?))) {
        pairs.extend(task.tied_head.as_ref().map(|head| mirrored(head, &pair)));
        if let PairKind::Parameter { nesting, .. } = &mut pair.kind {
            *nesting = order.depth(task);
        }
        pairs.push(pair);
    }
    NewAdapter { inherited: settings(base, examined, base_name), pairs, whole, rslora: false, open: false }
}

/// The whole tensors with their values: the tuned file's bytes, and what lies otherwise in GGUF files as the numbers it
/// means.
///
/// # Errors
/// When a weight cannot be read.
pub fn whole(tuned: &Base, whole: &[Whole]) -> Result<Vec<NewWhole>> {
    let one = |whole: &Whole| {
        let stored = tuned.stored(&whole.tuned);
        let shape = stored.info.shape.clone();
        let moved = tuned.view.as_ref().is_some_and(|view| view.row_layout(&whole.tuned) != RowLayout::default());
        let bytes = if moved {
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
fn settings(base: &Base, examined: &Examined, base_name: Option<&str>) -> Map<String, Value> {
    let mut settings = Map::new();
    let config = base.config.as_ref();
    let named = base_name.or_else(|| config.and_then(|config| config.text("_name_or_path")));
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

/// The head's share of a change of the tensor that it has in common with its embedding: the same factors, turned around, as
/// PEFT keeps them where head and embedding are trained as one.
fn mirrored(head: &str, embedding: &NewPair) -> NewPair {
    let (dim, vocabulary) = embedding.outer;
    NewPair {
        path: head.into(),
        kind: PairKind::Linear,
        rank: embedding.rank,
        alpha: embedding.alpha,
        down: transposed(&embedding.up, embedding.rank),
        up: transposed(&embedding.down, usize::try_from(vocabulary).expect("a vocabulary can be counted")),
        outer: (vocabulary, dim),
        up_bias: None,
    }
}

/// The transpose of a matrix of `cols` columns.
fn transposed(matrix: &Bytes, cols: usize) -> Bytes {
    let Bytes::Held { bytes, float } = matrix else { return matrix.clone() };
    let width = float.bytes();
    let rows = bytes.len() / (cols * width).max(1);
    let mut turned = Vec::with_capacity(bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * width;
            turned.extend_from_slice(&bytes[at..at + width]);
        }
    }
    Bytes::Held { bytes: turned, float: *float }
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
