//! The output head and the input embedding it may share its weight with; table in `heads.toml`.
//!
//! A model whose head is tied stores one tensor for both; a change to one of the two then needs a tensor of its own, under
//! the name that the class gives its head. A name that the class does not know would be ignored when the model is loaded, so
//! none is guessed.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::Deserialize;

use super::names::Names;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    heads: Vec<Row>,
}

/// One way in which classes call their head.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    head: String,
    embeddings: Vec<String>,
    classes: Vec<String>,
}

static TABLE: LazyLock<Table> =
    LazyLock::new(|| toml::from_str(include_str!("heads.toml")).expect("the table is tested"));

static BY_CLASS: LazyLock<HashMap<&str, &Row>> = LazyLock::new(|| {
    TABLE.heads.iter().flat_map(|row| row.classes.iter().map(move |class| (class.as_str(), row))).collect()
});

/// Where the name of a family ends in that of a class.
const FAMILY_ENDS: [&str; 5] = ["For", "WithLMHead", "LMHead", "DoubleHeads", "Model"];

/// What is known of the head of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// How its class calls it.
    Of(&'static Row),
    /// Nothing says what class it is: the names that only one kind of class has.
    Conventional,
    /// It is of a class that is not in the table.
    Unknown,
}

/// A head without a tensor of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tie {
    /// Name the head's own tensor would have.
    pub head: String,
    /// The embedding it shares.
    pub embedding: String,
}

/// Whether the module `path` is an output head over the vocabulary.
pub fn is_head(path: &str) -> bool {
    let is =
        |head: &str| path == head || tells(head) && path.strip_suffix(head).is_some_and(|rest| rest.ends_with('.'));
    TABLE.heads.iter().any(|row| is(&row.head))
}

/// Whether a class is one of the table's, all of which have a head.
pub fn is_known(class: &str) -> bool {
    BY_CLASS.contains_key(class)
}

/// Whether a path of a head says by itself that it is one.
fn tells(head: &str) -> bool {
    head.contains("lm_head") || head.contains('.')
}

impl Heads {
    /// The head of the class `class`, or that of the classes of the type `model_type`.
    pub fn of(class: Option<&str>, model_type: Option<&str>) -> Self {
        let by_class = class.and_then(|class| BY_CLASS.get(class).copied());
        let by_type = || {
            let family = folded(model_type?);
            TABLE.heads.iter().find(|row| row.classes.iter().any(|class| folded(family_of(class)) == family))
        };
        match by_class.or_else(by_type) {
            Some(row) => Self::Of(row),
            None if class.is_none() && model_type.is_none() => Self::Conventional,
            None => Self::Unknown,
        }
    }

    /// The tie of a base with these names whose head is its embedding; `None` where the head has its own tensor, is not there
    /// or is not known.
    pub fn tie(self, names: &Names) -> Option<Tie> {
        let rows = match self {
            Self::Of(row) => std::slice::from_ref(row),
            Self::Conventional => TABLE.heads.as_slice(),
            Self::Unknown => return None,
        };
        for row in rows {
            if stored_head(row, names).is_some() {
                return None;
            }
            if let Some((prefix, embedding)) = embedding(row, names, self == Self::Conventional) {
                return Some(Tie { head: weight(prefix, &row.head), embedding });
            }
        }
        None
    }

    /// The head and the embedding of a base that stores both.
    pub fn stored(self, names: &Names) -> Option<Tie> {
        let rows = if let Self::Of(row) = self { std::slice::from_ref(row) } else { TABLE.heads.as_slice() };
        rows.iter().find_map(|row| {
            let head = stored_head(row, names)?;
            Some(Tie { head, embedding: embedding(row, names, false)?.1 })
        })
    }

    /// What the class has in front of the embedding `tensor`, and the base has not, with its dot.
    pub fn lacking_prefix(self, tensor: &str) -> Option<&'static str> {
        let Self::Of(row) = self else { return None };
        let module = tensor.strip_suffix(".weight")?;
        if ["model.", "transformer."].iter().any(|prefix| module.starts_with(prefix)) {
            return None;
        }
        let prefixes = row.embeddings.iter().filter_map(|other| other.strip_suffix(module));
        prefixes
            .filter(|prefix| prefix.matches('.').count() == 1 && prefix.ends_with('.'))
            .min_by_key(|prefix| prefix.len())
    }

    /// The head of that name and the embedding it may share, where `path` is a head that some class has and the base none.
    pub fn named(path: &str, names: &Names) -> Option<Tie> {
        let row = TABLE.heads.iter().find(|row| row.head == path && stored_head(row, names).is_none())?;
        Some(Tie { head: weight("", path), embedding: embedding(row, names, false)?.1 })
    }

    /// The embedding that a head of whatever name would share.
    pub fn any_embedding(names: &Names) -> Option<String> {
        TABLE.heads.iter().find_map(|row| embedding(row, names, false)).map(|(_, embedding)| embedding)
    }
}

fn weight(prefix: &str, module: &str) -> String {
    format!("{prefix}{module}.weight")
}

/// The name of the head's own tensor, if there is one.
fn stored_head(row: &Row, names: &Names) -> Option<String> {
    let name = weight("", &row.head);
    if names.has(&name) {
        return Some(name);
    }
    let prefix = names.prefix_of(&name).filter(|_| tells(&row.head))?;
    Some(weight(prefix, &row.head))
}

