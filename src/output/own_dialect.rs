//! In which dialect a new adapter is written where nobody says: that of the adapters it is made of, in the kind of file that OUT is
//! called like.

use std::path::Path;

use super::new_adapter::ToDialect;
use super::options::named_like;
use crate::adapters::Adapter;
use crate::dialects::{Dialect, Form, Target};

impl ToDialect {
    /// The same choice, made where it was left open, for an adapter `out` of `inputs`. With it, why, where that does not go without
    /// saying.
    pub fn over(&self, inputs: &[&Adapter], out: &Path) -> (Self, Option<String>) {
        if self.to.is_some_and(|to| to != Target::SAFETENSORS) {
            return (self.clone(), None);
        }
        let mut names: Vec<&str> = Vec::new();
        inputs.iter().for_each(|input| {
            if !names.contains(&input.dialect) {
                names.push(input.dialect)
            }
        });
        let named = named_like(out).map(|format| format.name);
        let fits = |target: &Target| match (named, target.dialect().form) {
            (Some("gguf"), form) => form == Form::File("gguf"),
            (Some("safetensors"), form) => matches!(form, Form::File("safetensors") | Form::Either),
            _ => true,
        };
        let written = names.iter().filter_map(|name| Target::written(name));
        let by_suffix = (named == Some("gguf")).then_some(Target::GGUF);
        let chosen =
            written.clone().find(fits).or(by_suffix).or_else(|| written.clone().next()).unwrap_or(Target::PEFT);
        let titles: Vec<&str> = names.iter().map(|name| Dialect::of(name).title).collect();
        let why = match names.as_slice() {
            [own] if *own == chosen.name() => None,
            [_] if named == Some("gguf") && chosen == Target::GGUF => None,
            [_] => Some(format!("{} is not written: the result is {}", titles[0], chosen.dialect().title)),
            [first, ..] => {
                let reason = if *first == chosen.name() { "as the first of them is" } else { "as OUT is called" };
                let list = titles.join(", ");
                Some(format!(
                    "the adapters are of several dialects ({list}): the result is {}, {reason}; `--to` chooses another",
                    chosen.dialect().title
                ))
            }
            [] => None,
        };
        let own_arch =
            inputs.iter().find_map(|input| input.config.llama_cpp.as_ref()).map(|own| own.arch.name().to_owned());
        let arch = self.arch.clone().or_else(|| own_arch.filter(|_| chosen == Target::GGUF));
        (Self { to: Some(chosen), arch }, why)
    }
}
