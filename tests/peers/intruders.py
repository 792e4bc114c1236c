#!/usr/bin/env python3
"""`resize --remove-intruders` against PEFT's `reduce_intruder_dimension`.

    python tests/peers/intruders.py [--lorakit target/release/lorakit]     checks a binary
    python tests/peers/intruders.py --write fixtures/intruders              writes the fixtures that the tests read

For every module ΔW is that of the adapter PEFT makes, to 1e-5 of its largest element. The models are random and tiny: layers of either
orientation, taller and wider than square, an embedding, rsLoRA.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.intruders import reduce_intruder_dimension
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1e-5
OPTIONS = {
    "llama": {"top_k": 10, "threshold_epsilon": 0.5, "mitigation_lambda": 0.75},
    "gpt2": {"top_k": 6, "threshold_epsilon": 0.7, "mitigation_lambda": 0.25},
}


def model(kind):
    torch.manual_seed(11)
    if kind == "llama":
        config = LlamaConfig(vocab_size=30, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2,
                             num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=False)
    else:
        config = GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in made.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def adapted(base, kind):
    torch.manual_seed(12)
    targets = ["q_proj", "o_proj", "gate_proj", "down_proj", "embed_tokens"] if kind == "llama" else ["c_attn", "c_fc", "mlp.c_proj"]
    config = LoraConfig(r=3, lora_alpha=5, use_rslora=kind == "gpt2", target_modules=targets, fan_in_fan_out=kind == "gpt2", init_lora_weights=True)
    made = get_peft_model(base, config)
    strengths = iter([0.35, 0.02, 0.25, 0.3, 0.2] * 2)
    for module in made.modules():
        if isinstance(module, LoraLayer):
            own = next(strengths)
            parts = [module.lora_A, module.lora_B] if module.lora_A else [module.lora_embedding_A, module.lora_embedding_B]
            for part in parts:
                weight = part["default"].weight if hasattr(part["default"], "weight") else part["default"]
                torch.nn.init.normal_(weight, std=own)
    return made


def reduced(made, kind):
    """ΔW of every module as PEFT reduces it, as its weight is stored; and how many intruders it saw."""
    said = []
    reduce_intruder_dimension(made, new_adapter_name="less", logging_sink=said.append, **OPTIONS[kind])
    layers = {name.removeprefix("base_model.model."): layer for name, layer in made.named_modules() if isinstance(layer, LoraLayer)}
    counts = {line.split(": ")[0].removeprefix("base_model.model."): 0 if "No" in line else int(line.split()[-1]) for line in said if ": " in line}

    def delta(layer):
        found = layer.get_delta_weight("less").detach()
        # PEFT 0.21 stores the new factors of an embedding the other way round than its own: its ΔW comes out turned.
        weight = layer.get_base_layer().weight
        return (found if found.shape == weight.shape else found.T).contiguous()

    return {name: delta(layer) for name, layer in layers.items()}, counts


def write(folder):
    for kind in OPTIONS:
        place = Path(folder) / kind
        base = model(kind)
        base.save_pretrained(place / "base")
        made = adapted(base, kind)
        made.save_pretrained(place / "adapter")
        deltas, counts = reduced(made, kind)
        save_file(deltas, place / "expected.safetensors", {"intruders": json.dumps(counts)})
        for extra in ("README.md",):
            (place / "adapter" / extra).unlink(missing_ok=True)
        print(kind, counts)


def check(binary):
    failed = False
    for kind, options in OPTIONS.items():
        with tempfile.TemporaryDirectory() as scratch:
            scratch = Path(scratch)
            base = model(kind)
            base.save_pretrained(scratch / "base")
            made = adapted(base, kind)
            made.save_pretrained(scratch / "adapter")
            wanted, counts = reduced(made, kind)
            words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
            done = subprocess.run([binary, "resize", scratch / "adapter", "--remove-intruders", "--base", scratch / "base", "-o", scratch / "out", "--json", *words],
                                  check=True, capture_output=True, text=True)
            found = {entry["module"]: len(entry["at"]) for entry in json.loads(done.stdout)["adapters"][0]["intruders"]}
            ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(scratch / "base", dtype=torch.float32), scratch / "out")
            for name, layer in ours.named_modules():
                if isinstance(layer, LoraLayer):
                    name = name.removeprefix("base_model.model.")
                    got = layer.get_delta_weight("default")
                    off = float((got - wanted[name]).abs().max() / wanted[name].abs().max())
                    good = off <= LIMIT and found.get(name, 0) == counts[name]
                    failed |= not good
                    print(f"{kind:6} {name:40} intruders {found.get(name, 0)} PEFT {counts[name]}  off by {off:.1e} {'' if good else 'FAILED'}")
    sys.exit(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lorakit", default=str(ROOT / "target/release/lorakit"))
    parser.add_argument("--write")
    args = parser.parse_args()
    write(args.write) if args.write else check(args.lorakit)
