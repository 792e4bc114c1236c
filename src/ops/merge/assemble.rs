//! Changes with their places → the plan of the output.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::{MergeOptions, packing};
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::model::Rounding;
use crate::model::base::Base;
use crate::model::storage::Quantised;
use crate::model::weight::Weight;
use crate::output::WriteOptions;
use crate::output::arrange::{Placed, arrange};
use crate::placement::merged::Merged;
use crate::placement::placer::{Placement, Target};
use crate::placement::requantised::Requantised;
use crate::plan::{Compute, Plan};
use crate::tensor::{Float, Packing, TensorInfo};

/// The plan, and what it computes.
pub struct Assembled {
    /// Files and jobs.
    pub plan: Plan,
    /// Tensors that deltas land on.
    pub merged: Vec<Arc<Merged>>,
    /// How many tensors are what.
    pub counts: Counts,
}

/// Tensors of the output by origin.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Counts {
    /// Deltas were added.
    pub changed: usize,
    /// Taken from an adapter.
    pub replaced: usize,
    /// Not in the base.
    pub added: usize,
    /// Cast to another dtype, otherwise untouched.
    pub cast: usize,
    /// The base's own bytes.
    pub copied: usize,
}

/// Where one tensor of the output comes from.
enum Origin {
    Copied(Stored),
    Merged(Arc<Merged>),
    /// A quantised weight that nothing changes, as plain numbers.
    Made(Arc<Quantised>),
    /// Codes of a quantised weight.
    Codes(Arc<Requantised>),
}

/// A tensor of the output.
type Output = Placed<Origin>;

/// Lays out the files and lists the jobs.
///
/// # Errors
/// When a tensor cannot be changed in the dtype it has or is to get.
pub fn assemble(
    base: &Base,
    placement: &Placement,
    options: &MergeOptions,
    metadata: &[(String, String)],
) -> Result<Assembled> {
    let MergeOptions { quant, keep_change, keep_format, write: options, .. } = options;
    let mut builder = Builder {
        base,
        options,
        packing: packing::of(base, options, *quant)?,
        keep_change: *keep_change,
        main: None,
        counts: Counts::default(),
        merged: BTreeMap::new(),
        codes: Vec::new(),
        keeps_format: *keep_format,
    };
    let whole = options.dtype.is_some() && !options.changed_only && base.view.is_none();
    builder.main = builder.usual_packing().filter(|_| whole);
    let mut outputs = builder.existing(placement)?;
    let added = builder.added(placement)?;
    outputs.last_mut().expect("a checkpoint has at least one file").1.extend(added);
    let files = arrange(base, options, outputs, metadata)?;
    let mut plan = Plan::default();
    for (at, (file, origins)) in files.into_iter().enumerate() {
        for (info, origin) in file.tensors.iter().zip(&origins) {
            builder.schedule(&mut plan, at, file.start_of(info), info, origin);
        }
        plan.files.push(file);
    }
    plan.computed = builder.merged.values().map(|merged| Arc::clone(merged) as Arc<dyn Compute>).collect();
    plan.computed.extend(builder.codes.iter().map(|codes| Arc::clone(codes) as Arc<dyn Compute>));
    let codes = builder.codes.iter().map(|codes| Arc::clone(&codes.merged));
    let merged = builder.merged.into_values().chain(codes).filter(|merged| !merged.pieces.is_empty()).collect();
    Ok(Assembled { plan, merged, counts: builder.counts })
}

struct Builder<'a> {
    base: &'a Base,
    options: &'a WriteOptions,
    /// What is written of the weights that change, if not what they are.
    packing: Option<Packing>,
    keep_change: bool,
    /// What untouched tensors are stored as that are cast: most of the model.
    main: Option<Packing>,
    counts: Counts,
    merged: BTreeMap<String, Arc<Merged>>,
    /// Quantised weights that change and keep their format.
    codes: Vec<Arc<Requantised>>,
    keeps_format: bool,
}

