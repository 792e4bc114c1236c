//! Shows the modules of an adapter and how strongly they are changed: `cargo run --example inspect [ADAPTER]`.

fn main() -> lorakit::Result<()> {
    let path = std::env::args_os().nth(1).unwrap_or("fixtures/tiny/adapter".into());
    let adapter = lorakit::Adapter::open(path)?;
    println!("{}, {} modules", adapter.dialect(), adapter.modules().len());
    for module in adapter.modules() {
        let rank = module.rank.map_or("-".to_owned(), |rank| rank.to_string());
        let norm =
            adapter.delta(&module.path).map(|(values, _)| values.iter().map(|value| value * value).sum::<f32>().sqrt());
        match norm {
            Ok(norm) => println!("{}: {}, rank {rank}, norm of the change {norm:.4}", module.path, module.method),
            Err(problem) => println!("{}: {}, rank {rank}, {problem}", module.path, module.method),
        }
    }
    Ok(())
}
