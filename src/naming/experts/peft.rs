//! How PEFT lays the factors of a parameter out, by its version and by the class of the experts.
//!
//! PEFT takes the second and third dimension of a parameter for in and out, and changes A and B over or not: measured for every
//! cell with PEFT 0.17.1 – 0.21.2 and transformers 4 and 5. 0.19.0 has the rule the wrong way round.

/// Which factor of a pair lies on the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sides {
    /// A `[E·r, in]`, B `[out, r·E]`.
    Straight,
    /// A `[E·r, out]`, B `[in, r·E]`: ΔW is the transpose of the product.
    Swapped,
}

impl Sides {
    /// As it is called on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Straight => "straight",
            Self::Swapped => "swapped",
        }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Straight => Self::Swapped,
            Self::Swapped => Self::Straight,
        }
    }
}

/// In which order the columns of B stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Order {
    /// Column k·E + e: the expert runs fastest. PEFT, vLLM and everybody else.
    RankMajor,
    /// Column e·r + k: expert after expert. Unsloth from February to September 2026.
    GroupedByExpert,
}

impl Order {
    /// As configs have it.
    pub fn marker(self) -> &'static str {
        match self {
            Self::RankMajor => "rank_major",
            Self::GroupedByExpert => "grouped_by_expert",
        }
    }

    /// The order that a config calls so.
    pub fn of_marker(marker: &str) -> Option<Self> {
        [Self::RankMajor, Self::GroupedByExpert].into_iter().find(|order| order.marker() == marker)
    }
}

/// How PEFT sees the stacks of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `[E, out, in]`.
    Plain,
    /// `[E, in, out]`, which the class says of itself (`is_transposed`).
    Says,
    /// `[E, in, out]`, and the class does not say so.
    Silent,
}

/// Types of models whose classes say that their stacks are `[E, in, out]`, in transformers 5.
const SAY: [&str; 4] = ["gpt_oss", "aria", "aria_text", "openai_privacy_filter"];

/// Types of models whose stacks are `[E, in, out]` in transformers 4, and do not say so there.
const SILENT_IN_4: [&str; 5] = ["gpt_oss", "qwen3_vl_moe", "qwen3_vl_moe_text", "aria", "aria_text"];

/// Types of models whose stacks are `[E, in, out]` without saying so in every version.
const SILENT: [&str; 2] = ["llama4", "llama4_text"];

impl Class {
    /// The classes that a model of the type `family` can have had when an adapter was trained.
    pub fn of(family: &str) -> &'static [Self] {
        if SILENT.contains(&family) {
            return &[Self::Silent];
        }
        match (SAY.contains(&family), SILENT_IN_4.contains(&family)) {
            (true, true) => &[Self::Says, Self::Silent],
            (true, false) => &[Self::Says],
            (false, true) => &[Self::Plain, Self::Silent],
            (false, false) => &[Self::Plain],
        }
    }
}

/// Versions of PEFT between which the rule changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Era {
    /// 0.17.0 – 0.18.1.
    Early,
    /// 0.19.0.
    Inverted,
    /// From 0.19.1 on.
    Today,
}

/// The version that what we write says it was saved by: the first with the rule of today.
pub const WRITTEN_VERSION: &str = "0.19.1";

impl Era {
    /// The era of the version `version`; `None` where it is not known, as between two releases.
    pub fn of(version: &str) -> Option<Self> {
        let mut parts = version.trim().splitn(3, '.');
        let number = |part: Option<&str>| part?.parse::<u64>().ok();
        let (major, minor) = (number(parts.next())?, number(parts.next())?);
        let patch = parts.next().unwrap_or("0");
        let digits = patch.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(patch.len());
        let third: u64 = patch[..digits].parse().ok()?;
        match (major, minor, third) {
            (0, ..=18, _) => Some(Self::Early),
            // `0.19.0.dev0` is a state of the source on the way to a rule.
            (0, 19, 0) => (patch.len() == digits).then_some(Self::Inverted),
            _ => Some(Self::Today),
        }
    }

    /// How PEFT of that time laid the factors of such a class out.
    pub fn sides(self, class: Class) -> Sides {
        match (self, class) {
            (Self::Early, Class::Plain) | (Self::Inverted, Class::Plain | Class::Says) => Sides::Swapped,
            (Self::Today, Class::Silent) => Sides::Swapped,
            _ => Sides::Straight,
        }
    }
}

/// Types of models whose adapters Unsloth packed expert by expert, where the config has no word on it (unsloth_zoo 2026.10.9,
/// `temporary_patches/moe_utils.py`).
pub const GROUPED_BY_UNSLOTH: [&str; 13] = [
    "deepseek_v3",
    "ernie4_5_moe",
    "ernie4_5_vl_moe",
    "gemma4",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt_oss",
    "lfm2_moe",
    "mixtral",
    "qwen3_5_moe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_vl_moe",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, era) in [
            ("0.17.0", Some(Era::Early)),
            ("0.18.1", Some(Era::Early)),
            ("0.18.2.dev0", Some(Era::Early)),
            ("0.19.0", Some(Era::Inverted)),
            ("0.19.0.dev0", None),
            ("0.19.0rc1", None),
            ("0.19.1", Some(Era::Today)),
            ("0.19.1.dev0", Some(Era::Today)),
            ("0.21.2", Some(Era::Today)),
            ("0.100.0", Some(Era::Today)),
            ("1.0", Some(Era::Today)),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(Era::of(version), era, "{version}");
        }
        assert_eq!(Era::of(WRITTEN_VERSION), Some(Era::Today));
    }

    #[test]
    fn every_cell_of_the_table_is_as_measured() {
        let row = |class| [Era::Early, Era::Inverted, Era::Today].map(|era| era.sides(class));
        assert_eq!(row(Class::Plain), [Sides::Swapped, Sides::Swapped, Sides::Straight]);
        assert_eq!(row(Class::Says), [Sides::Straight, Sides::Swapped, Sides::Straight]);
        assert_eq!(row(Class::Silent), [Sides::Straight, Sides::Straight, Sides::Swapped]);
    }

    #[test]
    fn a_family_has_the_classes_of_all_versions() {
        assert_eq!(Class::of("qwen3_moe"), [Class::Plain]);
        assert_eq!(Class::of("gpt_oss"), [Class::Says, Class::Silent]);
        assert_eq!(Class::of("llama4_text"), [Class::Silent]);
        assert_eq!(Class::of("qwen3_vl_moe"), [Class::Plain, Class::Silent]);
    }
}
