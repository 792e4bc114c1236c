#!/usr/bin/env python3
"""Sums and averages of bottleneck adapters against AdapterHub's own library (adapters 1.3.0).

    python tests/peers/adapterhub.py [LORAKIT]            checks a binary
    python tests/peers/adapterhub.py --write DIR          writes the fixtures that the tests read

For random inputs the module that `stack` makes gives the sum of what the single ones give, and `--method average` gives the
tensors of `average_adapter`, bit for bit. The models are random and tiny.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import adapters
import torch
from adapters import AdapterConfig, BnConfig, ConfigUnion, PrefixTuningConfig
from safetensors.torch import load_file, save_file
from transformers import BertConfig

HIDDEN = 32
KINDS = {
    "pfeiffer": [BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=8, non_linearity="relu", original_ln_before=True)] * 2,
    "houlsby": [BnConfig(mh_adapter=True, output_adapter=True, reduction_factor=f, non_linearity="swish") for f in (8, 16)],
    "parallel": [BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=f, non_linearity="relu", is_parallel=True, scaling=s) for f, s in ((4, 4.0), (8, 2.5))],
    "compacter": [AdapterConfig.load("compacter", reduction_factor=8)] * 2,
    "compacter++": [AdapterConfig.load("compacter++", reduction_factor=8), BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=16, non_linearity="gelu", original_ln_before=True)],
    "learned": [BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=8, non_linearity="gelu", scaling=s) for s in ("learned", "channel")],
    "norm": [BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=8, non_linearity="gelu", ln_before=True)] * 2,
    "places": [BnConfig(mh_adapter=True, output_adapter=False, reduction_factor=8, non_linearity="relu", leave_out=[0]),
               BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=16, non_linearity="relu", leave_out=[1])],
    "map": [BnConfig(mh_adapter=False, output_adapter=True, reduction_factor={"0": 4, "default": 16}, non_linearity="relu")] * 2,
}
AVERAGED = {
    "pfeiffer": KINDS["pfeiffer"][0],
    "compacter": KINDS["compacter"][0],
    "prefix": PrefixTuningConfig(prefix_length=3, bottleneck_size=4),
    "prompt": AdapterConfig.load("prompt_tuning", prompt_length=4),
    "lora": AdapterConfig.load("lora", r=4),
    "ia3": AdapterConfig.load("ia3"),
    "mam": ConfigUnion(PrefixTuningConfig(prefix_length=3, bottleneck_size=4), KINDS["parallel"][0]),
}


def model():
    torch.manual_seed(1)
    config = BertConfig(hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * HIDDEN, vocab_size=40, max_position_embeddings=20)
    # Of a bare BertModel the library saves no shared parameters.
    return adapters.BertAdapterModel(config).eval()


def added(base, name, config, seed):
    base.add_adapter(name, config=config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, parameter in base.named_parameters():
            if f".{name}." in key:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return base


def saved(base, name, folder):
    folder.mkdir(parents=True, exist_ok=True)
    # A layer norm in front and a prefix stand in several places, which safetensors refuses.
    shares = any("adapter_norm_before" in key or "prefix_tuning" in key for key, _ in base.named_parameters())
    base.save_adapter(str(folder), name, use_safetensors=not shares)


def tensors(folder):
    safe = folder / "adapter.safetensors"
    return load_file(safe) if safe.exists() else torch.load(folder / "pytorch_adapter.bin")


def modules(base, name):
    return {key.rsplit(".adapters.", 1)[0]: module for key, module in base.named_modules() if key.endswith(f".adapters.{name}")}


def outputs(base, name, x):
    """What each module adds to its residual."""
    found = {}
    from adapters.context import ForwardContext
    with torch.no_grad(), ForwardContext(base, torch.zeros(1, 1, dtype=torch.long)):
        ForwardContext.get_context().shared_parameters = dict(getattr(base.base_model, "shared_parameters", {}).items())
        for place, module in modules(base, name).items():
            found[place] = module(x, torch.zeros_like(x))[0]
    return found


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(binary):
    bad = 0
    for kind, configs in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            base, weights = model(), (0.7, -1.3)
            for at, config in enumerate(configs):
                added(base, f"a{at}", config, 10 + at)
                saved(base, f"a{at}", folder / f"a{at}")
            x = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(3))
            singles = [outputs(base, f"a{at}", x) for at in range(2)]
            run(binary, "stack", *(f"{folder}/a{at}:{weight}" for at, weight in enumerate(weights)), "-o", folder / "sum")
            other = model()
            other.load_adapter(str(folder / "sum"), load_as="sum", set_active=False, use_safetensors=True)
            found = outputs(other, "sum", x)
            worst = 0.0
            for place, value in found.items():
                wanted = sum(w * single[place] for w, single in zip(weights, singles) if place in single)
                wanted = wanted if torch.is_tensor(wanted) else torch.zeros_like(value)
                worst = max(worst, ((value - wanted).abs().max() / max(wanted.abs().max(), 1e-9)).item() if wanted.abs().max() > 0 else value.abs().max().item())
            missing = {place for single in singles for place in single} - set(found)
            ok = worst < 1e-6 * 10 and not missing
            bad += not ok
            print(f"sum      {kind:12} {len(found)} places, off by {worst:.1e} of the largest{' MISSING ' + str(missing) if missing else ''} {'ok' if ok else 'BAD'}")
    for kind, config in AVERAGED.items():
        with tempfile.TemporaryDirectory() as folder:
            folder, base = Path(folder), model()
            for at in range(3):
                added(base, f"a{at}", config, 20 + at)
                saved(base, f"a{at}", folder / f"a{at}")
            for weights in (None, [1.0, 2.0, 0.5]):
                base.average_adapter("mean", [f"a{at}" for at in range(3)], weights=weights, overwrite_ok=True)
                saved(base, "mean", folder / "mean")
                words = [f"{folder}/a{at}" + (f":{weights[at]}" if weights else "") for at in range(3)]
                out = folder / ("out" + str(weights is None))
                run(binary, "stack", *words, "--method", "average", "-o", out)
                left = {key.replace(".mean.", ".N."): value for key, value in tensors(folder / "mean").items()}
                right = {key.replace(".a0.", ".N."): value for key, value in tensors(out).items()}
                off = [key for key in left if key not in right or not torch.equal(left[key], right[key])]
                ok = not off and left.keys() == right.keys()
                bad += not ok
                print(f"average  {kind:12} {len(left)} tensors, weights {weights}: {'bit for bit ok' if ok else f'BAD {off[:2]}'}")
    print("all right" if not bad else f"{bad} WRONG")
    return bad


def write(folder):
    for kind, configs in KINDS.items():
        base = model()
        x = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(3))
        expected = {"x": x}
        for at, config in enumerate(configs):
            added(base, f"a{at}", config, 10 + at)
            saved(base, f"a{at}", folder / kind / f"a{at}")
            for place, value in outputs(base, f"a{at}", x[None]).items():
                expected[f"a{at}:{place}"] = value[0].contiguous()
        save_file(expected, folder / kind / "outputs.safetensors")
    for kind, config in AVERAGED.items():
        base = model()
        for at in range(2):
            added(base, f"a{at}", config, 20 + at)
            saved(base, f"a{at}", folder / "average" / kind / f"a{at}")
        base.average_adapter("mean", ["a0", "a1"], weights=[1.0, 2.5])
        saved(base, "mean", folder / "average" / kind / "mean")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]))
    else:
        sys.exit(check(sys.argv[1] if len(sys.argv) > 1 else "target/release/lorakit"))
