//! The words for a value that leaves the range of its type: the same in every verb.

use std::path::Path;

use crate::error::Error;
use crate::tensor::{Beyond, Float};

/// `found` among the values of `tensor` in the file `path`; the first of those given is element `first` of the tensor.
pub fn beyond(path: &Path, tensor: &str, first: usize, found: &Beyond) -> Error {
    let (at, value, packing) = (first.saturating_add(found.index), found.value, found.packing);
    let range = match packing.float() {
        Some(float) => format!("the range of {packing}, which ends at {}", bound(float.max())),
        None => format!("what blocks of {packing} hold"),
    };
    let problem = if value.is_finite() {
        format!("element {at} is {value}, beyond {range}")
    } else {
        format!("element {at} is beyond {range}")
    };
    hinted(Error::numeric(path, tensor, problem), packing.float())
}

/// A bound with all of its digits, where those are few.
fn bound(max: f64) -> String {
    const FEW: f64 = 1e7;
    if max < FEW { max.to_string() } else { format!("{max:.2e}") }
}

/// `error` with the way out of the range of `float`, or of blocks.
pub fn hinted(error: Error, float: Option<Float>) -> Error {
    match float {
        // Bf16 has the exponents of f32.
        Some(Float::F32 | Float::F64 | Float::Bf16) => {
            error.hint("no type has more range here: a weight, an alpha or a factor is too large")
        }
        Some(_) => error.hint("`--dtype f32` has the range"),
        None => error.hint("`--dtype f32` or `--quant f32` has the range"),
    }
}

/// What is said of tensors of which nothing is left.
pub fn vanished_note(names: &[String]) -> Option<String> {
    const LISTED: usize = 3;
    let shown: Vec<String> = names.iter().take(LISTED).map(|name| format!("`{name}`")).collect();
    let more = if names.len() > LISTED { " …" } else { "" };
    (!names.is_empty()).then(|| {
        format!(
            "WARNING: {} of trained numbers are nothing but zeros in the output, since its dtype has none so small: {}{more}; \
             `--dtype bf16` or `--dtype f32` keeps them",
            if names.len() == 1 { "1 tensor".to_owned() } else { format!("{} tensors", names.len()) },
            shown.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{GgmlType, Packing};

    fn told(value: f32, packing: Packing) -> (String, Option<String>) {
        let error = beyond(Path::new("a.safetensors"), "x.lora_A", 10, &Beyond { index: 2, value, packing });
        (error.to_string(), error.way_out().map(str::to_owned))
    }

    #[test]
    fn file_tensor_value_and_range_are_named() {
        let (text, hint) = told(70000.0, Float::F16.into());
        assert_eq!(
            text,
            "a.safetensors: tensor `x.lora_A`: element 12 is 70000, beyond the range of F16, which ends at 65504"
        );
        assert_eq!(hint.as_deref(), Some("`--dtype f32` has the range"));
        let (text, hint) = told(f32::INFINITY, Float::F32.into());
        assert!(text.contains("element 12 is beyond the range of F32, which ends at 3.40e38"), "{text}");
        assert!(hint.is_some_and(|hint| !hint.contains("--dtype")));
        assert!(told(1e18, Packing::Blocks(GgmlType::Q6K)).0.contains("beyond what blocks of Q6_K hold"));
    }

    #[test]
    fn tensors_of_which_nothing_is_left_are_counted_and_named() {
        assert_eq!(vanished_note(&[]), None);
        let names: Vec<String> = ["a", "b", "c", "d"].map(String::from).to_vec();
        let note = vanished_note(&names).expect("a note");
        assert!(note.starts_with("WARNING: 4 tensors") && note.contains("`a`, `b`, `c` …"), "{note}");
    }
}
