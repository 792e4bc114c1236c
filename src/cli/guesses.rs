//! What was probably meant by words that no verb understands: the same words, put as they are understood here.
//!
//! A guess is never run. It is shown as a way out, if the program understands it; what deletes something is never among it.

use std::ffi::OsString;
use std::path::Path;

use clap::Command;

use super::help;

use crate::dialects::is_adapter;
use crate::formats::json;

/// Other names of options, as other tools have them → ours.
const OPTIONS: [(&str, &str); 22] = [
    ("--outtype", "--quant"),
    ("--quantization", "--quant"),
    ("--quantize", "--quant"),
    ("--precision", "--dtype"),
    ("--torch-dtype", "--dtype"),
    ("--new-rank", "--rank"),
    ("--lora-rank", "--rank"),
    ("--dim", "--rank"),
    ("--network-dim", "--rank"),
    ("--save-to", "-o"),
    ("--out-dir", "-o"),
    ("--output-dir", "-o"),
    ("--output-path", "-o"),
    ("--save-path", "-o"),
    ("--outfile", "-o"),
    ("--dynamic-method", "--rank-method"),
    ("--dynamic-param", "--rank-param"),
    ("--target", "--to"),
    ("--shard-size", "--max-shard-size"),
    ("--num-threads", "--threads"),
    ("--lora-alpha", "--alpha"),
    ("--scale-for", "--weight-for"),
];

/// Options whose value is an input here: those of models come first.
const MODELS: [&str; 9] =
    ["--base", "--model", "--base-model", "--sd-model", "--model-org", "--input", "--in", "--checkpoint", "--path"];
const ADAPTERS: [&str; 12] = [
    "--adapter",
    "--adapters",
    "--lora",
    "--loras",
    "--lora-path",
    "--peft",
    "--peft-model",
    "--models",
    "--tuned",
    "--finetuned",
    "--model-tuned",
    "--merged",
];

/// Options whose value is a weight of an adapter, or several.
const WEIGHTS: [&str; 7] = ["--weights", "--weight", "--scale", "--strength", "--ratio", "--ratios", "--multiplier"];

/// Switches → a dtype.
const SWITCHES: [(&str, &str); 6] =
    [("--fp16", "f16"), ("--half", "f16"), ("--f16", "f16"), ("--bf16", "bf16"), ("--fp32", "f32"), ("--f32", "f32")];

/// What is offered as OUT, and how many inputs a verb needs before it.
const OUTPUTS: [(&str, usize, &str); 6] = [
    ("merge", 2, "merged"),
    ("extract", 2, "lora"),
    ("stack", 1, "stacked"),
    ("subtract", 2, "difference"),
    ("resize", 1, "resized"),
    ("convert", 1, "converted"),
];

/// A way out for `words`, of which the first is the program's name.
pub fn way_out(words: &[OsString]) -> Option<String> {
    let words: Vec<String> = words.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let at = words.iter().position(|word| !word.starts_with('-'))?;
    let (verb, rest) = (words[at].as_str(), &words[at + 1..]);
    let command = help::command();
    let Some(known) = command.find_subcommand(verb) else { return of_verb(verb, rest) };
    let verb = known.get_name();
    if let Some(said) = of_option(verb, rest) {
        return Some(said);
    }
    let guess = Guess::read(known, verb, rest);
    if rest.is_empty() {
        return help::example(verb).map(|line| format!("as `{line}`"));
    }
    let line = guess.line()?;
    let parsed = std::iter::once("lorakit").chain(line.iter().map(String::as_str));
    let is_new = line[1..] != *rest;
    (is_new && command.clone().try_get_matches_from(parsed).is_ok()).then(|| shown(&line))
}

/// A command line, as a shell takes it.
fn shown(words: &[String]) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "-_./:=,@+%~".contains(letter);
    let quoted = words.iter().map(|word| match word.chars().all(plain) && !word.is_empty() {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    });
    format!("`lorakit {}`", quoted.collect::<Vec<_>>().join(" "))
}

