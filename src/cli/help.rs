//! What `--help` shows beside the options: the groups they stand in, and two examples for every verb.

use clap::{Arg, Command, CommandFactory};

use super::args::Args;

/// Headings below the everyday options, each with the ids of its options. An option has the same heading in every verb.
const GROUPS: [(&str, &[&str]); 4] = [
    (
        "Selection",
        &[
            "include",
            "exclude",
            "skip",
            "full",
            "weight_for",
            "lbw",
            "component",
            "adapter_name",
            "allow_unused",
            "strip_metadata",
        ],
    ),
    ("Precision", &["cast_all", "changed_only", "rounding", "seed", "compute"]),
    ("Output", &["json", "strict", "quiet", "verbose", "color"]),
    (
        "Advanced",
        &[
            "max_shard_size",
            "threads",
            "max_memory",
            "part",
            "sync",
            "hash_base",
            "init_adapter",
            "original",
            "residual_base",
            "resize_vocab",
            "alpha",
            "input_alpha",
            "arch",
            "base_name",
        ],
    ),
];

/// Verb → two command lines with what they do.
const EXAMPLES: [(&str, [(&str, &str); 2]); 11] = [
    (
        "merge",
        [
            ("lorakit merge base lora -o merged", "the same weights as PEFT's merge_and_unload()"),
            ("lorakit merge base style:0.7 detail:0.3 -o mix.safetensors", "two adapters with weights, as one file"),
        ],
    ),
    (
        "convert",
        [
            ("lorakit convert cat.safetensors --to diffusers -o cat-diffusers.safetensors", "kohya to diffusers"),
            ("lorakit convert merged -o merged.gguf --quant q4_k_m", "a model for llama.cpp and Ollama"),
        ],
    ),
    (
        "extract",
        [
            ("lorakit extract base tuned -o lora --rank 32", "a fine-tune as a LoRA of rank 32"),
            ("lorakit extract base tuned -o lora --max-size 200MB", "the best one within 200 MB"),
        ],
    ),
    (
        "stack",
        [
            ("lorakit stack a:0.7 b:0.3 -o both", "the exact sum: ranks add up"),
            ("lorakit stack a b -o both --rank 16", "the best sum of rank 16"),
        ],
    ),
    (
        "resize",
        [
            ("lorakit resize cat.safetensors -o cat-r8.safetensors --rank 8", "one file"),
            ("lorakit resize loras -o small --energy 0.95", "every LoRA of a folder, under its own name"),
        ],
    ),
    (
        "subtract",
        [
            (
                "lorakit subtract merged lora --base base -o restored",
                "proves a merge, and gives the base back bit for bit",
            ),
            ("lorakit subtract a b -o difference", "the difference of two adapters"),
        ],
    ),
    (
        "inspect",
        [
            ("lorakit inspect lora", "method, base, ranks, scales, problems"),
            (
                "lorakit inspect lora --base base --spectrum --check",
                "how strong it is, which rank would do, and whether it fits",
            ),
        ],
    ),
    (
        "finish",
        [
            ("lorakit finish merged", "puts together what `merge … -o merged --part I/N` wrote"),
            ("lorakit finish merged --discard", "throws those parts away"),
        ],
    ),
    (
        "completions",
        [
            ("lorakit completions bash > ~/.local/share/bash-completion/completions/lorakit", "for bash"),
            ("lorakit completions zsh > ~/.zfunc/_lorakit", "for zsh"),
        ],
    ),
    (
        "man",
        [
            ("lorakit man --dir ~/.local/share/man/man1", "a page for every verb, as `man lorakit-merge` finds it"),
            ("lorakit man merge | man -l -", "one page"),
        ],
    ),
    ("help", [("lorakit help merge", "what `lorakit merge --help` prints"), ("lorakit help", "all verbs")]),
];

/// Place of an option among those of its group: what is always given comes first.
const FIRST: [(&str, usize); 4] = [("out", 0), ("to", 1), ("force", 2), ("dry_run", 3)];

/// The whole command line.
pub fn command() -> Command {
    let mut command = Args::command();
    let names: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    for name in names {
        command = command.mut_subcommand(&name, |verb| with_examples(own_words(verb.mut_args(grouped), &name), &name));
    }
    command.mut_args(grouped)
}

fn grouped(argument: Arg) -> Arg {
    let id = argument.get_id().as_str().to_owned();
    if argument.is_positional() {
        return argument;
    }
    let heading = GROUPS.iter().find(|(_, ids)| ids.contains(&id.as_str())).map(|(heading, _)| *heading);
    let argument = match heading {
        Some(heading) => argument.help_heading(heading),
        None => argument,
    };
    match FIRST.iter().find(|(first, _)| *first == id) {
        Some((_, at)) => argument.display_order(*at),
        None => argument,
    }
}

/// Options that several verbs share, where one means something of its own by them, or refuses them.
fn own_words(verb: Command, name: &str) -> Command {
    match name {
        "convert" => verb
            .mut_arg("allow_unused", |argument| argument.hide(true))
            .mut_arg("cast_all", |argument| argument.hide(true))
            .mut_arg("changed_only", |argument| argument.hide(true))
            .mut_arg("dtype", |argument| {
                argument.help("Dtype of what is written: keep, f32, f16, bf16, f64, f8_e4m3, f8_e5m2")
            })
            .mut_arg("include", |argument| {
                argument
                    .help("Of an adapter only modules, of a model cast only tensors, whose name matches (repeatable)")
            })
            .mut_arg("exclude", |argument| {
                argument.help(
                    "Of an adapter leave out modules, of a model do not cast tensors, whose name matches (repeatable)",
                )
            })
            .mut_arg("max_shard_size", |argument| {
                argument.help("Largest weight file, as 5GB or 500MiB; `keep` keeps the input's files")
            }),
        "extract" => {
            verb.mut_arg("include", |argument| argument.help("Compare only modules whose path matches (repeatable)"))
        }
        "resize" => verb
            .mut_arg("include", |argument| argument.help("Resize only modules whose path matches (repeatable)"))
            .mut_arg("exclude", |argument| argument.help("Leave modules whose path matches as they are (repeatable)")),
        _ => verb,
    }
}

fn with_examples(verb: Command, name: &str) -> Command {
    match EXAMPLES.iter().find(|(of, _)| *of == name) {
        Some((_, examples)) => verb.after_help(text(examples)),
        None => verb,
    }
}

fn text(examples: &[(&str, &str)]) -> String {
    let lines: Vec<String> = examples.iter().map(|(line, what)| format!("  {line}\n      {what}")).collect();
    format!("Examples:\n{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_two_examples_that_it_understands() {
        for verb in command().get_subcommands() {
            let (_, examples) = EXAMPLES.iter().find(|(name, _)| *name == verb.get_name()).expect(verb.get_name());
            for (line, _) in examples.iter().filter(|(line, _)| !line.starts_with("lorakit help")) {
                let words = line.split(" | ").next().unwrap_or(line).split(" > ").next().unwrap_or(line);
                let parsed = command().try_get_matches_from(words.split_whitespace());
                assert!(parsed.is_ok(), "{line}: {}", parsed.expect_err("not understood"));
            }
        }
    }

    #[test]
    fn groups_name_options_that_there_are() {
        let command = command();
        let known: Vec<String> = command
            .get_subcommands()
            .flat_map(Command::get_arguments)
            .chain(command.get_arguments())
            .map(|argument| argument.get_id().to_string())
            .collect();
        for id in GROUPS.iter().flat_map(|(_, ids)| ids.iter()) {
            assert!(known.iter().any(|own| own == id), "no option `{id}`");
        }
    }
}
