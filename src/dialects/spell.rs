//! Module names in the spelling of the target: flattened names taken apart, families of models translated, fused weights split and
//! split ones fused, always by rows of B.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::dialect::Dialect;
use super::pieces::{Magnitude, Pair, Pieces};
use crate::adapters::Adapter;
use crate::error::{Error, Result};
use crate::naming::arch::{self, Arch, Spelling, Spot};
use crate::naming::components;
use crate::pairs::matrix::Grid;

/// How flattened names begin.
const FLAT: [&str; 3] = ["lora_", "lycoris_", "oft_unet_"];

/// What became of the names.
#[derive(Debug, Default)]
pub struct Respelled {
    /// Modules under another name.
    pub renamed: usize,
    /// Modules that became several.
    pub split: usize,
    /// Modules that were made of several.
    pub fused: usize,
    /// The family of the model.
    pub family: Option<&'static Arch>,
}

/// Whose spelling a target wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The one the adapter has.
    Own,
    /// That of diffusers.
    Diffusers,
    /// That of the model's authors for the denoiser; sd-scripts knows the first Stable Diffusion by the names of diffusers.
    Kohya,
    /// That of the model's authors.
    Original,
}

/// Puts all names into the spelling `wanted`; `family` is that of the denoiser, as far as it is known.
///
/// # Errors
/// When a change cannot be split or fused.
pub fn respell(
    adapter: &Adapter,
    pieces: &mut Pieces,
    wanted: Wanted,
    family: Option<&'static Arch>,
) -> Result<Respelled> {
    let mut done = Respelled { family, ..Respelled::default() };
    let diffusion = pieces.paths().any(|path| components::split(path).is_some());
    if !diffusion {
        done.family = None;
    }
    if wanted == Wanted::Own || !diffusion {
        return Ok(done);
    }
    let spots = |pair: &Pair| translated(&pair.path, (pair.up.size.0, pair.down.size.1), wanted, family);
    move_pairs(adapter, pieces, spots, &mut done)?;
    rename_others(adapter, pieces, wanted, family, &mut done)?;
    Ok(done)
}

/// Splits and fuses pairs of language models until their modules are those that are `wanted`, as far as the tables tell how.
///
/// # Errors
/// When a change cannot be split or fused.
pub fn refit(
    adapter: &Adapter,
    pieces: &mut Pieces,
    wanted: impl Fn(&str) -> bool,
    done: &mut Respelled,
) -> Result<()> {
    let language = arch::arch("language").expect("the tables are part of the program");
    let spots = |pair: &Pair| {
        let found = if wanted(&pair.path) {
            Vec::new()
        } else {
            language.translate(&pair.path, pair.up.size.0, pair.down.size.1)
        };
        found.into_iter().find(|spots| spots.iter().all(|spot| wanted(&spot.module)))
    };
    move_pairs(adapter, pieces, spots, done)
}

/// Puts the rows of every pair where `place` says they go; nowhere else if it says nothing.
///
/// # Errors
/// When a change cannot be split or fused.
pub fn move_pairs(
    adapter: &Adapter,
    pieces: &mut Pieces,
    place: impl Fn(&Pair) -> Option<Vec<Spot>>,
    done: &mut Respelled,
) -> Result<()> {
    let mut parts: BTreeMap<String, Vec<(Spot, Pair)>> = BTreeMap::new();
    let mut kept = Vec::new();
    for pair in std::mem::take(&mut pieces.pairs) {
        let Some(spots) = place(&pair) else {
            kept.push(pair);
            continue;
        };
        let modules: BTreeSet<&str> = spots.iter().map(|spot| spot.module.as_str()).collect();
        if let [spot] = spots.as_slice() {
            if spot.of == Some(spot.take.end) && spot.at == 0 {
                done.renamed += 1;
                kept.push(Pair { path: spot.module.clone(), ..pair });
            } else {
                parts.entry(spot.module.clone()).or_default().push((spot.clone(), pair));
            }
        } else if modules.len() == 1 {
            done.renamed += 1;
            kept.push(rearranged(pair, &spots));
        } else {
            done.split += 1;
            kept.extend(split(pair, &spots)?);
        }
    }
    for (module, parts) in parts {
        done.fused += 1;
        kept.push(fuse(adapter, module, parts)?);
    }
    kept.sort_by(|left, right| left.path.cmp(&right.path));
    pieces.pairs = kept;
    Ok(())
}

