//! Singular values, and what is made of them.

use super::numbers::{digits, percent, plural};
use super::page::{MAX_ROWS, Page, shorten};
use crate::ops::inspect::{AdapterFacts, Spectra, Spectrum, Spread, TensorNorms};

/// Most columns of a path.
const MAX_PATH: usize = 30;

/// The norms of all modules together.
pub fn lines(page: &mut Page, facts: &AdapterFacts) {
    let Some(spectra) = &facts.spectrum else { return };
    let dora = if facts.magnitudes > 0 { ", without the magnitudes" } else { "" };
    let of = plural(spectra.modules, "module");
    page.line("‖ΔW‖", &format!("{} over {of}{dora}", digits(spectra.frobenius)));
    if let Some(base) = &facts.base
        && let Some(relative) = base.relative
    {
        page.line("‖ΔW‖∕‖W‖", &format!("{} over {}", percent(relative), plural(base.norms.len(), "tensor")));
    }
    if !spectra.skipped.is_empty() {
        let first = &spectra.skipped[0];
        page.line(
            "no spectrum",
            &format!("{}: `{}`: {}", plural(spectra.skipped.len(), "module"), first.path, first.reason),
        );
    }
}

/// Ranks and norms over the modules, and with `modules` of each.
pub fn tables(page: &mut Page, facts: &AdapterFacts, modules: bool) {
    let Some(spectra) = &facts.spectrum else { return };
    spreads(page, spectra);
    let most = if modules { usize::MAX } else { MAX_ROWS };
    if modules {
        let header = ["module", "‖ΔW‖", "σ₁", "stable", "effective", "k90", "k99", "r"];
        page.table(&header, spectra.each.iter().map(row), usize::MAX);
    }
    let norms = facts.base.iter().flat_map(|base| &base.norms);
    let row = |norms: &TensorNorms| {
        let relative = norms.relative.map_or_else(|| "∞".to_owned(), percent);
        vec![shorten(&norms.tensor, MAX_PATH + 10), digits(norms.delta), digits(norms.weight), relative]
    };
    page.table(&["tensor", "‖ΔW‖", "‖W‖", "ratio"], norms.map(row), most);
}

fn spreads(page: &mut Page, spectra: &Spectra) {
    let whole: fn(f64) -> String = |number| format!("{number:.0}");
    type Row = (&'static str, Option<Spread>, fn(f64) -> String);
    let rows: [Row; 6] = [
        ("spectral norm", spectra.spectral, digits),
        ("stable rank", spectra.stable_rank, digits),
        ("effective rank", spectra.effective_rank, digits),
        ("rank for 90 % of ‖ΔW‖²", spectra.k90, whole),
        ("rank for 99 % of ‖ΔW‖²", spectra.k99, whole),
        ("‖B‖ ∕ ‖A‖", spectra.balance, digits),
    ];
    let row = |(name, spread, text): Row| {
        let Spread { min, median, max } = spread?;
        Some(vec![name.to_owned(), text(min), text(median), text(max)])
    };
    page.table(&["per module", "min", "median", "max"], rows.into_iter().filter_map(row), MAX_ROWS);
}

fn row(one: &Spectrum) -> Vec<String> {
    vec![
        one.path.clone(),
        digits(one.frobenius),
        digits(one.spectral),
        digits(one.stable_rank),
        digits(one.effective_rank),
        one.k90.to_string(),
        one.k99.to_string(),
        one.rank.to_string(),
    ]
}
