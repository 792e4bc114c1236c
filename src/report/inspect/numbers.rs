//! Numbers and lists as people read them.

use crate::ops::inspect::{TensorFacts, Weights};

/// A count of elements with three digits.
pub fn count(elements: u64) -> String {
    const UNITS: [(&str, f64); 4] = [("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)];
    let value = elements as f64;
    match UNITS.iter().find(|(_, unit)| value >= *unit) {
        Some((name, unit)) => {
            let value = value / unit;
            let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
            format!("{value:.digits$} {name}")
        }
        None => elements.to_string(),
    }
}

/// A count with three digits and in full.
pub fn exact(elements: u64) -> String {
    let short = count(elements);
    if short == elements.to_string() { short } else { format!("{short} ({elements})") }
}

/// Up to six decimals, without zeros at the end.
pub fn rounded(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-4 {
        return format!("{value:.2e}");
    }
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Four digits.
pub fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        large if large >= 1e5 => format!("{value:.2e}"),
        large if large >= 100.0 => format!("{value:.1}"),
        large if large >= 1.0 => format!("{value:.3}"),
        small if small >= 1e-3 => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

/// A part of a whole in percent, with digits that tell something.
pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        large if large >= 10.0 => format!("{percent:.0} %"),
        middle if middle >= 1.0 => format!("{percent:.1} %"),
        small if small >= 0.01 => format!("{percent:.2} %"),
        0.0 => "0 %".to_owned(),
        _ => format!("{percent:.1e} %"),
    }
}

/// The share of the bytes of all tensors.
pub fn share(bytes: u64, weights: &Weights) -> String {
    format!("{:.1} %", 100.0 * bytes as f64 / weights.bytes.max(1) as f64)
}

/// A count and its noun.
pub fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The first few names, and how many more there are.
pub fn first<'a>(names: impl ExactSizeIterator<Item = &'a str>, shown: usize) -> String {
    let all = names.len();
    let names = names.take(shown).collect::<Vec<_>>().join(", ");
    if all > shown { format!("{names} and {} more", all - shown) } else { names }
}

/// Dimensions.
pub fn shape(tensor: &TensorFacts) -> String {
    format!("{:?}", tensor.shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_three_digits_and_a_unit() {
        for (elements, text) in
            [(0, "0"), (999, "999"), (98_624, "98.6 k"), (134_515_008, "135 M"), (8_030_261_248, "8.03 B")]
        {
            assert_eq!(count(elements), text);
        }
    }

    #[test]
    fn shares_keep_two_digits_that_tell_something() {
        for (share, text) in [(0.0, "0 %"), (0.0052, "0.52 %"), (0.034, "3.4 %"), (0.5, "50 %"), (1e-6, "1.0e-4 %")] {
            assert_eq!(percent(share), text);
        }
    }
}
