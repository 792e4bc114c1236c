//! Forty command lines that somebody types who has never read the manual: each works, or is answered with the one that does.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Bench, fixtures};

/// What comes of a guess.
enum Then {
    /// It works.
    Works,
    /// It is answered with these words, which name the way.
    Says(&'static [&'static str]),
}

use Then::{Says, Works};

/// Guess → what comes of it. `base`, `lora` and `cat.safetensors` lie in the folder where it is typed.
const GUESSES: [(&str, Then); 56] = [
    ("info lora", Works),
    ("show lora", Works),
    ("ls loras", Works),
    ("list loras", Works),
    ("describe base", Works),
    ("lora", Says(&["`lorakit inspect lora`"])),
    ("cat.safetensors", Says(&["`lorakit inspect cat.safetensors`"])),
    ("diff lora lora", Says(&["`lorakit subtract lora lora -o difference`"])),
    ("compare base base", Says(&["`lorakit extract base base --rank 1 --dry-run -o difference`"])),
    ("verify merged lora", Says(&["`lorakit subtract merged lora --base BASE -o restored`"])),
    ("check lora", Says(&["`lorakit inspect lora --check`"])),
    ("unmerge base lora -o x", Works),
    ("combine lora lora -o x", Works),
    ("quantize base Q4_K_M", Says(&["`lorakit convert base -o model.gguf --quant q4_k_m`"])),
    ("split base", Says(&["`lorakit convert base -o shards --max-shard-size 5GB`"])),
    ("join base", Says(&["`lorakit convert base -o model.safetensors`"])),
    ("strip cat.safetensors", Says(&["`lorakit convert cat.safetensors -o stripped --strip-metadata '*'`"])),
    ("download org/name", Says(&["`hf download org/name`"])),
    ("merge lora", Says(&["`lorakit merge tiny-llama-bf16 lora -o merged`"])),
    ("merge base lora", Says(&["`lorakit merge base lora -o merged`"])),
    ("merge base lora out", Says(&["`lorakit merge base lora -o out`"])),
    ("merge base lora --output x", Works),
    ("merge --base base --adapter lora --output x", Says(&["`lorakit merge base lora --output x`"])),
    ("merge --model base --lora lora -o x", Says(&["`lorakit merge base lora -o x`"])),
    ("merge base lora lora --weights 0.7,0.3 -o x", Says(&["`lorakit merge base lora:0.7 lora:0.3 -o x`"])),
    ("merge base --models lora lora --ratios 0.7 0.3 -o x", Says(&["`lorakit merge base lora:0.7 lora:0.3 -o x`"])),
    ("merge base lora=0.7 -o x", Says(&["`lora:0.7`"])),
    ("merge base lora@0.7 -o x", Says(&["`lora:0.7`"])),
    ("merge base lora*0.7 -o x", Says(&["`lora:0.7`"])),
    ("merge base lora 0.7 -o x", Says(&["`ADAPTER:0.7`"])),
    ("merge base lora:0.7 -o x", Works),
    ("merge lora base -o x", Says(&["the wrong way round", "`lorakit merge base lora -o OUT`"])),
    ("merge base lora -r 8 -o x", Says(&["`lorakit resize ADAPTER -o smaller --rank 8`"])),
    ("merge base lora --format gguf -o x", Says(&["`lorakit convert merged -o converted --to gguf`"])),
    (
        "merge base lora --quant Q4_K_M -o x",
        Says(&["`--quant q4_k`", "`lorakit convert MERGED -o OUT.gguf --quant q4_k_m`"]),
    ),
    ("merge base lora --fp16 -o x", Says(&["`lorakit merge base lora --dtype f16 -o x`"])),
    ("merge base lora --dtype fp16 -o x", Works),
    ("merge base lora --dtype torch.float16 -o x", Works),
    ("merge base lora -o x.safetensors", Works),
    ("merge base lora -o x.bin", Says(&["read and not written", "`-o x.safetensors`"])),
    ("merge base lora -o no/such/x", Says(&["no/such", "`mkdir -p no/such`"])),
    ("merge base lora -o -", Says(&["`-o out`"])),
    ("merge bsae lora -o x", Says(&["did you mean `base`?"])),
    ("extract base base -o x", Says(&["there is nothing to extract"])),
    ("extract --base base --tuned base -r 4 -o x", Says(&["`lorakit extract base base -r 4 -o x`"])),
    ("resize cat.safetensors -r 2 -o x.safetensors", Works),
    (
        "resize --model cat.safetensors --new_rank 2 --save_to x.safetensors",
        Says(&["`lorakit resize cat.safetensors --rank 2 -o x.safetensors`"]),
    ),
    ("resize loras -r 2 -o x", Works),
    ("resize loras/one.safetensors loras/two.safetensors -r 2 -o x", Works),
    ("stack cat.safetensors cat.safetensors -o x.safetensors", Works),
    ("convert cat.safetensors x --to diffusers", Says(&["`lorakit convert cat.safetensors --to diffusers -o x`"])),
    ("convert cat.safetensors --format diffusers -o x", Works),
    ("convert cat.safetensors --to comfy -o x.safetensors", Works),
    ("inspect loras/oen.safetensors", Says(&["did you mean `loras/one.safetensors`?"])),
    ("inspect nowhere/cat.safetensors", Says(&["nowhere/cat.safetensors: cannot open"])),
    ("inspect base --spectrum", Says(&["`lorakit inspect ADAPTER --spectrum --base base`"])),
];

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&entry, to.join(entry.file_name().unwrap())).unwrap();
    }
}

