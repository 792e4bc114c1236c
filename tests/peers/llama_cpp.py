#!/usr/bin/env python3
"""What lorakit writes for llama.cpp, run by llama.cpp: adapters, merged and converted models.

    python tests/peers/llama_cpp.py --llama-cpp BIN_DIR --converter DIR [--base HF_DIR --gguf MODEL_Q4_1.gguf | --cache DIR] [--lorakit …]

BIN_DIR holds llama-perplexity and llama-export-lora, DIR the source with convert_hf_to_gguf.py and convert_lora_to_gguf.py. The model is
SmolLM2-135M-Instruct, in Hugging Face's form and as the Q4_1 file it was made from; the adapter is the real one of the reference.

Every run predicts the same text. Of each stand the perplexity and, against the run it should agree with, the mean Kullback-Leibler
divergence of the predictions and how often the likeliest token is the same.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from models import DEFAULT_BINARY, REFERENCE, ROOT, skip
from real import find_base

CONTEXT = 256
# Rounding of a merge to F16, and the order of sums, leave this much; a merge requantised to Q4_1 is judged by what Q4_1 itself does.
CLOSE = 5e-4
# Least change of perplexity, in log: without it, agreement proves nothing.
MIN_EFFECT = 0.01


class Runs:
    def __init__(self, a, scratch):
        self.a, self.scratch, self.rows, self.failed = a, Path(scratch), [], False
        self.text = self.scratch / "text.txt"
        self.text.write_text((ROOT / "LICENSE-APACHE").read_text() + (ROOT / "LICENSE-MIT").read_text())

    def lorakit(self, name, verb, *words):
        out = self.scratch / name
        subprocess.run([str(self.a.lorakit), verb, *map(str, words), "-o", str(out), "-q"], check=True)
        return out

    def perplexity(self, name, model, *more, like=None):
        """Runs the text through `model`; keeps its predictions under `name`, and compares them with those of the run `like`."""
        tool = [str(self.a.llama_cpp / "llama-perplexity"), "-m", str(model), "-c", str(CONTEXT), "-b", str(CONTEXT), "-t", "2", "-f", str(self.text)]
        tool += [str(word) for word in more]
        kept = self.scratch / f"{name}.logits"
        done = subprocess.run([*tool, "--kl-divergence-base", str(kept)], capture_output=True, text=True)
        text = done.stdout + done.stderr
        found = re.search(r"Final estimate: PPL = ([\d.]+)", text)
        if done.returncode or not found:
            sys.exit(f"{name}: `{' '.join(tool)}` ended with {done.returncode}:\n{text[-3000:]}")
        divergence = same = None
        if like:
            done = subprocess.run([*tool, "--kl-divergence", "--kl-divergence-base", str(self.scratch / f"{like}.logits")], capture_output=True, text=True)
            text = done.stdout + done.stderr
            divergence = float(re.search(r"Mean\s+KLD:\s+(-?[\d.]+)", text).group(1))
            same = float(re.search(r"Same top p:\s+([\d.]+)", text).group(1))
        return float(found.group(1)), divergence, same

    def row(self, what, result, like="", good=True):
        ppl, divergence, same = result
        self.failed |= not good
        shown = ["", ""] if divergence is None else [f"{divergence:.6f}", f"{same:.2f} %"]
        self.rows.append((what, f"{ppl:.4f}", like, *shown, "" if good else "FAILED"))
        print("| " + " | ".join(self.rows[-1]) + " |", flush=True)


def move_between_levels(a, model, out):
    """A copy of the F16 `model` whose weights lie anywhere between the levels of Q4_1 instead of on them.

    The weights that the Q4_1 file holds in blocks are moved by up to half a step of their block. Rounding weights of any model to
    Q4_1 moves them as far, so what this does to the predictions is the error of the type itself.
    """
    import numpy as np

    sys.path.insert(0, str(a.converter / "gguf-py"))
    from gguf import GGMLQuantizationType, GGUFReader

    chance = np.random.default_rng(0)
    shutil.copy(model, out)
    moved = np.memmap(out, mode="r+", dtype=np.uint8)
    places = {tensor.name: tensor.data_offset for tensor in GGUFReader(model).tensors}
    for tensor in GGUFReader(a.gguf).tensors:
        if tensor.tensor_type != GGMLQuantizationType.Q4_1:
            continue
        # A block of 32 weights: the step and the smallest value as f16, then 16 bytes of levels (ggml's block_q4_1).
        steps = np.asarray(tensor.data).reshape(-1, 20)[:, :2].copy().view(np.float16).astype(np.float32)
        place = slice(places[tensor.name], places[tensor.name] + 2 * tensor.n_elements)
        weights = moved[place].view(np.float16).reshape(-1, 32)
        moved[place] = (weights + steps * (chance.random(weights.shape, np.float32) - 0.5)).astype(np.float16).reshape(-1).view(np.uint8)
    moved.flush()
    return out


def convert_with_llama_cpp(a, script, out, *words):
    environment = {**os.environ, "PYTHONPATH": str(a.converter / "gguf-py")}
    command = [sys.executable, str(a.converter / script), *map(str, words), "--outfile", str(out)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--llama-cpp", type=Path, default=os.environ.get("LLAMA_CPP_BIN") and Path(os.environ["LLAMA_CPP_BIN"]))
    ap.add_argument("--converter", type=Path, default=os.environ.get("LLAMA_CPP_SOURCE") and Path(os.environ["LLAMA_CPP_SOURCE"]))
    ap.add_argument("--base", type=Path)
    ap.add_argument("--gguf", type=Path, default=os.environ.get("LORAKIT_SMOLLM2_GGUF") and Path(os.environ["LORAKIT_SMOLLM2_GGUF"]))
    ap.add_argument("--cache", type=Path)
    ap.add_argument("--only")
    ap.add_argument("--lorakit", type=Path, default=DEFAULT_BINARY)
    a = ap.parse_args()
    if not (a.llama_cpp and a.converter):
        skip("llama.cpp: give --llama-cpp BIN_DIR and --converter SOURCE_DIR, or set LLAMA_CPP_BIN and LLAMA_CPP_SOURCE")
    if not a.gguf:
        skip("the Q4_1 file of SmolLM2: give --gguf FILE, or set LORAKIT_SMOLLM2_GGUF")
    base, adapter = find_base(a), REFERENCE / "real/lora-all-r16/adapter"
    if not adapter.is_dir():
        skip(f"{adapter} is not there")
    with tempfile.TemporaryDirectory() as scratch:
        runs = Runs(a, scratch)
        print("| run | perplexity | against | mean KL divergence | same likeliest token | |\n|---|---|---|---|---|---|")

        theirs = convert_with_llama_cpp(a, "convert_hf_to_gguf.py", runs.scratch / "theirs-f16.gguf", base, "--outtype", "f16")
        lora = convert_with_llama_cpp(a, "convert_lora_to_gguf.py", runs.scratch / "theirs-lora.gguf", adapter, "--base", base, "--outtype", "f32")
        plain = runs.perplexity("base", theirs)
        runs.row("F16, their conversion", plain)
        ours = runs.lorakit("ours-f16.gguf", "convert", base, "--to", "gguf", "--dtype", "f16")
        got = runs.perplexity("ours", ours, like="base")
        runs.row("F16, our conversion", got, "F16, their conversion", got[1] <= 1e-6 and got[2] == 100)

        wanted = runs.perplexity("adapted", theirs, "--lora", lora)
        effect = abs(wanted[0] / plain[0] - 1) >= MIN_EFFECT
        runs.row("F16 + adapter, their conversion", wanted, good=effect)
        ours = runs.lorakit("ours-lora.gguf", "convert", adapter, "--to", "gguf", "--base", base)
        got = runs.perplexity("ours-adapted", theirs, "--lora", ours, like="adapted")
        runs.row("F16 + adapter, our conversion", got, "F16 + adapter, their conversion", got[1] <= 1e-6)
        merged = runs.lorakit("merged-f16.gguf", "merge", theirs, adapter)
        got = runs.perplexity("merged", merged, like="adapted")
        runs.row("F16, our merge", got, "F16 + adapter, their conversion", got[1] <= CLOSE)

        # What four bits cost this model: a type whose levels are not those of the file, and Q4_1 with weights between its levels.
        other = runs.scratch / "q4-k.gguf"
        quantize = str(a.llama_cpp / "llama-quantize")
        subprocess.run([quantize, "--pure", str(merged), str(other), "q4_k_s"], check=True, capture_output=True)
        costs = {"F16, our merge, quantised to Q4_K by llama-quantize": other}
        costs["F16, our merge, weights moved by up to half a step of Q4_1"] = move_between_levels(a, merged, runs.scratch / "moved.gguf")
        for what, model in costs.items():
            costs[what] = runs.perplexity("cost", model, like="adapted")
            runs.row(what, costs[what], "F16 + adapter, their conversion")
        error_of_type = costs[what][1]

        runs.row("Q4_1", runs.perplexity("q4", a.gguf))
        runs.row("Q4_1 + adapter", runs.perplexity("q4-adapted", a.gguf, "--lora", lora))
        exported = runs.scratch / "exported.gguf"
        tool = [str(a.llama_cpp / "llama-export-lora"), "-m", str(a.gguf), "--lora", str(lora), "-o", str(exported)]
        subprocess.run(tool, check=True, capture_output=True)
        plainly = runs.perplexity("exported", exported, like="q4-adapted")
        runs.row("Q4_1 merged to F16 by llama-export-lora", plainly, "Q4_1 + adapter")
        merged = runs.lorakit("merged-q4-f16.gguf", "merge", a.gguf, adapter, "--quant", "f16")
        got = runs.perplexity("merged-q4-f16", merged, like="q4-adapted")
        runs.row("Q4_1 merged to F16 by us", got, "Q4_1 + adapter", got[1] <= 1.2 * plainly[1])
        merged = runs.lorakit("merged-q4.gguf", "merge", a.gguf, adapter)
        got = runs.perplexity("merged-q4", merged, like="q4-adapted")

        # What people do without lorakit: merge to F16, then quantise again.
        again = runs.scratch / "exported-q4.gguf"
        tool = [quantize, "--allow-requantize", "--pure", str(exported), str(again), "q4_1"]
        subprocess.run(tool, check=True, capture_output=True)
        theirs = runs.perplexity("exported-q4", again, like="q4-adapted")
        runs.row("the same, quantised to Q4_1 by llama-quantize", theirs, "Q4_1 + adapter")
        nearest = runs.lorakit("nearest.gguf", "merge", a.gguf, adapter, "--rounding", "nearest")
        runs.row("Q4_1 merged by us, to nearest", runs.perplexity("nearest", nearest, like="q4-adapted"), "Q4_1 + adapter")
        runs.row("Q4_1 merged by us", got, "Q4_1 + adapter", got[1] <= error_of_type and got[1] < theirs[1] and got[0] < theirs[0])
        eight = runs.lorakit("merged-q8.gguf", "merge", a.gguf, adapter, "--quant", "q8_0")
        got = runs.perplexity("merged-q8", eight, like="q4-adapted")
        runs.row("Q4_1 merged by us, changed weights as Q8_0", got, "Q4_1 + adapter", got[1] <= 2 * plainly[1])
    if runs.failed:
        sys.exit("FAILED")


if __name__ == "__main__":
    main()
