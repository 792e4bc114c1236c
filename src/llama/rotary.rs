//! The rotary embedding of a `config.json`: base, scaling, and the factors that llama.cpp keeps as tensors.
//!
//! Llama 3 divides the frequency of dimension j by a factor between 1 and `factor`, which depends on the wavelength
//! λ = 2π θ^(2j/d): 1 below L / high, `factor` above L / low, and in between 1 / ((1 − s) / factor + s) with
//! s = (L / λ − low) / (high − low), L the context it was trained with. Source: llama.cpp `conversion/llama.py`.

use serde_json::{Map, Value as Json, json};

use super::config::Family;
use crate::formats::gguf::Value;

/// Widest head; those of real models have 256 values at most.
const MAX_HEAD: u32 = 1 << 16;

type Keys = Vec<(&'static str, Value)>;
type Factors = Vec<(&'static str, Vec<f32>)>;

/// What a config says of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Rotary {
    /// θ.
    pub base: Option<f64>,
    /// θ of layers with a window.
    base_swa: Option<f64>,
    parameters: Map<String, Json>,
    kind: Option<String>,
    /// What llama.cpp does otherwise.
    pub notes: Vec<String>,
}

/// A JSON number as f64.
pub(super) fn number(value: &Json) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite())
}

fn size(config: &Map<String, Json>, key: &str) -> Result<u64, String> {
    config.get(key).and_then(Json::as_u64).filter(|size| *size > 0).ok_or_else(|| format!("`{key}` is missing"))
}

impl Rotary {
    /// In both of the forms that transformers had: `rope_theta` beside `rope_scaling`, and `rope_parameters`, where layers of
    /// two kinds have their own.
    pub fn of(config: &Map<String, Json>) -> Result<Self, String> {
        let object = |map: &Map<String, Json>, key: &str| map.get(key).and_then(Json::as_object).cloned();
        let all = object(config, "rope_parameters").or_else(|| object(config, "rope_scaling")).unwrap_or_default();
        let parameters = object(&all, "full_attention").unwrap_or_else(|| all.clone());
        let own = |map: &Map<String, Json>, key: &str| map.get(key).and_then(number);
        let base = own(&parameters, "rope_theta").or_else(|| own(config, "rope_theta"));
        let sliding = object(&all, "sliding_attention");
        let base_swa = sliding.as_ref().and_then(|sliding| own(sliding, "rope_theta"));
        let base_swa = base_swa.or_else(|| own(config, "rope_local_base_freq"));
        let kind = parameters.get("rope_type").or_else(|| parameters.get("type")).and_then(Json::as_str);
        let mut notes = Vec::new();
        match kind.map(str::to_lowercase).as_deref() {
            None | Some("default" | "linear" | "yarn" | "su" | "longrope" | "llama3") => {}
            Some("dynamic") => notes.push(
                "llama.cpp has no dynamic scaling of the rotary embedding: contexts longer than `max_position_embeddings` are not scaled".into(),
            ),
            Some(other) => return Err(format!("`rope_type` is `{other}`, which llama.cpp does not have")),
        }
        Ok(Self { base, base_swa, kind: kind.map(str::to_lowercase), parameters, notes })
    }

    fn parameter(&self, key: &str) -> Option<f64> {
        self.parameters.get(key).and_then(number)
    }

    /// The context that the model was trained with before it was made longer.
    pub fn original(&self, config: &Map<String, Json>) -> Option<u32> {
        let key = "original_max_position_embeddings";
        let said =
            self.parameters.get(key).or_else(|| config.get(key)).or_else(|| config.get("max_position_embeddings"));
        said.and_then(Json::as_u64).and_then(|length| length.try_into().ok())
    }

    /// Keys of scaling and base.
    pub fn keys(&self, config: &Map<String, Json>) -> Result<Keys, String> {
        let mut keys = Keys::new();
        let scale = |keys: &mut Keys, name: &str| {
            keys.push(("rope.scaling.type", name.into()));
        };
        match (self.kind.as_deref(), self.parameter("factor")) {
            (Some("linear"), Some(factor)) => {
                scale(&mut keys, "linear");
                keys.push(("rope.scaling.factor", Value::F32(factor as f32)));
            }
            (Some("yarn"), Some(factor)) => {
                scale(&mut keys, "yarn");
                keys.push(("rope.scaling.factor", Value::F32(factor as f32)));
                let original = self.original(config).ok_or("`original_max_position_embeddings` is missing")?;
                keys.push(("rope.scaling.original_context_length", Value::U32(original)));
                for (key, names) in [
                    ("rope.scaling.yarn_ext_factor", ["extrapolation_factor", "extrapolation_factor"]),
                    ("rope.scaling.yarn_attn_factor", ["attention_factor", "attn_factor"]),
                    ("rope.scaling.yarn_beta_fast", ["beta_fast", "beta_fast"]),
                    ("rope.scaling.yarn_beta_slow", ["beta_slow", "beta_slow"]),
                ] {
                    let value = names.iter().find_map(|name| self.parameter(name));
                    keys.extend(value.map(|value| (key, Value::F32(value as f32))));
                }
            }
            (Some("su" | "longrope"), _) => scale(&mut keys, "longrope"),
            _ => {}
        }
        keys.extend(self.base.map(|base| ("rope.freq_base", Value::F32(base as f32))));
        keys.extend(self.base_swa.map(|base| ("rope.freq_base_swa", Value::F32(base as f32))));
        Ok(keys)
    }

