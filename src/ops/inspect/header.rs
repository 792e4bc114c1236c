//! What the free text in front of the tensors tells, of a model or an adapter.

use serde::Serialize;
use serde_json::{Map, Value};

use super::hashes::{self, HashFacts};
use super::privacy::{self, Telling};
use super::training::Training;
use super::{InspectOptions, weights::Weights};
use crate::error::Result;
use crate::formats::Checkpoint;

/// Training, hashes, and what tells about people.
#[derive(Debug, Serialize)]
pub struct HeaderFacts {
    /// What the trainer wrote about its run.
    pub training: Option<Training>,
    /// Hashes in the header.
    pub hashes: Vec<HashFacts>,
    /// Metadata that tells about people and machines.
    pub privacy: Vec<Telling>,
}

impl HeaderFacts {
    /// What the headers of `checkpoint` and the settings of its `config` tell.
    ///
    /// # Errors
    /// When the file is no longer there as it was opened.
    pub fn of(
        checkpoint: &Checkpoint,
        config: &Map<String, Value>,
        weights: &Weights,
        options: &InspectOptions,
    ) -> Result<Self> {
        let header = Header(checkpoint);
        let read = options.check || weights.file_bytes() <= options.hash_up_to;
        Ok(Self {
            training: Training::of(header.texts()),
            hashes: hashes::find(checkpoint, read)?,
            privacy: privacy::find(header.texts(), config),
        })
    }

    /// What of it is wrong.
    pub fn problems(&self) -> Vec<String> {
        let wrong = self.hashes.iter().filter(|hash| hash.matches == Some(false));
        let problems = wrong
            .map(|HashFacts { key, stored, computed, .. }| {
                let (stored, computed) =
                    (stored.as_deref().unwrap_or_default(), computed.as_deref().unwrap_or_default());
                format!("`{key}` is {stored}, the tensors give {computed}: they were changed after it was written")
            })
            .collect();
        problems
    }
}

/// The free text in front of the tensors.
pub struct Header<'a>(pub &'a Checkpoint);

impl<'a> Header<'a> {
    /// Keys and texts, file by file.
    pub fn texts(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let files = self.0.files().iter();
        files.flat_map(|file| file.header.metadata.iter().map(|(key, text)| (key.as_str(), text.as_str())))
    }

    /// The text of one key.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.texts().find(|(own, _)| *own == key).map(|(_, text)| text)
    }
}
