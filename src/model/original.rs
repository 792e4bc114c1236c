//! The model an initialiser started from, where the untrained factors themselves are lost.

use std::path::Path;
use std::sync::Arc;

use super::base::Base;
use crate::adapters::{Adapter, AdapterConfig, Init, Initial, Initialiser, Lora, describe};
use crate::error::{Error, Result};
use crate::naming::Shift;
use crate::tensor::usize_of;

/// The model as it was before PiSSA or OLoRA took their factors out.
pub struct Original {
    /// The model.
    pub base: Base,
}

impl Original {
    /// Opens the model at `path`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { base: Base::open(path)? })
    }

    /// The change of prefix from the paths of `adapter` to the model's.
    ///
    /// # Errors
    /// When there is more than one.
    pub fn shift(&self, adapter: &Adapter, modules: &[&str]) -> Result<Shift> {
        if self.base.names.all_located(modules).is_some() {
            return Ok(Shift::default());
        }
        match self.base.names.shifts(modules).as_slice() {
            [] => Ok(Shift::default()),
            [shift] => Ok(shift.clone()),
            several => {
                let ways: Vec<String> = several.iter().map(|shift| format!("`{}`", shift.apply(modules[0]))).collect();
                let problem = format!("`{}` could be any of {}", modules[0], ways.join(", "));
                let (left, right) =
                    (adapter.root.display().to_string(), self.base.checkpoint.root().display().to_string());
                Err(Error::mismatch(left, right, problem))
            }
        }
    }

    /// s·B₀·A₀ for the pair `lora` that changes `tensor` and whose scale is `scale`; `None` where the initialiser takes nothing
    /// out: PEFT starts embeddings at zero under any name. Nothing is computed yet.
    ///
    /// # Errors
    /// When the model has no such tensor, or it is not a matrix of floating point numbers.
    pub fn initial(&self, started: Initialiser, lora: &Lora, tensor: &str, scale: f64) -> Result<Option<Arc<Initial>>> {
        if lora.embedding {
            return Ok(None);
        }
        let tied = self.base.tie.as_ref().filter(|tie| tie.head == tensor).map(|tie| tie.embedding.as_str());
        let name = tied.unwrap_or(tensor);
        let Some(info) = self.base.checkpoint.info(name) else {
            let model = self.base.checkpoint.root().display().to_string();
            let problem = format!("the original model has no tensor `{name}`");
            return Err(Error::mismatch(describe(&lora.down), model, problem));
        };
        let (rows, cols) = info.shape.rows_cols();
        let (outputs, inputs) = (lora.outputs(), lora.inputs());
        if info.shape.as_slice().len() != 2 || ![(outputs, inputs), (inputs, outputs)].contains(&(rows, cols)) {
            let problem = format!("the change is [{outputs}, {inputs}], the original weight {}", info.shape);
            return Err(Error::mismatch(describe(&lora.down), describe(&self.base.stored(name)), problem));
        }
        let weight = self.base.weight(name, None)?;
        let place = (weight.tensor.path().to_path_buf(), name.to_owned());
        let rank = usize_of(lora.rank());
        Ok(Some(Arc::new(Initial::new(started, rank, scale, Arc::new(weight), place))))
    }
}

/// The initialiser of an adapter, if its factors follow from the weight alone; `None` if the base was left as it is.
///
/// # Errors
/// When they do not, with the reason.
pub fn initialiser(adapter: &Adapter) -> Result<Option<Initialiser>> {
    let AdapterConfig { init: (init, name), path, .. } = &adapter.config;
    let refuse = |reason: &str| {
        let what = format!("`init_lora_weights` is `{name}`: {reason}");
        Err(Error::unsupported(path, what)
            .hint("`--init-adapter DIR` with the adapter as it was before training does it"))
    };
    let found = adapter.config.initialiser();
    match (init, name.to_lowercase().as_str()) {
        (Init::Plain, _) => Ok(None),
        _ if found.is_some() => Ok(found),
        (Init::Subtracted, randomised) if randomised.starts_with("pissa") => {
            refuse("its randomised SVD drew random numbers that are not kept, so `--base` does not give its factors")
        }
        (Init::Subtracted, _) => refuse("it started from data as well, so `--base` alone does not give its factors"),
        (Init::Quantised, _) => {
            let what =
                format!("`init_lora_weights` is `{name}`: the base was quantised anew, which cannot be repeated");
            Err(Error::unsupported(path, what)
                .hint("with BASE being the model LoftQ left behind, pass `--residual-base`"))
        }
    }
}
