#!/usr/bin/env python3
"""What lorakit writes, loaded by the libraries it is written for: PEFT, mlx-lm, diffusers, LyCORIS, AdapterHub, torchtune.

Each output is computed with by its library; wanted is what the adapter it was made of does, by its own library or merged by lorakit.

    python tests/peers/loaders.py [--lorakit target/release/lorakit] [--only language|diffusion|adapterhub|torchtune]

AdapterHub's library wants an older transformers, so it has an environment of its own: `pip install adapters peft torch`;
torchtune wants an older torchao: `pip install torchtune torchao==0.10.0`, with which PEFT runs nothing.
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from models import DEFAULT_BINARY, REFERENCE, adapted_logits, largest, load, logits, skip

IDS = [(7 * i + 1) % 128 for i in range(24)]
# Largest difference of logits or outputs in f32 arithmetic of another order.
LIMIT = 1e-5
# The adapter must be seen to do something, or equal numbers prove nothing.
MIN_EFFECT = 1e-3


class Bench:
    def __init__(self, binary, scratch):
        self.binary, self.scratch, self.rows, self.failed = binary, Path(scratch), [], False

    def run(self, name, verb, *words):
        out = self.scratch / name
        subprocess.run([self.binary, verb, *map(str, words), "-o", str(out), "-q"], check=True)
        return out

    def row(self, library, what, got, wanted, without):
        difference, effect = largest(got - wanted), largest(wanted - without)
        good = difference <= LIMIT and effect >= MIN_EFFECT
        self.failed |= not good
        self.rows.append((library, what, f"{difference:.1e}", f"{effect:.1e}", "" if good else "FAILED"))


def language(bench):
    """PEFT and mlx-lm on a tiny llama."""
    peft, mlx = REFERENCE / "peft", REFERENCE / "mlx"
    base = peft / "bases/llama-bf16"
    plain = logits(load(base, torch.float32), IDS)
    adapter = lambda case: peft / case / "adapter"
    merged = lambda name, path: logits(load(bench.run(name, "merge", base, path, "--dtype", "f32"), torch.float32), IDS)

    made = {
        "mlx/lora → peft": (bench.run("a", "convert", mlx / "lora/adapter", "--to", "peft"), merged("ma", mlx / "lora/adapter")),
        "mlx/dora → peft": (bench.run("b", "convert", mlx / "dora/adapter", "--to", "peft"), merged("mb", mlx / "dora/adapter")),
        "loha-r4 --as lora": (bench.run("c", "convert", adapter("loha-r4"), "--to", "peft", "--as", "lora"), adapted_logits(base, adapter("loha-r4"), IDS)),
        "lokr-r4 --as lora": (bench.run("d", "convert", adapter("lokr-r4"), "--to", "peft", "--as", "lora"), adapted_logits(base, adapter("lokr-r4"), IDS)),
        "lokr-r4, selected": (bench.run("i", "convert", adapter("lokr-r4"), "--to", "peft", "--include", "layers"), adapted_logits(base, adapter("lokr-r4"), IDS)),
        "lokr-r4-both, selected": (bench.run("j", "convert", adapter("lokr-r4-both"), "--to", "peft", "--include", "layers"), adapted_logits(base, adapter("lokr-r4-both"), IDS)),
        "resize 4 → 8": (bench.run("e", "resize", adapter("lora-patterns"), "--rank", "8"), adapted_logits(base, adapter("lora-patterns"), IDS)),
        "extract of a merge": (
            bench.run("f", "extract", bench.run("f0", "convert", base, "--to", "safetensors", "--dtype", "f32", "--cast-all"),
                      bench.run("f1", "merge", base, adapter("lora-all-r4"), "--dtype", "f32"), "--rank", "4"),
            adapted_logits(base, adapter("lora-all-r4"), IDS),
        ),
    }
    both = bench.run("g0", "merge", base, adapter("lora-all-r4"), adapter("lora-all-r4-b"), "--dtype", "f32")
    made["stack of two"] = (bench.run("g", "stack", adapter("lora-all-r4"), adapter("lora-all-r4-b")), logits(load(both, torch.float32), IDS))
    for what, (path, wanted) in made.items():
        bench.row("PEFT", what, adapted_logits(base, path, IDS), wanted, plain)

    try:
        import mlx.core as mx
        import numpy as np
        from mlx_lm.tuner.utils import load_adapters
        from mlx_lm.utils import load_model
    except ImportError as missing:
        print(f"SKIPPED: mlx-lm ({missing})")
        return
    wide = bench.run("w", "convert", base, "--to", "safetensors", "--dtype", "f32", "--cast-all")
    for at, case in enumerate(["lora-all-r4", "lora-rslora-patterns", "dora-r4"]):
        path = bench.run(f"h{at}", "convert", adapter(case), "--to", "mlx")
        model, _ = load_model(wide)
        model = load_adapters(model, str(path))
        model.eval()
        got = torch.from_numpy(np.array(model(mx.array([IDS])).astype(mx.float32)))[0]
        wanted = adapted_logits(base, adapter(case), IDS)
        bench.row("mlx-lm", f"{case} → mlx", got.reshape(wanted.shape), wanted, plain)


def diffusion(bench):
    """diffusers and LyCORIS on a tiny UNet, PEFT on its text encoder."""
    try:
        from diffusers import UNet2DConditionModel
        from lycoris import LycorisNetwork, create_lycoris_from_weights
        from peft import PeftModel
        from safetensors.torch import load_file, save_file
        from transformers import CLIPTextModel
    except ImportError as missing:
        print(f"SKIPPED: diffusers and LyCORIS ({missing})")
        return
    kohya = REFERENCE / "kohya"
    base = kohya / "base"
    unet = lambda path: UNet2DConditionModel.from_pretrained(path / "unet", torch_dtype=torch.float32).eval()

    def output(model):
        draw = torch.Generator().manual_seed(3)
        config = model.config
        image = torch.randn(1, config.in_channels, 16, 16, generator=draw)
        text = torch.randn(1, 7, config.cross_attention_dim, generator=draw)
        with torch.no_grad():
            return model(image, 5, encoder_hidden_states=text).sample

    plain = output(unet(base))
    for at, case in enumerate(["kohya-lora-r4", "kohya-locon-r8c4", "lyco-locon"]):
        source = kohya / case / "lora.safetensors"
        wanted = output(unet(bench.run(f"i{at}", "merge", base, source)))
        file = bench.run(f"j{at}.safetensors", "convert", source, "--to", "diffusers")
        model = unet(base)
        model.load_lora_adapter(str(file.parent), prefix="unet", weight_name=file.name, use_safetensors=True)
        bench.row("diffusers", f"{case} → diffusers", output(model), wanted, plain)
    for at, case in enumerate(["kohya-lora-r4", "lyco-locon", "lyco-loha", "lyco-lokr", "lyco-dora"]):
        source = kohya / case / "lora.safetensors"
        wanted = output(unet(bench.run(f"k{at}", "merge", base, source)))
        between = bench.run(f"l{at}.safetensors", "convert", source, "--to", "comfyui")
        file = bench.run(f"m{at}.safetensors", "convert", between, "--to", "kohya")
        model = unet(base)
        LycorisNetwork.LORA_PREFIX = "lora_unet"
        network, _ = create_lycoris_from_weights(1.0, str(file), model)
        network.apply_to()
        network.eval()
        bench.row("LyCORIS", f"{case} → comfyui → kohya", output(model), wanted, plain)

    encoder = lambda path: CLIPTextModel.from_pretrained(path / "text_encoder", torch_dtype=torch.float32).eval()

    def encoded(model):
        with torch.no_grad():
            return model(torch.tensor([[1, 5, 9, 3, 7, 2]])).last_hidden_state

    plain = encoded(encoder(base))
    for at, case in enumerate(["lyco-loha", "lyco-lokr", "lyco-lokr-full", "lyco-lokr-both-f4"]):
        source = kohya / case / "lora.safetensors"
        wanted = encoded(encoder(bench.run(f"t{at}", "merge", base, source)))
        made = bench.run(f"u{at}", "convert", source, "--to", "peft", "--include", "^text_encoder")
        # transformers 5 calls the modules in memory otherwise than its files, and PEFT goes by what is in memory.
        weights = made / "adapter_model.safetensors"
        if not hasattr(encoder(base), "text_model"):
            save_file({name.replace(".text_model.", "."): tensor for name, tensor in load_file(weights).items()}, weights)
            config = made / "adapter_config.json"
            config.write_text(config.read_text().replace('"text_model.', '"'))
        bench.row("PEFT", f"{case} (text encoder) → peft", encoded(PeftModel.from_pretrained(encoder(base), made)), wanted, plain)


def adapterhub(bench):
    """AdapterHub's library on a tiny llama and a tiny BERT: what PEFT's adapters became, and its own in a new file."""
    try:
        import adapters
        from transformers import AutoModel
    except ImportError as missing:
        print(f"SKIPPED: AdapterHub ({missing})")
        return

    def loaded(model, path, safe=True):
        adapters.init(model)
        info = {}
        model.load_adapter(str(path), use_safetensors=safe, set_active=True, with_head=False, loading_info=info)
        if info.get("missing_keys") or info.get("unexpected_keys"):
            sys.exit(f"{path}: {info}")
        return model.eval()

    base = REFERENCE / "peft/bases/llama-bf16"
    plain = logits(load(base, torch.float32), IDS)
    for at, (case, exclude) in enumerate([
        ("lora-exclude-regex", "none"), ("lora-layers-to-transform", "none"), ("lora-all-r4", "o_proj|gate_proj"),
        ("lora-all-r4", "o_proj|gate_proj|up_proj"), ("lora-all-r4", "o_proj|gate_proj|down_proj"),
        ("lora-rslora-patterns", "o_proj|gate_proj"), ("dora-r4", "o_proj|gate_proj"), ("ia3", "down_proj"),
    ]):
        source = REFERENCE / "peft" / case / "adapter"
        if exclude == "none":
            wanted = adapted_logits(base, source, IDS)
        elif case == "ia3":
            merged = bench.run(f"n{at}", "merge", base, source, "--dtype", "f32", "--exclude", exclude)
            wanted = logits(load(merged, torch.float32), IDS)
        else:
            wanted = adapted_logits(base, bench.run(f"n{at}", "convert", source, "--to", "peft", "--exclude", exclude), IDS)
        path = bench.run(f"o{at}", "convert", source, "--to", "adapterhub", "--base", base, "--exclude", exclude)
        got = logits(loaded(load(base, torch.float32), path), IDS)
        bench.row("AdapterHub", f"{case} without {exclude.replace('|', ', ')} → adapterhub", got, wanted, plain)

    root = REFERENCE / "adapterhub"
    bert = lambda: AutoModel.from_pretrained(root / "base-bert", dtype=torch.float32)
    words = torch.tensor([[i % bert().config.vocab_size for i in IDS]])

    def output(model):
        with torch.no_grad():
            return model(input_ids=words).last_hidden_state

    plain = output(bert().eval())
    for case in ["lora", "compacter", "houlsby-double_seq_bn", "par_bn", "pfeiffer-seq_bn", "prefix", "prompt", "seq_bn_inv", "loreft"]:
        wanted = output(loaded(bert(), root / case, safe=False))
        again = bench.run(f"p-{case}", "convert", root / case, "--to", "adapterhub")
        got = output(loaded(bert(), again))
        bench.row("AdapterHub", f"{case} in a new file", got[:, -len(IDS):], wanted[:, -len(IDS):], plain)
    peft = bench.run("q", "convert", root / "lora", "--to", "peft")
    path = bench.run("r", "convert", peft, "--to", "adapterhub", "--base", root / "base-bert")
    bench.row("AdapterHub", "lora → peft → adapterhub", output(loaded(bert(), path)), output(loaded(bert(), root / "lora", safe=False)), plain)


def torchtune(bench):
    """torchtune's own conversion to PEFT of what PEFT's adapters became: the same factors in the same order."""
    try:
        from safetensors.torch import load_file
        from torchtune.models.convert_weights import tune_to_peft_adapter_weights
        from torchtune.training.checkpointing._utils import safe_torch_load
    except ImportError as missing:
        print(f"SKIPPED: torchtune ({missing})")
        return
    base = REFERENCE / "peft/bases/llama-bf16"
    for at, case in enumerate(["lora-all-r4", "rslora-r4"]):
        source = REFERENCE / "peft" / case / "adapter"
        path = bench.run(f"s{at}", "convert", source, "--to", "torchtune", "--base", base)
        own = safe_torch_load(path / "adapter.safetensors")
        got = tune_to_peft_adapter_weights(own, num_heads=4, num_kv_heads=2, dim=64, head_dim=16)
        wanted = load_file(source / "adapter_model.safetensors")
        if got.keys() != wanted.keys():
            sys.exit(f"{path}: {got.keys() ^ wanted.keys()}")
        flat = lambda tensors: torch.cat([tensors[key].float().reshape(-1) for key in sorted(tensors)])
        bench.row("torchtune", f"{case} → torchtune", flat(got), flat(wanted), torch.zeros(()))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--lorakit", type=Path, default=DEFAULT_BINARY)
    ap.add_argument("--only", choices=["language", "diffusion", "adapterhub", "torchtune"])
    a = ap.parse_args()
    if not REFERENCE.is_dir():
        skip("the reference data is not there")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(a.lorakit, scratch)
        for part in (language, diffusion, adapterhub, torchtune):
            if a.only in (None, part.__name__):
                part(bench)
    print("| library | what it loaded | off by | effect of the adapter | |\n|---|---|---|---|---|")
    for row in bench.rows:
        print("| " + " | ".join(row) + " |")
    sys.exit("FAILED" if bench.failed else 0)


if __name__ == "__main__":
    main()