    /// Values of a head that are rotated.
    pub fn dimensions(&self, family: &Family, config: &Map<String, Json>) -> Result<u32, String> {
        let even = || Ok::<_, String>(size(config, "hidden_size")? / size(config, "num_attention_heads")?);
        let rotated = if family.arch == "phi3" {
            let share =
                self.parameter("partial_rotary_factor").or(config.get("partial_rotary_factor").and_then(number));
            let whole = (share.unwrap_or(1.0) * size(config, "hidden_size")? as f64) as u64;
            whole / size(config, "num_attention_heads")?
        } else {
            config.get("head_dim").and_then(Json::as_u64).map_or_else(even, Ok)?
        };
        let fits = rotated.try_into().ok().filter(|width| *width <= MAX_HEAD);
        fits.ok_or_else(|| format!("heads of {rotated} values are wider than {MAX_HEAD}"))
    }

    /// Factors as tensors, and keys that come with them.
    pub fn factors(&self, family: &Family, config: &Map<String, Json>) -> Result<(Keys, Factors), String> {
        match self.kind.as_deref() {
            Some("llama3") if ["llama", "smollm3"].contains(&family.arch.as_str()) => {
                Ok((Keys::new(), vec![("rope_freqs.weight", self.llama3(family, config)?)]))
            }
            Some("su" | "longrope") if family.arch == "phi3" => self.long(family, config),
            Some("su" | "longrope" | "llama3") => {
                let kind = self.kind.as_deref().unwrap_or_default();
                Err(format!("`rope_type` is `{kind}`, which llama.cpp does not have in models of type {}", family.arch))
            }
            _ => Ok((Keys::new(), Factors::new())),
        }
    }

    fn llama3(&self, family: &Family, config: &Map<String, Json>) -> Result<Vec<f32>, String> {
        let width = self.dimensions(family, config)?;
        let of = |key: &str, default: f64| self.parameter(key).unwrap_or(default) as f32;
        let scaling = Llama3 {
            factor: of("factor", 8.0),
            low: of("low_freq_factor", 1.0),
            high: of("high_freq_factor", 4.0),
            trained: of("original_max_position_embeddings", 8192.0),
        };
        Ok(scaling.factors(self.base.unwrap_or(10_000.0), width))
    }

    fn long(&self, family: &Family, config: &Map<String, Json>) -> Result<(Keys, Factors), String> {
        let list = |key: &str| -> Option<Vec<f32>> {
            let list = self.parameters.get(key)?.as_array()?;
            list.iter().map(|value| number(value).map(|value| value as f32)).collect()
        };
        let (Some(long), Some(short)) = (list("long_factor"), list("short_factor")) else {
            return Err("`long_factor` and `short_factor` of the rotary embedding must be lists of numbers".into());
        };
        let half = u64::from(self.dimensions(family, config)?) / 2;
        if long.len() as u64 != half || short.len() as u64 != half {
            let (long, short) = (long.len(), short.len());
            return Err(format!("the rotary embedding has {long} long and {short} short factors, and needs {half}"));
        }
        let longest =
            config.get("max_position_embeddings").and_then(number).ok_or("`max_position_embeddings` is missing")?;
        let original = f64::from(self.original(config).ok_or("`original_max_position_embeddings` is missing")?);
        let keys = vec![("rope.scaling.attn_factor", Value::F32(attention_factor(longest, original) as f32))];
        Ok((keys, vec![("rope_factors_long.weight", long), ("rope_factors_short.weight", short)]))
    }
}

/// How Llama 3 scales.
#[derive(Clone, Copy)]
struct Llama3 {
    factor: f32,
    low: f32,
    high: f32,
    trained: f32,
}

