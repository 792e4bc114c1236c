#!/usr/bin/env python3
"""Files of torch.save and numpy.savez, converted: every tensor is the one torch or numpy reads.

    python tests/peers/containers.py [--lorakit target/release/lorakit]
"""
import argparse
import collections
import datetime
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from models import DEFAULT_BINARY

DTYPES = """float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool uint16 uint32 uint64 complex64
float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu""".split()


class Runs:
    """Asks for a function when it is unpickled."""

    def __reduce__(self):
        return os.system, ("true",)


def good():
    """Name, object, the tensors it stands for."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3))
    state = layers.state_dict()
    yield "state", state, state
    optimiser = torch.optim.AdamW(layers.parameters())
    layers(torch.randn(2, 5)).sum().backward()
    optimiser.step()
    beside = {
        "optimizer": optimiser.state_dict(), "args": argparse.Namespace(lr=0.1, path=pathlib.Path("x")),
        "loss": np.float64(1.5), "array": np.arange(3), "rng_state": torch.get_rng_state(), "dtype": torch.float16,
        "when": datetime.datetime(2026, 1, 1), "sets": {1, 2}, "bytes": b"b", "device": torch.device("cpu"),
        "size": torch.Size([1, 2]), "big": 1 << 100, "lists": collections.defaultdict(list, {"a": [1]}),
    }
    yield "training", {"epoch": 3, "model": state, **beside}, state
    yield "lightning", {"state_dict": collections.OrderedDict(state), **beside}, state
    block = torch.randn(4, 5, 6)
    views = {
        "permuted": block.permute(2, 0, 1), "stepped": block[1:3, ::2], "expanded": torch.randn(1, 3).expand(4, 3),
        "unsqueezed": block[:, None, 2], "scalar": block[0, 0, 0], "nothing": block[:0], "column": block[:, :, 3],
        "windows": block.unfold(2, 2, 2), "channels": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    yield "views", views, views
    line = torch.randn(20)
    shared = {"head": line[:10], "tail": line[10:], "all": line, "copy": line[3:7].clone()}
    yield "shared", shared, shared
    parameters = {"p": torch.nn.Parameter(torch.randn(3, 3)), "b": torch.nn.Buffer(torch.randn(2)), "t": torch.randn(3)}
    parameters["t"].mark = "an attribute"
    yield "parameters", parameters, {name: tensor.detach() for name, tensor in parameters.items()}
    dtypes = {name: torch.randint(0, 2, (3, 4)).to(torch.float32).to(getattr(torch, name)) for name in DTYPES}
    yield "dtypes", dtypes, dtypes
    nested = {"q": {"weight": torch.randn(2, 2)}, "list": [torch.randn(1), torch.randn(2)], 768: torch.randn(2)}
    named = {"q.weight": nested["q"]["weight"], "list.0": nested["list"][0], "list.1": nested["list"][1], "768": nested[768]}
    yield "nested", nested, named


def bad():
    """Name, object, what the refusal must say."""
    yield "runs", {"state_dict": {"w": torch.ones(2)}, "x": Runs()}, "posix.system"
    yield "module", torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"
    yield "sparse", {"s": torch.eye(3).to_sparse()}, "sparse"
    yield "complex128", {"c": torch.randn(2, dtype=torch.complex128)}, "ComplexDouble"
    yield "negative", {"n": torch._neg_view(torch.randn(3))}, "lazy view"
    yield "conjugate", {"c": torch.randn(3, dtype=torch.complex64).conj()}, "lazy view"
    yield "meta", {"m": torch.empty(2, device="meta")}, "meta"


def arrays():
    """Arrays that numpy.savez takes."""
    six = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {
        "rows": six, "columns": np.asfortranarray(six.astype(np.float16)), "big": np.arange(4, dtype=">i4"),
        "complex": np.array([1 + 2j, 3 - 1j], dtype=">c8"), "nothing": np.zeros((0, 3)), "scalar": np.float32(3),
        "flags": np.array([True, False]), "zeros": np.zeros((500, 500)),
    }


def raw(tensor):
    tensor = tensor.detach().contiguous().clone().reshape(-1)
    return tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def same(found, wanted):
    facts = lambda tensors: {name: (t.dtype, tuple(t.shape), raw(t)) for name, t in tensors.items()}
    return facts(found) == facts(wanted)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--lorakit", type=Path, default=DEFAULT_BINARY)
    a = ap.parse_args()
    warnings.simplefilter("ignore")
    failed, count = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        file, out = Path(scratch) / "x.pt", Path(scratch) / "out.safetensors"

        def convert(source):
            command = [a.lorakit, "convert", source, "-o", out, "--force", "-q"]
            return subprocess.run(command, capture_output=True, text=True)

        for name, value, tensors in good():
            for protocol in (2, 3, 4, 5):
                for archive in (True, False):
                    if not archive and name == "dtypes":
                        value = {key: t for key, t in value.items() if "uint" not in key or key == "uint8"}
                        value = {key: t for key, t in value.items() if "float8" not in key}
                    torch.save(value, file, pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
                    run = convert(file)
                    wanted = {key: tensors[key] for key in value} if name == "dtypes" else tensors
                    count += 1
                    if run.returncode or not same(load_file(out), wanted):
                        failed.append(f"{name}, protocol {protocol}, {'zip' if archive else 'legacy'}: {run.stderr}")
                if name == "dtypes":
                    value = tensors
        for name, value, reason in bad():
            torch.save(value, file)
            run = convert(file)
            count += 1
            if run.returncode != 1 or reason not in run.stderr:
                failed.append(f"{name} is not refused for `{reason}`: {run.returncode} {run.stderr}")
        for save in (np.savez, np.savez_compressed):
            save(file.with_suffix(".npz"), **arrays())
            run = convert(file.with_suffix(".npz"))
            wanted = {
                name: torch.from_numpy(np.array(array, dtype=np.asarray(array).dtype.newbyteorder("="), order="C"))
                for name, array in arrays().items()
            }
            count += 1
            if run.returncode or not same(load_file(out), wanted):
                failed.append(f"{save.__name__}: {run.stderr}")
    print(f"{count} files of torch {torch.__version__} and numpy {np.__version__}, {len(failed)} failed")
    sys.exit("\n".join(failed) if failed else 0)


if __name__ == "__main__":
    main()
