//! One change on its way: its rule, its rank, its pair.

use super::budget::Shared;
use super::change::{Own, Truncatable};
use super::found::{Factors, Found};
use super::report::ModuleReport;
use super::{Means, Ranking};
use crate::adapters::describe;
use crate::error::{Error, Result};
use crate::formats::Stored;
use crate::linalg::{Certificate, RankPolicy, RankRule};
use crate::pairs::{Bytes, NewPair, PairKind};
use crate::tensor::Float;

/// A change and how it is truncated.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    pub change: &'a dyn Truncatable,
    pub means: &'a Means<'a>,
    /// The rank that one budget buys for all.
    pub cap: Option<usize>,
}

/// What is known of a change before its rank is.
pub struct Known<'a> {
    /// Its rule; `None` if it shares a budget.
    pub rule: Option<RankRule>,
    /// As many singular values were looked for.
    pub look: usize,
    /// The leading ones.
    pub values: Vec<f64>,
    /// Whether there are no others.
    pub complete: bool,
    norm_squared: f64,
    /// The decomposition, where there was memory to keep it.
    found: Option<Found<'a>>,
}

/// What became of a change.
pub struct Pair {
    pub rank: usize,
    pub pair: Option<NewPair>,
    pub norm_squared: f64,
    pub report: Option<ModuleReport>,
    /// α ∕ r.
    scale: f64,
    shape: (usize, usize),
    experts: usize,
}

impl<'a> Job<'a> {
    /// The rule for this change alone; `None` if it shares a budget.
    fn rule(&self) -> Result<Option<RankRule>> {
        let Means { choice, .. } = self.means;
        if !self.change.is_chosen() {
            return Ok(Some(RankRule::new(RankPolicy::Rank(self.change.ranks().iter().sum()))));
        }
        let kernel = match self.change.kind() {
            PairKind::Conv { kernel } => Some(kernel.iter().product()),
            _ => None,
        };
        let policy = match (choice.rule(kernel), choice.ranking) {
            (Some(rule), _) => return Ok(Some(self.capped(rule))),
            (None, Ranking::Noise) => RankPolicy::Above(self.change.noise()?),
            (None, _) if self.cap.is_some() => RankPolicy::All,
            (None, _) => return Ok(None),
        };
        Ok(Some(self.capped(RankRule { max_rank: choice.max_rank, ..RankRule::new(policy) })))
    }

    fn capped(&self, rule: RankRule) -> RankRule {
        RankRule { max_rank: rule.max_rank.into_iter().chain(self.cap).min(), ..rule }
    }

    /// The rule, where it does not share a budget, and the decomposition that decides.
    pub fn find(&self) -> Result<(RankRule, Found<'a>)> {
        let rule = self.rule()?.expect("a change that shares a budget is looked at first");
        Ok((rule, self.find_by(&rule)?))
    }

