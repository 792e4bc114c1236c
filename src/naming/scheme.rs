//! Naming schemes: how each tool writes a module's path and what a tensor is to it. Tables in `schemes/*.toml`.
//!
//! A key is taken apart from its end: the longest suffix that fits tells the role, what stands before it is the module.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use serde::Deserialize;

use super::Key;
use super::{Role, components};

/// The tables, in the order keys are offered to them: the one with the strongest evidence first.
const TABLES: [&str; 7] = [
    include_str!("schemes/kohya.toml"),
    include_str!("schemes/xlabs.toml"),
    include_str!("schemes/torchtune.toml"),
    include_str!("schemes/mlx.toml"),
    include_str!("schemes/diffusers.toml"),
    include_str!("schemes/comfyui.toml"),
    include_str!("schemes/peft.toml"),
];

/// One scheme.
#[derive(Debug)]
pub struct Scheme {
    table: Table,
    /// Last segment of a key → suffix and role, the longest first.
    suffixes: HashMap<String, Vec<(String, Role)>>,
    /// Role label → the suffix that is written.
    printed: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Table {
    name: String,
    /// Module paths are flattened with underscores.
    #[serde(default)]
    flattened: bool,
    /// What keys begin with; any if empty.
    #[serde(default)]
    prefixes: Vec<String>,
    /// What keys contain; anything if empty.
    #[serde(default)]
    marks: Vec<String>,
    /// Names of components that keys of this scheme begin with: only a hint of the dialect.
    #[serde(default)]
    components: Vec<String>,
    /// Groups of suffixes.
    suffixes: Vec<String>,
    /// Suffixes of the groups that are not of this scheme.
    #[serde(default)]
    without: Vec<String>,
    /// α stands beside the factors.
    #[serde(default)]
    alpha_per_module: bool,
    /// What is written in front of every path.
    #[serde(default)]
    print_prefix: String,
    /// What is written in place of the name of a component.
    #[serde(default)]
    print_prefixes: BTreeMap<String, String>,
    #[serde(default)]
    rewrite: Vec<Rewrite>,
    /// Keys are written as they stood before they were rewritten.
    #[serde(default)]
    written_back: bool,
    #[serde(flatten)]
    groups: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rewrite {
    from: String,
    to: String,
}

static SCHEMES: LazyLock<Vec<Scheme>> = LazyLock::new(|| TABLES.iter().map(|text| Scheme::read(text)).collect());

/// All schemes, in the order keys are offered to them.
pub fn schemes() -> &'static [Scheme] {
    &SCHEMES
}

/// The scheme of this name.
pub fn scheme(name: &str) -> Option<&'static Scheme> {
    schemes().iter().find(|scheme| scheme.name() == name)
}

impl Scheme {
    fn read(text: &str) -> Self {
        let shared: BTreeMap<String, BTreeMap<String, Vec<String>>> =
            toml::from_str(include_str!("schemes/suffixes.toml"))
                .expect("the table of suffixes is part of the program");
        let table: Table = toml::from_str(text).expect("the tables of schemes are part of the program");
        let mut suffixes: Vec<(String, Role)> = Vec::new();
        let mut printed = BTreeMap::new();
        for group in &table.suffixes {
            let group = table.groups.get(group).or_else(|| shared.get(group)).expect("a table names groups that exist");
            for (label, spellings) in group {
                let spellings = spellings.iter().filter(|suffix| !table.without.contains(suffix));
                for suffix in spellings {
                    printed.entry(label.clone()).or_insert_with(|| suffix.clone());
                    suffixes.push((suffix.clone(), role(label)));
                }
            }
        }
        suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        let mut by_end: HashMap<String, Vec<(String, Role)>> = HashMap::new();
        for (suffix, role) in suffixes {
            by_end.entry(last_segment(&suffix).to_owned()).or_default().push((suffix, role));
        }
        Self { table, suffixes: by_end, printed }
    }

    /// Its name, as `--to` takes it.
    pub fn name(&self) -> &str {
        &self.table.name
    }

