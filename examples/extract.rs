//! Extracts what an adapter did to a model from the merged model again: `cargo run --example extract`.

use lorakit::{Extract, Float, Merge};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let (base, tuned) = ("fixtures/tiny/base", folder.path().join("tuned"));
    Merge::new(base).adapter("fixtures/tiny/adapter", 1.0).out(&tuned).run()?;

    let report = Extract::new(base, &tuned).rank(4).dtype(Float::F32).out(folder.path().join("lora")).run()?;
    println!("{} modules, relative error {:.4}", report.made.modules.len(), report.made.relative_error);
    Ok(())
}
