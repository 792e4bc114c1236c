//! Every pair of tensors looked at once: what is unchanged, what is left out, and what becomes of the rest.

use std::collections::{BTreeMap, BTreeSet};

use super::choice::Choice;
use super::class::{Class, Layer, classify};
use super::difference::Difference;
use super::pairing::{Pair, Pairing, module_of};
use super::task::Task;
use crate::adapters::describe;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::model::base::Base;
use crate::model::same_bytes;
use crate::model::storage::refused;
use crate::naming::{embeddings, head};
use crate::output::Run;
use crate::placement::swapped_by_peft;
use crate::plan::{Budget, map_within};
use crate::tensor::Packing;

/// What one look holds: two rows of a comparison.
const LOOK_BYTES: u64 = 2 << 20;

/// Why attention in one module has no factors: `docs/inside/decisions/0006`.
const ATTENTION: &str = "belongs to an nn.MultiheadAttention, of whose factors PEFT adds one pair twice";

/// A tensor that is stored whole.
#[derive(Debug)]
pub struct Whole {
    /// The module that is saved.
    pub module: String,
    /// The parameter's path below it.
    pub parameter: String,
    /// The tensor in the tuned model.
    pub tuned: String,
    /// Why it has no factors.
    pub why: String,
    /// It is the bias of a frozen layer.
    pub frozen_bias: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Examined {
    /// Changes for factors, in the order of the base's files.
    pub tasks: Vec<Task>,
    /// Changes that are kept as they are.
    pub whole: Vec<Whole>,
    /// Tensors that are equal in both models.
    pub unchanged: usize,
    /// Tensors left out by choice, and constants that one side lacks.
    pub skipped: Vec<String>,
    /// Notes.
    pub notes: Vec<String>,
    /// Head and embedding are one tensor, and it changed.
    pub tied: bool,
}

/// What became of one pair.
enum Verdict {
    Unchanged,
    Changed(Class, Option<Box<Difference>>),
    Grown(String),
}

/// Looks at all pairs.
///
/// # Errors
/// When a change has no place in an adapter: other shapes, integers, values that are not finite, packed weights.
pub fn examine(
    base: &Base,
    tuned: &Base,
    pairing: Pairing,
    choice: &Choice,
    budget: &Budget,
    run: &Run<'_>,
) -> Result<Examined> {
    let Pairing { pairs, tie, skipped, notes } = pairing;
    let (left_out, pairs): (Vec<Pair>, Vec<Pair>) =
        pairs.into_iter().partition(|pair| choice.leaves_out(module_of(&pair.name), &pair.name));
    let modules: BTreeSet<&str> = pairs.iter().map(|pair| module_of(&pair.name)).collect();
    let look = Look { base, tuned, choice, modules };
    let held = vec![LOOK_BYTES; pairs.len()];
    let verdicts = map_within(&held, budget, run.cancel, |at| look.at(&pairs[at]))?;
    let mut examined = Examined { skipped, notes, ..Examined::default() };
    examined.skipped.extend(left_out.into_iter().map(|pair| pair.name));
    let saved = saved_modules(&look, &pairs, &verdicts);
    for (pair, verdict) in pairs.iter().zip(verdicts) {
        sort_in(&mut examined, base, pair, verdict, &saved);
    }
    if let Some(tie) = tie {
        tie_up(&mut examined, module_of(&tie.head), module_of(&tie.embedding));
    }
    Ok(examined)
}

struct Look<'a> {
    base: &'a Base,
    tuned: &'a Base,
    choice: &'a Choice,
    modules: BTreeSet<&'a str>,
}

