//! Which module of the base a module path of an adapter means: the same name below its component, the same name flattened, or
//! another spelling of the family, whose rows may be those of several modules.

use std::collections::{BTreeSet, HashMap};

use crate::adapters::Change;
use crate::error::{Error, Result};
use crate::formats::Container;
use crate::model::base::Base;
use crate::model::storage::refused;
use crate::naming::arch::{Spot, flattened, parameter, translate, unflatten};
use crate::naming::components::{ADAPTED, below, kind_of_denoiser, of_blocks, of_prefix, split, with_component};

/// Most words that stand in front of all names of a base.
const MAX_WORDS: usize = 5;

/// Where a change goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// As it is to this module of the base.
    Whole(String),
    /// Row by row to these modules of the base.
    Rows(Vec<Spot>),
}

/// The modules of a base under the names that adapters may call them by.
pub struct Places {
    /// Path with its component → path in the base.
    modules: HashMap<String, String>,
    /// The same path with underscores for dots → paths with their components.
    flat: HashMap<String, Vec<String>>,
    /// The denoiser among them.
    denoiser: Option<&'static str>,
    /// The component that the base is, where it is one alone and says so.
    pub alone: Option<String>,
    /// The denoiser that paths mean which name none, or name only its kind.
    meant: Option<String>,
    /// What the modules of a denoiser are behind the words that all names of the base begin with.
    wrapped: Wrapped,
    /// Whether those names count.
    behind: bool,
}

/// Paths behind words in front that no table knows.
#[derive(Debug, Default)]
struct Wrapped {
    /// The words, with their dots.
    prefix: String,
    /// Path with its component → path in the base.
    modules: HashMap<String, String>,
}

impl Places {
    /// The modules of `base`.
    pub fn new(base: &Base) -> Self {
        let alone = component_of(base);
        let mut modules = HashMap::new();
        for tensor in base.checkpoint.tensors() {
            // The fused projection of PyTorch's attention is a parameter; the tables call it a module.
            let fused = tensor.name.strip_suffix(".in_proj_weight").map(|path| format!("{path}.in_proj"));
            let packed = || refused::ends().find_map(|(end, _)| Some(tensor.name.strip_suffix(end)?.to_owned()));
            let module = fused.or_else(packed).or_else(|| Some(tensor.name.rsplit_once('.')?.0.to_owned()));
            let Some(module) = module else { continue };
            let path = match (of_prefix(&module), alone) {
                (Some((component, rest)), _) => format!("{component}.{rest}"),
                (None, Some(component)) => format!("{component}.{module}"),
                (None, None) => with_component(&module),
            };
            modules.insert(path, module);
        }
        // Parts of a denoiser whose own names do not tell that they are.
        let denoiser = of_blocks(modules.keys().map(String::as_str));
        if let Some(denoiser) = denoiser {
            let others: Vec<(String, String)> =
                modules.iter().map(|(path, module)| (below(denoiser, path), module.clone())).collect();
            for (path, module) in others {
                modules.entry(path).or_insert(module);
            }
        }
        // What a file that is one model calls its modules, adapters call so below either kind of denoiser.
        if denoiser.is_none() && alone.is_none() && !matches!(base.checkpoint.container(), Container::Pipeline(_)) {
            let bare: Vec<(String, String)> = modules
                .iter()
                .filter(|(path, _)| split(path).is_none())
                .map(|(path, module)| (path.clone(), module.clone()))
                .collect();
            for (path, module) in bare {
                for kind in ["transformer", "unet"] {
                    modules.entry(format!("{kind}.{path}")).or_insert_with(|| module.clone());
                }
            }
        }
        let is_told = denoiser.is_some() || alone.is_some();
        let wrapped = if is_told || matches!(base.checkpoint.container(), Container::Pipeline(_)) {
            Wrapped::default()
        } else {
            Wrapped::of(base.names.modules())
        };
        let mut flat: HashMap<String, Vec<String>> = HashMap::new();
        for path in modules.keys() {
            flat.entry(path.replace('.', "_")).or_default().push(path.clone());
        }
        Self { modules, flat, denoiser, alone: alone.map(str::to_owned), meant: None, wrapped, behind: false }
    }

