#!/usr/bin/env python3
"""The quickstart's result, loaded by transformers: merged = base + adapter.

    python tests/peers/load_tiny.py [--lorakit target/release/lorakit]
"""
import argparse
import sys
import tempfile
from pathlib import Path

import torch

from models import DEFAULT_BINARY, ROOT, adapted_logits, largest, load, logits, merge

IDS = [(7 * i + 1) % 128 for i in range(24)]
# Measured on PEFT's own merge: 2e-7 in f32, 0.0012 for the one rounding to bf16 (the adapter moves logits by 0.4).
MAX_F32, MAX_BF16 = 2e-6, 0.01
# The adapter must be seen to do something, or equal logits prove nothing.
MIN_EFFECT = 0.1


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--lorakit", type=Path, default=DEFAULT_BINARY)
    a = ap.parse_args()
    base, adapter = ROOT / "fixtures/tiny/base", ROOT / "fixtures/tiny/adapter"
    wanted = adapted_logits(base, adapter, IDS)
    effect = largest(wanted - logits(load(base, torch.float32), IDS))
    rows, failed = [], effect < MIN_EFFECT
    with tempfile.TemporaryDirectory() as scratch:
        for name, limit, options in (("f32", MAX_F32, ["--dtype", "f32"]), ("bf16", MAX_BF16, [])):
            out = Path(scratch) / name
            merge(a.lorakit, base, adapter, out, *options)
            difference = largest(logits(load(out, torch.float32), IDS) - wanted)
            failed |= not difference <= limit
            rows.append((name, difference, limit, " ".join(sorted(f.name for f in out.iterdir()))))
    print(f"largest logit difference; the adapter itself moves logits by {effect:.3f}\n")
    print("| merge | merged − (base + adapter) | accepted | files |\n|---|---|---|---|")
    for name, difference, limit, files in rows:
        print(f"| {name} | {difference:.1e} | {limit:.0e} | {files} |")
    sys.exit("FAILED" if failed else 0)


if __name__ == "__main__":
    main()
