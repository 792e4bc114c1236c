//! What taking an adapter out of a merged model did, with the base at hand. Serialises to the JSON that `docs/reference/json.md` describes.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::compare::Tally;
use super::plan::Planned;
use crate::ops::merge::AdapterSummary;

/// What was found and written.
#[derive(Debug, Clone, Serialize)]
pub struct UnmergeReport {
    /// The merged model.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub merged: PathBuf,
    /// The model it was merged into.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub base: PathBuf,
    /// The result.
    #[serde(serialize_with = "crate::formats::json::path")]
    pub out: PathBuf,
    /// Nothing was written, and nothing compared.
    pub dry_run: bool,
    /// `I/N` where one slice was done.
    pub part: Option<String>,
    /// What was taken out.
    pub adapters: Vec<AdapterSummary>,
    /// Tensors that were compared element by element.
    pub compared: usize,
    /// Tensors that had to be those of the merge as a whole, and are.
    pub proved: usize,
    /// Elements that were compared.
    pub elements: u64,
    /// Elements that are not those of the merge: W′ − ΔW was written for them.
    pub differing: u64,
    /// Elements that are those of the merge if its delta was rounded first, as PEFT does to some layers even by default.
    pub delta_rounded_first: u64,
    /// MERGED is exactly that merge, and the result holds the base's tensors bit for bit; `None` where nothing or not all was
    /// compared.
    pub exact: Option<bool>,
    /// The tensors with such elements, the largest share first.
    pub differing_tensors: Vec<DifferingTensor>,
    /// Weight files of the output.
    pub files: usize,
    /// Jobs of the plan.
    pub jobs: usize,
    /// Bytes of the output.
    pub bytes: u64,
    /// Notes.
    pub notes: Vec<String>,
    /// Wall time.
    pub seconds: f64,
    /// Output per second, in 10⁹ bytes.
    pub gb_per_second: f64,
    /// Largest resident memory, where the caller measured it.
    pub peak_resident_bytes: Option<u64>,
}

/// A tensor that is not that of the merge.
#[derive(Debug, Clone, Serialize)]
pub struct DifferingTensor {
    /// Its name.
    pub tensor: String,
    /// Its elements.
    pub elements: u64,
    /// Those that are not the merge's.
    pub differing: u64,
    /// Whether an adapter changes it.
    pub changed: bool,
}

impl UnmergeReport {
    /// Adds what was compared while the plan ran.
    pub fn complete(&mut self, planned: &Planned, changes: impl Fn(&str) -> bool, elapsed: Duration) {
        let taken = planned.taken.iter().map(|taken| &taken.pair);
        for pair in taken.chain(planned.proved.iter().map(|proved| &proved.pair)) {
            let Tally { elements, differing, second } = pair.tally();
            self.delta_rounded_first += second;
            self.elements += elements;
            self.differing += differing;
            if differing > 0 {
                let (tensor, changed) = (pair.name.clone(), changes(&pair.name));
                self.differing_tensors.push(DifferingTensor { tensor, elements, differing, changed });
            }
        }
        let share = |tensor: &DifferingTensor| tensor.differing as f64 / tensor.elements as f64;
        self.differing_tensors.sort_by(|left, right| share(right).total_cmp(&share(left)));
        self.exact = self.part.is_none().then_some(self.differing == 0);
        self.seconds = elapsed.as_secs_f64();
        self.gb_per_second = self.bytes as f64 / 1e9 / self.seconds.max(f64::MIN_POSITIVE);
    }
}