    /// Whether some module belongs to the component `part`.
    pub fn has_part(&self, part: &str) -> bool {
        let is_below = |path: &String| path.strip_prefix(part).is_some_and(|rest| rest.starts_with('.'));
        self.modules.keys().chain(self.wrapped.modules.keys()).any(is_below)
    }

    /// Lets names behind the words count that all names of the base begin with, or no longer: those words, if there are any.
    pub fn look_behind(&mut self, behind: bool) -> Option<&str> {
        self.behind = behind && !self.wrapped.modules.is_empty();
        self.behind.then_some(self.wrapped.prefix.as_str())
    }

    /// The module of the base that a path with its component is.
    fn module(&self, path: &str) -> Option<&String> {
        let behind = || self.wrapped.modules.get(path).filter(|_| self.behind);
        self.modules.get(path).or_else(behind)
    }

    /// Says which denoiser is meant by paths that name none, or only its kind.
    pub fn mean(&mut self, denoiser: Option<String>) {
        self.meant = denoiser;
    }

    /// The path with the denoiser that is meant.
    pub fn meant(&self, path: String) -> String {
        let Some(meant) = &self.meant else { return path };
        match split(&path) {
            Some((component, rest)) if kind_of_denoiser(meant) == Some(component) => format!("{meant}.{rest}"),
            _ => path,
        }
    }

    /// The place of the module `path` with so many outputs and inputs; `None` if the base has none.
    ///
    /// # Errors
    /// When there are several, naming them.
    pub fn find(&self, base: &Base, path: &str, size: Option<(u64, u64)>) -> Result<Option<Place>> {
        let path = match flattened(path) {
            Some((rest, components)) => match self.unflatten(base, path, rest, components)? {
                Some(path) => path,
                None => return self.find_reading(base, path, size),
            },
            None => match (with_component(path), self.denoiser) {
                // The base is one, so what no name gives away is a part of it.
                (own, Some(denoiser)) if split(path).is_none() && of_prefix(path).is_none() => {
                    self.meant(below(denoiser, &own))
                }
                (path, _) => self.meant(path),
            },
        };
        self.locate(base, path, size)
    }

    /// The place of a flattened name that is none of the base's own: as a family's tables read it. Of several readings only one
    /// may lead into the base.
    fn find_reading(&self, base: &Base, name: &str, size: Option<(u64, u64)>) -> Result<Option<Place>> {
        let readings = match unflatten(name) {
            Ok(reading) => reading.into_iter().collect(),
            Err(several) => several,
        };
        let mut found: Vec<(String, Place)> = Vec::new();
        for reading in readings {
            let place = self.locate(base, self.meant(with_component(&reading)), size)?;
            if let Some(place) = place.filter(|place| found.iter().all(|(_, other)| other != place)) {
                found.push((reading, place));
            }
        }
        if found.len() > 1 {
            return Err(ambiguous(base, name, found.iter().map(|(reading, _)| reading.as_str())));
        }
        Ok(found.pop().map(|(_, place)| place))
    }

    /// The place of a path with its component.
    fn locate(&self, base: &Base, path: String, size: Option<(u64, u64)>) -> Result<Option<Place>> {
        if let Some(module) = self.module(&path) {
            return Ok(Some(Place::Whole(module.clone())));
        }
        let Some((outputs, inputs)) = size else { return Ok(None) };
        let rows =
            |module: &str| base.checkpoint.info(&parameter(module, "weight")).map(|info| info.shape.rows_cols().0);
        let mut found: Vec<Place> = Vec::new();
        for spots in translate(&path, outputs, inputs) {
            let own = |spot: &Spot| {
                let module = self.module(&spot.module)?;
                let has = rows(module)?;
                let fits = spot.of.is_none_or(|of| of == has) && spot.at + (spot.take.end - spot.take.start) <= has;
                fits.then(|| Spot { module: module.clone(), ..spot.clone() })
            };
            let Some(own) = spots.iter().map(own).collect::<Option<Vec<Spot>>>() else { continue };
            let place = match own.as_slice() {
                [one] if one.take == (0..outputs) && one.at == 0 && rows(&one.module) == Some(outputs) => {
                    Place::Whole(one.module.clone())
                }
                _ => Place::Rows(own),
            };
            if !found.contains(&place) {
                found.push(place);
            }
        }
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(ambiguous(base, &path, found.iter().map(Place::module))),
        }
    }

    fn unflatten(&self, base: &Base, path: &str, rest: &str, components: &[&str]) -> Result<Option<String>> {
        let of = |component: &&str| {
            let meant = self.meant.as_deref().filter(|meant| kind_of_denoiser(meant) == Some(component));
            self.flat.get(&format!("{}_{rest}", meant.unwrap_or(component)))
        };
        let mut found: Vec<&String> = components.iter().filter_map(of).flatten().collect();
        found.dedup_by_key(|path| &self.modules[*path]);
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some((*one).clone())),
            several => Err(ambiguous(base, path, several.iter().map(|path| path.as_str()))),
        }
    }
}