/// Takes flattened names apart: by the names of the base in `flat`, else by the table of the family, else by all tables.
///
/// # Errors
/// When no table knows a name, or it can stand for several paths.
pub fn unflatten(
    adapter: &Adapter,
    pieces: &mut Pieces,
    flat: &BTreeMap<String, String>,
    family: Option<&'static Arch>,
) -> Result<()> {
    let flattened: Vec<String> = pieces.paths().filter(|path| is_flat(path)).cloned().collect();
    let names: Vec<&str> = flattened.iter().map(String::as_str).collect();
    let mut found = BTreeMap::new();
    for (name, read) in names.iter().zip(arch::unflatten_all(&names)) {
        let path = match (read_flat(name, flat, family), read) {
            (Some(path), _) => path,
            (None, Ok(Some(path))) => path,
            (None, Ok(None)) => {
                let what = format!("no table knows which path `{name}` stands for");
                return Err(Error::unsupported(&adapter.root, what).hint("give the model: --base PATH"));
            }
            (None, Err(candidates)) => {
                let what = format!("`{name}` can stand for {}", candidates.join(" or "));
                return Err(Error::unsupported(&adapter.root, what).hint("say which model it is for: --base or --arch"));
            }
        };
        found.insert((*name).to_owned(), path);
    }
    for path in pieces.paths_mut() {
        if let Some(dotted) = found.get(path) {
            path.clone_from(dotted);
        }
    }
    Ok(())
}

/// Whether a path is one of a diffusion pipeline. The paths of an adapter of one model may begin with a component's name by
/// chance (MPT's `transformer.blocks.0`): there it takes a family of image models that has such a module.
pub fn is_of_pipeline(adapter: &Adapter, path: &str) -> bool {
    if !path.contains('.') {
        return is_flat(path);
    }
    let of_family = || arch::archs().iter().any(|family| !family.components().is_empty() && family.knows(path));
    components::split(path).is_some() && (Dialect::of(adapter.dialect).pipelines || of_family())
}

/// Whether the path has underscores for dots.
pub fn is_flat(path: &str) -> bool {
    !path.contains('.') && FLAT.iter().any(|prefix| path.starts_with(prefix))
}

/// The path of a flattened name by the base's names in `flat`, else by the table of the family.
pub fn read_flat(name: &str, flat: &BTreeMap<String, String>, family: Option<&'static Arch>) -> Option<String> {
    let by_family = || match family.map(|family| family.unflatten(name)).as_deref() {
        Some([path]) => Some(path.clone()),
        _ => None,
    };
    flat.get(name).cloned().or_else(by_family)
}

/// Where the rows of `path` go in the spelling `wanted`; `None` if it is spelled so already, or how is not known.
pub fn translated(path: &str, size: (u64, u64), wanted: Wanted, family: Option<&'static Arch>) -> Option<Vec<Spot>> {
    let family = table_of(path, family)?;
    let spelling = spelling_of(wanted, family);
    if family.spelling(path)? == spelling {
        return None;
    }
    family.translate(path, size.0, size.1).into_iter().next()
}

