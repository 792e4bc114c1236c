//! Names that mean every path that ends in them, from a dot on: as PEFT finds the modules that a config lists. Looked up by the
//! ends of a path, so that long lists cost no more than short ones.

use foldhash::HashSet;

/// A list of such names.
#[derive(Debug, Clone, Default)]
pub struct Endings(HashSet<String>);

impl Endings {
    /// Whether one of the names means `path`.
    pub fn take(&self, path: &str) -> bool {
        !self.0.is_empty() && ends(path).any(|end| self.0.contains(end))
    }
}

impl<'a> FromIterator<&'a str> for Endings {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        Self(names.into_iter().map(str::to_owned).collect())
    }
}

/// The path, and what follows each of its dots: the longest first.
pub fn ends(path: &str) -> impl Iterator<Item = &str> {
    std::iter::once(path).chain(path.match_indices('.').map(|(at, _)| &path[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_begins_at_a_dot() {
        let endings: Endings = ["q_proj", "mlp.up"].into_iter().collect();
        let taken = ["a.q_proj", "q_proj", "x.mlp.up"].map(|path| endings.take(path));
        let others = ["a.my_q_proj", "x.up", ""].map(|path| endings.take(path));
        assert_eq!((taken, others), ([true; 3], [false; 3]));
    }
}
