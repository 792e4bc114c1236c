//! The tables `archs/*.toml`, read and expanded.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::template::{Template, choices, chosen, combinations, computed};

/// Tables that stand for a family of models.
const ARCHS: &[&str] = &[
    include_str!("../archs/sd1.toml"),
    include_str!("../archs/sdxl.toml"),
    include_str!("../archs/sd3.toml"),
    include_str!("../archs/flux.toml"),
    include_str!("../archs/xlabs.toml"),
    include_str!("../archs/flux2.toml"),
    include_str!("../archs/hunyuan_video.toml"),
    include_str!("../archs/wan.toml"),
    include_str!("../archs/qwen_image.toml"),
    include_str!("../archs/lumina2.toml"),
    include_str!("../archs/z_image.toml"),
    include_str!("../archs/ltx_video.toml"),
    include_str!("../archs/clip.toml"),
    include_str!("../archs/encoders.toml"),
    include_str!("../archs/language.toml"),
    include_str!("../archs/torchtune.toml"),
];

/// Tables that others share names from.
const SHARED: [&str; 1] = [include_str!("../archs/unet.toml")];

/// How many rows of a fused weight a part has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// So many times the module's inputs.
    Inputs(u64),
    /// This part of the module's inputs.
    Part(u64),
    /// An equal share of what the others leave.
    Rest,
    /// So many.
    Rows(u64),
}

/// Whether the two halves of the rows lie the other way round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Swap {
    /// As they are.
    #[default]
    Never,
    /// Swapped.
    Always,
    /// Swapped where the module has twice as many outputs as inputs.
    Two,
}

/// One weight in its two spellings.
#[derive(Debug)]
pub struct Row {
    /// The original name.
    pub original: Template,
    /// Its names in diffusers, several for the parts of a fused weight. Empty if the two are one.
    pub diffusers: Vec<Template>,
    /// Sizes of the parts; of a weight that is one in both spellings, its own where that tells the family.
    pub shares: Vec<Share>,
    /// Order of the halves.
    pub swap: Swap,
    /// The rows of each head lie in another order.
    pub heads: bool,
}

/// A table, expanded.
#[derive(Debug)]
pub struct Expanded {
    pub name: String,
    pub components: Vec<String>,
    pub aside: bool,
    pub rows: Vec<Row>,
    /// How names of models of this family begin, in small letters and digits.
    pub says: Vec<String>,
    /// What sd-scripts calls its models.
    pub sd_scripts: Option<String>,
    /// Its models have several text encoders, which sd-scripts numbers.
    pub several_encoders: bool,
    /// The sizes that its models have.
    pub models: Vec<Model>,
}

/// The sizes of one model of a family.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// How a module's path ends → its inputs.
    #[serde(default)]
    pub inputs: BTreeMap<String, u64>,
    /// List of blocks → how many there are.
    #[serde(default)]
    pub blocks: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    #[serde(default)]
    components: Vec<String>,
    /// Names of one tool beside those of a family: no family of its own.
    #[serde(default)]
    aside: bool,
    #[serde(default)]
    says: Vec<String>,
    sd_scripts: Option<String>,
    #[serde(default)]
    several_encoders: bool,
    #[serde(default)]
    model: Vec<Model>,
    tails_of: Option<String>,
    #[serde(default)]
    tails: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    row: Vec<Raw>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    original: Option<String>,
    #[serde(default)]
    diffusers: Vec<String>,
    same: Option<String>,
    #[serde(default)]
    rows: Vec<String>,
    #[serde(default)]
    swap: Swap,
    #[serde(default)]
    heads: bool,
    #[serde(default)]
    over: BTreeMap<String, Vec<u64>>,
    below: Option<String>,
}

/// All tables.
pub fn read() -> Vec<Expanded> {
    let table =
        |text: &&str| toml::from_str::<Table>(text).expect("the tables of architectures are part of the program");
    let shared: Vec<Table> = SHARED.iter().map(table).collect();
    let expand = |own: Table| {
        let tails = match &own.tails_of {
            Some(name) => {
                &shared.iter().find(|table| table.name == *name).expect("a table names one that exists").tails
            }
            None => &own.tails,
        };
        let rows = own.row.iter().flat_map(|raw| rows(raw, tails)).collect();
        Expanded {
            name: own.name,
            components: own.components,
            aside: own.aside,
            rows,
            says: own.says,
            sd_scripts: own.sd_scripts,
            several_encoders: own.several_encoders,
            models: own.model,
        }
    };
    ARCHS.iter().map(table).map(expand).collect()
}

fn rows(raw: &Raw, tails: &BTreeMap<String, Vec<String>>) -> Vec<Row> {
    let original = raw.original.as_ref().or(raw.same.as_ref()).expect("a row names a weight");
    let tails: Vec<(String, String)> = match &raw.below {
        None => vec![(String::new(), String::new())],
        Some(name) => tails[name]
            .iter()
            .map(|tail| tail.split_once(" = ").unwrap_or((tail, tail)))
            .map(|(left, right)| (format!(".{left}"), format!(".{right}")))
            .collect(),
    };
    let mut rows = Vec::new();
    for counters in combinations(&raw.over) {
        for (left, right) in &tails {
            let original = computed(&format!("{original}{left}"), &counters);
            let diffusers: Vec<String> =
                raw.diffusers.iter().map(|name| computed(&format!("{name}{right}"), &counters)).collect();
            for picked in picks(&choices(&original)) {
                let template =
                    |text: &str| Template::read(&chosen(text, &picked)).expect("what is left in braces is one letter");
                rows.push(Row {
                    original: template(&original),
                    diffusers: diffusers.iter().map(|text| template(text)).collect(),
                    shares: raw.rows.iter().map(|text| share(text)).collect(),
                    swap: raw.swap,
                    heads: raw.heads,
                });
            }
        }
    }
    rows
}

impl Share {
    /// Rows of a module with so many inputs; `None` where that is what the others leave, or no whole number.
    pub fn rows(self, inputs: u64) -> Option<u64> {
        match self {
            Self::Inputs(times) => inputs.checked_mul(times),
            Self::Part(of) => inputs.is_multiple_of(of).then_some(inputs / of),
            Self::Rows(rows) => Some(rows),
            Self::Rest => None,
        }
    }
}

fn share(text: &str) -> Share {
    match text {
        "in" => Share::Inputs(1),
        "3in" => Share::Inputs(3),
        "4in" => Share::Inputs(4),
        "in/3" => Share::Part(3),
        "rest" => Share::Rest,
        number => Share::Rows(number.parse().expect("a share is `in`, `3in`, `4in`, `in/3`, `rest` or a number")),
    }
}

/// Every combination of one choice each.
fn picks(counts: &[usize]) -> Vec<Vec<usize>> {
    counts.iter().fold(vec![Vec::new()], |all, count| {
        all.iter().flat_map(|one| (0..*count).map(move |at| [one.as_slice(), &[at]].concat())).collect()
    })
}
