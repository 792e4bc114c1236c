//! Where α of an adapter's pairs stands, decided once: a config beside the file, tensors beside the factors, the header, what the user
//! says, or the rank. Two that disagree are refused; nothing is guessed.

use std::collections::BTreeMap;
use std::path::Path;

use super::metadata::{HeaderAlphas, agree};
use crate::adapters::config::{AdapterConfig, CONFIG_NAME};
use crate::adapters::number;
use crate::adapters::{AlphaFrom, ReadOptions};
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, Stored};
use crate::naming::Key;
use crate::naming::Role;

/// The way out where a number is missing or said twice.
pub(crate) const TELL: &str =
    "`--alpha A` says it (`--input-alpha A` in stack, subtract and resize, where `--alpha` is that of the result)";

/// What the tensors themselves say.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Path → rank of the pairs.
    pub pairs: BTreeMap<String, u64>,
    /// Path → α.
    own: BTreeMap<String, f64>,
}

impl Survey {
    /// Looks at the ranks and α of all pairs.
    ///
    /// # Errors
    /// When an α is no number.
    pub fn of(keyed: &[(Key, Stored)]) -> Result<Self> {
        let mut survey = Self::default();
        for (key, stored) in keyed {
            match key.role {
                Role::Down | Role::EmbeddingDown => {
                    survey.pairs.insert(key.module.clone(), stored.info.shape.rows_cols().0);
                }
                Role::Alpha => {
                    survey.own.insert(key.module.clone(), number(stored)?);
                }
                _ => {}
            }
        }
        Ok(survey)
    }

    /// Whether any tensor carries α.
    pub fn has_own(&self) -> bool {
        !self.own.is_empty()
    }

    /// All ranks, for messages.
    pub fn ranks(&self) -> String {
        let mut ranks: Vec<u64> = self.pairs.values().copied().collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks.iter().map(u64::to_string).collect::<Vec<String>>().join(", ")
    }
}

/// What says α where the tensors do not.
#[derive(Debug)]
enum Says {
    /// The config beside the weights.
    Config,
    Header(HeaderAlphas),
    /// One for all.
    Told(f64),
    /// One scale for all, whatever the rank.
    Scale(f64),
    Nothing,
}

/// α of every pair.
#[derive(Debug)]
pub(crate) struct Alphas {
    says: Says,
    /// Where it stands.
    pub from: AlphaFrom,
    /// Nothing in the file or beside it counts: it was told.
    pub forced: bool,
}

impl Alphas {
    /// One scale, which the file `name` beside the weights gives.
    pub fn scale(scale: f64, name: &str) -> Self {
        Self { says: Says::Scale(scale), from: AlphaFrom::File(name.to_owned()), forced: false }
    }

    /// Decides for `tensors`; `config` is the one beside them.
    ///
    /// # Errors
    /// When two places disagree, or one says too little, and nobody told what is meant.
    pub fn decide(
        tensors: &Checkpoint,
        survey: &Survey,
        config: Option<&AdapterConfig>,
        options: &ReadOptions,
    ) -> Result<Self> {
        let decided = Self::by_files(tensors, survey, config);
        match (decided, options.alpha) {
            (Ok(Self { says: Says::Nothing, from: AlphaFrom::Rank, .. }), Some(alpha)) => {
                Ok(Self { says: Says::Told(alpha), from: AlphaFrom::Told, forced: false })
            }
            (Err(_), Some(alpha)) => Ok(Self { says: Says::Told(alpha), from: AlphaFrom::Told, forced: true }),
            (decided, _) => decided,
        }
    }

