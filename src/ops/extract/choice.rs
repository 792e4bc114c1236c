//! What the options say about single modules.

use regex::Regex;

/// Patterns over module paths and tensor names, found anywhere in them.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// If any are given, nothing else is extracted.
    pub include: Vec<Regex>,
    /// Left out.
    pub skip: Vec<Regex>,
    /// Stored whole.
    pub full: Vec<Regex>,
}

impl Choice {
    /// Whether the tensor `name` of `module` is left out.
    pub fn leaves_out(&self, module: &str, name: &str) -> bool {
        let outside = !self.include.is_empty() && !any(&self.include, module, name);
        outside || any(&self.skip, module, name)
    }

    /// Whether the tensor `name` of `module` is to be stored whole.
    pub fn keeps_whole(&self, module: &str, name: &str) -> bool {
        any(&self.full, module, name)
    }
}

fn any(patterns: &[Regex], module: &str, name: &str) -> bool {
    patterns.iter().any(|pattern| pattern.is_match(module) || pattern.is_match(name))
}
