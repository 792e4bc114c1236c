//! Fused weights of diffusion models, by what diffusers' own converters make of them (`fixtures/archs`): adapters in the names of the
//! models' authors go to diffusers and back, and each part is its rows of the whole.

use std::fs;

use crate::support::*;

const RANK: usize = 2;

/// An original weight: name, outputs, inputs.
type Whole = (String, usize, usize);

/// Rows, the module they go to, and where.
type Part = (usize, usize, String, usize);

fn fused(family: &str) -> Vec<(Whole, Vec<Part>)> {
    let text = fs::read_to_string(fixtures().join("archs").join(format!("{family}.txt"))).unwrap();
    let number = |word: &str| word.parse::<usize>().unwrap();
    let sized = text.lines().filter_map(|line| {
        let (left, right) = line.split_once(" = ").unwrap();
        let [name, outputs, inputs] = left.split(' ').collect::<Vec<_>>()[..] else { return None };
        let part = |text: &str| {
            let words: Vec<&str> = text.split(' ').collect();
            let (from, to) = words[0].split_once("..").unwrap();
            (number(from), number(to), words[1].to_owned(), number(words[2]))
        };
        Some(((name.to_owned(), number(outputs), number(inputs)), right.split(", ").map(part).collect()))
    });
    sized.collect()
}

fn product(tensors: &Tensors, module: &str, suffixes: [&str; 2]) -> (Vec<f64>, usize) {
    let [down, up] = suffixes.map(|suffix| &tensors[&format!("{module}{suffix}")]);
    let (rank, inputs) = (down.shape[0], down.shape[1]);
    let empty = vec![0.0; up.shape[0] * inputs];
    (dense(&empty, &up.values(), &down.values(), rank, 1.0), inputs)
}

const ORIGINAL: [&str; 2] = [".lora_down.weight", ".lora_up.weight"];
const DIFFUSERS: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];

#[test]
fn fused_weights_go_where_diffusers_takes_them_and_back() {
    let mut counts = Vec::new();
    for family in ["flux", "flux2", "hunyuan_video", "lumina2", "sd3", "z_image"] {
        let bench = Bench::new();
        let weights = fused(family);
        let mut tensors = Vec::new();
        for (seed, ((name, outputs, inputs), _)) in (0..).zip(&weights) {
            let module = format!("diffusion_model.{name}");
            let (down, up) = (noise(2 * seed, RANK * inputs, 1.0), noise(2 * seed + 1, outputs * RANK, 1.0));
            tensors.push((format!("{module}{}", ORIGINAL[0]), Tensor::f32(&[RANK, *inputs], &down)));
            tensors.push((format!("{module}{}", ORIGINAL[1]), Tensor::f32(&[*outputs, RANK], &up)));
            tensors.push((format!("{module}.alpha"), Tensor::f32(&[], &[RANK as f32])));
        }
        let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        let [source, there, back] = ["in", "there", "back"].map(|name| bench.path(&format!("{name}.safetensors")));
        write(&source, &named);
        // The small sizes here say nothing of the family, and some names could be those of several.
        lorakit(&[&"convert", &source, &"--to", &"diffusers", &"--arch", &family, &"-o", &there]).ok();
        lorakit(&[&"convert", &there, &"--to", &"comfyui", &"--arch", &family, &"-o", &back]).ok();
        let [source, there, back] = [source, there, back].map(|path| read(&path));
        let mut parts = 0;
        for ((name, ..), spots) in &weights {
            let module = format!("diffusion_model.{name}");
            let (whole, inputs) = product(&source, &module, ORIGINAL);
            for (from, to, module, at) in spots {
                let (part, _) = product(&there, &format!("transformer.{module}"), DIFFUSERS);
                let rows = &part[at * inputs..(at + to - from) * inputs];
                assert_close(rows, &whole[from * inputs..to * inputs], 1e-6);
                parts += 1;
            }
            assert_close(&product(&back, &module, ORIGINAL).0, &whole, 1e-6);
        }
        counts.push(parts);
        let modules = |tensors: &Tensors, end: &str| tensors.keys().filter(|key| key.ends_with(end)).count();
        assert_eq!(modules(&back, ORIGINAL[0]), weights.len(), "{family}");
    }
    assert_eq!(counts, [12, 8, 15, 15, 28, 12], "parts of fused weights");
}