impl Llama3 {
    /// The factors of a head of `width` values, in the arithmetic of the converter.
    fn factors(self, base: f64, width: u32) -> Vec<f32> {
        let Self { factor, low, high, trained } = self;
        let one = |dimension: u32| {
            let power = base.powf(f64::from(dimension as f32 / width as f32)) as f32;
            let wavelength = std::f64::consts::TAU as f32 / (1.0 / power);
            if wavelength < trained / high {
                1.0
            } else if wavelength > trained / low {
                factor
            } else {
                let smooth = (trained / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        (0..width).step_by(2).map(one).collect()
    }

    /// The scaling that has these factors, with the bounds that all models have.
    fn of(factors: &[f32], base: f64) -> Option<Self> {
        let factor = factors.iter().copied().fold(1.0, f32::max);
        let width = u32::try_from(factors.len()).ok()?.checked_mul(2)?;
        let close = |one: f32, other: f32| (one - other).abs() <= 1e-5 * other.abs();
        (4..24)
            .map(|power| Self { factor, low: 1.0, high: 4.0, trained: (1_u32 << power) as f32 })
            .find(|scaling| scaling.factors(base, width).iter().zip(factors).all(|(one, other)| close(*one, *other)))
    }
}

/// The factors that a file has as tensors.
#[derive(Debug, Default)]
pub struct RotaryFactors {
    /// `rope_freqs`.
    pub all: Option<Vec<f32>>,
    /// `rope_factors_long`.
    pub long: Option<Vec<f32>>,
    /// `rope_factors_short`.
    pub short: Option<Vec<f32>>,
    /// What the attention is multiplied by.
    pub attention: Option<f64>,
}

impl RotaryFactors {
    /// Says them in `config`, and gives a note where transformers has another word for them than the model had.
    pub fn put_into(&self, config: &mut Map<String, Json>) -> Option<String> {
        let shortest = |value: &f32| value.to_string().parse::<f64>().unwrap_or(f64::from(*value));
        let list = |values: &[f32]| -> Json { values.iter().map(shortest).collect::<Vec<f64>>().into() };
        let base = config.get("rope_theta").and_then(number).unwrap_or(10_000.0);
        let (long, short, attention) = match (&self.all, &self.long, &self.short) {
            (Some(all), _, _) if all.iter().all(|factor| *factor == 1.0) => return None,
            (Some(all), _, _) => {
                if let Some(Llama3 { factor, low, high, trained }) = Llama3::of(all, base) {
                    let scaling = json!({
                        "rope_type": "llama3", "factor": shortest(&factor), "low_freq_factor": shortest(&low),
                        "high_freq_factor": shortest(&high), "original_max_position_embeddings": trained as u64,
                    });
                    config.insert("rope_scaling".into(), scaling);
                    return None;
                }
                (all, all, Some(1.0))
            }
            (None, Some(long), Some(short)) => (long, short, None),
            _ => return None,
        };
        let mut scaling = json!({
            "rope_type": "longrope", "type": "longrope", "long_factor": list(long), "short_factor": list(short),
        });
        let longest = config.get("max_position_embeddings").and_then(number);
        let original = config.get("original_max_position_embeddings").and_then(number).or(longest);
        let usual = longest.zip(original).map(|(longest, original)| attention_factor(longest, original));
        let said = self.attention.filter(|said| usual.is_none_or(|usual| (said - usual).abs() > 1e-5 * usual));
        if let Some(factor) = attention.or(said) {
            scaling["attention_factor"] = json!(factor);
        }
        config.insert("rope_scaling".into(), scaling);
        // Only phi 3 says its own in two lists.
        self.all.as_ref()?;
        config.entry("original_max_position_embeddings").or_insert_with(|| json!(longest.map(|length| length as u64)));
        Some("the factors of the rotary embedding are none of Llama 3's, and written as those of `longrope`".into())
    }
}

/// What the attention is multiplied by where a context was made longer (LongRoPE).
fn attention_factor(longest: f64, original: f64) -> f64 {
    let scale = longest / original;
    if scale > 1.0 { (1.0 + scale.ln() / original.ln()).sqrt() } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scaling_of_llama_3_is_found_in_its_factors() {
        let scaling = Llama3 { factor: 32.0, low: 1.0, high: 4.0, trained: 8192.0 };
        let factors = scaling.factors(500_000.0, 64);
        assert_eq!((factors[0], factors[31]), (1.0, 32.0));
        let mut config = Map::new();
        config.insert("rope_theta".into(), json!(500_000.0));
        let found = RotaryFactors { all: Some(factors.clone()), ..RotaryFactors::default() };
        assert_eq!(found.put_into(&mut config), None);
        let expected = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        assert_eq!(config["rope_scaling"], expected);
    }

    #[test]
    fn other_factors_are_said_one_by_one() {
        let mut config = Map::new();
        config.insert("max_position_embeddings".into(), json!(4096));
        let found = RotaryFactors { all: Some(vec![1.0, 1.5, 3.25]), ..RotaryFactors::default() };
        assert!(found.put_into(&mut config).unwrap().contains("`longrope`"));
        assert_eq!(config["rope_scaling"]["long_factor"], json!([1.0, 1.5, 3.25]));
        assert_eq!(
            (&config["rope_scaling"]["attention_factor"], &config["original_max_position_embeddings"]),
            (&json!(1.0), &json!(4096))
        );
    }
}