impl Wrapped {
    /// The names of `modules` behind the first of the words in front of all of them that the blocks of a denoiser stand behind.
    fn of<'a>(modules: impl Iterator<Item = &'a str>) -> Self {
        let modules: Vec<&str> = modules.collect();
        let Some(first) = modules.first() else { return Self::default() };
        let is_word = |word: &&str| !word.bytes().all(|byte| byte.is_ascii_digit());
        for (at, _) in first.match_indices('.').take(MAX_WORDS) {
            let prefix = &first[..=at];
            let last = prefix.trim_end_matches('.').rsplit('.').next();
            if !last.as_ref().is_some_and(is_word) || !modules.iter().all(|module| module.starts_with(prefix)) {
                break;
            }
            let inner = |module: &&str| with_component(&module[prefix.len()..]);
            let paths: BTreeSet<String> = modules.iter().map(inner).collect();
            let Some(denoiser) = of_blocks(paths.iter().map(String::as_str)) else { continue };
            let modules = modules.iter().map(|module| (below(denoiser, &inner(module)), (*module).to_owned()));
            return Self { prefix: prefix.to_owned(), modules: modules.collect() };
        }
        Self::default()
    }
}

/// The component that the base is, where it is one alone and says so by the name of its folder or its class.
fn component_of(base: &Base) -> Option<&'static str> {
    if matches!(base.checkpoint.container(), Container::Pipeline(_)) {
        return None;
    }
    let folder = base.checkpoint.directory().file_name().map(|name| name.to_string_lossy().into_owned());
    let named = ADAPTED.iter().copied().find(|component| folder.as_deref() == Some(component));
    let config = base.config.as_ref();
    let class = config.and_then(|config| config.class());
    // A model of its own may lie in a folder of any name.
    let is_part = config.is_some_and(|config| config.raw.contains_key("_class_name"))
        || class
            .is_some_and(|class| ["CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"].contains(&class));
    match (named.filter(|_| is_part), class) {
        (Some(component), _) => Some(component),
        (None, Some("CLIPTextModel")) => Some("text_encoder"),
        (None, Some("CLIPTextModelWithProjection")) => Some("text_encoder_2"),
        _ => None,
    }
}

/// Whether the path says by itself to which component it belongs.
pub fn names_component(path: &str) -> bool {
    split(path).is_some() || flattened(path).is_some()
}

/// Outputs and inputs of the weight that is changed, where the change tells.
pub fn size_of(change: &Change) -> Option<(u64, u64)> {
    match change {
        Change::Lora(lora) => Some((lora.outputs(), lora.inputs())),
        Change::Method(method) => method.shape(),
        Change::Whole(_, tensor) => Some(tensor.info.shape.rows_cols()),
        _ => None,
    }
}

impl Place {
    /// The module, or the first of several.
    pub fn module(&self) -> &str {
        match self {
            Self::Whole(module) => module,
            Self::Rows(spots) => spots.first().map_or("", |spot| spot.module.as_str()),
        }
    }
}

fn ambiguous<'a>(base: &Base, path: &str, names: impl Iterator<Item = &'a str>) -> Error {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    let what = format!("`{path}` of the adapter could be any of {}", names.join(", "));
    Error::unsupported(base.checkpoint.root(), what)
}