/// The embedding's name, and what stands in front of what its class calls it.
fn embedding<'a>(row: &Row, names: &'a Names, unambiguous: bool) -> Option<(&'a str, String)> {
    let rows_with = |embedding: &String| TABLE.heads.iter().filter(|row| row.embeddings.contains(embedding)).count();
    let embeddings = || row.embeddings.iter().filter(|embedding| !unambiguous || rows_with(embedding) == 1);
    let own = embeddings().map(|embedding| weight("", embedding)).find(|name| names.has(name));
    own.map(|name| ("", name)).or_else(|| {
        let long = embeddings().filter(|embedding| embedding.contains('.'));
        long.map(|embedding| weight("", embedding))
            .find_map(|name| names.prefix_of(&name).map(|prefix| (prefix, format!("{prefix}{name}"))))
    })
}

/// `Whisper` of `WhisperForConditionalGeneration`.
fn family_of(class: &str) -> &str {
    let end = FAMILY_ENDS.iter().filter_map(|end| class.find(end)).filter(|at| *at > 0).min();
    &class[..end.unwrap_or(class.len())]
}

/// Letters and digits alone: `gpt_neox` is `GPTNeoX`.
fn folded(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(keys: &[&str]) -> Names {
        Names::new(keys.iter().map(|key| (*key).to_owned()))
    }

    fn tie(head: &str, embedding: &str) -> Option<Tie> {
        Some(Tie { head: head.into(), embedding: embedding.into() })
    }

    #[test]
    fn every_class_finds_its_head_by_every_embedding_of_its_row() {
        for row in &TABLE.heads {
            for class in &row.classes {
                let heads = Heads::of(Some(class), None);
                assert_eq!(heads, Heads::Of(row), "{class} stands in two rows");
                for embedding in &row.embeddings {
                    let (head, embedding) = (weight("", &row.head), weight("", embedding));
                    assert_eq!(heads.tie(&names(&[&embedding])), tie(&head, &embedding), "{class}");
                    assert_eq!(heads.tie(&names(&[&embedding, &head])), None, "{class}");
                    assert_eq!(heads.stored(&names(&[&embedding, &head])), tie(&head, &embedding), "{class}");
                }
            }
            assert!(is_head(&row.head) && !row.embeddings.iter().any(|embedding| is_head(embedding)));
        }
    }

    #[test]
    fn a_type_stands_for_the_classes_of_its_family() {
        for (model_type, class) in [
            ("whisper", "WhisperForConditionalGeneration"),
            ("gpt_neox", "GPTNeoXForCausalLM"),
            ("xlm-roberta", "XLMRobertaForMaskedLM"),
            ("qwen2_5_omni", "Qwen2_5OmniModel"),
            ("distilbert", "DistilBertForMaskedLM"),
            ("llama", "LlamaForCausalLM"),
        ] {
            assert_eq!(Heads::of(None, Some(model_type)), Heads::of(Some(class), None), "{model_type}");
        }
    }

    #[test]
    fn the_prefix_of_a_wrapped_model_is_that_of_its_head() {
        let heads = Heads::of(Some("LlamaForCausalLM"), None);
        assert_eq!(
            heads.tie(&names(&["model.model.embed_tokens.weight"])),
            tie("model.lm_head.weight", "model.model.embed_tokens.weight")
        );
        let two = names(&["a.model.embed_tokens.weight", "b.model.embed_tokens.weight"]);
        assert_eq!(heads.tie(&two), None);
    }

    #[test]
    fn what_is_stored_under_a_prefix_is_not_tied() {
        let heads = Heads::of(Some("LlavaForConditionalGeneration"), None);
        let both = names(&["language_model.lm_head.weight", "language_model.model.embed_tokens.weight"]);
        assert_eq!(heads.tie(&both), None);
        assert_eq!(
            heads.stored(&both),
            tie("language_model.lm_head.weight", "language_model.model.embed_tokens.weight")
        );
    }

    #[test]
    fn no_name_is_guessed_for_a_class_that_is_not_known() {
        let base = names(&["model.decoder.embed_tokens.weight"]);
        assert_eq!(Heads::of(Some("FooForCausalLM"), Some("foo")).tie(&base), None);
        assert_eq!(Heads::of(None, None).tie(&base), None);
        let llama = names(&["model.embed_tokens.weight"]);
        assert_eq!(Heads::of(None, None).tie(&llama), tie("lm_head.weight", "model.embed_tokens.weight"));
    }

    #[test]
    fn a_bare_model_lacks_the_prefix_of_its_class() {
        for (class, embedding, prefix) in [
            ("GPT2LMHeadModel", "wte.weight", Some("transformer.")),
            ("GPT2LMHeadModel", "transformer.wte.weight", None),
            ("OPTForCausalLM", "decoder.embed_tokens.weight", Some("model.")),
            ("LlamaForCausalLM", "model.embed_tokens.weight", None),
        ] {
            assert_eq!(Heads::of(Some(class), None).lacking_prefix(embedding), prefix, "{class} {embedding}");
        }
    }

    #[test]
    fn heads_are_known_by_their_path() {
        assert!(is_head("lm_head") && is_head("embed_out") && is_head("model.lm_head"));
        assert!(!is_head("model.embed_tokens") && !is_head("encoder.layer.0.output"));
    }
}