    /// Whether α stands beside the factors of every module.
    pub fn has_alphas(&self) -> bool {
        self.table.alpha_per_module
    }

    /// Whether module paths are flattened with underscores.
    pub fn is_flattened(&self) -> bool {
        self.table.flattened
    }

    /// Takes a key apart; `None` if it is not one of this scheme.
    pub fn parse(&self, key: &str) -> Option<Key> {
        let fits = |list: &[String], test: &dyn Fn(&str) -> bool| list.is_empty() || list.iter().any(|item| test(item));
        if !fits(&self.table.prefixes, &|prefix| key.starts_with(prefix))
            || !fits(&self.table.marks, &|mark| key.contains(mark))
        {
            return None;
        }
        // Rewriting changes what stands before a suffix, down to the character in front of its name.
        let suffixes = self.suffixes.get(last_segment(key))?;
        if !suffixes.iter().any(|(suffix, _)| key.ends_with(&suffix[1..])) {
            return None;
        }
        let key = self.rewritten(key);
        let (suffix, role) = suffixes.iter().find(|(suffix, _)| key.ends_with(suffix.as_str()))?;
        let module = &key[..key.len() - suffix.len()];
        // Some converters leave an underscore at the end of a flattened path; no module is called so.
        let module = if self.table.flattened { module.trim_end_matches('_') } else { module };
        let is_path = !module.is_empty() && (!self.table.flattened || !module.contains('.'));
        is_path.then(|| Key { module: module.to_owned(), nesting: 0, role: role.clone() })
    }

    /// Whether a key begins with a component, as those of this scheme do.
    pub fn names_component(&self, key: &str) -> bool {
        let begins = self.table.components.iter().any(|component| key.starts_with(component.as_str()));
        begins && components::split(key).is_some()
    }

    /// The key of a module's tensor; `None` if the scheme has no such role. `module` is spelled as the scheme spells paths.
    pub fn print(&self, module: &str, role: &Role) -> Option<String> {
        let suffix = self.printed.get(role.label())?;
        let prefix = self.table.print_prefixes.iter().find_map(|(component, prefix)| {
            module.strip_prefix(component.as_str())?.strip_prefix('.').map(|rest| format!("{prefix}{rest}"))
        });
        let module = prefix.unwrap_or_else(|| module.to_owned());
        let key = format!("{}{module}{suffix}", self.table.print_prefix);
        let back = self.table.rewrite.iter().filter(|_| self.table.written_back);
        Some(back.fold(key, |key, rewrite| key.replacen(&rewrite.to, &rewrite.from, 1)))
    }

    fn rewritten(&self, key: &str) -> String {
        self.table.rewrite.iter().fold(key.to_owned(), |key, rewrite| key.replacen(&rewrite.from, &rewrite.to, 1))
    }
}