/// A verb of another tool, or a path without a verb.
fn of_verb(verb: &str, rest: &[String]) -> Option<String> {
    let inputs: Vec<&String> = rest.iter().filter(|word| !word.starts_with('-')).collect();
    let input = |at: usize, name: &str| inputs.get(at).map_or(name.to_owned(), |word| (*word).clone());
    let line = |words: &[&str]| shown(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    let (first, second) = (input(0, "MODEL"), input(1, "OTHER"));
    Some(match verb {
        "diff" | "compare" | "cmp" if inputs.iter().all(|path| is_adapter(Path::new(path))) => format!(
            "{} is the difference of two adapters; {} tells how large it is",
            line(&["subtract", &input(0, "A"), &input(1, "B"), "-o", "difference"]),
            line(&["inspect", "difference", "--spectrum"])
        ),
        "diff" | "compare" | "cmp" => format!(
            "{} tells what differs between two models",
            line(&["extract", &first, &second, "--rank", "1", "--dry-run", "-o", "difference"])
        ),
        "verify" | "prove" => format!(
            "{} proves that a model is that merge",
            line(&["subtract", &input(0, "MERGED"), &input(1, "ADAPTER"), "--base", "BASE", "-o", "restored"])
        ),
        "check" | "validate" => line(&["inspect", &input(0, "PATH"), "--check"]),
        "quantize" | "quantise" => {
            let quant = inputs.iter().skip(1).find(|word| !word.contains(['/', '.']));
            let quant = quant.map_or_else(|| "q4_k_m".to_owned(), |word| word.to_lowercase());
            line(&["convert", &first, "-o", "model.gguf", "--quant", &quant])
        }
        "dequantize" | "dequantise" => line(&["convert", &first, "-o", "converted", "--dtype", "bf16"]),
        "cast" => line(&["convert", &first, "-o", "converted", "--dtype", "f16"]),
        "split" | "shard" => line(&["convert", &first, "-o", "shards", "--max-shard-size", "5GB"]),
        "join" | "unshard" => line(&["convert", &first, "-o", "model.safetensors"]),
        "strip" => line(&["convert", &first, "-o", "stripped", "--strip-metadata", "*"]),
        "download" | "pull" | "fetch" => {
            format!("lorakit never downloads; `hf download {}` does", input(0, "ORG/NAME"))
        }
        path if Path::new(path).exists() => line(&["inspect", path]),
        _ => return None,
    })
}

/// An option that another verb has.
fn of_option(verb: &str, rest: &[String]) -> Option<String> {
    let value = |names: &[&str]| {
        let at = rest
            .iter()
            .position(|word| names.iter().any(|name| word == name || word.starts_with(&format!("{name}="))))?;
        let own = rest[at].split_once('=').map(|(_, value)| value.to_owned());
        own.or_else(|| rest.get(at + 1).cloned()).or_else(|| Some(String::new()))
    };
    let given = |value: String, other: &str| if value.is_empty() { other.to_owned() } else { value };
    if verb == "merge" {
        if let Some(rank) = value(&["-r", "--rank"]) {
            let rank = given(rank, "8");
            return Some(format!(
                "a merge takes adapters at their rank; `lorakit resize ADAPTER -o smaller --rank {rank}` lowers it before"
            ));
        }
        if let Some(format) = value(&["--format", "--to"]) {
            let format = given(format, "gguf");
            return Some(format!(
                "a merge keeps the format of BASE; `lorakit convert merged -o converted --to {format}` makes another of the result"
            ));
        }
        if value(&["--method", "--density", "--combination-type"]).is_some() {
            return Some(
                "a merge adds; `lorakit stack A B -o one --method ties --density 0.5 --rank 16` makes one adapter of several by a method"
                    .to_owned(),
            );
        }
    }
    if verb == "convert" {
        let rank = value(&["-r", "--rank"])?;
        return Some(format!("`lorakit resize ADAPTER -o smaller --rank {}` changes ranks", given(rank, "8")));
    }
    None
}

/// Words sorted by what they are.
struct Guess<'a> {
    verb: &'a str,
    models: Vec<String>,
    inputs: Vec<String>,
    adapters: Vec<String>,
    weights: Vec<String>,
    options: Vec<String>,
    has_output: bool,
}

