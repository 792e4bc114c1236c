//! Where the tensor of a name stands: a table of places alone, since the names stand in the headers already.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::weight_file::WeightFile;

/// File and position in its header.
pub(super) type Place = (usize, usize);

/// The places of all tensors of some files, by name.
#[derive(Debug)]
pub(super) struct Places {
    table: HashTable<Place>,
    hasher: RandomState,
}

impl Places {
    /// The places of all tensors of `files`.
    ///
    /// # Errors
    /// With both places of the first name that stands there twice, the later one first.
    pub(super) fn of(files: &[WeightFile]) -> Result<Self, [Place; 2]> {
        let count = files.iter().map(|file| file.header.tensors.len()).sum();
        let mut places = Self { table: HashTable::with_capacity(count), hasher: RandomState::default() };
        let hash = |name: &str| places.hasher.hash_one(name);
        for (at, file) in files.iter().enumerate() {
            for (position, tensor) in file.header.tensors.iter().enumerate() {
                let same = |place: &Place| name_of(files, *place) == tensor.name;
                let entry = places.table.entry(hash(&tensor.name), same, |place| hash(name_of(files, *place)));
                match entry {
                    Entry::Occupied(other) => return Err([(at, position), *other.get()]),
                    Entry::Vacant(free) => free.insert((at, position)),
                };
            }
        }
        Ok(places)
    }

    /// The place of the tensor called `name`; `files` are those this was made from.
    pub(super) fn find(&self, files: &[WeightFile], name: &str) -> Option<Place> {
        self.table.find(self.hasher.hash_one(name), |place| name_of(files, *place) == name).copied()
    }

    /// Number of tensors.
    pub(super) fn count(&self) -> usize {
        self.table.len()
    }
}

fn name_of(files: &[WeightFile], (file, position): Place) -> &str {
    &files[file].header.tensors[position].name
}