fn last_segment(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// The role with this label.
pub fn role(label: &str) -> Role {
    let known = [
        Role::Down,
        Role::Up,
        Role::UpBias,
        Role::EmbeddingDown,
        Role::EmbeddingUp,
        Role::Magnitude,
        Role::TokenRows,
        Role::Alpha,
    ];
    known.into_iter().find(|role| role.label() == label).unwrap_or_else(|| Role::Part(label.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(scheme_name: &str, key: &str) -> Option<(String, String)> {
        let key = scheme(scheme_name).expect("a scheme").parse(key)?;
        Some((key.module, key.role.label().to_owned()))
    }

    #[test]
    fn keys_of_every_tool_are_taken_apart() {
        for (name, key, module, role) in [
            (
                "kohya",
                "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
                "lora_unet_mid_block_attentions_0_proj_in",
                "lora_A",
            ),
            ("kohya", "lora_te1_text_model_encoder.alpha", "lora_te1_text_model_encoder", "alpha"),
            ("kohya", "lora_unet_x.lora_mid.weight", "lora_unet_x", "lora_mid"),
            ("kohya", "lora_unet_x.weight", "lora_unet_x", "weight"),
            ("kohya", "lora_unet_blocks_0_attn_to_k_.lora_up.weight", "lora_unet_blocks_0_attn_to_k", "lora_B"),
            (
                "kohya",
                "lycoris_transformer_blocks_0_attn_to_q.lokr_w2_b",
                "lycoris_transformer_blocks_0_attn_to_q",
                "lokr_w2_b",
            ),
            ("kohya", "lora_unet_x.b2.weight", "lora_unet_x", "b2"),
            (
                "comfyui",
                "diffusion_model.blocks.0.self_attn.q.lora_up.weight",
                "diffusion_model.blocks.0.self_attn.q",
                "lora_B",
            ),
            ("comfyui", "diffusion_model.head.head.diff_b", "diffusion_model.head.head", "diff_b"),
            ("diffusers", "unet.a.attn1.to_q.lora.down.weight", "unet.a.attn1.to_q", "lora_A"),
            ("diffusers", "unet.a.attn1.processor.to_out_lora.up.weight", "unet.a.attn1.to_out.0", "lora_B"),
            ("diffusers", "a.attn1.processor.to_k_lora.up.weight", "a.attn1.to_k", "lora_B"),
            (
                "diffusers",
                "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight",
                "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
                "lora_B",
            ),
            ("diffusers", "text_encoder.x.q_proj.lora_linear_layer.down.weight", "text_encoder.x.q_proj", "lora_A"),
            ("diffusers", "transformer.a.lora_B.bias", "transformer.a", "lora_B.bias"),
            ("xlabs", "double_blocks.3.processor.qkv_lora2.down.weight", "double_blocks.3.txt_attn.qkv", "lora_A"),
            ("xlabs", "single_blocks.3.processor.proj_lora.up.weight", "single_blocks.3.linear2", "lora_B"),
            ("mlx", "model.layers.1.mlp.up_proj.lora_a", "model.layers.1.mlp.up_proj", "lora_A"),
            ("torchtune", "layers.1.attn.output_proj.lora_b.weight", "layers.1.attn.output_proj", "lora_B"),
            ("torchtune", "layers.1.mlp.w2.lora_a.weight", "layers.1.mlp.w2", "lora_A"),
        ] {
            assert_eq!(parsed(name, key), Some((module.to_owned(), role.to_owned())), "{key}");
        }
    }

    #[test]
    fn keys_of_a_model_belong_to_no_scheme() {
        for key in ["model.layers.0.self_attn.q_proj.weight", "model.diffusion_model.out.2.bias", "a.mlp.w1.weight"] {
            let by: Vec<&str> = schemes().iter().filter(|s| s.parse(key).is_some()).map(Scheme::name).collect();
            assert!(by.is_empty(), "{key}: {by:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for scheme in schemes().iter().filter(|scheme| scheme.name() != "peft" && scheme.table.rewrite.is_empty()) {
            let module = if scheme.is_flattened() { "lora_unet_mid_block" } else { "unit.3.to_q" };
            let mut seen = std::collections::BTreeSet::new();
            for label in scheme.printed.keys() {
                let key = scheme.print(module, &role(label)).expect("the label is the table's own");
                let back = scheme.parse(&key).expect("a key of this scheme");
                assert_eq!((back.module.as_str(), back.role.label()), (module, label.as_str()), "{key}");
                assert!(seen.insert(key));
            }
            assert!(seen.len() > 2, "{}", scheme.name());
        }
    }

    #[test]
    fn components_are_written_as_the_scheme_calls_them() {
        let comfyui = scheme("comfyui").expect("a scheme");
        let key = comfyui.print("transformer.blocks.0.q", &Role::Down);
        assert_eq!(key.as_deref(), Some("diffusion_model.blocks.0.q.lora_down.weight"));
        let peft = scheme("peft").expect("a scheme");
        assert_eq!(peft.print("a.b", &Role::Up).as_deref(), Some("base_model.model.a.b.lora_B.weight"));
    }
}