impl Look<'_> {
    fn at(&self, pair: &Pair) -> Result<Verdict> {
        let Some(base_name) = &pair.base else { return Ok(Verdict::Changed(Class::Whole("is not in BASE"), None)) };
        let (module, full) = (module_of(&pair.name), self.choice.keeps_whole(module_of(&pair.name), &pair.name));
        let (left, right) = (self.base.stored(base_name), self.tuned.stored(&pair.tuned));
        if left.info.shape != right.info.shape {
            return grown(module, &left, &right).map(Verdict::Grown);
        }
        let floats = left.info.dtype.float().and(right.info.dtype.float()).is_some();
        let read = [&left, &right].iter().all(|tensor| Packing::of(&tensor.info.dtype).is_some());
        if !floats && (full || !read) {
            return self.not_numbers(&left, &right, full);
        }
        let shape = left.info.shape.as_slice();
        let class = if full {
            Class::Whole("--full")
        } else if attention_of(self.base, module).is_some() {
            Class::Whole(ATTENTION)
        } else {
            let turned = swapped_by_peft(self.base, module);
            classify(&pair.name, shape, self.has_children(module), turned, |types| self.base.is_one_of(types))
        };
        if !floats && matches!(class, Class::Whole(_) | Class::Loose) {
            return self.not_numbers(&left, &right, full);
        }
        // The experts of a stack lie one under the other.
        let stack = matches!(class, Class::Factors(Layer::Parameter { .. })) && shape.len() == 3;
        let cols = stack.then(|| usize::try_from(shape[2]).expect("a mapped tensor fits the address space"));
        let difference = Difference::new(self.base.weight(base_name, cols)?, self.tuned.weight(&pair.tuned, cols)?);
        let verdict = if difference.is_zero()? {
            Verdict::Unchanged
        } else {
            difference.check_finite()?;
            if class == Class::Loose || module.is_empty() && matches!(class, Class::Whole(_)) {
                return Err(loose(&right, module));
            }
            Verdict::Changed(class, Some(Box::new(difference.clone())))
        };
        difference.release();
        difference.check_unchanged()?;
        Ok(verdict)
    }

    /// Tensors of which one side at least holds no floating point numbers.
    fn not_numbers(&self, left: &Stored, right: &Stored, full: bool) -> Result<Verdict> {
        let same = left.info.dtype == right.info.dtype && same_bytes(left, right)?;
        [left, right].iter().for_each(|tensor| tensor.map.release(tensor.start, tensor.info.bytes));
        if same {
            return Ok(Verdict::Unchanged);
        }
        if full {
            return Ok(Verdict::Changed(Class::Whole("--full"), None));
        }
        for (model, tensor) in [(self.base, left), (self.tuned, right)] {
            let module = module_of(&tensor.info.name);
            if let Some((name, who, why)) = refused::of_module(module, |name| model.names.has(name)) {
                let which = why.map_or_else(String::new, |why| format!(", which {why}"));
                let what = format!("the weight of `{module}` is quantised by {who}{which} (tensor `{name}`)");
                return Err(Error::unsupported(model.checkpoint.root(), what)
                    .hint("extract from the models as they were before quantisation"));
            }
        }
        let problem = format!(
            "one is {}, the other {}: there is no difference of such numbers",
            left.info.dtype, right.info.dtype
        );
        Err(Error::mismatch(describe(left), describe(right), problem).hint("`--full REGEX` stores it whole"))
    }

    fn has_children(&self, module: &str) -> bool {
        if module.is_empty() {
            return true;
        }
        let below = format!("{module}.");
        self.modules.range(below.as_str()..).next().is_some_and(|next| next.starts_with(&below))
    }
}

/// More rows of an embedding or a head: kept, and said.
fn grown(module: &str, base: &Stored, tuned: &Stored) -> Result<String> {
    let vocabulary = embeddings::is_table(module) || head::is_head(module);
    let (old, new) = (base.info.shape.as_slice(), tuned.info.shape.as_slice());
    match (old, new) {
        ([old_rows, old_rest @ ..], [new_rows, new_rest @ ..])
            if vocabulary && old_rest == new_rest && new_rows > old_rows =>
        {
            Ok(format!("grew from {old_rows} to {new_rows} rows"))
        }
        _ => {
            let problem = format!("their shapes are {} and {}", base.info.shape, tuned.info.shape);
            let error = Error::mismatch(describe(tuned), describe(base), problem);
            Err(error.hint("is this the base the model was tuned from?"))
        }
    }
}