impl<'a> Guess<'a> {
    fn read(command: &Command, verb: &'a str, rest: &[String]) -> Self {
        let (models, inputs, adapters, weights, options) = Default::default();
        let mut guess = Self { verb, models, inputs, adapters, weights, options, has_output: false };
        let mut words = rest.iter().peekable();
        while let Some(word) = words.next() {
            if !word.starts_with('-') || word.parse::<f64>().is_ok() || word == "-" {
                guess.inputs.push(word.clone());
                continue;
            }
            let (name, own) = match word.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name.replace('_', "-"), Some(value.to_owned())),
                _ if word.starts_with("--") => (word.replace('_', "-"), None),
                _ => (word.clone(), None),
            };
            if let Some((_, dtype)) = SWITCHES.iter().find(|(switch, _)| *switch == name) {
                guess.options.extend(["--dtype".to_owned(), (*dtype).to_owned()]);
                continue;
            }
            let name = OPTIONS.iter().find(|(other, _)| *other == name).map_or(name, |(_, ours)| (*ours).to_owned());
            let known = takes_value(command, &name);
            let to = guess.home(&name, known.is_some());
            let takes = known.unwrap_or(to.is_some());
            let mut values: Vec<String> = own.into_iter().collect();
            if takes && values.is_empty() {
                values.extend(words.next().cloned());
            }
            match to {
                Some(Home::Models) => guess.models.extend(values),
                Some(Home::Adapters) => {
                    guess.adapters.extend(values);
                    // As `--models a b` of kohya's scripts.
                    while name.ends_with('s') && words.peek().is_some_and(|word| !word.starts_with('-')) {
                        guess.adapters.extend(words.next().cloned());
                    }
                }
                Some(Home::Weights) => {
                    guess.weights.extend(values.iter().flat_map(|value| value.split(',')).map(str::to_owned));
                    while words.peek().is_some_and(|word| word.parse::<f64>().is_ok()) {
                        guess.weights.extend(words.next().cloned());
                    }
                }
                None => {
                    guess.has_output |= ["-o", "--out", "--output"].contains(&name.as_str());
                    guess.options.push(name);
                    guess.options.extend(values);
                }
            }
        }
        guess
    }

    /// Where the value of an option goes that is none of the verb's, or that stands for an input.
    fn home(&self, name: &str, known: bool) -> Option<Home> {
        let of_inputs = !known || self.verb == "merge" && name == "--base" && self.inputs.is_empty();
        if MODELS.contains(&name) && of_inputs {
            return Some(Home::Models);
        }
        if known {
            return None;
        }
        match (ADAPTERS.contains(&name), WEIGHTS.contains(&name)) {
            (true, _) => Some(Home::Adapters),
            (_, true) => Some(Home::Weights),
            _ => None,
        }
    }

    /// The words as the verb takes them; nothing where something is missing that nobody can guess.
    fn line(mut self) -> Option<Vec<String>> {
        let mut inputs = std::mem::take(&mut self.models);
        inputs.append(&mut self.inputs);
        inputs.append(&mut self.adapters);
        if let Some((_, needed, out)) = OUTPUTS.iter().find(|(verb, ..)| *verb == self.verb)
            && !self.has_output
        {
            let last = inputs.last().filter(|last| inputs.len() > *needed && !Path::new(last).exists()).cloned();
            let out = match last {
                Some(last) => {
                    inputs.pop();
                    last
                }
                None if Path::new(out).exists() => "OUT".to_owned(),
                None => (*out).to_owned(),
            };
            self.options.extend(["-o".to_owned(), out]);
        }
        if self.verb == "merge" && inputs.len() == 1 {
            inputs.insert(0, base_of(Path::new(&inputs[0]))?);
        }
        let first = usize::from(self.verb == "merge");
        let count = inputs.len().saturating_sub(first);
        match self.weights.as_slice() {
            [] => {}
            [one] => inputs[first..].iter_mut().for_each(|input| *input += &format!(":{one}")),
            several if several.len() == count => {
                inputs[first..].iter_mut().zip(several).for_each(|(input, weight)| *input += &format!(":{weight}"));
            }
            _ => return None,
        }
        Some(std::iter::once(self.verb.to_owned()).chain(inputs).chain(self.options).collect())
    }
}

/// What the value of an option is here.
enum Home {
    Models,
    Adapters,
    Weights,
}

/// Whether an option of the verb takes a value; nothing if the verb has no such option.
fn takes_value(command: &Command, name: &str) -> Option<bool> {
    let argument = command.get_arguments().find(|argument| match name.strip_prefix("--") {
        Some(long) => {
            argument.get_long_and_visible_aliases().is_some_and(|names| names.contains(&long))
                || argument.get_all_aliases().is_some_and(|names| names.contains(&long))
        }
        None => name.chars().nth(1).is_some_and(|short| {
            argument.get_short() == Some(short)
                || argument.get_all_short_aliases().is_some_and(|all| all.contains(&short))
        }),
    })?;
    Some(argument.get_action().takes_values())
}

/// The model that the config of an adapter names, or a word that stands for it.
fn base_of(adapter: &Path) -> Option<String> {
    if !is_adapter(adapter) {
        return None;
    }
    let config = json::read_object(&adapter.join("adapter_config.json")).ok();
    let named = config.as_ref().and_then(|config| config.get("base_model_name_or_path")?.as_str());
    Some(named.filter(|name| !name.is_empty()).unwrap_or("BASE").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn guess(written: &str, meant: Option<&str>) {
        let words: Vec<OsString> = written.split_whitespace().map(OsString::from).collect();
        assert_eq!(way_out(&words).as_deref(), meant, "{written}");
    }

    #[test]
    fn words_of_other_tools_are_put_as_ours() {
        guess("lorakit merge --base b --adapter a --output m", Some("`lorakit merge b a --output m`"));
        guess("lorakit merge b x y --weights 0.7,0.3 -o m", Some("`lorakit merge b x:0.7 y:0.3 -o m`"));
        guess("lorakit merge b x y --ratios 0.7 0.3 -o m", Some("`lorakit merge b x:0.7 y:0.3 -o m`"));
        guess("lorakit merge b x --fp16 -o m", Some("`lorakit merge b x --dtype f16 -o m`"));
        guess("lorakit convert in out --to mlx", Some("`lorakit convert in --to mlx -o out`"));
        guess("lorakit resize --model x --new_rank 4 --save_to y", Some("`lorakit resize x --rank 4 -o y`"));
        guess("lorakit extract b t --rank 4", Some("`lorakit extract b t --rank 4 -o lora`"));
        guess("lorakit quantize base Q4_K_M", Some("`lorakit convert base -o model.gguf --quant q4_k_m`"));
        guess("lorakit nonsense", None);
        guess("lorakit merge b a --nonsense -o m", None);
    }

    #[test]
    fn words_that_a_shell_would_change_are_quoted() {
        guess("lorakit stack a* b --weights 1,2 -o x", Some("`lorakit stack 'a*:1' b:2 -o x`"));
    }
}
