#!/usr/bin/env python3
"""Quantised checkpoints: `convert --dtype bf16` and `merge --keep-format` against `cp` of what they write.

    benches/quant.py [--layers 16] [--runs 5] [--threads 2] [--producer PYTHON] [--lorakit BINARY]

The checkpoints have the shapes of a 1B Llama and random codes. The sides alternate, inputs are in the page cache; medians after a
warm-up. PYTHON has torch and bitsandbytes: its own dequantiser of NF4 is timed on the CPU, without reading or writing files.
"""
import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from race import machine, run

HERE = Path(__file__).resolve().parent
HIDDEN, WIDE, KV, RANK = 2048, 8192, 512, 16
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV, HIDDEN), "self_attn.v_proj": (KV, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDE, HIDDEN), "mlp.up_proj": (WIDE, HIDDEN), "mlp.down_proj": (HIDDEN, WIDE),
}
NF4 = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0, 0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.7229568, 1.0]
# Codes of E4M3 that are no number become 0.
FINITE = bytes(0 if code & 0x7F == 0x7F else code for code in range(256))


def floats(values):
    return struct.pack(f"<{len(values)}f", *values)


def scales(count):
    return floats([0.01 + 0.001 * (at % 7) for at in range(997)]) * (count // 997 + 1)


def nf4(name, out, inner):
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [out, inner]}).encode()
    return {
        f"{name}.weight": ("U8", [out * inner // 2, 1], os.urandom(out * inner // 2)),
        f"{name}.weight.absmax": ("F32", [out * inner // 64], scales(out * inner // 64)[: out * inner // 16]),
        f"{name}.weight.quant_map": ("F32", [16], floats(NF4)),
        f"{name}.weight.quant_state.bitsandbytes__nf4": ("U8", [len(state)], state),
    }


def fp8(name, out, inner):
    blocks = (out // 128) * (inner // 128)
    return {
        f"{name}.weight": ("F8_E4M3", [out, inner], os.urandom(out * inner).translate(FINITE)),
        f"{name}.weight_scale_inv": ("F32", [out // 128, inner // 128], scales(blocks)[: 4 * blocks]),
    }


def packed(name, out, inner):
    groups = inner // 128
    return {
        f"{name}.weight_packed": ("I32", [out, inner // 8], os.urandom(out * inner // 2)),
        f"{name}.weight_scale": ("BF16", [out, groups], b"\x10\x3c" * (out * groups)),
        f"{name}.weight_shape": ("I64", [2], struct.pack("<2q", out, inner)),
    }


FORMATS = {
    "NF4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}),
    "FP8, blocks of 128": (fp8, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}),
    "INT4, groups of 128": (packed, {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {
        "targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}}}}),
}


def write(path, tensors):
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)


def model(folder, made, settings, layers):
    folder.mkdir()
    tensors = {}
    for layer in range(layers):
        for module, (out, inner) in SHAPES.items():
            tensors |= made(f"model.layers.{layer}.{module}", out, inner)
    write(folder / "model.safetensors", tensors)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": HIDDEN, "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))


def adapter(folder, layers):
    folder.mkdir()
    tensors, small = {}, b"\x80\x3a\x80\xba"
    for layer in range(layers):
        for module, (out, inner) in SHAPES.items():
            key = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{key}.lora_A.weight"] = ("BF16", [RANK, inner], small * (RANK * inner // 2))
            tensors[f"{key}.lora_B.weight"] = ("BF16", [out, RANK], small * (RANK * out // 2))
    write(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": sorted({name.split(".")[1] for name in SHAPES})}
    (folder / "adapter_config.json").write_text(json.dumps(config))


PRODUCER = """
import sys, time, torch, bitsandbytes.functional as F
torch.set_num_threads(int(sys.argv[1]))
total = 0.0
for out, inner in eval(sys.argv[2]):
    weight, state = F.quantize_4bit(torch.randn(out, inner, dtype=torch.bfloat16), quant_type="nf4", blocksize=64)
    begun = time.perf_counter(); F.dequantize_4bit(weight, state); total += time.perf_counter() - begun
print(total)
"""


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--layers", type=int, default=16)
    ap.add_argument("--runs", type=int, default=5)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--producer")
    ap.add_argument("--lorakit", default=str(HERE / "../target/release/lorakit"))
    a = ap.parse_args()
    print(machine())
    print("\n| base | command | s | `cp` of the output, s | ratio | anonymous / resident, MiB | output, GB |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        adapter(scratch / "lora", a.layers)
        for name, (made, settings) in FORMATS.items():
            base = scratch / "base"
            model(base, made, settings, a.layers)
            for command in (["convert", str(base), "--dtype", "bf16"], ["merge", str(base), str(scratch / "lora"), "--keep-format"]):
                out, copy = scratch / "out", scratch / "copy"
                ours, theirs = [], []
                for at in range(a.runs + 1):
                    shutil.rmtree(out, ignore_errors=True)
                    result = run([a.lorakit, *command, "-o", str(out), "-j", str(a.threads), "-q"], [base], out)
                    shutil.rmtree(copy, ignore_errors=True)
                    other = run(["cp", "-r", str(out), str(copy)], [out], copy)
                    shutil.rmtree(copy, ignore_errors=True)
                    if at:
                        ours.append(result)
                        theirs.append(other)
                size = sum(path.stat().st_size for path in out.iterdir()) / 1e9 if out.exists() else 0
                wall = [statistics.median(one["wall"] for one in side) for side in (ours, theirs)]
                ratio = statistics.median(one["wall"] / other["wall"] for one, other in zip(ours, theirs))
                peak = [max(one[key] for one in ours) for key in ("anonymous", "resident")]
                verb = " ".join([command[0], *command[2:]] if command[0] == "convert" else ["merge", "--keep-format"])
                print(f"| {name} | {verb} | {wall[0]:.2f} | {wall[1]:.2f} | {ratio:.2f} | {peak[0]:.0f} / {peak[1]:.0f} | {size:.2f} |", flush=True)
                shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(base)
    if a.producer:
        shapes = [shape for _ in range(a.layers) for shape in SHAPES.values()]
        took = subprocess.run([a.producer, "-c", PRODUCER, str(a.threads), repr(shapes)], capture_output=True, text=True)
        print(f"\nbitsandbytes' own dequantiser of NF4 on {a.threads} threads, in memory: {float(took.stdout.split()[-1]):.2f} s" if took.returncode == 0 else took.stderr, file=sys.stdout)


if __name__ == "__main__":
    main()
