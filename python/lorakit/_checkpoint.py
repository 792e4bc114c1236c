"""Models as mappings of names to arrays."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Union


from . import _lorakit
from ._arrays import Maps

if TYPE_CHECKING:
    import numpy as np


class Checkpoint(Mapping[str, "np.ndarray[Any, Any]"]):
    """The tensors of a model by name: ``checkpoint["model.norm.weight"]`` is a view of the mapped file."""

    def __init__(self, path: Union[str, "os.PathLike[str]"]) -> None:
        self._inner = _lorakit.Checkpoint(os.fspath(path))
        self._names = dict.fromkeys(self._inner.names())
        self._maps = Maps()

    def __getitem__(self, name: str) -> "np.ndarray[Any, Any]":
        place = self._inner.place(name)
        if place is None:
            raise KeyError(name)
        return self._maps.array(place)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_checkpoint(path: Union[str, "os.PathLike[str]"]) -> Checkpoint:
    """Open a model: a folder, shards, a safetensors, GGUF, PyTorch or numpy file. Headers are read, tensors are mapped."""
    return Checkpoint(path)
