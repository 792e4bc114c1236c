//! What AdapterHub's config says of a bottleneck. Source: adapters 1.3 `configuration/adapter_config.py`, `methods/modeling.py`; older
//! versions wrote some keys in capitals.

use serde_json::{Map, Value};

use crate::adapters::Adapter;
use crate::error::{Error, Result};

/// How the kind is called.
pub const BOTTLENECK: &str = "bottleneck adapter";

/// What decides how outputs come together, and its default.
const DECIDES: [(&str, Value); 5] = [
    ("is_parallel", Value::Bool(false)),
    ("residual_before_ln", Value::Bool(true)),
    ("original_ln_before", Value::Bool(false)),
    ("original_ln_after", Value::Bool(true)),
    ("ln_before", Value::Bool(false)),
];

/// Functions of two names.
const SAME: [(&str, &str); 2] = [("silu", "swish"), ("leaky_relu", "leakyrelu")];

/// The settings of the bottlenecks of one adapter.
#[derive(Debug, Clone)]
pub struct Structure {
    settings: Map<String, Value>,
    /// Its place among the parts of a union.
    part: Option<usize>,
}

impl Structure {
    /// What the config of `adapter` says.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn of(adapter: &Adapter) -> Result<Self> {
        let config = adapter.config.raw.get("config").and_then(Value::as_object);
        let refuse = |problem: &str| Error::unsupported(&adapter.config.path, problem.to_owned());
        let config = config.ok_or_else(|| refuse("has no settings of an adapter under `config`"))?;
        let lower = |config: &Map<String, Value>| -> Map<String, Value> {
            config.iter().map(|(key, value)| (key.to_lowercase(), value.clone())).collect()
        };
        let Some(parts) = config.get("configs").and_then(Value::as_array) else {
            return Ok(Self { settings: lower(config), part: None });
        };
        let of_bottlenecks = |part: &Value| part.get("reduction_factor").is_some();
        let mut found = parts.iter().enumerate().filter(|(_, part)| of_bottlenecks(part));
        match (found.next(), found.next()) {
            (Some((at, part)), None) => {
                Ok(Self { settings: part.as_object().map(lower).unwrap_or_default(), part: Some(at) })
            }
            (None, _) => Err(refuse("has bottlenecks, and its config none")),
            _ => Err(refuse("has bottlenecks of several structures")),
        }
    }

    fn get(&self, key: &str) -> &Value {
        self.settings.get(key).unwrap_or(&Value::Null)
    }

    /// What the config says under `key`.
    pub fn setting(&self, key: &str) -> Value {
        self.get(key).clone()
    }

    /// Whether a switch is on.
    pub fn is(&self, key: &str) -> bool {
        *self.get(key) == Value::Bool(true)
    }

    /// The non-linearity, under one of its names.
    pub fn activation(&self) -> String {
        let name = self.get("non_linearity").as_str().unwrap_or_default().to_lowercase();
        SAME.iter().find(|(other, _)| *other == name).map_or(name, |(_, name)| (*name).to_owned())
    }

    /// The factor behind the up projection; `None` if it is a tensor.
    ///
    /// # Errors
    /// When it is no number and no way to learn one.
    pub fn scaling(&self, adapter: &Adapter) -> Result<Option<f64>> {
        match self.get("scaling") {
            Value::Null => Ok(Some(1.0)),
            Value::String(learned) if ["learned", "channel"].contains(&learned.as_str()) => Ok(None),
            other => other.as_f64().filter(|scale| scale.is_finite()).map(Some).ok_or_else(|| {
                let problem = format!("is {other}, and a number, `learned` or `channel` belongs there");
                Error::malformed(&adapter.config.path, "`config.scaling`", problem)
            }),
        }
    }

    /// The layers it leaves out.
    pub fn left_out(&self) -> Vec<u64> {
        self.get("leave_out").as_array().into_iter().flatten().filter_map(Value::as_u64).collect()
    }

    /// Refuses what has no sum.
    ///
    /// # Errors
    /// When the outputs of `self` and `other` do not add up, with the reason.
    pub fn check_adds_to(&self, other: &Self, (own, first): (&Adapter, &Adapter)) -> Result<()> {
        let (left, right) = (own.root.display().to_string(), first.root.display().to_string());
        let differs = |key: &str, one: String, two: String| {
            let problem = format!(
                "`{key}` is {one} in one and {two} in the other: the outputs of such bottlenecks do not add up in one"
            );
            Err(Error::mismatch(left.clone(), right.clone(), problem))
        };
        let (one, two) = (self.activation(), other.activation());
        if one != two {
            return differs("non_linearity", one, two);
        }
        for (key, default) in DECIDES {
            let value = |structure: &Self| match structure.get(key) {
                Value::Null => default.clone(),
                value => value.clone(),
            };
            let (one, two) = (value(self), value(other));
            if one != two {
                return differs(key, one.to_string(), two.to_string());
            }
        }
        Ok(())
    }

    /// Refuses a structure whose output is no sum over its units.
    ///
    /// # Errors
    /// When it has a gate, or a layer norm behind.
    pub fn check_is_sum(&self, adapter: &Adapter) -> Result<()> {
        let reasons = [
            ("use_gating", "a gate that depends on the input multiplies its output"),
            ("ln_after", "a layer norm of its own follows its output"),
        ];
        match reasons.iter().find(|(key, _)| self.is(key)) {
            None => Ok(()),
            Some((key, reason)) => {
                let what = format!("sets `{key}`: {reason}, so it is no sum over its units");
                Err(Error::unsupported(&adapter.config.path, what)
                    .hint("`--method average` averages adapters of one structure"))
            }
        }
    }

    /// The config of `first` with what is true of the sum.
    pub fn written(&self, first: &Adapter, changed: &[(&str, Value)]) -> Map<String, Value> {
        let mut raw = first.config.raw.clone();
        let config = raw.get_mut("config");
        let part = match self.part {
            None => config,
            Some(at) => config.and_then(|config| config.get_mut("configs")).and_then(|parts| parts.get_mut(at)),
        };
        if let Some(Value::Object(settings)) = part {
            for (key, value) in changed {
                settings.retain(|own, _| own.to_lowercase() != *key);
                settings.insert((*key).to_owned(), value.clone());
            }
        }
        raw
    }
}
