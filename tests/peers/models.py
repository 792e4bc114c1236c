"""What both scripts need: run lorakit, load the result with transformers, hash its tensors."""
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.utils import logging  # noqa: E402

logging.disable_progress_bar()
ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT.parent / "shared" / "reference"
DEFAULT_BINARY = ROOT / "target" / "release" / "lorakit"


def skip(why):
    """Ends the script without a verdict, so that nobody takes it for one."""
    print(f"SKIPPED: {why}", file=sys.stderr)
    sys.exit(0)


def merge(binary, base, adapter, out, *options):
    """Runs `lorakit merge`; the output of an earlier run is removed first."""
    shutil.rmtree(out, ignore_errors=True)
    command = [str(binary), "merge", str(base), str(adapter), "-o", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stderr}")


def load(path, dtype):
    """The model at `path`; every tensor of the checkpoint must be used and none may be missing."""
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(key):
            sys.exit(f"{path}: transformers reports {key}: {info[key]}")
    return model.eval()


def logits(model, ids):
    """Logits at every position, as f32."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits.float()


def adapted_logits(base, adapter, ids):
    """Logits of base + unmerged adapter in f32: what a merged model should give."""
    return logits(PeftModel.from_pretrained(load(base, torch.float32), str(adapter)).eval(), ids)


def largest(difference):
    return float(difference.abs().max())


def tensor_hashes(path):
    """sha256 of the bytes of every tensor in the safetensors files of a directory."""
    hashes = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        with open(file, "rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(length))
            for name, entry in header.items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    f.seek(8 + length + begin)
                    hashes[name] = hashlib.sha256(f.read(end - begin)).hexdigest()
    return hashes
