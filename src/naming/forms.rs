//! Names that differ in numbers alone, as those of layers and experts do: what is judged by the words of a name is judged once for all of them.

use foldhash::{HashMap, HashMapExt};

/// What is known of names by their form.
pub struct Forms<T> {
    known: HashMap<Vec<u8>, T>,
    form: Vec<u8>,
}

impl<T> Default for Forms<T> {
    fn default() -> Self {
        Self { known: HashMap::new(), form: Vec::new() }
    }
}

impl<T: Copy> Forms<T> {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What `judge` says of `name`, or said of another of its form. It must not look at components that are numbers.
    pub fn of(&mut self, name: &str, judge: impl FnOnce(&str) -> T) -> T {
        write_form(name, &mut self.form);
        if let Some(known) = self.known.get(&self.form) {
            return *known;
        }
        let judged = judge(name);
        self.known.insert(self.form.clone(), judged);
        judged
    }
}

/// Writes `name` with 0 for each component that is a number.
fn write_form(name: &str, form: &mut Vec<u8>) {
    form.clear();
    let (mut start, mut is_number) = (0, true);
    for byte in name.bytes().chain([b'.']) {
        if byte == b'.' {
            if is_number && form.len() > start {
                form.truncate(start);
                form.push(b'0');
            }
            start = form.len() + 1;
        }
        is_number = byte == b'.' || is_number && byte.is_ascii_digit();
        form.push(byte);
    }
}

/// What stands before the first number of a path, the number, and the rest.
pub fn layer_of(path: &str) -> Option<(&str, u64, &str)> {
    let mut start = 0;
    for part in path.split('.') {
        let end = start + part.len();
        if let Ok(number) = part.parse() {
            return Some((&path[..start], number, &path[end..]));
        }
        start = end + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_form_is_looked_at() {
        let mut forms = Forms::new();
        let mut looked = Vec::new();
        for name in ["a.0.w", "a.17.w", "a.x1.w", "a.x2.w", "a..w", "a.3.w", "9"] {
            forms.of(name, |name| looked.push(name.to_owned()));
        }
        assert_eq!(looked, ["a.0.w", "a.x1.w", "a.x2.w", "a..w", "9"]);
    }

    #[test]
    fn the_first_number_is_the_layer() {
        assert_eq!(layer_of("bert.encoder.layer.3.output"), Some(("bert.encoder.layer.", 3, ".output")));
        assert_eq!(layer_of("a.b"), None);
        assert_eq!(layer_of("7"), Some(("", 7, "")));
    }
}