fn loose(tensor: &Stored, module: &str) -> Error {
    let what = format!(
        "tensor `{}` {} changed and is no layer of its own: PEFT could only save all of `{module}` whole",
        tensor.info.name, tensor.info.shape
    );
    Error::unsupported(tensor.path(), what).hint(format!("`--full '^{module}$'` does that"))
}

/// The modules that are saved whole and why, the outermost only: what lies below one is saved with it.
fn saved_modules(look: &Look<'_>, pairs: &[Pair], verdicts: &[Verdict]) -> BTreeMap<String, String> {
    let mut saved: BTreeMap<String, String> = BTreeMap::new();
    for (pair, verdict) in pairs.iter().zip(verdicts) {
        let module = module_of(&pair.name);
        let module = attention_of(look.base, module).unwrap_or(module);
        let why = match verdict {
            Verdict::Changed(Class::Whole(why), _) => (*why).to_owned(),
            Verdict::Grown(why) => why.clone(),
            Verdict::Changed(Class::Bias, _) if has_vector_weight(look.base, module) => "has one dimension".to_owned(),
            _ => continue,
        };
        saved.entry(module.to_owned()).or_insert(why);
    }
    let all: Vec<String> = saved.keys().cloned().collect();
    let inside = |module: &str| {
        module.match_indices('.').any(|(at, _)| all.binary_search_by(|m| m.as_str().cmp(&module[..at])).is_ok())
    };
    saved.retain(|module, _| !inside(module));
    saved
}

/// The `nn.MultiheadAttention` that `module` is, or is the output projection of.
fn attention_of<'a>(base: &Base, module: &'a str) -> Option<&'a str> {
    let outer = module.strip_suffix(".out_proj").unwrap_or(module);
    base.names.has(&format!("{outer}.in_proj_weight")).then_some(outer)
}

fn has_vector_weight(base: &Base, module: &str) -> bool {
    base.checkpoint.info(&format!("{module}.weight")).is_some_and(|info| info.shape.as_slice().len() == 1)
}

/// Puts one pair where it belongs.
fn sort_in(examined: &mut Examined, base: &Base, pair: &Pair, verdict: Verdict, saved: &BTreeMap<String, String>) {
    let owner = |name: &str| name.match_indices('.').find_map(|(at, _)| saved.get_key_value(&name[..at]));
    if let Some((module, why)) = owner(&pair.name) {
        let parameter = pair.name[module.len() + 1..].to_owned();
        let whole = Whole {
            module: module.clone(),
            parameter,
            tuned: pair.tuned.clone(),
            why: why.clone(),
            frozen_bias: false,
        };
        examined.whole.push(whole);
        return;
    }
    let (module, parameter) = pair.name.rsplit_once('.').unwrap_or(("", &pair.name));
    match verdict {
        Verdict::Unchanged => examined.unchanged += 1,
        Verdict::Changed(Class::Factors(layer), Some(difference)) => {
            let stored = base.stored(pair.base.as_ref().unwrap_or(&pair.name));
            examined.tasks.push(Task {
                name: pair.name.clone(),
                path: module.into(),
                layer,
                shape: stored.info.shape,
                difference: *difference,
                tied_head: None,
            });
        }
        Verdict::Changed(..) | Verdict::Grown(_) => examined.whole.push(Whole {
            module: module.into(),
            parameter: parameter.into(),
            tuned: pair.tuned.clone(),
            why: "is a bias".into(),
            frozen_bias: true,
        }),
    }
}

/// A change of an embedding that is the head's as well.
fn tie_up(examined: &mut Examined, head: &str, embedding: &str) {
    for task in examined.tasks.iter_mut().filter(|task| task.path == embedding) {
        task.tied_head = Some(head.to_owned());
        examined.tied = true;
    }
    examined.tied |= examined.whole.iter().any(|whole| whole.module == embedding);
}
