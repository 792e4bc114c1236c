//! Names from files on a terminal and in a pipe: nothing that a terminal obeys passes, in any verb, and no name floods it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lorakit::error::shown::is_hostile;
use lorakit::formats::gguf::{Layout, Metadata, Value as Entry, write as write_gguf};
use lorakit::tensor::{Dtype, GgmlType, Shape, TensorInfo};
use serde_json::{Value, json};

use crate::support::*;

/// Title, clipboard, clear screen, colour, bell, return, DEL, C1, and what turns or hides text.
const EVIL: &str = "e\u{1b}]0;title\u{7}\u{1b}]52;c;cm0gLXJm\u{7}\u{1b}[2J\u{1b}[35mX\r\u{8}\u{7f}\u{9b}2J\u{9d}0;t\u{9c}\u{202e}\u{2066}\u{200b}\u{200f}\u{feff}\u{61c}v";

/// More than any output may have.
const MOST: usize = 64 << 10;

/// A name that a JSON text can hold, with what a file name cannot.
fn evil() -> String {
    format!("{EVIL}\u{0}\nerror: forged")
}

fn long() -> String {
    format!("l{}g", "n".repeat(1 << 20))
}

/// A safetensors file of one tensor with this header.
fn raw(path: &Path, header: &Value, data: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let header = header.to_string();
    let bytes: Vec<u8> =
        (header.len() as u64).to_le_bytes().into_iter().chain(header.bytes()).chain(data.iter().copied()).collect();
    fs::write(path, bytes).unwrap();
}

/// A command of lorakit, word by word.
type Words = Vec<OsString>;

fn words(verb: &str, rest: &[&dyn AsRef<std::ffi::OsStr>]) -> Words {
    std::iter::once(verb.into()).chain(rest.iter().map(|word| word.as_ref().to_owned())).collect()
}