    fn find_by(&self, rule: &RankRule) -> Result<Found<'a>> {
        let policy = match rule.policy {
            // The noise of a stack is that of its experts together.
            RankPolicy::Above(floor) => RankPolicy::Above(floor / (self.change.kind().experts() as f64).sqrt()),
            policy => policy,
        };
        Found::find(self.change, &RankRule { policy, ..*rule }, self.means.compute, 1.0)
    }

    /// Looks at its singular values, and keeps what was found if `budget` has memory for it.
    pub fn look(&self, most: usize, budget: &Shared<'_>) -> Result<Known<'a>> {
        let (rule, look) = (self.rule()?, self.at_most(most));
        let found = self.find_by(&rule.unwrap_or(RankRule::new(RankPolicy::Rank(look))))?;
        self.change.release();
        let complete = found.is_complete();
        let values = found.values(if complete || rule.is_some() { usize::MAX } else { look });
        let norm_squared = found.norm_squared();
        Ok(Known { rule, look, values, complete, norm_squared, found: budget.keeps(&found).then_some(found) })
    }

    /// `rank`, or what the matrix and the cap allow.
    pub fn at_most(&self, rank: usize) -> usize {
        let (rows, cols) = self.shape();
        rank.min(rows).min(cols).min(self.means.choice.max_rank.unwrap_or(usize::MAX))
    }

    /// The rank that `rule` gives it.
    pub fn rank(&self, rule: &RankRule, values: &[f64], norm_squared: f64) -> usize {
        if let RankPolicy::Rank(rank) = rule.policy
            && self.means.raises
        {
            return rule.max_rank.map_or(rank, |max| rank.min(max));
        }
        let chosen = if rule.kohya {
            // kohya looks at B·A without its scale, and at all singular values of the matrix, zeros included.
            let scale = self.change.scale().abs();
            let scale = if scale > 0.0 { scale } else { 1.0 };
            let (rows, cols) = self.shape();
            let mut values: Vec<f64> = values.iter().map(|value| value / scale).collect();
            values.resize(rows.min(cols).max(values.len()), 0.0);
            rule.choose(&values, norm_squared / (scale * scale))
        } else {
            rule.choose(values, norm_squared)
        };
        chosen.max(self.least())
    }

    /// A bias needs a pair to belong to.
    pub fn least(&self) -> usize {
        usize::from(self.change.has_bias())
    }

    /// Numbers in a pair of rank 1.
    pub fn numbers(&self) -> u64 {
        let (rows, cols) = self.shape();
        ((rows + cols) * self.change.kind().experts()) as u64 * self.change.copies()
    }

    pub fn float(&self) -> Float {
        self.change.float(self.means.dtype)
    }

    pub fn shape(&self) -> (usize, usize) {
        self.change.kind().matrix(self.change.outer())
    }

    pub fn held_bytes(&self) -> u64 {
        let fixed = match self.means.choice.ranking {
            Ranking::Rule(RankPolicy::Rank(rank)) => Some(rank),
            _ => self.means.choice.max_rank,
        };
        self.change.held_bytes(fixed.into_iter().chain(self.cap).min())
    }

    /// The scale of the factors there are, if rank `rank` needs no others.
    pub fn held(&self, rank: usize) -> Option<f64> {
        let own = self.change.own()?;
        (rank >= own.rank && own.float == Some(self.float())).then_some(own.scale)
    }

    /// The pair of rank `rank`, of which pairs of rank `width` get the scale. With `keep`, factors that can be kept are.
    pub fn pair(&self, found: &Found<'_>, rank: usize, width: usize, keep: bool) -> Result<Pair> {
        let (change, means) = (self.change, self.means);
        let (values, norm_squared) = (found.values(usize::MAX), found.norm_squared());
        let (kind, shape) = (change.kind(), self.shape());
        let experts = kind.experts();
        let mut made = Pair { rank, pair: None, norm_squared, report: None, scale: 1.0, shape, experts };
        if rank == 0 {
            return Ok(made);
        }
        let kept =
            change.own().filter(|_| keep && self.held(rank).is_some() || !change.is_chosen() && !means.choice.uniform);
        let (factors, alpha, bias, exact) = if let Some(own) = kept {
            made.scale = own.scale;
            let bias = own.bias.cloned().map(Bytes::Stored);
            (kept_as(&own, rank, norm_squared, shape, experts)?, own.scale * rank as f64, bias, true)
        } else {
            let alpha = means.alpha.unwrap_or(width as f64);
            made.scale = alpha / width as f64;
            // A product takes its scale before it is decomposed, a matrix that is read afterwards.
            let again = found.is_product() && made.scale != 1.0;
            let rule = RankRule::new(RankPolicy::Rank(rank));
            let factors = match again {
                true => Found::find(change, &rule, means.compute, made.scale)?.cut(
                    change,
                    rank,
                    made.scale,
                    self.float(),
                )?,
                false => found.cut(change, rank, made.scale, self.float())?,
            };
            (factors, means.alpha.unwrap_or(rank as f64), change.bias(made.scale)?, false)
        };
        let Factors { down, up, certificate } = factors;
        made.report = Some(self.describe(rank, alpha, exact, &down, &certificate, values)?);
        let (path, outer) = (change.path().to_owned(), change.outer());
        made.pair = Some(NewPair { path, kind, rank, alpha, down, up, outer, up_bias: bias });
        change.release();
        change.check_unchanged()?;
        Ok(made)
    }

    fn describe(
        &self,
        rank: usize,
        alpha: f64,
        exact: bool,
        stored: &Bytes,
        certificate: &Certificate,
        singular_values: Vec<f64>,
    ) -> Result<ModuleReport> {
        let change = self.change;
        let mut report = ModuleReport::new(change.path(), &change.kind(), change.outer(), rank, certificate.norm);
        let relative = |value: f64| if certificate.norm > 0.0 { value / certificate.norm } else { 0.0 };
        let rounding = change.rounding()?;
        report.kind = change.label();
        report.shape = change.weight_shape();
        report.ranks_before = change.ranks();
        report.alpha = alpha;
        report.dtype = stored.dtype().to_string();
        report.exact = exact;
        report.kept_energy = certificate.kept_energy();
        report.relative_error = certificate.relative();
        report.measured_error = relative(certificate.residual);
        report.stored_error = relative(certificate.stored_error);
        report.optimum_at_least = Some(relative(certificate.optimum_at_least));
        report.rounding = rounding.map(relative);
        report.at_rounding_floor = rounding.map(|rounding| certificate.residual <= FLOOR_MARGIN * rounding);
        report.complete = certificate.complete;
        report.parameters = self.numbers() * rank as u64;
        report.singular_values = singular_values;
        Ok(report)
    }
}

