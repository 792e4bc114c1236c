//! Modules whose paths differ from the base's in what stands in front of them, whatever that is: new families and new tools come
//! with prefixes that no table knows. One common prefix may come off, and one may be put there instead, if then every module has
//! its place and there is one way only.
//!
//! The same holds for flattened names, whose words stand between underscores.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::placer::Placer;
use super::places::{Place, size_of};
use crate::adapters::{Adapter, Change};
use crate::error::{Error, Result};
use crate::formats::Container;
use crate::naming::Shift;
use crate::naming::components::ADAPTED;

/// Most words of a prefix (`pipe.dit.base_model.model.` has four).
const MAX_WORDS: usize = 5;

/// Most prefixes that are tried in place of the adapter's.
const MAX_WAYS: usize = 64;

/// What a flattened name of a denoiser begins with.
const FLAT_DENOISER: &str = "lora_unet_";

/// New paths of modules.
#[derive(Debug, Default)]
pub struct Moved {
    paths: HashMap<String, String>,
    /// Why there are none, although a part of the modules would have a place.
    pub nearly: Option<String>,
}

impl Moved {
    /// The path that leads to the module's place.
    pub fn apply(&self, path: String) -> String {
        self.paths.get(&path).cloned().unwrap_or(path)
    }
}

/// One way to rewrite paths, and where they end.
struct Way {
    strip: String,
    add: String,
    /// New paths and places, module by module; as many as there are.
    found: Vec<(String, Place)>,
}

impl Placer<'_> {
    /// New paths for the modules of `adapter` that have no place by their own paths after `shift`.
    ///
    /// # Errors
    /// When they could be several modules each.
    pub(crate) fn moved(&mut self, adapter: &Adapter, shift: &Shift) -> Result<Moved> {
        self.places.look_behind(false);
        let mut missing: BTreeMap<String, Option<(u64, u64)>> = BTreeMap::new();
        for module in &adapter.modules {
            if !matches!(module.change, Change::Lora(_) | Change::Method(_)) {
                continue;
            }
            let (path, size) = (self.places.meant(shift.apply(&module.path)), size_of(&module.change));
            let found = self.base.names.located(&path).is_some() || self.places.find(self.base, &path, size)?.is_some();
            // Names that lead into the base need no other prefix, and those beside them are of another part of the model.
            if found {
                return Ok(Moved::default());
            }
            missing.insert(path, size);
        }
        let missing: Vec<(String, Option<(u64, u64)>)> = missing.into_iter().collect();
        let Some(words) = Words::of(&missing) else { return Ok(Moved::default()) };
        let names_other = |alone: &str| ADAPTED.contains(&words.first()) && words.first() != alone;
        if self.places.alone.as_deref().is_some_and(names_other) {
            return Ok(Moved::default());
        }
        let keeps_first =
            matches!(self.base.checkpoint.container(), Container::Pipeline(_)) && ADAPTED.contains(&words.first());
        let kept = usize::from(keeps_first);
        let mut ways = self.ways(&words, &missing, kept, None);
        if let (true, Some(prefix)) = (whole(&ways, missing.len()).is_empty(), self.places.look_behind(true)) {
            // The same with the names of the tables, which begin behind the base's prefix.
            let prefix = prefix.to_owned();
            let behind = self.ways(&words, &missing, kept, Some(&prefix));
            if whole(&behind, missing.len()).is_empty() {
                self.places.look_behind(false);
            } else {
                ways = behind;
            }
        }
        let whole = whole(&ways, missing.len());
        match whole.as_slice() {
            [] => {
                let best = ways.iter().max_by_key(|way| way.found.len()).filter(|way| !way.found.is_empty());
                let nearly = best.map(|way| {
                    let (found, all) = (way.found.len(), missing.len());
                    format!("with `{}` for `{}` in front, {found} of {all} modules would have one", way.add, way.strip)
                });
                Ok(Moved { nearly, ..Moved::default() })
            }
            [way] => {
                self.placement.notes.push(format!(
                    "module paths differ in their prefix: `{}` of the adapter is `{}` of the base",
                    way.strip, way.add
                ));
                let paths = missing.iter().zip(&way.found).map(|((old, _), (new, _))| (old.clone(), new.clone()));
                Ok(Moved { paths: paths.collect(), nearly: None })
            }
            several => {
                let first = &missing[0].0;
                let ends: Vec<String> = several.iter().map(|way| format!("`{}`", way.found[0].1.module())).collect();
                let problem = format!("`{first}` could be any of {}", ends.join(", "));
                Err(Error::mismatch(adapter.root.display().to_string(), self.base_name(), problem))
            }
        }
    }

    /// All ways that lead some modules into the base, from the first on; `kept` words stay in front. `behind` are the words in
    /// front of the base's names that are looked behind.
    fn ways(
        &self,
        words: &Words<'_>,
        missing: &[(String, Option<(u64, u64)>)],
        kept: usize,
        behind: Option<&str>,
    ) -> Vec<Way> {
        let separator = words.separator;
        let spelled = |module: &str| module.replace('.', &separator.to_string());
        let mut own: HashMap<String, Vec<&str>> = HashMap::new();
        for module in self.base.names.modules() {
            own.entry(spelled(module)).or_default().push(module);
        }
        let join = |words: &[&str]| words.iter().map(|word| format!("{word}{separator}")).collect::<String>();
        let mut ways = Vec::new();
        for count in 0..=words.common.len().saturating_sub(kept) {
            let (front, strip) = (join(&words.common[..kept]), join(&words.common[kept..kept + count]));
            let rest = |path: &str| path.get(front.len() + strip.len()..).unwrap_or_default().to_owned();
            let first = rest(&missing[0].0);
            let mut adds: BTreeSet<String> = BTreeSet::new();
            for name in own.keys() {
                let add = name.strip_suffix(first.as_str()).filter(|add| is_prefix(add, separator));
                adds.extend(add.map(str::to_owned));
            }
            let last = missing.last().map(|(path, _)| rest(path)).unwrap_or_default();
            if adds.len() > MAX_WAYS {
                adds.retain(|add| own.contains_key(&format!("{add}{last}")));
            }
            if count > 0 || behind.is_some() {
                let path = |path: &str| match separator {
                    _ if count == 0 => path.to_owned(),
                    '.' => format!("{front}{}", rest(path)),
                    _ => format!("{FLAT_DENOISER}{}", rest(path)),
                };
                let place = |(old, size): &(String, Option<(u64, u64)>)| {
                    let path = path(old);
                    let found = self.places.find(self.base, &path, *size).ok().flatten()?;
                    Some((path, found))
                };
                let found: Vec<(String, Place)> = missing.iter().filter_map(place).collect();
                let add = behind.unwrap_or_default().to_owned();
                ways.extend((!found.is_empty()).then(|| Way { strip: strip.clone(), add, found }));
            }
            for add in adds.into_iter().take(MAX_WAYS) {
                let place = |(old, _): &(String, _)| match own.get(&format!("{add}{}", rest(old))).map(Vec::as_slice) {
                    Some([module]) => Some(((*module).to_owned(), Place::Whole((*module).to_owned()))),
                    _ => None,
                };
                let found: Vec<(String, Place)> = missing.iter().filter_map(place).collect();
                ways.extend((!found.is_empty()).then(|| Way { strip: strip.clone(), add, found }));
            }
        }
        ways
    }
}