/// The table that has the path: that of the denoiser's family, or that of another part of the pipeline. Names of another denoiser
/// would be those of another model.
fn table_of(path: &str, family: Option<&'static Arch>) -> Option<&'static Arch> {
    let other = |other: &&Arch| (!other.is_denoiser() || other.is_aside()) && other.spelling(path).is_some();
    family.filter(|family| family.knows(path)).or_else(|| arch::archs().iter().find(other))
}

/// The name of a path in the spelling `wanted` where it can only be renamed; `None` if it is one weight here and several there.
pub fn renamed(path: &str, wanted: Wanted, family: Option<&'static Arch>) -> Option<String> {
    let Some(table) = table_of(path, family) else { return Some(path.to_owned()) };
    let spelling = spelling_of(wanted, table);
    if table.spelling(path).is_none_or(|own| own == spelling) {
        return Some(path.to_owned());
    }
    table.renamed(path, spelling).filter(|(_, turned)| !turned).map(|(name, _)| name)
}

fn spelling_of(wanted: Wanted, family: &Arch) -> Spelling {
    let original =
        family.is_denoiser() && (wanted == Wanted::Original || wanted == Wanted::Kohya && family.name() != "sd1");
    if original { Spelling::Original } else { Spelling::Diffusers }
}

/// The same module with its rows in another order.
fn rearranged(pair: Pair, spots: &[Spot]) -> Pair {
    let column = |grid: Grid| {
        let empty = Grid { kernel: grid.kernel.clone(), ..Grid::zero((0, grid.size.1)) };
        spots.iter().fold(empty, |sum, spot| sum.with(grid.clone().rows(&spot.take), (spot.at, 0)))
    };
    Pair {
        path: spots[0].module.clone(),
        up: column(pair.up),
        bias: pair.bias.map(column),
        magnitude: pair.magnitude.map(|magnitude| magnitude.map_rows(column)),
        ..pair
    }
}

/// One pair per part. Where every column of B lies in one part only, a part takes its own columns and the rows of A that go with
/// them; otherwise all parts share A.
fn split(pair: Pair, spots: &[Spot]) -> Result<Vec<Pair>> {
    let owners = if pair.magnitude.is_none() { owners(&pair, spots)? } else { None };
    let part = |(at, spot): (usize, &Spot)| {
        let cut = |grid: Grid| grid.rows(&spot.take);
        let (mut up, mut down) = (cut(pair.up.clone()), pair.down.clone());
        if let Some(owners) = &owners {
            let own: Vec<u64> = (0..pair.rank()).filter(|column| owners[*column as usize] == Some(at)).collect();
            if own.is_empty() && pair.bias.is_none() {
                return None;
            }
            // A part that is not changed keeps its bias and one column of zeros.
            let own = if own.is_empty() { vec![0] } else { own };
            (up, down) = pick(&up, &down, &own);
        }
        Some(Pair {
            path: spot.module.clone(),
            up,
            down,
            bias: pair.bias.clone().map(cut),
            magnitude: pair.magnitude.clone().map(|magnitude| magnitude.map_rows(cut)),
            ..pair.clone()
        })
    };
    Ok(spots.iter().enumerate().filter_map(part).collect())
}

/// The columns `own` of B, and the rows of A that go with them.
fn pick(up: &Grid, down: &Grid, own: &[u64]) -> (Grid, Grid) {
    let mut columns = Grid { kernel: up.kernel.clone(), ..Grid::zero((up.size.0, 0)) };
    let mut rows = Grid { kernel: down.kernel.clone(), ..Grid::zero((0, down.size.1)) };
    for run in runs(own) {
        let at = columns.size.1;
        columns = columns.with(up.clone().cols(&run), (0, at));
        rows = rows.with(down.clone().rows(&run), (at, 0));
    }
    (columns, rows)
}

/// Consecutive numbers together.
fn runs(numbers: &[u64]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.end == *number => run.end += 1,
            _ => runs.push(*number..number + 1),
        }
    }
    runs
}

/// The part every column of B belongs to, `None` for a column of zeros; nothing if some column belongs to several.
fn owners(pair: &Pair, spots: &[Spot]) -> Result<Option<Vec<Option<usize>>>> {
    let rank = pair.rank() as usize;
    let mut owners = vec![None; rank];
    let mut line = vec![0.0; rank];
    for (part, spot) in spots.iter().enumerate() {
        for row in spot.take.clone() {
            let row = row as usize;
            pair.up.decode(row..row + 1, &mut line)?;
            for (owner, value) in owners.iter_mut().zip(&line) {
                match owner {
                    _ if *value == 0.0 => {}
                    None => *owner = Some(part),
                    Some(other) if *other != part => return Ok(None),
                    Some(_) => {}
                }
            }
        }
    }
    Ok(Some(owners))
}