/// An error below this many times that of rounding is called rounding.
const FLOOR_MARGIN: f64 = 1.1;

impl<'a> Known<'a> {
    /// The rank by its own rule; of a change that shares a budget, 0.
    pub fn rank(&self, job: &Job<'_>) -> usize {
        self.rule.map_or(0, |rule| job.rank(&rule, &self.values, self.norm_squared))
    }

    /// The pair, by the decomposition that was kept, or by the same numbers over again: they do not depend on memory.
    pub fn pair(&self, job: &Job<'a>, rank: usize, width: usize, keep: bool) -> Result<Pair> {
        match &self.found {
            Some(found) => job.pair(found, rank, width, keep),
            None => {
                let rule = self.rule.unwrap_or(RankRule::new(RankPolicy::Rank(self.look)));
                job.pair(&job.find_by(&rule)?, rank, width, keep)
            }
        }
    }
}

impl Pair {
    /// Fills it with zeros up to rank `widest`; its scale stays.
    pub fn widen(&mut self, widest: usize, alpha: Option<f64>) -> Result<()> {
        let (Some(pair), Some(report), more) = (&mut self.pair, &mut self.report, widest - self.rank) else {
            return Ok(());
        };
        let alpha = alpha.unwrap_or(self.scale * widest as f64);
        if more > 0 {
            let (rows, cols) = self.shape;
            pair.down = with_zeros(&pair.down, self.experts, more * cols)?;
            pair.up = with_zeros(&pair.up, rows, more * self.experts)?;
            report.parameters = report.parameters / self.rank as u64 * widest as u64;
        }
        (pair.rank, pair.alpha, report.rank, report.alpha, self.rank) = (widest, alpha, widest, alpha, widest);
        Ok(())
    }
}

/// The pair as it is, with zeros up to `rank`, which is not below its own.
fn kept_as(own: &Own<'_>, rank: usize, norm_squared: f64, shape: (usize, usize), experts: usize) -> Result<Factors> {
    let more = rank - own.rank;
    let stored = |tensor: &Stored| Bytes::Stored(tensor.clone());
    let (mut down, mut up) = (stored(own.down), stored(own.up));
    if more > 0 {
        // A holds one expert after the other, in B the expert runs fastest.
        (down, up) = (with_zeros(&down, experts, more * shape.1)?, with_zeros(&up, shape.0, more * experts)?);
    }
    let certificate = Certificate {
        norm: norm_squared.sqrt(),
        residual: 0.0,
        residual_at_most: 0.0,
        optimum_at_least: 0.0,
        stored_error: 0.0,
        complete: true,
    };
    Ok(Factors { down, up, certificate })
}

/// The elements of `bytes` in `runs` runs of equal length, each followed by `zeros` zeros.
fn with_zeros(bytes: &Bytes, runs: usize, zeros: usize) -> Result<Bytes> {
    let (data, float) = match bytes {
        Bytes::Held { bytes, float } => (bytes.as_slice(), *float),
        Bytes::Stored(tensor) => {
            let float = tensor.info.dtype.float();
            (tensor.view()?.data, float.ok_or_else(|| Error::unsupported(tensor.path(), describe(tensor)))?)
        }
        Bytes::Computed { .. } => unreachable!("factors of a truncation are held or stored"),
    };
    let zeros = vec![0; zeros * float.bytes()];
    let bytes = data.chunks_exact(data.len() / runs).flat_map(|run| run.iter().chain(&zeros)).copied().collect();
    Ok(Bytes::Held { bytes, float })
}
