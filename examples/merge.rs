//! Merges an adapter into a model: `cargo run --example merge [BASE ADAPTER]`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from);
    let base = paths.next().unwrap_or("fixtures/tiny/base".into());
    let adapter = paths.next().unwrap_or("fixtures/tiny/adapter".into());
    let folder = tempfile::tempdir()?;

    let report = lorakit::Merge::new(base).adapter(adapter, 1.0).out(folder.path().join("merged")).run()?;
    println!("{} tensors changed, {} copied, {} bytes", report.tensors.changed, report.tensors.copied, report.bytes);
    Ok(())
}
