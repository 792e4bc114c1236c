//! The output head and the input embedding it may share its weight with.
//!
//! A model whose head is tied stores one tensor for both; a change to one of the two then needs a tensor of its own.

/// Weight of the head, and the embeddings it is tied to in the model families that have it.
/// Sources: `_tied_weights_keys` of the model classes in transformers 5.
const TIES: [(&str, &[&str]); 4] = [
    (
        "lm_head.weight",
        &[
            "model.embed_tokens.weight",
            "transformer.wte.weight",
            "model.decoder.embed_tokens.weight",
            "model.language_model.embed_tokens.weight",
            "language_model.model.embed_tokens.weight",
            "model.embeddings.weight",
            "backbone.embeddings.weight",
            "transformer.word_embeddings.weight",
            "model.text_model.embed_tokens.weight",
            "shared.weight",
        ],
    ),
    ("language_model.lm_head.weight", &["language_model.model.embed_tokens.weight"]),
    ("embed_out.weight", &["gpt_neox.embed_in.weight"]),
    ("cls.predictions.decoder.weight", &["bert.embeddings.word_embeddings.weight"]),
];

/// Whether the module `path` is an output head over the vocabulary.
pub fn is_head(path: &str) -> bool {
    TIES.iter().any(|(head, _)| head.strip_suffix(".weight") == Some(path))
}

/// A head without a tensor of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tie {
    /// Name the head's own tensor would have.
    pub head: String,
    /// The embedding it shares.
    pub embedding: String,
}

/// The tie of a base that holds the names `has`, or `None` when the head has its own tensor or there is no head.
pub fn find_tie(has: impl Fn(&str) -> bool) -> Option<Tie> {
    for (head, embeddings) in TIES {
        if has(head) {
            return None;
        }
        if let Some(embedding) = embeddings.iter().find(|name| has(name)) {
            return Some(Tie { head: head.into(), embedding: (*embedding).into() });
        }
    }
    None
}

/// The head and the embedding of a base that stores both.
pub fn find_stored_pair(has: impl Fn(&str) -> bool) -> Option<Tie> {
    let pair = |(head, embeddings): &(&str, &[&str])| {
        let embedding = embeddings.iter().find(|name| has(name)).filter(|_| has(head))?;
        Some(Tie { head: (*head).into(), embedding: (*embedding).into() })
    };
    TIES.iter().find_map(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_of_its_own_is_not_tied() {
        let names = ["lm_head.weight", "model.embed_tokens.weight"];
        assert_eq!(find_tie(|name| names.contains(&name)), None);
        let pair = Tie { head: names[0].into(), embedding: names[1].into() };
        assert_eq!(find_stored_pair(|name| names.contains(&name)), Some(pair));
    }

    #[test]
    fn heads_are_known_by_their_path() {
        assert!(is_head("lm_head") && is_head("embed_out") && !is_head("model.embed_tokens"));
    }

    #[test]
    fn every_row_of_the_table_is_found_by_its_embedding() {
        for (head, embeddings) in TIES {
            for embedding in embeddings {
                let tie = find_tie(|name| name == *embedding).expect(embedding);
                assert_eq!(&tie.embedding, embedding);
                assert!(tie.head == head || TIES.iter().any(|(_, others)| others.contains(embedding)), "{embedding}");
            }
        }
    }
}
