//! The one place where a scale is computed. Rules: PEFT 0.21 `utils/other.py` (`get_pattern_key`).

use std::path::Path;

use foldhash::HashMap;
use serde_json::{Map, Value};

use super::fields::Fields;
use super::patterns::Patterns;
use crate::error::Result;

/// How alpha and the rank make a scale.
#[derive(Debug, Clone)]
pub struct Scaling {
    rank: u64,
    alpha: f64,
    rslora: bool,
    rank_pattern: Patterns<u64>,
    alpha_pattern: Patterns<f64>,
    /// Rank and α of single modules, by their whole path: what stands beside the factors themselves.
    exact: HashMap<String, (u64, f64)>,
}

impl Scaling {
    /// The scale of PEFT's settings `raw`, as they stand in `path`.
    ///
    /// # Errors
    /// When one of them is missing or of another kind.
    pub fn read(path: &Path, raw: &Map<String, Value>) -> Result<Self> {
        Self::of_fields(&Fields { path, raw }, "lora_alpha")
    }

    /// The same, with α under the key `alpha`.
    pub(super) fn of_fields(fields: &Fields<'_>, alpha: &str) -> Result<Self> {
        Ok(Self {
            rank: fields.rank("r", fields.needed("r")?)?,
            alpha: fields.required(alpha)?,
            rslora: fields.flag("use_rslora")?,
            rank_pattern: fields.pattern("rank_pattern", |key, value| fields.rank(key, value))?,
            alpha_pattern: fields.pattern("alpha_pattern", |key, value| fields.alpha(key, value))?,
            exact: HashMap::default(),
        })
    }

    /// The scales of modules that bring their own: path → rank and α. Scale is α/r.
    pub fn exact(exact: impl IntoIterator<Item = (String, (u64, f64))>) -> Self {
        let exact: HashMap<String, (u64, f64)> = exact.into_iter().collect();
        let rank = exact.values().map(|(rank, _)| *rank).max().unwrap_or(1);
        let (rank_pattern, alpha_pattern) = (Patterns::default(), Patterns::default());
        Self { rank, alpha: rank as f64, rslora: false, rank_pattern, alpha_pattern, exact }
    }

    /// `module` has the rank and alpha that the settings give `origin`.
    pub fn same_for(&mut self, module: &str, origin: &str) {
        let (rank, alpha, _) = self.of(origin);
        self.exact.insert(module.to_owned(), (rank, alpha));
    }

    /// Rank, alpha and scale of `module`, as [`rank`](Self::rank), [`alpha`](Self::alpha) and [`scale`](Self::scale) give them.
    pub fn of(&self, module: &str) -> (u64, f64, f64) {
        let exact = self.exact.get(module).copied();
        let (rank, alpha) = exact.unwrap_or_else(|| (self.rank(module), self.alpha(module)));
        (rank, alpha, alpha / if self.rslora { (rank as f64).sqrt() } else { rank as f64 })
    }

    /// The rank the config gives `module`.
    pub fn rank(&self, module: &str) -> u64 {
        let exact = self.exact.get(module).map(|(rank, _)| *rank);
        exact.or_else(|| self.rank_pattern.find(module)).unwrap_or(self.rank)
    }

    /// The alpha the config gives `module`.
    pub fn alpha(&self, module: &str) -> f64 {
        let exact = self.exact.get(module).map(|(_, alpha)| *alpha);
        exact.or_else(|| self.alpha_pattern.find(module)).unwrap_or(self.alpha)
    }

    /// Whether the scale is α/√r (Kalajdzievski 2023) instead of α/r.
    pub fn is_rslora(&self) -> bool {
        self.rslora
    }

    /// The factor in front of B·A.
    pub fn scale(&self, module: &str) -> f64 {
        self.of(module).2
    }
}