/// Commands on files with `name` in every place that a file gives names.
fn commands(bench: &Bench, name: &str) -> Vec<Words> {
    let module = format!("layers.0.{name}");
    let weight = format!("{module}.weight");
    let base = bench.base(
        &[(&weight, Tensor::f32(&[4, 4], &noise(1, 16, 1.0))), ("b.weight", Tensor::f32(&[2], &[1.0, 2.0]))],
        &json!({"model_type": name, "architectures": [name], "torch_dtype": name, "_name_or_path": name}),
    );
    let tuned = bench.path("tuned");
    write(
        &tuned.join("model.safetensors"),
        &[(&weight, Tensor::f32(&[4, 4], &noise(2, 16, 1.0))), ("b.weight", Tensor::f32(&[2], &[1.0, 2.5]))],
    );
    let factors = |module: &str| {
        [
            (format!("{module}.lora_A.weight"), Tensor::f32(&[2, 4], &noise(3, 8, 1.0))),
            (format!("{module}.lora_B.weight"), Tensor::f32(&[4, 2], &noise(4, 8, 1.0))),
        ]
    };
    let adapter = |folder: &str, module: &str, config: Value| {
        let named = factors(module);
        let named: Vec<(&str, Tensor)> = named.iter().map(|(key, tensor)| (key.as_str(), tensor.clone())).collect();
        bench.adapter(folder, config, &named)
    };
    let fits = adapter("fits", &module, json!({"base_model_name_or_path": name, "target_modules": [name]}));
    let other = adapter("other", &format!("{module}.x"), json!({}));
    let method = adapter("method", &module, json!({"peft_type": name}));
    let begun = adapter("begun", &module, json!({"init_lora_weights": name}));
    let ranked = adapter("ranked", &module, json!({"rank_pattern": {name: 7}, "alpha_pattern": {name: "x"}}));
    let sharded = bench.path("sharded");
    fs::create_dir(&sharded).unwrap();
    let index = json!({"metadata": {}, "weight_map": {name: format!("{name}.safetensors")}});
    fs::write(sharded.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let typed = bench.path("typed/model.safetensors");
    raw(
        &typed,
        &json!({
            "__metadata__": {name: name, "ss_output_name": name, "ss_network_module": name, "modelspec.title": name},
            name: {"dtype": name, "shape": [4], "data_offsets": [0, 4]},
        }),
        &[0; 4],
    );
    let bad = bench.path("bad.safetensors");
    raw(&bad, &json!({name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}), &[0; 4]);
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", name.into());
    let key: String = name.chars().take(60_000).collect();
    metadata.set(&key, name.into());
    metadata.set("general.alignment", Entry::U32(32));
    let info = TensorInfo {
        name: name.chars().take(60).collect(),
        dtype: GgmlType::F32.dtype(),
        shape: Shape::from([4_u64]),
        offset: 0,
        bytes: 16,
    };
    assert_eq!(info.dtype, Dtype::F32);
    let gguf = bench.path("m.gguf");
    let layout = Layout::new(&gguf, &metadata, vec![info]).unwrap();
    write_gguf(&mut fs::File::create(&gguf).unwrap(), &layout, [&[0_u8; 16][..]]).unwrap();

    let (out, v, json) = (bench.path("out"), "-v", "--json");
    let mut all = Vec::new();
    for (at, more) in [&[][..], &[&v as &dyn AsRef<std::ffi::OsStr>], &[&json]].into_iter().enumerate() {
        let to = |verb: &str| bench.path(&format!("{verb}-{at}"));
        let mut add = |verb: &str, rest: &[&dyn AsRef<std::ffi::OsStr>]| {
            let rest: Vec<&dyn AsRef<std::ffi::OsStr>> = rest.iter().chain(more).copied().collect();
            all.push(words(verb, &rest));
        };
        add("merge", &[&base, &fits, &"-o", &to("merge")]);
        add("subtract", &[&base, &fits, &"-o", &to("subtract")]);
        add("subtract", &[&base, &fits, &"--base", &base, &"-o", &to("unmerge")]);
        add("extract", &[&base, &tuned, &"--rank", &"2", &"-o", &to("extract")]);
        add("stack", &[&fits, &other, &"-o", &to("stack")]);
        add("stack", &[&fits, &fits, &"--rank", &"1", &"-o", &to("ranked")]);
        add("resize", &[&fits, &"--rank", &"1", &"-o", &to("resize")]);
        add("resize", &[&fits, &other, &method, &"--rank", &"1", &"-o", &to("several")]);
        add("convert", &[&base, &"--dtype", &"f16", &"-o", &to("convert")]);
        add("convert", &[&fits, &"--to", &"mlx", &"-o", &to("mlx")]);
        for input in [&base, &fits, &method, &begun, &ranked, &typed, &gguf, &bad, &sharded] {
            add("inspect", &[input]);
        }
        add("inspect", &[&fits, &"--base", &base, &"--tensors"]);
        add("inspect", &[&base, &typed, &gguf, &bad]);
    }
    for input in [&base, &typed, &gguf, &fits] {
        all.push(words("inspect", &[input, &"--tensors", &"--check"]));
    }
    all.push(words("inspect", &[&fits, &"--spectrum"]));
    for adapter in [&other, &method, &begun, &ranked, &bad, &typed] {
        all.push(words("merge", &[&base, adapter, &"-o", &out]));
        all.push(words("convert", &[adapter, &"--to", &"kohya", &"-o", &bench.path("k.safetensors")]));
        all.push(words("resize", &[adapter, &"--rank", &"3", &"-o", &out]));
        all.push(words("stack", &[adapter, &fits, &"-o", &out]));
    }
    for model in [&sharded, &typed, &gguf, &bad] {
        all.push(words("merge", &[model, &fits, &"-o", &out]));
        all.push(words("convert", &[model, &"--dtype", &"f16", &"-o", &out]));
        all.push(words("extract", &[&base, model, &"--rank", &"2", &"-o", &out]));
        all.push(words("subtract", &[model, &fits, &"-o", &out]));
    }
    all
}

/// Commands on paths called `name`.
fn on_paths(bench: &Bench, name: &str) -> Vec<Words> {
    let base = bench.path(&format!("{name}-base"));
    write(&base.join("model.safetensors"), &[("a.q_proj.weight", Tensor::f32(&[4, 4], &noise(1, 16, 1.0)))]);
    fs::write(base.join("config.json"), "{}").unwrap();
    fs::write(base.join(format!("{name}.py")), "").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", base.join(format!("{name}.txt"))).unwrap();
    fs::write(base.join(format!("{name}.bin")), "").unwrap();
    let adapter = bench.adapter(
        &format!("{name}-adapter"),
        json!({}),
        &[
            ("a.q_proj.lora_A.weight", Tensor::f32(&[2, 4], &noise(3, 8, 1.0))),
            ("a.q_proj.lora_B.weight", Tensor::f32(&[4, 2], &noise(4, 8, 1.0))),
        ],
    );
    let named = |end: &str| bench.path(&format!("{name}-{end}"));
    let (missing, option) = (named("missing"), format!("--{name}"));
    let folder = bench.path("");
    let mut heavy = adapter.clone().into_os_string();
    heavy.push(":x");
    vec![
        words("merge", &[&base, &adapter, &"-o", &named("out")]),
        words("merge", &[&base, &adapter, &"-o", &named("out")]),
        words("merge", &[&base, &heavy, &"-o", &named("x")]),
        words("merge", &[&base, &adapter, &"-o", &named("parts"), &"--part", &"1/2"]),
        words("finish", &[&named("parts")]),
        words("finish", &[&missing]),
        words("merge", &[&missing, &adapter, &"-o", &named("x")]),
        words("merge", &[&adapter, &base, &"-o", &named("x")]),
        words("convert", &[&base, &"--dtype", &"f16", &"-o", &named("c")]),
        words("convert", &[&adapter, &"--to", &name, &"-o", &named("c2")]),
        words("convert", &[&adapter, &"--arch", &name, &"--to", &"kohya", &"-o", &named("c3.safetensors")]),
        words("stack", &[&adapter, &adapter, &"-o", &named("s")]),
        words("resize", &[&adapter, &"--rank", &"1", &"-o", &named("r")]),
        words("resize", &[&folder, &"--rank", &"1", &"-o", &named("rs")]),
        words("extract", &[&base, &adapter, &"--rank", &"1", &"-o", &named("e")]),
        words("subtract", &[&base, &adapter, &"-o", &named("u")]),
        words("inspect", &[&base]),
        words("inspect", &[&folder]),
        words("inspect", &[&missing]),
        words("inspect", &[&option]),
        words(name, &[&base]),
        words("merge", &[&base, &adapter, &"-o", &named("x"), &"--include", &format!("({name}")]),
        words("merge", &[&base, &adapter, &"-o", &named("x"), &"--dtype", &name]),
    ]
}

/// Runs a program on a pseudo terminal of its own and gives what it wrote there.
const ON_TERMINAL: &str = "
import os, pty, sys
child, end = pty.fork()
if child == 0:
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    try:
        data = os.read(end, 65536)
    except OSError:
        break
    if not data:
        break
    sys.stdout.buffer.write(data)
os.waitpid(child, 0)
";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Where {
    Pipe,
    ColouredPipe,
    Terminal,
    ColouredTerminal,
}

