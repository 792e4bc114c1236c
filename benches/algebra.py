#!/usr/bin/env python3
"""Races of the low-rank verbs against their peers: wall time, peak memory and error of both sides, on the same inputs.

    benches/algebra.py extract --peers PYTHON     extract --rank 32 of the 1b pair; one layer against mergekit-extract-lora --max-rank 32
    benches/algebra.py resize  --peers PYTHON     an SDXL-like LoRA, rank 64 → 16, against a full SVD of every dense product
    benches/algebra.py stack   --peers PYTHON     two 7B-shaped LoRAs → rank 16, against PEFT's `svd` combination
    benches/algebra.py scaling                    extract by size and rank; every verb by the number of modules (at most 2.5 × for twice as many)

PYTHON has numpy, torch, safetensors, peft, transformers and mergekit. Without --peers only lorakit runs. The slow side runs once
(--peer-runs), lorakit five times after a warm-up; medians. kohya's resize_lora has no package: what is timed in its place is
what it computes, `torch.linalg.svd` of the product of every module, in f32, U and V square as there.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from race import machine, run

HERE = Path(__file__).resolve().parent
SYNTH = HERE / "../../shared/tools/synth.py"
EXTRACTED, RESIZED, STACKED = 32, 16, 16

# Weights of an SDXL U-Net that kohya's default LoRA covers: how many, out, in.
SDXL = [(280, 1280, 1280), (120, 1280, 2048), (60, 10240, 1280), (60, 1280, 5120), (44, 640, 640), (20, 640, 2048), (10, 5120, 640), (10, 640, 2560)]
# One layer of Llama-2-7B.
LAYER_7B = {"self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (4096, 4096), "self_attn.v_proj": (4096, 4096), "self_attn.o_proj": (4096, 4096),
            "mlp.gate_proj": (11008, 4096), "mlp.up_proj": (11008, 4096), "mlp.down_proj": (4096, 11008)}

RESIDUALS = """
import sys, json, torch
from pathlib import Path
from safetensors import safe_open
def tensors(d):
    found = {}
    for f in sorted(Path(d).glob("*.safetensors")):
        s = safe_open(str(f), "pt")
        found.update({k: (s, k) for k in s.keys()})
    return found
base, tuned, adapter = (tensors(d) for d in sys.argv[1:4])
config = json.load(open(sys.argv[3] + "/adapter_config.json"))
scale = config["lora_alpha"] / config["r"]
get = lambda t, k: t[k][0].get_tensor(t[k][1]).float()
total = wanted = 0.0
for key in base:
    name = "base_model.model." + key.removesuffix(".weight")
    if "_proj" not in key or name + ".lora_B.weight" not in adapter: continue
    delta = get(tuned, key) - get(base, key)
    product = get(adapter, name + ".lora_B.weight") @ get(adapter, name + ".lora_A.weight")
    rank = get(adapter, name + ".lora_A.weight").shape[0]
    module = key.removesuffix(".weight")
    s = config.get("alpha_pattern", {}).get(module, config["lora_alpha"]) / config.get("rank_pattern", {}).get(module, config["r"])
    total += (delta - s * product).double().pow(2).sum().item()
    wanted += delta.double().pow(2).sum().item()
print((total / wanted) ** 0.5)
"""

DENSE_SVD = """
import sys, time, torch
from safetensors.torch import load_file, save_file
tensors, rank, out = load_file(sys.argv[1] + "/adapter_model.safetensors"), int(sys.argv[2]), {}
for key in [k for k in tensors if k.endswith("lora_B.weight")]:
    down = key.replace("lora_B", "lora_A")
    u, s, vh = torch.linalg.svd(tensors[key].float() @ tensors[down].float())
    out[key] = (u[:, :rank] * s[:rank]).contiguous()
    out[down] = vh[:rank].contiguous()
save_file(out, sys.argv[3])
"""

PEFT_SVD = """
import sys, torch
from peft import PeftModel, LoraConfig, get_peft_model
class Layer(torch.nn.Module):
    def __init__(self, shapes):
        super().__init__()
        for name, (out, inp) in shapes.items():
            self.add_module(name, torch.nn.Linear(inp, out, bias=False, device="cpu"))
    def forward(self, x): return x
shapes = {"q_proj": (4096, 4096), "k_proj": (4096, 4096), "v_proj": (4096, 4096), "o_proj": (4096, 4096),
          "gate_proj": (11008, 4096), "up_proj": (11008, 4096), "down_proj": (4096, 11008)}
