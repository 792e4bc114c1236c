#!/usr/bin/env python3
"""Adapters of experts that lorakit merged and converted, loaded by transformers, PEFT and mlx-lm.

    python tests/peers/experts.py [--lorakit target/release/lorakit] [--only REGEX]

For every case of ../shared/reference/experts the logits of what lorakit wrote are compared with those of the tool that made the adapter:
* transformers: base + adapter, merged into either layout of the base (f32);
* PEFT: the adapter as `convert --experts fused` and `--experts per-expert` write it. PEFT rewrites the second while it loads it;
* mlx-lm: the adapter as `convert --to mlx` writes it.

What lorakit refuses is a row of its own and no failure; what a library cannot load is one, unless KNOWN says why.
"""
import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from models import DEFAULT_BINARY, REFERENCE, largest, load, skip

CASES = REFERENCE / "experts"
# Largest difference of logits: f32 arithmetic of another order, a router's softmax in between.
LIMIT = 2e-5
# mlx computes RMS norms and attention with fast approximations of its own.
MLX_LIMIT = 1e-3
# Families whose classes the three libraries load as language models.
FAMILIES = {"mixtral", "qwen2moe", "qwen3moe", "qwen3moesq", "deepseekv3", "gptoss"}
# Pattern of library and case → why the library itself does not give what the file says (PEFT 0.21.2: utils/transformers_weight_conversion.py).
KNOWN = [
    (r"PEFT .*deepseekv3", "PEFT takes every target that ends in gate_proj, up_proj or down_proj for experts, and loses dense layers and shared experts"),
    (r"PEFT per-expert .*gptoss", "transformers has no gpt-oss of single experts that PEFT would rewrite"),
    (r"PEFT per-expert params-square-0", "gate and up without down: PEFT names the fused pair as if down were adapted too"),
    (r"PEFT per-expert .*-patterns", "PEFT's rewriting knows one rank for all experts"),
    (r"PEFT per-expert split-mixtral-some", "PEFT's rewriting wants every expert"),
    (r"PEFT per-expert split-qwen2moe", "PEFT does not rewrite adapters of qwen2_moe"),
    (r"PEFT per-expert .*-dora", "PEFT has no DoRA on parameters"),
]


def known(what, case):
    return next((why for pattern, why in KNOWN if re.search(pattern, f"{what} {case}")), "")


class Run:
    def __init__(self, binary, scratch):
        self.binary, self.scratch, self.count = binary, Path(scratch), 0

    def lorakit(self, *words):
        """The output, or the first line of the refusal."""
        self.count += 1
        out = self.scratch / str(self.count)
        done = subprocess.run([self.binary, *map(str, words), "-o", str(out), "-q"], capture_output=True, text=True)
        return (None, done.stderr.strip().splitlines()[0]) if done.returncode else (out, "")


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def adapted(base, adapter, ids):
    return logits(PeftModel.from_pretrained(load(base, torch.float32), str(adapter)).eval(), ids)


def for_mlx(base, out):
    """gpt-oss as mlx-lm itself holds it: its loader splits MXFP4 blocks, and takes plain stacks for blocks."""
    tensors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        stem, _, leaf = name.rpartition(".")
        parts = {"gate_proj": tensor[..., ::2], "up_proj": tensor[..., 1::2]} if leaf.startswith("gate_up_proj") else {"down_proj": tensor} if leaf.startswith("down_proj") else {}
        for part, value in parts.items():
            value = value if leaf.endswith("bias") else value.transpose(1, 2)
            tensors[f"{stem}.{part}.{'bias' if leaf.endswith('bias') else 'weight'}"] = value.contiguous()
        if not parts:
            tensors[name] = tensor
    out.mkdir()
    save_file(tensors, out / "model.safetensors", {"format": "mlx"})
    (out / "config.json").write_text((base / "config.json").read_text())
    return out


def mlx_logits(base, adapter, ids):
    import mlx.core as mx
    import numpy as np
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    model, _ = load_model(base)
    if adapter:
        model = load_adapters(model, str(adapter))
    model.eval()
    return torch.from_numpy(np.array(model(mx.array(ids.tolist())).astype(mx.float32)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lorakit", default=str(DEFAULT_BINARY))
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    if not CASES.is_dir():
        skip(f"no {CASES}")
    try:
        import mlx_lm  # noqa: F401
        mlx = True
    except ImportError as missing:
        print(f"SKIPPED: mlx-lm ({missing})")
        mlx = False
    outcomes, failed = Counter(), False
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(args.lorakit, scratch)
        wide = {}

        def f32(base):
            if base not in wide:
                wide[base], problem = run.lorakit("convert", base, "--to", "safetensors", "--dtype", "f32", "--cast-all")
                assert wide[base], problem
            return wide[base]

        def mlx_base(base, family):
            if family != "gptoss":
                return f32(base)
            own = run.scratch / "mlx-gptoss"
            return own if own.is_dir() else for_mlx(f32(base), own)

        for case in sorted(path.parent for path in CASES.glob("*/case.json")):
            facts = json.loads((case / "case.json").read_text())
            if not re.search(args.only, case.name) or facts.get("family") not in FAMILIES:
                continue
            truth = case / facts.get("logits_file", "logits.safetensors")
            if not truth.is_file():
                continue
            truth = load_file(truth)
            if "adapter_logits" not in truth:
                continue
            ids, wanted, plain = truth["ids"], truth["adapter_logits"].float(), truth["base_logits"].float()
            bases = {layout: CASES / path for layout, path in facts["bases"].items()}
            adapter = case / "adapter"
            adapter = adapter if adapter.is_dir() else next(case.glob("adapter*"))
            by_mlx = facts.get("versions", {}).get("mlx_lm")

            def row(what, made, problem, compute, limit=LIMIT):
                nonlocal failed
                if not made:
                    outcomes[f"{what}: refused"] += 1
                    print(f"{what:22} {case.name:28} refused: {problem[:150]}")
                    return
                try:
                    off = largest(compute() - wanted)
                    good, said = off <= limit, f"{off:.1e} of {largest(wanted - plain):.1e}"
                except Exception as error:  # a library that cannot load what was written is an outcome
                    good, said = False, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:150] if str(error).strip() else ''}"
                why = "" if good else known(what, case.name)
                outcomes[f"{what}: {'equal' if good else 'known' if why else 'FAILED'}"] += 1
                failed |= not good and not why
                print(f"{what:22} {case.name:28} {said} {'' if good else f'KNOWN: {why}' if why else 'FAILED'}", flush=True)

            limit = MLX_LIMIT if by_mlx else LIMIT
            for layout, base in sorted(bases.items()):
                if layout == "v5" and bases["v5"] == bases.get("v4"):
                    continue
                out, problem = run.lorakit("merge", base, adapter, "--dtype", "f32")
                row(f"transformers {layout}", out, problem, lambda: logits(load(out, torch.float32), ids), limit)
            for form in ("fused", "per-expert"):
                out, problem = run.lorakit("convert", adapter, "--to", "peft", "--experts", form, "--base", bases["v5"])
                row(f"PEFT {form}", out, problem, lambda: adapted(f32(bases["v5"]), out, ids), limit)
            if mlx:
                out, problem = run.lorakit("convert", adapter, "--to", "mlx", "--base", bases["v4"])
                row("mlx-lm", out, problem, lambda: mlx_logits(mlx_base(bases["v4"], facts["family"]), out, ids), MLX_LIMIT)
    for outcome, count in sorted(outcomes.items()):
        print(f"{outcome:40} {count}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
