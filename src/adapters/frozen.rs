//! What an adapter's file holds of the model it was trained on, although it was never trained: a PEFT model whose state was saved
//! as it is in memory has its frozen layers beside the factors (PEFT 0.21 `utils/other.py`, `utils/save_and_load.py`).

use std::collections::BTreeSet;

use super::adapter::{Adapter, Change, Module};
use super::config::saves;
use crate::formats::Stored;
use crate::naming::head;

/// What PEFT calls the module whose trained copy lies in `modules_to_save`.
const ORIGINAL: &str = "original_module";

/// What PEFT calls a trained copy.
const TRAINED: &str = "modules_to_save";

/// Stems of files with what was trained beside LoRA: parameters of the model, whole.
pub const TRAINED_BESIDE: [&str; 2] = ["non_lora_trainables", "non_lora_state_dict"];

/// Whether a tensor lies in a file of what was trained beside an adapter.
pub fn is_saved_beside(stored: &Stored) -> bool {
    let stem = stored.path().file_stem().map(|stem| stem.to_string_lossy());
    stem.is_some_and(|stem| TRAINED_BESIDE.contains(&stem.as_ref()))
}

impl Adapter {
    /// Takes out the frozen copies of modules that were trained whole. PEFT computes with the trained ones, whatever these hold.
    pub fn leave_out_originals(&mut self) {
        let is_trained = |module: &Module| !matches!(&module.change, Change::Frozen(..)) || !is_below(module, ORIGINAL);
        self.leave_out(is_trained, &format!("frozen copies (`{ORIGINAL}`)"));
    }

    /// Takes out the model, where the file holds all of it and not only what was trained: frozen layers beside their pairs, and
    /// tensors that no setting names as trained. For whoever writes an adapter without the base at hand.
    pub fn leave_out_model(&mut self) {
        if self.dialect != "peft" || !self.holds_model() {
            return;
        }
        let trains = self.config.raw.get("bias").and_then(serde_json::Value::as_str).is_some_and(|bias| bias != "none");
        let saved: Vec<String> = self.config.saved_modules().map(str::to_owned).collect();
        let is_trained = |module: &Module| {
            let is_saved = || saved.iter().any(|saved| saves(saved, &module.path)) || is_below(module, TRAINED);
            match &module.change {
                Change::Frozen(parameter, _) => trains && parameter == "bias",
                Change::Whole(parameter, tensor) => {
                    trains && parameter == "bias" || is_saved_beside(tensor) || is_saved()
                }
                _ => true,
            }
        };
        self.leave_out(is_trained, "weights of the model");
    }

    /// Takes out what was not trained. What is left is not the file as it lies any more.
    fn leave_out(&mut self, is_trained: impl Fn(&Module) -> bool, what: &str) {
        let before = self.modules.len();
        self.modules.retain(is_trained);
        let count = before - self.modules.len();
        if count > 0 {
            self.needed.model = true;
            self.tensors.note(format!("{count} tensors are {what}, which were not trained: they are left out"));
        }
    }

    /// Whether a frozen layer lies beside its pair. PEFT saves those of embeddings and heads along; the others only with all.
    fn holds_model(&self) -> bool {
        let adapted: BTreeSet<&str> = self
            .modules
            .iter()
            .filter(|module| match &module.change {
                Change::Lora(lora) => !lora.embedding,
                change => matches!(change, Change::Method(_)),
            })
            .map(|module| module.path.as_str())
            .collect();
        self.modules.iter().any(|module| {
            matches!(&module.change, Change::Frozen(parameter, _) if parameter == "weight")
                && adapted.contains(module.path.as_str())
                && !head::is_head(&module.path)
        })
    }
}

/// Whether the module's tensor lies in a wrapper of this name.
fn is_below(module: &Module, wrapper: &str) -> bool {
    module.change.tensors().iter().any(|tensor| tensor.info.name.split('.').any(|segment| segment == wrapper))
}