only = sys.argv[2].split(",")
model = Layer({name: shape for name, shape in shapes.items() if name in only})
config = lambda: LoraConfig(r=16, lora_alpha=32, target_modules=only, init_lora_weights=False)
model = get_peft_model(model, config(), adapter_name="a")
model.add_adapter("b", config())
import time
start = time.perf_counter()
model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "c", combination_type="svd", svd_rank=int(sys.argv[1]))
print(time.perf_counter() - start)
"""


def peer(python, code, *words):
    done = subprocess.run([python, "-c", code, *map(str, words)], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.split()[-1]) if done.stdout.strip() else None


def synth(a, *words):
    marker = Path(f"{words[-1] if words[-2] != '--rank' else words[-3]}.done")
    if not marker.exists():
        subprocess.run([a.peers or "python3", SYNTH, *map(str, words)], check=True)
        marker.touch()


def adapter(a, path, shapes, rank, seed):
    """A random PEFT LoRA of these modules: name → (out, in)."""
    code = f"""
import json, sys, numpy as np
from pathlib import Path
from safetensors.numpy import save_file
shapes = json.loads(sys.argv[1]); rng = np.random.default_rng({seed}); out = Path(sys.argv[2]); out.mkdir(parents=True, exist_ok=True)
decay = 1 / np.sqrt(np.arange(1, {rank} + 1, dtype=np.float32))
tensors = {{}}
for name, (o, i) in shapes.items():
    tensors["base_model.model." + name + ".lora_A.weight"] = (rng.standard_normal(({rank}, i), np.float32) * decay[:, None] / np.float32(i) ** 0.5)
    tensors["base_model.model." + name + ".lora_B.weight"] = rng.standard_normal((o, {rank}), np.float32) * np.float32(0.01)