    fn by_files(tensors: &Checkpoint, survey: &Survey, config: Option<&AdapterConfig>) -> Result<Self> {
        let scaled = config.filter(|config| config.scaling.is_some());
        let header =
            HeaderAlphas::read(tensors, scaled.is_none() && !survey.has_own()).map_err(|problem| problem.hint(TELL))?;
        let path = tensors.files().first().map_or(tensors.root(), |file| file.map.path());
        if let Some(config) = scaled {
            let name = config.path.file_name().map_or(CONFIG_NAME.into(), |name| name.to_string_lossy());
            let said = |path: &str, rank| of_config(config, path, rank);
            refuse_own(path, survey, &name, said)?;
            if let Some(header) = &header {
                for (module, rank) in &survey.pairs {
                    let (left, right) = (said(module, *rank), header.of(module, *rank));
                    if let (Some(left), Some(right)) = (left, right)
                        && !agree(left, right)
                    {
                        return Err(twice(path, module, (&name, left), (&header_name(header), right)));
                    }
                }
            }
            return Ok(Self { says: Says::Config, from: AlphaFrom::File(name.into_owned()), forced: false });
        }
        let Some(header) = header else {
            let from = if survey.has_own() { AlphaFrom::Tensors } else { AlphaFrom::Rank };
            return Ok(Self { says: Says::Nothing, from, forced: false });
        };
        refuse_own(path, survey, &header_name(&header), |module, rank| header.of(module, rank))?;
        let open: BTreeMap<String, u64> = survey
            .pairs
            .iter()
            .filter(|(path, _)| !survey.own.contains_key(*path))
            .map(|(path, rank)| (path.clone(), *rank))
            .collect();
        if let Some(problem) = header.ambiguous(&open) {
            return Err(Error::unsupported(path, format!("{problem}: the scale is ambiguous")).hint(TELL));
        }
        let serves = survey.pairs.iter().any(|(path, rank)| header.of(path, *rank).is_some());
        if survey.has_own() || !serves && !survey.pairs.is_empty() {
            let from = if survey.has_own() { AlphaFrom::Tensors } else { AlphaFrom::Rank };
            let says = if serves { Says::Header(header) } else { Says::Nothing };
            return Ok(Self { says, from, forced: false });
        }
        let from = AlphaFrom::Header(header.key().to_owned());
        Ok(Self { says: Says::Header(header), from, forced: false })
    }

    /// α of the module `path`, so that its scale is α over its rank; `None` where nothing but the tensors say it.
    pub fn of(&self, config: Option<&AdapterConfig>, path: &str, rank: u64) -> Option<f64> {
        match &self.says {
            Says::Config => of_config(config?, path, rank),
            Says::Header(header) => header.of(path, rank),
            Says::Told(alpha) => Some(*alpha),
            Says::Scale(scale) => Some(scale * rank as f64),
            Says::Nothing => None,
        }
    }

    /// Whether it was told.
    pub fn is_told(&self) -> bool {
        matches!(self.says, Says::Told(_))
    }

    /// Whether nothing says it.
    pub fn is_missing(&self) -> bool {
        self.from == AlphaFrom::Rank
    }
}

fn of_config(config: &AdapterConfig, path: &str, rank: u64) -> Option<f64> {
    let scaling = config.scaling.as_ref()?;
    let alpha = scaling.alpha(path);
    Some(if scaling.is_rslora() { alpha * (rank as f64).sqrt() } else { alpha })
}

fn header_name(header: &HeaderAlphas) -> String {
    format!("the header (`{}`)", header.key())
}

/// An α that stands beside the factors has to be the one that is said elsewhere.
fn refuse_own(path: &Path, survey: &Survey, who: &str, said: impl Fn(&str, u64) -> Option<f64>) -> Result<()> {
    for (module, own) in &survey.own {
        let rank = survey.pairs.get(module).copied().unwrap_or(1);
        if let Some(other) = said(module, rank).filter(|other| !agree(*other, *own)) {
            return Err(twice(path, module, (who, other), ("its own tensor", *own)));
        }
    }
    Ok(())
}

fn twice(path: &Path, module: &str, (left, one): (&str, f64), (right, other): (&str, f64)) -> Error {
    let what = format!("alpha of `{module}` is said twice: {left} says {one}, {right} {other}");
    Error::unsupported(path, what).hint(TELL)
}