/// Those of `ways` that lead all of `count` modules into the base, each to other places.
fn whole(ways: &[Way], count: usize) -> Vec<&Way> {
    let mut whole: Vec<&Way> = Vec::new();
    for way in ways.iter().filter(|way| way.found.len() == count) {
        let same = |other: &&Way| other.found.iter().zip(&way.found).all(|((_, one), (_, other))| one == other);
        if !whole.iter().any(same) {
            whole.push(way);
        }
    }
    whole
}

/// What the paths of all modules begin with.
struct Words<'a> {
    separator: char,
    common: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn of(paths: &'a [(String, Option<(u64, u64)>)]) -> Option<Self> {
        let (first, _) = paths.first()?;
        let dotted = first.contains('.');
        if paths.iter().any(|(path, _)| path.contains('.') != dotted) {
            return None;
        }
        let separator = if dotted { '.' } else { '_' };
        let mut common: Vec<&str> =
            first.split(separator).take_while(|word| !is_number(word)).take(MAX_WORDS).collect();
        for (path, _) in paths {
            let words: Vec<&str> = path.split(separator).collect();
            let same = common.iter().zip(&words[..words.len() - 1]).take_while(|(one, other)| one == other).count();
            common.truncate(same);
        }
        Some(Self { separator, common })
    }

    fn first(&self) -> &str {
        self.common.first().copied().unwrap_or_default()
    }
}

fn is_number(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether `text` is empty or words with their separators, none of them a number.
fn is_prefix(text: &str, separator: char) -> bool {
    let Some(words) = text.strip_suffix(separator) else { return text.is_empty() };
    let mut count = 0;
    words.split(separator).all(|word| {
        count += 1;
        !is_number(word) && count <= MAX_WORDS
    })
}
