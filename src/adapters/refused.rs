//! The methods that are not merged, and why.

/// `peft_type` → reason, for those whose adapters no weight can hold or whose numbers the file alone does not give.
const REFUSED: [(&str, &str); 23] = [
    ("PROMPT_TUNING", "a soft prompt is inserted before the input, so no weight can hold it"),
    ("P_TUNING", "a soft prompt is inserted before the input, so no weight can hold it"),
    ("CPT", "a soft prompt is inserted before the input, so no weight can hold it"),
    ("MULTITASK_PROMPT_TUNING", "a soft prompt is inserted before the input, so no weight can hold it"),
    ("PREFIX_TUNING", "a prefix is inserted into the keys and values of attention, so no weight can hold it"),
    ("CARTRIDGE", "a prefix is inserted into the keys and values of attention, so no weight can hold it"),
    ("ADAPTION_PROMPT", "prompts are inserted into attention behind a gate, so no weight can hold them"),
    ("FOURIERFT", "the places of its coefficients are drawn by torch's generator and are not in the file"),
    ("WAVEFT", "the places of its coefficients are drawn by torch's generator and are not in the file"),
    ("LILY", "a router chooses the factors for every token, so no weight can hold it"),
    ("XLORA", "a router weighs the adapters for every token, so no weight can hold it"),
    ("POLY", "a router weighs the adapters for every task, so no single weight can hold it"),
    ("PSOFT", "its factors come from a decomposition of the base and are not in the file"),
    ("OSF", "its directions come from a decomposition of the base and are not in the file"),
    ("TINYLORA", "its factors come from a decomposition of the base and a generator and are not in the file"),
    ("UNILORA", "the places of its parameters are drawn by torch's generator and are not in the file"),
    ("PEANUT", "a small network makes the change out of the weight; it is not merged yet"),
    ("FROD", "its factors come from a decomposition of the base and are not in the file"),
    ("DEFT", "it is not merged yet"),
    ("BEFT", "it is not merged yet"),
    ("ADAMSS", "its parts come from a decomposition of the base and are not in the file"),
    ("SUPERTUNING", "it is not merged yet"),
    ("SHADOW", "a second model runs beside the base, so no weight can hold it"),
];

/// Methods that insert something rather than change a weight: `peft_type`, kind, reason.
const INSERTED: [(&str, &str, &str); 8] = [
    ("PROMPT_TUNING", "prompt tuning", SOFT_PROMPT),
    ("P_TUNING", "p-tuning", SOFT_PROMPT),
    ("CPT", "context-aware prompt tuning", SOFT_PROMPT),
    ("MULTITASK_PROMPT_TUNING", "multitask prompt tuning", SOFT_PROMPT),
    ("PREFIX_TUNING", "prefix tuning", PREFIX),
    ("CARTRIDGE", "a cartridge", PREFIX),
    ("ADAPTION_PROMPT", "an adaption prompt", "it adds gated attention over its own prompt, which no weight can hold"),
    ("POLY", "a polytropon", "it routes between several adapters at run time, so no weight can hold it"),
];

const SOFT_PROMPT: &str = "it puts trained vectors in front of the input, which no weight can hold";
const PREFIX: &str = "it puts trained keys and values in front of those of every layer, which no weight can hold";

/// The values of `peft_type` that are merged.
const MERGED: [&str; 23] = [
    "LORA",
    "TRAINABLE_TOKENS",
    "LOHA",
    "LOKR",
    "ADALORA",
    "IA3",
    "VERA",
    "PVERA",
    "VBLORA",
    "OFT",
    "BOFT",
    "HRA",
    "MISS",
    "BONE",
    "RANDLORA",
    "DELORA",
    "GRALORA",
    "C3A",
    "ROAD",
    "SHIRA",
    "HIRA",
    "GLORA",
    "LN_TUNING",
];

/// Why the method `name` is not merged, if it is not.
pub fn reason(name: &str) -> Option<&'static str> {
    if MERGED.contains(&name) {
        return None;
    }
    let known = REFUSED.iter().find(|(method, _)| *method == name).map(|(_, reason)| *reason);
    Some(known.unwrap_or("the method is not known"))
}

/// Kind and reason of what the method `name` inserts into a model, if it is one that does.
pub fn inserted(name: &str) -> Option<(&'static str, &'static str)> {
    INSERTED.iter().find(|(method, ..)| *method == name).map(|(_, kind, reason)| (*kind, *reason))
}
