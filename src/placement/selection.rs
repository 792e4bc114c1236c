//! Which modules are changed, and how strongly.

use std::collections::BTreeSet;

use regex::Regex;

use crate::error::{Error, Result};
use crate::naming::blocks::BlockWeights;

/// Which modules are changed, and how strongly.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only these modules, if any is given.
    pub include: Vec<Regex>,
    /// Not these.
    pub exclude: Vec<Regex>,
    /// Further weights of modules; all that match are multiplied.
    pub weights: Vec<(Regex, f64)>,
    /// And by blocks.
    pub blocks: Option<BlockWeights>,
}

/// The regular expression `written` for `option`.
///
/// # Errors
/// `Invalid`, where it is none.
pub fn pattern(option: &str, written: &str) -> Result<Regex> {
    Regex::new(written).map_err(|problem| {
        // The lines before draw what was written.
        let problem = problem.to_string();
        let reason = problem.lines().next_back().unwrap_or_default().trim_start_matches("error: ");
        Error::invalid(option, format!("`{written}` is not a regular expression: {reason}"))
    })
}

impl Selection {
    /// Whether the module is among those that are changed.
    pub fn takes(&self, module: &str) -> bool {
        let any = |patterns: &[Regex]| patterns.iter().any(|pattern| pattern.is_match(module));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    /// Every pattern has to mean something.
    ///
    /// # Errors
    /// When a pattern matches none of `modules`.
    pub fn check(&self, modules: &BTreeSet<String>) -> Result<()> {
        let include = self.include.iter().map(|pattern| ("--include", pattern));
        let exclude = self.exclude.iter().map(|pattern| ("--exclude", pattern));
        let weights = self.weights.iter().map(|(pattern, _)| ("--weight-for", pattern));
        for (option, pattern) in include.chain(exclude).chain(weights) {
            if !modules.iter().any(|module| pattern.is_match(module)) {
                let like = modules.first().map_or(String::new(), |module| format!(", such as `{module}`"));
                let problem =
                    format!("`{pattern}` matches none of the {} modules of the adapters{like}", modules.len());
                return Err(Error::invalid(option, problem));
            }
        }
        self.blocks.as_ref().map_or(Ok(()), |blocks| blocks.check(modules.iter().filter(|module| self.takes(module))))
    }

    /// The further weight of a module.
    pub fn strength(&self, module: &str) -> f64 {
        let matching = self.weights.iter().filter(|(pattern, _)| pattern.is_match(module));
        // `check` refuses modules whose block has no weight.
        let of_block = self.blocks.as_ref().and_then(|blocks| blocks.of(module).ok()).unwrap_or(1.0);
        matching.map(|(_, weight)| weight).product::<f64>() * of_block
    }
}
