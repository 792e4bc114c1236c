"""Merging into a state dict that is in memory: the same bits as the merge of files, for it is the merge of files."""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, MutableMapping, Optional, Tuple, Union


from ._checkpoint import open_checkpoint
from ._errors import UnsupportedError
from ._reports import MergeReport
from ._verbs import Option, Weighted, merged

if TYPE_CHECKING:
    import numpy as np

#: Where files need no disk.
_MEMORY = "/dev/shm"

_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


def _is_torch(tensor: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def _numbers(name: str, tensor: Any) -> "Tuple[np.ndarray[Any, Any], str]":
    """The tensor's memory as an array of whatever numpy has of that width, and the name of its dtype."""
    import numpy as np

    if _is_torch(tensor):
        torch = sys.modules["torch"]
        if tensor.device.type != "cpu":
            raise UnsupportedError(f"tensor `{name}` is on {tensor.device}", {"hint": "`.cpu()` brings it into memory"})
        kind = _DTYPES.get(str(tensor.dtype).replace("torch.", ""))
        if kind is None:
            raise UnsupportedError(f"tensor `{name}` is {tensor.dtype}, which no safetensors file holds")
        plain = tensor.detach()
        if kind in ("BF16", "F8_E4M3", "F8_E5M2"):
            plain = plain.contiguous().view(torch.int16 if kind == "BF16" else torch.int8)
        return np.from_dlpack(plain.contiguous()), kind
    array = np.asarray(tensor) if isinstance(tensor, np.ndarray) else np.from_dlpack(tensor)
    kind = _DTYPES.get(array.dtype.name)
    if kind is None:
        raise UnsupportedError(f"tensor `{name}` is {array.dtype}, which no safetensors file holds")
    return array, kind


def _write(path: Path, tensors: "Dict[str, Tuple[np.ndarray[Any, Any], str]]", values: bool) -> None:
    """A safetensors file; without ``values`` it has its size and no contents."""
    import numpy as np

    header: Dict[str, Any] = {}
    offset = 0
    for name, (array, kind) in tensors.items():
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if values:
            for array, _ in tensors.values():
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        else:
            file.truncate(file.tell() + offset)


def _put(state: "MutableMapping[str, Any]", name: str, new: "np.ndarray[Any, Any]") -> None:
    """Writes ``new`` into the tensor that is there, or sets it."""
    import numpy as np

    old: Any = state.get(name)
    if _is_torch(old):
        torch = sys.modules["torch"]
        bits = np.array(new).view(f"int{8 * new.itemsize}")
        with torch.no_grad():
            # A view of another type of the same width keeps every bit.
            old.copy_(torch.from_dlpack(bits).view(old.dtype))
    elif isinstance(old, np.ndarray) and old.flags.writeable:
        old[...] = new
    else:
        state[name] = np.array(new)


def merge_into(
    state_dict: "MutableMapping[str, Any]",
    adapters: Union[Weighted, Iterable[Weighted]],
    *,
    config: Optional[Union[str, "os.PathLike[str]"]] = None,
    **options: Option,
) -> MergeReport:
    """Merge adapters into ``state_dict`` in place: numpy arrays, torch tensors on the CPU, or anything with ``__dlpack__``.

    The result has the bits of :func:`merge` with a file of the same tensors. ``config`` is the model's ``config.json``, which tells
    tied heads and families of experts. Only tensors that the adapters change are written, to memory where the system has a file
    system in memory.

    >>> state = model.state_dict()
    >>> merge_into(state, "adapter")
    """
    tensors = {name: _numbers(name, tensor) for name, tensor in state_dict.items()}
    listed: List[Weighted] = [adapters] if isinstance(adapters, (str, os.PathLike, tuple)) else list(adapters)
    where = _MEMORY if os.path.isdir(_MEMORY) and os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="lorakit-", dir=where) as folder:
        base, out = Path(folder) / "base", Path(folder) / "out"
        base.mkdir()
        if config is not None:
            (base / "config.json").write_bytes(Path(config).read_bytes())
        weights = base / "model.safetensors"
        _write(weights, tensors, values=False)
        planned = merged(base, listed, {**options, "out": out, "dry_run": True})
        changed = {one["name"] for one in planned["changed"]} & tensors.keys()
        # What is tied to a tensor that changes is read with it.
        _write(weights, {name: one for name, one in tensors.items() if name in changed or "embed" in name}, values=True)
        report = merged(base, listed, {**options, "out": out})
        result = open_checkpoint(out)
        for name in result:
            if name in changed or name not in tensors:
                _put(state_dict, name, result[name])
    return report