impl Builder<'_> {
    /// The base's tensors, file by file.
    fn existing(&mut self, placement: &Placement) -> Result<Vec<(String, Vec<Output>)>> {
        let files = self.base.checkpoint.files().iter().enumerate();
        files
            .map(|(file, weights)| {
                if self.keeps_format && !self.base.quantised.is_empty() {
                    let outputs = weights.own().into_iter().map(|stored| self.kept(placement, stored));
                    return Ok((weights.safetensors_name(), outputs.collect::<Result<Vec<_>>>()?));
                }
                let count = weights.header.tensors.len();
                let stacks = self.changed_stacks(placement, file, &weights.header.tensors);
                let outputs = (0..count).map(|position| {
                    let whole = self.base.view.as_ref().map(|view| view.whole(file, position));
                    let beside = whole.is_some_and(|whole| stacks.contains(&whole));
                    self.existing_one(placement, self.base.checkpoint.stored(file, position), beside)
                });
                Ok((weights.safetensors_name(), outputs.collect::<Result<Vec<_>>>()?))
            })
            .collect()
    }

    /// A tensor as the base stores it, where quantised weights keep their format.
    fn kept(&mut self, placement: &Placement, stored: Stored) -> Result<Output> {
        let name = &stored.info.name;
        let weight = self.base.quantised.owner(name).map(str::to_owned);
        let target = weight.as_ref().and_then(|weight| placement.targets.get(weight));
        let quantised = weight.as_ref().and_then(|weight| self.base.quantised.weight(weight));
        match (target, quantised) {
            (Some(target), Some(quantised)) if quantised.tensors[0].info.name == *name => {
                let codes = self.codes(target, quantised)?;
                Ok(Output { info: stored.info, origin: Origin::Codes(codes) })
            }
            _ if self.base.quantised.is_done_with(name) => {
                self.counts.copied += 1;
                Ok(Output { info: stored.info.clone(), origin: Origin::Copied(stored) })
            }
            _ => self.existing_one(placement, stored, false),
        }
    }

    /// The codes of a weight that changes.
    fn codes(&mut self, target: &Target, quantised: &Arc<Quantised>) -> Result<Arc<Requantised>> {
        let (name, cols) = (quantised.name.as_str(), Some(target.cols.unwrap_or(quantised.cols)));
        let source = match &target.replacement {
            Some(tensor) => Weight::new(tensor.clone(), cols)?,
            None => self.base.weight(name, cols)?,
        };
        let out = Packing::Float(Float::F32);
        self.check_combination(name, target, &source, out)?;
        if self.options.rounding == Rounding::PeftSafe {
            let what = format!("`{name}` keeps its format, and PEFT merges no codes: it has no such rounding");
            return Err(Error::unsupported(self.base.checkpoint.root(), what));
        }
        self.counts.changed += 1;
        let merged = Merged::new(name.into(), source, target.pieces.clone(), out, self.options.rounding);
        let codes = Arc::new(Requantised::new(Arc::new(merged), Arc::clone(quantised))?);
        self.codes.push(Arc::clone(&codes));
        Ok(codes)
    }

    /// The tensors of a GGUF file of which a part changes.
    fn changed_stacks(&self, placement: &Placement, file: usize, tensors: &[TensorInfo]) -> HashSet<usize> {
        let Some(view) = &self.base.view else { return HashSet::new() };
        let changed = tensors.iter().enumerate().filter(|(_, tensor)| placement.targets.contains_key(&tensor.name));
        changed.map(|(position, _)| view.whole(file, position)).collect()
    }

    /// A tensor that the base has; `beside` tells whether it is one with another that changes, and is stored alike.
    fn existing_one(&mut self, placement: &Placement, stored: Stored, beside: bool) -> Result<Output> {
        let name = stored.info.name.clone();
        if let Some(target) = placement.targets.get(&name) {
            return self.changed(&name, target, &stored);
        }
        if beside {
            let weight = self.base.weight(&name, None)?;
            let out = self.written_as(&weight)?;
            if out != weight.packing {
                self.counts.cast += 1;
                return Ok(self.compute(&name, &stored.info, weight, &Target::default(), out));
            }
        }
        let is_main = self.main.is_some() && Packing::of(&stored.info.dtype) == self.main;
        let casts = self.options.cast_all || is_main;
        let cast = self.options.dtype.filter(|_| casts).zip(stored.info.dtype.float());
        // A tensor without elements has nothing to cast.
        let cast = cast.filter(|_| stored.info.bytes > 0);
        match cast.filter(|(wanted, stored)| wanted != stored) {
            None => {
                let origin = match self.base.quantised.weight(&name) {
                    Some(quantised) => {
                        self.counts.cast += 1;
                        Origin::Made(Arc::clone(quantised))
                    }
                    None => {
                        self.counts.copied += 1;
                        Origin::Copied(stored.clone())
                    }
                };
                Ok(Output { info: stored.info, origin })
            }
            Some((wanted, _)) => {
                self.counts.cast += 1;
                let weight = self.base.weight(&name, None)?;
                Ok(self.compute(&name, &stored.info, weight, &Target::default(), wanted.into()))
            }
        }
    }

    fn changed(&mut self, name: &str, target: &Target, stored: &Stored) -> Result<Output> {
        let same_dtype = |tensor: &&Stored| tensor.info.dtype == stored.info.dtype;
        if let (Some(tensor), true) = (target.replacement.as_ref().filter(same_dtype), target.pieces.is_empty())
            && stored.info.dtype.float().is_none()
        {
            // A buffer of whole numbers, such as the count of batches of a normalisation.
            self.counts.replaced += 1;
            return Ok(Output { info: stored.info.clone(), origin: Origin::Copied(tensor.clone()) });
        }
        // The refusal of a weight without a float type says who packed it.
        let own = self.base.weight(name, target.cols)?;
        let out = self.written_as(&own)?;
        if target.pieces.is_empty() {
            self.counts.replaced += 1
        } else {
            self.counts.changed += 1
        }
        self.output(name, &stored.info, target, out)
    }

    /// What a weight that changes is written as.
    fn written_as(&self, own: &Weight) -> Result<Packing> {
        match &self.base.view {
            Some(_) => packing::written_as(own, self.packing),
            None => Ok(self.packing.unwrap_or(own.packing)),
        }
    }

    fn output(&mut self, name: &str, info: &TensorInfo, target: &Target, out: Packing) -> Result<Output> {
        // A replacement may have another number of rows.
        let shape = target.replacement.as_ref().map_or(&info.shape, |tensor| &tensor.info.shape);
        let info = &TensorInfo { shape: shape.clone(), ..info.clone() };
        let layout = self.base.view.as_ref().map(|view| view.row_layout(name)).unwrap_or_default();
        // The rows of a bias are its values.
        let rows = (layout.order.is_some() && info.shape.as_slice().len() == 1).then_some(1);
        let source = match (&target.replacement, &target.starts_from) {
            (Some(tensor), _) => Weight::new(tensor.clone(), rows.or(target.cols))?,
            (None, Some(other)) => self.base.weight(other, target.cols)?,
            (None, None) => self.base.weight(name, target.cols)?,
        };
        self.check_combination(name, target, &source, out)?;
        if target.pieces.is_empty() && source.packing == out && source.layout == layout {
            let info = TensorInfo { bytes: source.tensor.info.bytes, dtype: out.dtype(), ..info.clone() };
            return Ok(Output { info, origin: Origin::Copied(source.tensor) });
        }
        Ok(self.compute(name, info, source, target, out))
    }

    /// What is added to one tensor has to be one thing.
    fn check_combination(&self, name: &str, target: &Target, source: &Weight, out: Packing) -> Result<()> {
        let refuse = |what: String| Error::unsupported(self.base.checkpoint.root(), what);
        if let (Some(view), Some(own)) = (&self.base.view, self.base.checkpoint.info(name)) {
            let bias = own.shape.as_slice().len() == 1 && view.row_layout(name).order.is_some();
            if bias && !target.pieces.is_empty() {
                return Err(refuse(format!(
                    "`{name}`: its values lie in another order, and no change can be added to them"
                )));
            }
            if own.shape != source.tensor.info.shape && own.shape.elements() != source.tensor.info.shape.elements() {
                let what = format!("tensor `{name}` would become {} from {}", source.tensor.info.shape, own.shape);
                return Err(refuse(what).hint("a GGUF file has a vocabulary of its own, which would not fit any more"));
            }
        }
        for piece in &target.pieces {
            let ((rows, cols), (high, wide)) = (piece.delta.shape(), piece.delta.grain());
            if !piece.row.is_multiple_of(high) || !piece.col.is_multiple_of(wide) {
                let at = format!("[{}, {}]", piece.row, piece.col);
                let what = format!("`{name}`: a change in blocks of [{high}, {wide}] would begin at {at}");
                return Err(refuse(what));
            }
            let ends = [piece.col, piece.col + cols];
            let block = source.packing.block().max(out.block());
            if ends.iter().any(|end| !end.is_multiple_of(block)) {
                let what =
                    format!("`{name}`: a change of columns {} to {} would cut blocks of {block}", ends[0], ends[1]);
                return Err(refuse(what));
            }
            if piece.row + rows > source.rows || piece.col + cols > source.cols {
                return Err(refuse(format!("tensor `{name}` is changed as a whole and expert by expert at once")));
            }
        }
        Ok(())
    }

    fn compute(&mut self, name: &str, info: &TensorInfo, source: Weight, target: &Target, out: Packing) -> Output {
        let bytes = (source.rows as u64) * out.bytes_of(source.cols) as u64;
        let info = TensorInfo { dtype: out.dtype(), bytes, ..info.clone() };
        let mut merged = Merged::new(name.into(), source, target.pieces.clone(), out, self.options.rounding);
        if let Some(view) = &self.base.view {
            merged.layout = view.row_layout(name);
            merged.may_choose = self.keep_change;
        }
        let merged = Arc::new(merged);
        self.merged.insert(name.into(), Arc::clone(&merged));
        Output { info, origin: Origin::Merged(merged) }
    }

    /// Tensors the base does not have.
    fn added(&mut self, placement: &Placement) -> Result<Vec<Output>> {
        let new: Vec<_> = placement.targets.iter().filter(|(name, _)| !self.base.names.has(name)).collect();
        let mut outputs = Vec::new();
        for (name, target) in new {
            let like = match (&target.replacement, &target.starts_from) {
                (_, Some(other)) => self.base.stored(other).info,
                (Some(tensor), None) => tensor.info.clone(),
                (None, None) => {
                    let what = format!("has no tensor `{name}` that a change could be added to");
                    return Err(Error::unsupported(self.base.checkpoint.root(), what));
                }
            };
            let own = if target.starts_from.is_some() { Packing::of(&like.dtype) } else { self.usual_packing() };
            let own = own.or(Packing::of(&like.dtype));
            let Some(own) = own else {
                let what =
                    format!("tensor `{}` is stored as {}, which `{name}` cannot start from", like.name, like.dtype);
                return Err(Error::unsupported(self.base.checkpoint.root(), what));
            };
            let info = TensorInfo { name: name.clone(), ..like };
            self.counts.added += 1;
            outputs.push(self.output(name, &info, target, self.packing.unwrap_or(own))?);
        }
        Ok(outputs)
    }

    /// What most bytes of the base are stored as.
    fn usual_packing(&self) -> Option<Packing> {
        let mut bytes: Vec<(Packing, u64)> = Vec::new();
        for info in self.base.checkpoint.tensors() {
            let Some(packing) = Packing::of(&info.dtype) else { continue };
            match bytes.iter_mut().find(|(known, _)| *known == packing) {
                Some((_, sum)) => *sum += info.bytes,
                None => bytes.push((packing, info.bytes)),
            }
        }
        bytes.into_iter().max_by_key(|(_, sum)| *sum).map(|(packing, _)| packing)
    }

    /// The jobs of one tensor.
    fn schedule(&self, plan: &mut Plan, file: usize, offset: u64, info: &TensorInfo, origin: &Origin) {
        if info.bytes == 0 {
            return;
        }
        match origin {
            Origin::Copied(source) => plan.copy(file, offset, &source.map, source.start, info.bytes),
            Origin::Made(quantised) => {
                let (rows, compute) = (0..quantised.rows, Arc::clone(quantised) as Arc<dyn Compute>);
                let row_bytes = quantised.row_bytes();
                plan.compute(file, offset, &compute, rows, row_bytes, self.options.budget.job_bytes());
            }
            Origin::Merged(merged) => self.schedule_merged(plan, file, offset, merged),
            Origin::Codes(codes) => {
                let (bands, bytes) = codes.bands();
                let compute = Arc::clone(codes) as Arc<dyn Compute>;
                plan.compute(file, offset, &compute, 0..bands, bytes, self.options.budget.job_bytes());
            }
        }
    }

    fn schedule_merged(&self, plan: &mut Plan, file: usize, offset: u64, merged: &Arc<Merged>) {
        let compute = Arc::clone(merged) as Arc<dyn Compute>;
        let (row_bytes, job_bytes) = (merged.row_bytes(), self.options.budget.job_bytes());
        let source = &merged.source;
        let same_bytes = merged.copies_rows() && !merged.pieces.is_empty();
        let high = merged.grain().0.max(1);
        let step = usize::try_from((job_bytes / row_bytes.max(1)).max(1)).unwrap_or(usize::MAX);
        let step = (step / high).max(1).saturating_mul(high);
        let job_bytes = job_bytes.max((step as u64).saturating_mul(row_bytes));
        let mut first = 0;
        while first < source.rows {
            let last = source.rows.min(first.saturating_add(step));
            let at = first as u64 * row_bytes;
            let bytes = (last - first) as u64 * row_bytes;
            if same_bytes && !merged.touches(first..last) {
                plan.copy(file, offset + at, &source.tensor.map, source.tensor.start + at, bytes);
            } else {
                plan.compute(file, offset + at, &compute, first..last, row_bytes, job_bytes);
            }
            first = last;
        }
    }
}