save_file(tensors, out / "adapter_model.safetensors", metadata={{"format": "pt"}})
json.dump({{"peft_type": "LORA", "r": {rank}, "lora_alpha": {rank}, "target_modules": sorted({{n.rsplit(".", 1)[-1] for n in shapes}}), "fan_in_fan_out": False}}, open(out / "adapter_config.json", "w"))
"""
    if not (path / "adapter_config.json").exists():
        subprocess.run([a.peers or "python3", "-c", code, json.dumps(shapes), str(path)], check=True)
    return path


def timed(a, words, inputs, out, runs):
    results = []
    for k in range(runs + (1 if runs > 1 else 0)):
        results.append(run([str(word) for word in words], inputs, out))
        print(f"  {words[0]} {words[1] if len(words) > 1 else ''}: {results[-1]['wall']:.2f} s", file=sys.stderr)
    return results[1:] if runs > 1 else results


def row(name, results, error=None):
    middle = statistics.median(r["wall"] for r in results)
    walls = [r["wall"] for r in results]
    memory = f"{max(r['anonymous'] for r in results):.0f} / {max(r['resident'] for r in results):.0f}"
    print(f"| {name} | {middle:.2f} ({min(walls):.2f}–{max(walls):.2f}) | {memory} | {'' if error is None else f'{error:.5f}'} |")
    return middle


def head(title):
    print(f"\n{title}\n\n| | s | anonymous / resident, MiB | error |\n|---|---|---|---|")


def extract(a):
    base, tuned, out = a.dir / "1b-base", a.dir / "1b-tuned", a.out
    synth(a, "base", "1b", base)
    synth(a, "tuned", "1b", tuned)
    head(f"extract, rank {EXTRACTED}, 1b pair")
    for mode in ("accurate", "fast"):
        words = [a.lorakit, "extract", base, tuned, "-o", out, "--rank", EXTRACTED, "--compute", mode, "-j", a.threads, "-q"]
        results = timed(a, words, [base, tuned], out, a.runs)
        row(f"lorakit, {mode}", results, peer(a.peers, RESIDUALS, base, tuned, out) if a.peers else None)
    # mergekit takes minutes for all 16 layers: both sides do one as well.
    one = r"layers\.0\..*proj"
    ours = {}
    for mode in ("accurate", "fast"):
        words = [a.lorakit, "extract", base, tuned, "-o", out, "--rank", EXTRACTED, "--compute", mode, "-i", one, "-j", a.threads, "-q"]
        results = timed(a, words, [base, tuned], out, a.runs)
        ours[mode] = row(f"lorakit, {mode}, one layer", results, peer(a.peers, RESIDUALS, base, tuned, out) if a.peers else None)
    if a.peers and a.peer_runs:
        tool = Path(a.peers).with_name("mergekit-extract-lora")
        words = [tool, "--model", tuned, "--base-model", base, "--out-path", out, "--max-rank", EXTRACTED, "-i", one]
        theirs = row("mergekit, one layer", timed(a, words, [base, tuned], out, a.peer_runs), peer(a.peers, RESIDUALS, base, tuned, out))
        print(f"\nmergekit / lorakit, one layer: {theirs / ours['accurate']:.0f} (accurate), {theirs / ours['fast']:.0f} (fast)")


def resize(a):
    shapes = {f"unet.b{k}.m{n}": (o, i) for k, (count, o, i) in enumerate(SDXL) for n in range(count)}
    source, out = adapter(a, a.dir / "sdxl-r64", shapes, 64, 1), a.out
    head(f"resize, rank 64 → {RESIZED}, {len(shapes)} modules as in SDXL")
    row("lorakit", timed(a, [a.lorakit, "resize", source, "-o", out, "--rank", RESIZED, "-j", a.threads, "-q"], [source], out, a.runs))
    # A full SVD of everything takes many minutes: both sides do a twentieth as well.
    few = {f"unet.b{k}.m{n}": (o, i) for k, (count, o, i) in enumerate(SDXL) for n in range(max(1, count // 20))}
    source = adapter(a, a.dir / "sdxl-r64-few", few, 64, 1)
    ours = row(f"lorakit, {len(few)} modules", timed(a, [a.lorakit, "resize", source, "-o", out, "--rank", RESIZED, "-j", a.threads, "-q"], [source], out, a.runs))
    if a.peers and a.peer_runs:
        words = [a.peers, "-c", DENSE_SVD, source, RESIZED, f"{out}.safetensors"]
        theirs = row(f"full SVD of {len(few)} products (torch)", timed(a, words, [source], out, a.peer_runs))
        Path(f"{out}.safetensors").unlink()
        print(f"\nfull SVD / lorakit: {theirs / ours:.0f}")


def stack(a):
    layers = lambda count: {f"model.layers.{n}.{name}": shape for n in range(count) for name, shape in LAYER_7B.items()}
    one = [adapter(a, a.dir / f"7b-1-{seed}", layers(1), 16, seed) for seed in (1, 2)]
    all_ = [adapter(a, a.dir / f"7b-32-{seed}", layers(32), 16, seed) for seed in (1, 2)]
    head(f"stack of two rank-16 adapters → rank {STACKED}, shapes of Llama-2-7B")
    words = lambda pair: [a.lorakit, "stack", f"{pair[0]}:0.7", f"{pair[1]}:0.4", "-o", a.out, "--rank", STACKED, "-j", a.threads, "-q"]
    row("lorakit, 32 layers", timed(a, words(all_), all_, a.out, a.runs))
    ours = row("lorakit, 1 layer", timed(a, words(one), one, a.out, a.runs))
    if a.peers and a.peer_runs:
        modules = a.modules.split(",")
        seconds = peer(a.peers, PEFT_SVD, STACKED, a.modules)
        print(f"\nPEFT `add_weighted_adapter(svd)` itself, without loading or saving, {len(modules)} of the 7 modules of one layer: {seconds:.1f} s, "
              f"{seconds / ours:.0f} × lorakit's whole run over all 7")


MODULES = """
import json, sys, numpy as np
from pathlib import Path
from safetensors.numpy import save_file
n, out = int(sys.argv[1]), Path(sys.argv[2])
names = [f"model.layers.{i // 768}.mlp.experts.{i // 3 % 256}.{('gate_proj', 'up_proj', 'down_proj')[i % 3]}" for i in range(n)]
rng = np.random.default_rng(1)
new = lambda *shape: rng.standard_normal(shape).astype(np.float32)
for part in ("a", "b", "base", "tuned"):
    (out / part).mkdir(parents=True, exist_ok=True)
for part in ("a", "b"):
    tensors = {f"base_model.model.{m}.lora_{k}.weight": new(*s) for m in names for k, s in (("A", (1, 4)), ("B", (4, 1)))}
    save_file(tensors, out / part / "adapter_model.safetensors", metadata={"format": "pt"})
    json.dump({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["gate_proj", "up_proj", "down_proj"]}, open(out / part / "adapter_config.json", "w"))
for part in ("base", "tuned"):
    save_file({m + ".weight": new(4, 4) for m in names}, out / part / "model.safetensors", metadata={"format": "pt"})
    (out / part / "config.json").write_text("{}")
"""


# The same experts as stacks, and adapters of them as PEFT 0.18 and Unsloth packed them: swapped, B expert by expert.
STACKS = """
import json, sys, numpy as np
from pathlib import Path
from safetensors.numpy import save_file
layers, out, experts, rank = int(sys.argv[1]) // 768, Path(sys.argv[2]), 256, 2
rng = np.random.default_rng(2)
new = lambda *shape: rng.standard_normal(shape).astype(np.float32)
(out / "stacks").mkdir(parents=True, exist_ok=True)
stacks = {"gate_up_proj": (8, 4), "down_proj": (4, 4)}
save_file({f"model.layers.{i}.mlp.experts.{name}": new(experts, *shape) for i in range(layers) for name, shape in stacks.items()},
          out / "stacks" / "model.safetensors", metadata={"format": "pt"})