fn typed(folder: &Path, words: &str) -> (i32, String) {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("lorakit"));
    let output = command.args(words.split_whitespace()).current_dir(folder).env("NO_COLOR", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), said)
}

fn folder() -> Bench {
    let bench = Bench::new();
    copy(&fixtures().join("tiny/base"), &bench.path("base"));
    copy(&fixtures().join("tiny/adapter"), &bench.path("lora"));
    let cat = fixtures().join("dialects/kohya-lora-r4.safetensors");
    fs::create_dir(bench.path("loras")).unwrap();
    for name in ["cat.safetensors", "loras/one.safetensors", "loras/two.safetensors"] {
        fs::copy(&cat, bench.path(name)).unwrap();
    }
    bench
}

#[test]
fn a_first_guess_works_or_is_answered_with_what_works() {
    let bench = folder();
    for (guess, then) in &GUESSES {
        let (code, said) = typed(bench.0.path(), guess);
        match then {
            Works => assert_eq!(code, 0, "lorakit {guess}: {said}"),
            Says(parts) => {
                assert!(code == 1 || code == 2, "lorakit {guess}: {code} {said}");
                parts.iter().for_each(|part| assert!(said.contains(part), "lorakit {guess}: {said}"));
            }
        }
        assert!(!said.contains("--force") && !said.contains("panicked"), "lorakit {guess}: {said}");
        for made in ["x", "x.safetensors", "x.safetensors.lorakit.json"].map(|name| bench.path(name)) {
            let _ = fs::remove_dir_all(&made).or_else(|_| fs::remove_file(&made));
        }
    }
}

#[test]
fn what_an_answer_offers_is_understood() {
    let bench = folder();
    for (guess, then) in &GUESSES {
        let Says(parts) = then else { continue };
        for part in parts.iter().filter(|part| part.starts_with("`lorakit ") && part.ends_with('`')) {
            let words = part.trim_matches('`').trim_start_matches("lorakit ").replace('\'', "");
            let (code, said) = typed(bench.0.path(), &words);
            assert!(
                !said.contains("unexpected argument") && !said.contains("unrecognized"),
                "{guess}: {words}: {code} {said}"
            );
        }
    }
}

#[test]
fn a_slip_of_a_letter_is_corrected_and_nothing_far_is_offered() {
    let bench = folder();
    for (guess, wanted) in [("merge base lora --dype f16 -o x", "'--dtype'"), ("merg base lora -o x", "'merge'")] {
        let (_, said) = typed(bench.0.path(), guess);
        assert!(said.contains(wanted), "{said}");
    }
    for guess in ["merge base lora --forma x -o x", "merge base lora --adapt x -o x", "exract base lora --forc -o x"] {
        let (_, said) = typed(bench.0.path(), guess);
        assert!(!said.contains("--force"), "{guess}: {said}");
    }
}
