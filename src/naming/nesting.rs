//! Modules that lie within others: the output projection within its attention.

use foldhash::HashMap;

/// Places of paths of which the first lies within the second, in order.
pub fn layers_within_layers<'a>(paths: impl Iterator<Item = &'a str> + Clone) -> Vec<(usize, usize)> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::default();
    for (at, path) in paths.clone().enumerate() {
        places.entry(path).or_default().push(at);
    }
    let mut found = Vec::new();
    for (inner, path) in paths.enumerate() {
        let fronts = path.match_indices('.').filter_map(|(dot, _)| places.get(&path[..dot]));
        let mut outer: Vec<usize> = fronts.flatten().copied().collect();
        outer.sort_unstable();
        found.extend(outer.into_iter().map(|outer| (inner, outer)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_found_in_every_one_around_it() {
        let paths = ["a.b.c", "a", "ab", "a.b", "a"];
        assert_eq!(layers_within_layers(paths.into_iter()), [(0, 1), (0, 3), (0, 4), (3, 1), (3, 4)]);
    }
}