fn shown(words: &Words, place: Where) -> String {
    let program = assert_cmd::cargo::cargo_bin("lorakit");
    let mut command = if matches!(place, Where::Terminal | Where::ColouredTerminal) {
        let mut command = Command::new("python3");
        command.args(["-c", ON_TERMINAL]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.args(words).stdin(Stdio::null()).env("TERM", "xterm-256color").env_remove("NO_COLOR").env_remove("CI");
    match place {
        Where::Terminal => drop(command.env("NO_COLOR", "1")),
        Where::ColouredPipe => drop(command.args(["--color", "always"])),
        Where::Pipe | Where::ColouredTerminal => {}
    }
    let output = command.output().unwrap();
    let both: Vec<u8> = output.stdout.into_iter().chain(output.stderr).collect();
    String::from_utf8(both).unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// `text` without the colours that are lorakit's own.
fn without_colours(text: &str) -> String {
    let own = [
        "\u{1b}[0m",
        "\u{1b}[1m",
        "\u{1b}[4m",
        "\u{1b}[31m",
        "\u{1b}[32m",
        "\u{1b}[33m",
        "\u{1b}[36m",
        "\u{1b}[1m\u{1b}[4m",
    ];
    own.iter().fold(text.to_owned(), |text, code| text.replace(code, ""))
}

#[track_caller]
fn check(words: &Words, place: Where) {
    let text = shown(words, place);
    let coloured = matches!(place, Where::ColouredPipe | Where::ColouredTerminal);
    let text = if coloured { without_colours(&text) } else { text };
    // A terminal ends its lines with both.
    let text = text.replace("\r\n", "\n");
    let found = text.char_indices().find(|(_, letter)| *letter != '\n' && is_hostile(*letter));
    let first: Vec<String> = words.iter().map(|word| word.to_string_lossy().chars().take(60).collect()).collect();
    let (at, letter) = found.unwrap_or_default();
    let start = text[..at].char_indices().rev().nth(40).map_or(0, |(at, _)| at);
    let around: String = text[start..].chars().take(80).collect();
    assert!(found.is_none(), "{place:?} {first:?}: {letter:?} in {around:?}");
    assert!(!text.contains("\nerror: forged"), "{place:?} {first:?}: a name begins a line: {text:?}");
    assert!(!text.contains("panicked"), "{first:?}: {text}");
    let is_json = words.iter().any(|word| word == "--json");
    assert!(is_json || text.len() < MOST, "{place:?} {first:?}: {} bytes", text.len());
}

#[test]
fn hostile_names_do_not_reach_a_terminal_or_a_pipe() {
    for (at, place) in
        [Where::Pipe, Where::ColouredPipe, Where::Terminal, Where::ColouredTerminal].into_iter().enumerate()
    {
        let bench = Bench::new();
        commands(&bench, &evil()).iter().enumerate().for_each(|(number, words)| {
            // Every other command is enough for each of the others.
            if at == 0 || number % 2 == at % 2 {
                check(words, place);
            }
        });
    }
}

#[test]
fn hostile_paths_and_words_do_not_reach_a_terminal_or_a_pipe() {
    for place in [Where::Pipe, Where::ColouredPipe, Where::Terminal, Where::ColouredTerminal] {
        let bench = Bench::new();
        on_paths(&bench, &format!("{EVIL}\nerror: forged")).iter().for_each(|words| check(words, place));
    }
}

#[test]
fn names_of_a_megabyte_do_not_flood_a_terminal() {
    let bench = Bench::new();
    commands(&bench, &long()).iter().for_each(|words| check(words, Where::Pipe));
}

#[test]
fn documents_hold_hostile_names_whole() {
    let bench = Bench::new();
    for name in [evil(), long()] {
        let base = bench.base(&[(&name, Tensor::f32(&[2], &[1.0, 2.0]))], &json!({}));
        let text = lorakit(&[&"inspect", &base, &"--tensors", &"--json"]).ok().stdout;
        assert!(!text.chars().any(|letter| letter != '\n' && is_hostile(letter)));
        let document: Value = serde_json::from_str(&text).unwrap();
        let named = |value: &Value| value["name"] == name.as_str();
        let tensors = document["tensors"].as_array().or(document["weights"]["tensors"].as_array());
        assert!(tensors.is_some_and(|tensors| tensors.iter().any(named)), "{}", &text[..text.len().min(2000)]);
    }
}

#[test]
fn colours_of_an_error_are_its_own() {
    let bench = Bench::new();
    let missing: PathBuf = bench.path(EVIL);
    let plain = shown(&words("inspect", &[&missing]), Where::Pipe);
    let coloured = shown(&words("inspect", &[&missing]), Where::ColouredPipe);
    assert!(plain.starts_with("error: "), "{plain:?}");
    assert!(coloured.starts_with("\u{1b}[1m\u{1b}[31merror\u{1b}[0m: "), "{coloured:?}");
    assert_eq!(without_colours(&coloured), plain);
}
