#!/usr/bin/env python3
"""`lorakit merge` into a GGUF file against llama.cpp's own `llama-export-lora`: wall time, peak memory, size of the output.

    benches/gguf.py --base MODEL.gguf --adapter PEFT_DIR --lora ADAPTER.gguf --llama-cpp BIN_DIR [--runs 7] [--threads 2]

The sides alternate on the same base and the same adapter (as PEFT saved it, and as llama.cpp loads it). llama-export-lora writes every
merged tensor as F16; lorakit keeps the types of the base, and with `--quant f16` does the same work.
"""
import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from race import machine, run, spread

HERE = Path(__file__).resolve().parent


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--base", type=Path, required=True)
    ap.add_argument("--adapter", type=Path, required=True)
    ap.add_argument("--lora", type=Path, required=True)
    ap.add_argument("--llama-cpp", type=Path, required=True)
    ap.add_argument("--lorakit", type=Path, default=HERE / "../target/release/lorakit")
    ap.add_argument("--runs", type=int, default=7)
    ap.add_argument("--threads", type=int, default=2)
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        inputs, out = Path(scratch) / "in", Path(scratch) / "out"
        inputs.mkdir()
        (inputs / "base.gguf").write_bytes(a.base.read_bytes())
        base, merged = str(inputs / "base.gguf"), str(out / "merged.gguf")
        ours = [str(a.lorakit), "merge", base, str(a.adapter), "-o", merged, "-j", str(a.threads), "-q"]
        sides = {
            "lorakit": ours,
            "lorakit --quant f16": [*ours, "--quant", "f16"],
            "llama-export-lora": [str(a.llama_cpp / "llama-export-lora"), "-m", base, "--lora", str(a.lora), "-o", merged, "-t", str(a.threads)],
            "cp": ["cp", base, merged],
        }
        runs, sizes = {side: [] for side in sides}, {}
        for k in range(a.runs + 1):
            for side, command in sides.items():
                result = run(["sh", "-c", 'mkdir "$1" && shift && exec "$@"', "sh", str(out), *command], [inputs], out)
                sizes[side] = Path(merged).stat().st_size
                if k:
                    runs[side].append(result)
                print(f"{side} {'warm-up' if k == 0 else k}: {result['wall']:.2f} s", file=sys.stderr)
        print(f"{machine()}\n\nbase {a.base.stat().st_size / 1e6:.2f} MB; median (min–max) of {a.runs} alternating runs after a warm-up, {a.threads} threads\n")
        print("| side | s | side / lorakit | anonymous / resident, MiB | output, MB |\n|---|---|---|---|---|")
        for side, own in runs.items():
            ratio = statistics.median(r["wall"] / l["wall"] for r, l in zip(own, runs["lorakit"]))
            peak = [max(r[key] for r in own) for key in ("anonymous", "resident")]
            print(f"| {side} | {spread(own)} | {ratio:.2f} | {peak[0]:.0f} / {peak[1]:.0f} | {sizes[side] / 1e6:.2f} |")


if __name__ == "__main__":
    main()
