//! What an adapter adds, by the definition and in f64, and the singular values of it.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;
use serde_json::Value;

use crate::support::{read_json, read_model};

/// A matrix, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    pub rows: usize,
    pub cols: usize,
    pub values: Vec<f64>,
}

impl Dense {
    pub fn norm(&self) -> f64 {
        self.values.iter().map(|value| value * value).sum::<f64>().sqrt()
    }

    /// ‖self − other‖.
    #[track_caller]
    pub fn distance(&self, other: &Self) -> f64 {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols));
        self.values.iter().zip(&other.values).map(|(left, right)| (left - right).powi(2)).sum::<f64>().sqrt()
    }

    /// All singular values, largest first, by one-sided Jacobi rotations (Demmel & Veselić 1992).
    pub fn singular_values(&self) -> Vec<f64> {
        let wide = self.cols > self.rows;
        let (count, length) = if wide { (self.rows, self.cols) } else { (self.cols, self.rows) };
        let at = |i: usize, j: usize| if wide { i * self.cols + j } else { j * self.cols + i };
        let mut columns: Vec<Vec<f64>> =
            (0..count).map(|i| (0..length).map(|j| self.values[at(i, j)]).collect()).collect();
        let dot = |left: &[f64], right: &[f64]| left.iter().zip(right).map(|(l, r)| l * r).sum::<f64>();
        for _sweep in 0..60 {
            let mut turned = false;
            for p in 0..count {
                for q in p + 1..count {
                    let (a, b, c) =
                        (dot(&columns[p], &columns[p]), dot(&columns[q], &columns[q]), dot(&columns[p], &columns[q]));
                    if c.abs() <= 1e-15 * (a * b).sqrt() || c == 0.0 {
                        continue;
                    }
                    turned = true;
                    let zeta = (b - a) / (2.0 * c);
                    let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                    let cosine = 1.0 / tangent.hypot(1.0);
                    let sine = cosine * tangent;
                    let (left, right) = columns.split_at_mut(q);
                    for (x, y) in left[p].iter_mut().zip(&mut right[0]) {
                        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
                    }
                }
            }
            if !turned {
                break;
            }
        }
        let mut values: Vec<f64> = columns.iter().map(|column| dot(column, column).sqrt()).collect();
        values.sort_by(|left, right| right.total_cmp(left));
        values
    }

    /// The error of the best matrix of rank `rank`.
    pub fn best_error(&self, rank: usize) -> f64 {
        self.singular_values().iter().skip(rank).map(|value| value * value).sum::<f64>().sqrt()
    }
}

/// Rank and scale · B·A of every pair of the adapter in `directory`, by module path. An embedding's is `[dim, vocabulary]`.
pub fn deltas(directory: &Path) -> BTreeMap<String, (usize, Dense)> {
    let config = read_json(&directory.join("adapter_config.json"));
    let tensors = read_model(directory);
    let mut found = BTreeMap::new();
    for (key, down) in &tensors {
        let Some((path, up)) = [("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")]
            .into_iter()
            .find_map(|(a, b)| key.strip_suffix(a).map(|path| (path, format!("{path}{b}"))))
        else {
            continue;
        };
        let up = &tensors[&up];
        let module = path.trim_start_matches("base_model.model.").trim_end_matches('.').replace(".base_layer", "");
        let rank = down.shape[0];
        let scale = scale(&config, &module, rank);
        let (rows, cols) = (up.shape[0], down.shape[1..].iter().product());
        let (b, a) = (up.values(), down.values());
        let values = (0..rows * cols)
            .map(|at| scale * (0..rank).map(|k| b[at / cols * rank + k] * a[k * cols + at % cols]).sum::<f64>())
            .collect();
        found.insert(module, (rank, Dense { rows, cols, values }));
    }
    found
}

fn scale(config: &Value, module: &str, rank: usize) -> f64 {
    let pattern = |key: &str| {
        let patterns = config[key].as_object()?;
        patterns.iter().find_map(|(pattern, value)| {
            Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).unwrap().is_match(module).then(|| value.as_f64().unwrap())
        })
    };
    let alpha = pattern("alpha_pattern").unwrap_or_else(|| config["lora_alpha"].as_f64().unwrap());
    let configured = pattern("rank_pattern").unwrap_or_else(|| config["r"].as_f64().unwrap());
    assert_eq!(configured, rank as f64, "{module}: the config knows the rank");
    if config["use_rslora"] == true { alpha / configured.sqrt() } else { alpha / configured }
}
