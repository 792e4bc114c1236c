//! One change on its way: its rule, its rank, its pair.

use super::budget::Shared;
use super::change::Truncatable;
use super::found::{Factors, Found};
use super::report::ModuleReport;
use super::{Means, Ranking};
use crate::adapters::describe;
use crate::error::{Error, Result};
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
    pub found: Option<Found<'a>>,
}

/// What became of a change.
pub struct Pair {
    pub rank: usize,
    pub pair: Option<NewPair>,
    pub norm_squared: f64,
    pub report: Option<ModuleReport>,
    /// α ∕ r.
    scale: f64,
}

impl<'a> Job<'a> {
    /// The rule for this change alone; `None` if it shares a budget.
    fn rule(&self) -> Result<Option<RankRule>> {
        let Means { choice, .. } = self.means;
        if !self.change.is_chosen() {
            return Ok(Some(RankRule::new(RankPolicy::Rank(self.change.ranks().iter().sum()))));
        }
        let policy = match (choice.rule(self.kernel()), choice.ranking) {
            (Some(rule), _) => return Ok(Some(self.capped(rule))),
            (None, Ranking::Own) => RankPolicy::Rank(self.change.ranks().iter().sum()),
            (None, Ranking::Noise) => RankPolicy::Above(self.change.noise()?),
            (None, _) if self.cap.is_some() => RankPolicy::All,
            (None, _) => return Ok(None),
        };
        Ok(Some(self.capped(RankRule { max_rank: choice.max_rank, ..RankRule::new(policy) })))
    }

    /// Positions of the kernel of a convolution.
    fn kernel(&self) -> Option<u64> {
        let kind = self.change.kind();
        matches!(kind, PairKind::Conv { .. }).then(|| kind.positions())
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
        let choice = self.means.choice;
        let open = RankRule { max_rank: choice.max_rank, ..RankRule::new(RankPolicy::All) };
        self.change.held_bytes(self.capped(choice.rule(self.kernel()).unwrap_or(open)).rank_at_most())
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
        let mut made = Pair { rank, pair: None, norm_squared, report: None, scale: 1.0 };
        if rank == 0 {
            return Ok(made);
        }
        let stays = keep && self.held(rank).is_some() || !change.is_chosen() && !means.choice.uniform;
        let kept = change.own().filter(|_| stays);
        let (factors, alpha, up_bias) = if let Some(own) = kept {
            (made.rank, made.scale) = (own.rank, own.scale);
            let [down, up] = [own.down, own.up].map(|tensor| Bytes::Stored(tensor.clone()));
            let factors = Factors { down, up, certificate: Certificate::exact(norm_squared.sqrt()) };
            (factors, own.scale * own.rank as f64, own.bias.cloned().map(Bytes::Stored))
        } else {
            made.scale = means.alpha.unwrap_or(width as f64) / width as f64;
            // A product takes its scale before it is decomposed, a matrix that is read afterwards.
            let factors = if found.is_product() && made.scale != 1.0 {
                let found = Found::find(change, &RankRule::new(RankPolicy::All), means.compute, made.scale)?;
                found.cut(change, rank, made.scale, self.float())?
            } else {
                found.cut(change, rank, made.scale, self.float())?
            };
            (factors, means.alpha.unwrap_or(rank as f64), change.bias(made.scale)?)
        };
        let Factors { down, up, certificate } = factors;
        let (path, kind, outer) = (change.path().to_owned(), change.kind(), change.outer());
        let pair = NewPair { path, kind, rank: made.rank, alpha, down, up, outer, up_bias };
        made.report = Some(ModuleReport {
            settled_values: found.settled(),
            ..self.describe(&pair, kept.is_some(), &certificate, values)?
        });
        made.pair = Some(pair);
        made.widen(rank, means.alpha.filter(|_| kept.is_none()))?;
        change.release();
        change.check_unchanged()?;
        Ok(made)
    }

    fn describe(
        &self,
        pair: &NewPair,
        exact: bool,
        certificate: &Certificate,
        singular_values: Vec<f64>,
    ) -> Result<ModuleReport> {
        let change = self.change;
        let relative = |value: f64| if certificate.norm > 0.0 { value / certificate.norm } else { 0.0 };
        let rounding = change.rounding()?;
        Ok(ModuleReport {
            kind: change.label(),
            shape: change.weight_shape(),
            ranks_before: change.ranks(),
            exact,
            kept_energy: certificate.kept_energy(),
            relative_error: certificate.relative(),
            measured_error: relative(certificate.residual),
            stored_error: relative(certificate.stored_error),
            optimum_at_least: Some(relative(certificate.optimum_at_least)),
            optimum_near: Some(relative(certificate.optimum_near)),
            rounding: rounding.map(relative),
            at_rounding_floor: rounding.map(|rounding| certificate.residual <= FLOOR_MARGIN * rounding),
            rank_above_rounding: rounding.and_then(|rounding| self.above(rounding, &singular_values)),
            complete: certificate.complete,
            parameters: self.numbers() * pair.rank as u64,
            singular_values,
            ..ModuleReport::of(pair, certificate.norm)
        })
    }
}

impl Job<'_> {
    /// How many of the values are above those of noise of the norm `rounding`: a matrix of noise of standard deviation σ has none
    /// above σ(√m + √n) in the limit of many rows and columns (Marchenko & Pastur 1967; Bai & Yin 1988). `None` where more may follow.
    fn above(&self, rounding: f64, values: &[f64]) -> Option<usize> {
        let (rows, cols) = self.shape();
        let (rows, cols) = (rows as f64, cols as f64);
        let edge = rounding * (rows.sqrt() + cols.sqrt()) / (rows * cols).sqrt();
        let count = values.iter().take_while(|value| **value > edge).count();
        (self.change.kind().experts() == 1 && count < values.len()).then_some(count)
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
        if more > 0 {
            // A holds one expert after the other, in B the expert runs fastest.
            let (experts, (rows, cols)) = (pair.kind.experts(), pair.kind.matrix(pair.outer));
            pair.down = with_zeros(&pair.down, experts, more * cols)?;
            pair.up = with_zeros(&pair.up, rows, more * experts)?;
            report.parameters = report.parameters / self.rank as u64 * widest as u64;
        }
        let alpha = alpha.unwrap_or(self.scale * widest as f64);
        (pair.rank, pair.alpha, report.rank, report.alpha, self.rank) = (widest, alpha, widest, alpha, widest);
        Ok(())
    }
}

/// The elements of `bytes` in `runs` runs of equal length, each followed by `zeros` zeros.
fn with_zeros(bytes: &Bytes, runs: usize, zeros: usize) -> Result<Bytes> {
    let (data, float) = match bytes {
        Bytes::Held { bytes, float } => (std::borrow::Cow::Borrowed(bytes.as_slice()), *float),
        Bytes::Stored(tensor) => {
            let float = tensor.info.dtype.float();
            (
                tensor.read(0, tensor.info.bytes)?,
                float.ok_or_else(|| Error::unsupported(tensor.path(), describe(tensor)))?,
            )
        }
        Bytes::Computed { .. } => unreachable!("factors of a truncation are held or stored"),
    };
    let zeros = vec![0; zeros * float.bytes()];
    let bytes = data.chunks_exact(data.len() / runs).flat_map(|run| run.iter().chain(&zeros)).copied().collect();
    Ok(Bytes::Held { bytes, float })
}
