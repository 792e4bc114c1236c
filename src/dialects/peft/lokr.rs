//! LoKr as PEFT builds it: its config says how every weight is cut into factors, where LyCORIS stores the factors alone. Source:
//! PEFT 0.21 `tuners/lokr/layer.py`.
//!
//! out = a·b and in = c·d with (a, b) and (c, d) from one `decompose_factor` for all layers. w1 `[a, c]` is a product where
//! `decompose_both` is set and r < max(a, c) / 2, w2 `[b, d]` where r < max(b, d) / 2, and the scale is α/r always.

use crate::dialects::as_lora::may_be_convolution;
use crate::dialects::files::Facts;
use crate::dialects::pieces::Other;
use crate::error::Result;

/// What the config says beside ranks and α.
pub struct Rule {
    /// `decompose_both`.
    pub both: bool,
    /// `decompose_factor`; −1 stands for factors that are as equal as can be.
    pub factor: i64,
    /// r of the modules, in their order.
    pub ranks: Vec<u64>,
}

/// The factors of one module.
struct Sizes {
    /// w1, `[a, c]`.
    first: (u64, u64),
    /// w2, `[b, d]`.
    second: (u64, u64),
    /// Ranks of the two, where they are products.
    ranks: (Option<u64>, Option<u64>),
}

impl Rule {
    /// The rule that cuts all of `methods` as they are cut; `None` for another method.
    ///
    /// # Errors
    /// When there is none, naming the module that does not fit.
    pub fn of(methods: &[Other], facts: &Facts<'_>) -> Result<Option<Self>> {
        if !methods[0].method.tensors().iter().any(|(role, _)| role.starts_with("lokr_")) {
            return Ok(None);
        }
        let sizes = methods.iter().map(|other| Sizes::of(other, facts)).collect::<Result<Vec<_>>>()?;
        let both = sizes.iter().any(|sizes| sizes.ranks.0.is_some());
        let ranks = methods.iter().zip(&sizes).map(|(other, sizes)| {
            sizes.rank(both).ok_or_else(|| {
                let what = format!(
                    "`{}` has Kronecker factors {:?} and {:?} of rank {:?}, which no r of PEFT's LoKr gives",
                    other.path, sizes.first, sizes.second, sizes.ranks
                );
                facts.refuse(what).hint("make it LoRA: --as lora")
            })
        });
        let ranks = ranks.collect::<Result<Vec<_>>>()?;
        let outer = sizes.iter().flat_map(|sizes| [sizes.first.0, sizes.first.1]);
        let mut factors: Vec<i64> = outer.filter_map(|size| i64::try_from(size).ok()).collect();
        factors.sort_unstable();
        factors.dedup();
        let fits = |factor: &i64| sizes.iter().all(|sizes| sizes.fit(*factor));
        match std::iter::once(-1).chain(factors.into_iter().rev()).find(fits) {
            Some(factor) => Ok(Some(Self { both, factor, ranks })),
            None => {
                let what = "is LoKr whose layers are cut into factors that no single `decompose_factor` of PEFT gives";
                Err(facts.refuse(what).hint("make it LoRA: --as lora"))
            }
        }
    }
}

impl Sizes {
    fn of(other: &Other, facts: &Facts<'_>) -> Result<Self> {
        let tensors = other.method.tensors();
        let shape = |name: &str| {
            let found = tensors.iter().find(|(role, _)| *role == name);
            found.map(|(_, tensor)| tensor.info.shape.as_slice())
        };
        let size = |name: &str, at: usize| shape(name).and_then(|shape| shape.get(at)).copied().unwrap_or(0);
        let first = match shape("lokr_w1") {
            Some(_) => ((size("lokr_w1", 0), size("lokr_w1", 1)), None),
            None => ((size("lokr_w1_a", 0), size("lokr_w1_b", 1)), Some(size("lokr_w1_b", 0))),
        };
        let second = match (shape("lokr_w2"), shape("lokr_t2")) {
            (Some(_), _) => ((size("lokr_w2", 0), size("lokr_w2", 1)), None),
            (None, Some(_)) => ((size("lokr_w2_a", 1), size("lokr_w2_b", 1)), Some(size("lokr_w2_b", 0))),
            // The kernel is part of the columns there.
            (None, None) if may_be_convolution(&other.path) => {
                let what = format!("`{}` may be a convolution, and the tensors of LoKr do not tell", other.path);
                return Err(facts.refuse(what).hint("make it LoRA: --as lora --base PATH"));
            }
            (None, None) => ((size("lokr_w2_a", 0), size("lokr_w2_b", 1)), Some(size("lokr_w2_b", 0))),
        };
        Ok(Self { first: first.0, second: second.0, ranks: (first.1, second.1) })
    }

    /// An r under which PEFT builds these factors.
    fn rank(&self, both: bool) -> Option<u64> {
        // The smallest r with which PEFT leaves a factor whole.
        let whole = |size: (u64, u64)| size.0.max(size.1).div_ceil(2);
        let products = [self.ranks.0, self.ranks.1];
        let rank = products.into_iter().flatten().next().unwrap_or_else(|| {
            if both { whole(self.first).max(whole(self.second)) } else { whole(self.second) }.max(1)
        });
        let is_product = |size: (u64, u64)| rank < whole(size);
        let agrees = |own: Option<u64>, product: bool| own.is_some() == product && own.is_none_or(|own| own == rank);
        (agrees(self.ranks.0, both && is_product(self.first)) && agrees(self.ranks.1, is_product(self.second)))
            .then_some(rank)
    }

    fn fit(&self, factor: i64) -> bool {
        // No layer is larger, and divisors are looked for one by one.
        let size = |outer: u64, inner: u64| outer.checked_mul(inner).filter(|size| *size <= u64::from(u32::MAX));
        let cut = |outer: u64, inner: u64| size(outer, inner).map(|size| factors(size, factor)) == Some((outer, inner));
        cut(self.first.0, self.second.0) && cut(self.first.1, self.second.1)
    }
}

/// How PEFT cuts a size into two: by the factor if that divides it, else into the most equal divisors whose smaller one does not
/// exceed the factor.
fn factors(size: u64, factor: i64) -> (u64, u64) {
    let limit = u64::try_from(factor).unwrap_or(size);
    if factor > 0 && size.is_multiple_of(limit) {
        return (limit, size / limit);
    }
    let mut divisors = (1..=size.isqrt()).filter(|small| size.is_multiple_of(*small) && *small <= limit);
    divisors.next_back().map_or((1, size), |small| (small, size / small))
}

#[cfg(test)]
mod tests {
    use super::factors;

    /// Values of PEFT's own `factorization`.
    #[test]
    fn sizes_are_cut_as_peft_cuts_them() {
        for (size, factor, cut) in [
            (256, -1, (16, 16)),
            (128, -1, (8, 16)),
            (127, -1, (1, 127)),
            (128, 4, (4, 32)),
            (320, 7, (5, 64)),
            (64, 32, (32, 2)),
            (20, 8, (4, 5)),
            (360, 25, (18, 20)),
            (1536, -1, (32, 48)),
            (1, -1, (1, 1)),
        ] {
            assert_eq!(factors(size, factor), cut, "{size} by {factor}");
        }
    }
}