/// One pair of several parts: the ranks stand side by side, or A is one where it is the same for all.
fn fuse(adapter: &Adapter, module: String, parts: Vec<(Spot, Pair)>) -> Result<Pair> {
    let refuse =
        |what: &str| Error::unsupported(&adapter.root, format!("the parts of `{module}` cannot become one: {what}"));
    let outputs = parts.iter().map(|(spot, _)| spot.of.unwrap_or(spot.at + spot.take.end)).max().unwrap_or(0);
    let covered: u64 = parts.iter().map(|(spot, _)| spot.take.end - spot.take.start).sum();
    let magnitudes = parts.iter().filter(|(_, pair)| pair.magnitude.is_some()).count();
    if magnitudes > 0 && (magnitudes < parts.len() || covered < outputs) {
        return Err(refuse("some have magnitudes of DoRA and others none"));
    }
    if magnitudes > 0 && parts.iter().any(|(_, pair)| pair.magnitude.as_ref().is_some_and(|own| own.per_input)) {
        return Err(refuse("their magnitudes are those of inputs, each norm over its own rows"));
    }
    if parts.iter().any(|(_, pair)| pair.is_conv()) {
        return Err(refuse("they are convolutions"));
    }
    let (_, first) = &parts[0];
    if parts.iter().any(|(_, pair)| pair.down.size.1 != first.down.size.1) {
        return Err(refuse("they have different numbers of inputs"));
    }
    let mut shared = true;
    for (_, pair) in &parts[1..] {
        shared = shared && pair.scale == first.scale && same(&pair.down, &first.down)?;
    }
    // One scale for all: the first one's that is not 0; what another has beyond it goes into its rows of B.
    let scale = parts.iter().map(|(_, pair)| pair.scale).find(|scale| *scale != 0.0).unwrap_or(1.0);
    let mut down = if shared { first.down.clone() } else { Grid::zero((0, first.down.size.1)) };
    let mut up = Grid::zero((outputs, if shared { first.rank() } else { 0 }));
    let mut bias = None;
    let mut magnitude = None;
    for (spot, pair) in &parts {
        let rows = pair.up.clone().rows(&spot.take).scaled(pair.scale / scale);
        let column = if shared { 0 } else { up.size.1 };
        up = up.with(rows, (spot.at, column));
        if !shared {
            down = down.with(pair.down.clone(), (column, 0));
        }
        if let Some(own) = &pair.bias {
            let sum: Grid = bias.take().unwrap_or_else(|| Grid::zero((outputs, 1)));
            bias = Some(sum.with(own.clone().rows(&spot.take).scaled(pair.scale / scale), (spot.at, 0)));
        }
        if let Some(own) = &pair.magnitude {
            let sum: Grid = magnitude.take().unwrap_or_else(|| Grid::zero((outputs, 1)));
            magnitude = Some(sum.with(own.grid.clone().rows(&spot.take), (spot.at, 0)));
        }
    }
    let magnitude = magnitude.map(|grid| Magnitude { grid, per_input: false });
    Ok(Pair { bias, magnitude, ..Pair::new(module, down, up, scale) })
}

fn same(left: &Grid, right: &Grid) -> Result<bool> {
    if left.size != right.size {
        return Ok(false);
    }
    let width = left.size.1 as usize;
    let (mut one, mut other) = (vec![0.0; width], vec![0.0; width]);
    for row in 0..left.size.0 as usize {
        left.decode(row..row + 1, &mut one)?;
        right.decode(row..row + 1, &mut other)?;
        if one != other {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Names of what is no pair: it can be renamed, not cut.
fn rename_others(
    adapter: &Adapter,
    pieces: &mut Pieces,
    wanted: Wanted,
    family: Option<&'static Arch>,
    done: &mut Respelled,
) -> Result<()> {
    for path in pieces.other_paths_mut() {
        let Some(name) = renamed(path, wanted, family) else {
            let what = format!(
                "`{path}` is one weight here and several, or a part of one, there; only LoRA is split and fused"
            );
            return Err(Error::unsupported(&adapter.root, what).hint("make it one first: --as lora"));
        };
        done.renamed += usize::from(name != *path);
        *path = name;
    }
    Ok(())
}
