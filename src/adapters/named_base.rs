//! The base that a config names beside the base at hand: whether they are one model, as far as names tell.

/// Words of a name that say how many bits a copy was cut to.
const CUT: [(&str, &str); 9] = [
    ("bnb-4bit", "a 4-bit copy"),
    ("bnb-8bit", "an 8-bit copy"),
    ("4bit", "a 4-bit copy"),
    ("8bit", "an 8-bit copy"),
    ("int4", "a 4-bit copy"),
    ("int8", "an 8-bit copy"),
    ("gptq", "a GPTQ copy"),
    ("awq", "an AWQ copy"),
    ("nf4", "a 4-bit copy"),
];

/// Names of folders that say nothing of what is in them.
const PLAIN: [&str; 12] =
    ["base", "model", "models", "merged", "tuned", "out", "output", "input", "snapshot", "weights", "checkpoint", "hf"];

/// Digits of a commit, as folders of the Hugging Face cache are called.
const COMMIT: usize = 40;

/// What follows from the base `named` by an adapter's config for a merge into the model called `own`; nothing where the names agree or
/// tell nothing.
pub fn note(named: &str, own: &str, is_quantised: bool) -> Option<String> {
    let last = |name: &str| name.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
    let (theirs, ours) = (last(named), last(own));
    let cut = CUT.iter().find(|(word, _)| theirs.contains(word) && !ours.contains(word));
    if let Some((_, what)) = cut.filter(|_| !is_quantised) {
        return Some(format!(
            "the adapter was trained on {what} of the model (`{named}`): merging it into the full one is usual, and differs a little \
             from what was trained"
        ));
    }
    let plain = |name: &str| name.chars().filter(|letter| letter.is_alphanumeric()).collect::<String>();
    let (left, right) = (plain(&theirs), plain(&ours));
    let says_nothing = |name: &str| {
        name.is_empty()
            || PLAIN.contains(&name)
            || name.len() == COMMIT && name.bytes().all(|byte| byte.is_ascii_hexdigit())
            || !name.bytes().any(|byte| byte.is_ascii_digit())
    };
    if says_nothing(&left) || says_nothing(&right) || left.contains(&right) || right.contains(&left) {
        return None;
    }
    Some(format!(
        "the adapter's config names `{named}` as its base, and this is `{own}`: they fit in shape; if they are not the same model, the \
         result is of no use"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_base_and_a_copy_of_few_bits_are_told() {
        let copy = note("unsloth/llama-3-8b-bnb-4bit", "Meta-Llama-3-8B", false).expect("a copy");
        assert!(copy.contains("a 4-bit copy"), "{copy}");
        assert_eq!(note("unsloth/llama-3-8b-bnb-4bit", "llama-3-8b-bnb-4bit", true), None);
        let other = note("meta-llama/Llama-3.1-8B", "Qwen2.5-7B", false).expect("another");
        assert!(other.contains("`meta-llama/Llama-3.1-8B`") && other.contains("`Qwen2.5-7B`"), "{other}");
        for (named, own) in [
            ("meta-llama/Llama-3.1-8B", "models/llama-3.1-8b-local"),
            ("meta-llama/Llama-3.1-8B", "base"),
            ("base", "Qwen2.5-7B"),
            ("", "Qwen2.5-7B"),
        ] {
            assert_eq!(note(named, own, false), None, "{named} {own}");
        }
    }
}
