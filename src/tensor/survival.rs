//! How much of a change is left once the result is rounded to its dtype.

/// What became of a delta: sums over the elements of one tensor, or of many.
///
/// With *base* W, *exact* W + ΔW (f32) and *rounded* the value that is stored. The counts are exact, the sums good to
/// about six digits (see `survey.rs`).
#[derive(Default, Clone, PartialEq, Debug)]
pub struct Survival {
    /// Elements looked at.
    pub elements: u64,
    /// Elements whose exact value differs from the base.
    pub wanted: u64,
    /// Of those, the ones whose rounded value equals the base: their change is lost.
    pub lost: u64,
    /// Σ (exact − base)².
    pub delta_squared: f64,
    /// Σ (rounded − base)².
    pub moved_squared: f64,
    /// Σ (rounded − base) · (exact − base).
    pub dot: f64,
    /// Σ (rounded − exact)².
    pub error_squared: f64,
    /// max |exact − base|.
    pub max_delta: f32,
    /// Elements of a weight that is written back as codes.
    pub codes: u64,
    /// Of those, the ones whose code changed its value.
    pub codes_moved: u64,
}

impl Survival {
    /// Adds the sums of other elements.
    pub fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.wanted += other.wanted;
        self.lost += other.lost;
        self.delta_squared += other.delta_squared;
        self.moved_squared += other.moved_squared;
        self.dot += other.dot;
        self.error_squared += other.error_squared;
        self.max_delta = self.max_delta.max(other.max_delta);
        self.codes += other.codes;
        self.codes_moved += other.codes_moved;
    }

    /// ‖ΔW‖_F.
    pub fn delta_norm(&self) -> f64 {
        self.delta_squared.sqrt()
    }

    /// ‖W′ − W‖_F of the stored W′.
    pub fn moved_norm(&self) -> f64 {
        self.moved_squared.sqrt()
    }

    /// Length of the stored change along the wanted one, 1 being all of it; 1 where no change was wanted.
    pub fn retained(&self) -> f64 {
        if self.delta_squared > 0.0 { self.dot / self.delta_squared } else { 1.0 }
    }

    /// ‖rounded − exact‖ / ‖ΔW‖: 0 is a perfect result, 1 as far off as not merging at all; 0 where no change was
    /// wanted and none happened.
    pub fn relative_error(&self) -> f64 {
        if self.error_squared > 0.0 { (self.error_squared / self.delta_squared).sqrt() } else { 0.0 }
    }

    /// Share of the codes that moved; `None` where nothing is written back as codes.
    pub fn codes_moved_share(&self) -> Option<f64> {
        (self.codes > 0).then(|| self.codes_moved as f64 / self.codes as f64)
    }

    /// Share of the wanted elements that did not move; 0 where none was wanted.
    pub fn lost_share(&self) -> f64 {
        if self.wanted > 0 { self.lost as f64 / self.wanted as f64 } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_change_at_all_is_perfect() {
        let nothing = Survival::default();
        let derived = (nothing.delta_norm(), nothing.retained(), nothing.relative_error(), nothing.lost_share());
        assert_eq!(derived, (0.0, 1.0, 0.0, 0.0));
    }

    #[test]
    fn sums_of_two_tensors_add_up() {
        let half = Survival {
            elements: 10,
            wanted: 8,
            lost: 2,
            delta_squared: 4.0,
            moved_squared: 1.0,
            dot: 2.0,
            error_squared: 1.0,
            max_delta: 0.5,
            ..Survival::default()
        };
        let mut both = half.clone();
        both.add(&Survival { max_delta: 0.25, ..half });
        assert_eq!((both.elements, both.wanted, both.lost, both.max_delta), (20, 16, 4, 0.5));
        assert_eq!((both.delta_norm(), both.moved_norm()), (8.0_f64.sqrt(), 2.0_f64.sqrt()));
        assert_eq!((both.retained(), both.relative_error(), both.lost_share()), (0.5, 0.5, 0.25));
    }
}