json.dump({"model_type": "qwen3_moe", "hidden_size": 4, "num_experts": experts}, open(out / "stacks" / "config.json", "w"))
for part in ("p", "q"):
    (out / part).mkdir(parents=True, exist_ok=True)
    keys = {"gate_up_proj": "experts.base_layer", "down_proj": "experts"}
    shapes = lambda o, i: (("A", (experts * rank, o)), ("B", (i, rank * experts)))
    tensors = {f"base_model.model.model.layers.{n}.mlp.{keys[name]}.lora_{k}.weight": new(*s)
               for n in range(layers) for name, shape in stacks.items() for k, s in shapes(*shape)}
    save_file(tensors, out / part / "adapter_model.safetensors", metadata={"format": "pt"})
    json.dump({"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": [], "peft_version": "0.18.1",
               "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "lora_B_layout": "grouped_by_expert"},
              open(out / part / "adapter_config.json", "w"))
"""


def modules(a):
    """Seconds of every verb for 10 000, 20 000 and 40 000 modules of [4, 4]: linear is 2 and 4 times. DeepSeek-V3 has 44 500."""
    print("\n| verb | 10 000 | 20 000 | 40 000 | 20 000 / 10 000 |\n|---|---|---|---|---|")
    counts = (10_000, 20_000, 40_000)
    for count in counts:
        if not (a.dir / f"modules-{count}" / "tuned" / "config.json").exists():
            for script in (MODULES, STACKS):
                subprocess.run([a.peers or "python3", "-c", script, str(count), str(a.dir / f"modules-{count}")], check=True)
    for verb, parts, options in (("merge", "base a", ""), ("stack", "a b", ""), ("stack", "a b", "--rank 1"), ("resize", "a", "--energy 0.9"), ("extract", "base tuned", "--rank 1"),
                              ("convert", "a", "--to mlx"), ("inspect", "a", "--json"), ("merge", "stacks a", ""), ("merge", "base p", ""), ("merge", "stacks p", ""),
                              ("stack", "p q", ""), ("resize", "p", "--rank 1"), ("convert", "a", "--to peft --experts fused"),
                              ("convert", "p", "--to peft --experts per-expert --base {}/stacks"), ("inspect", "p", "--json --check")):
        seconds = []
        for count in counts:
            inputs = [a.dir / f"modules-{count}" / part for part in parts.split()]
            more = options.replace("{}", str(a.dir / f"modules-{count}"))
            out = [] if verb == "inspect" else ["-o", a.out, "-q"]
            seconds.append(statistics.median(r["wall"] for r in timed(a, [a.lorakit, verb, *inputs, *more.split(), "-j", a.threads, *out], inputs, a.out, a.runs)))
        print(f"| {verb} {parts} {options} | {' | '.join(f'{s:.2f}' for s in seconds)} | {seconds[1] / seconds[0]:.2f} |", flush=True)


def scaling(a):
    modules(a)
    print("| pair | rank | s | GB/s of both inputs |\n|---|---|---|---|")
    for size in a.sizes.split(","):
        base, tuned = a.dir / f"{size}-base", a.dir / f"{size}-tuned"
        synth(a, "base", size, base)
        synth(a, "tuned", size, tuned)
        gb = sum(f.stat().st_size for d in (base, tuned) for f in d.glob("*.safetensors")) / 1e9
        for rank in (8, 16, 32, 64, 128, 256):
            words = [a.lorakit, "extract", base, tuned, "-o", a.out, "--rank", rank, "-j", a.threads, "-q"]
            seconds = statistics.median(r["wall"] for r in timed(a, words, [base, tuned], a.out, a.runs))
            print(f"| {size} | {rank} | {seconds:.2f} | {gb / seconds:.2f} |", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["extract", "resize", "stack", "scaling"])
    ap.add_argument("--lorakit", type=Path, default=HERE / "../target/release/lorakit")
    ap.add_argument("--dir", type=Path, default=Path(os.environ.get("LORAKIT_BENCH_DIR", Path(os.environ.get("TMPDIR", "/tmp")) / "lorakit-bench")))
    ap.add_argument("--peers", help="python with torch, peft and mergekit")
    ap.add_argument("--runs", type=int, default=5)
    ap.add_argument("--peer-runs", type=int, default=1)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--sizes", default="tiny,1b")
    ap.add_argument("--modules", default="q_proj", help="stack: modules of the layer that PEFT combines")
    a = ap.parse_args()
    a.dir.mkdir(parents=True, exist_ok=True)
    a.out = a.dir / f"out-{os.getpid()}"
    print(machine())
    try:
        {"extract": extract, "resize": resize, "stack": stack, "scaling": scaling}[a.what](a)
    finally:
        shutil.rmtree(a.out, ignore_errors=True)


if __name__ == "__main__":
    main()
