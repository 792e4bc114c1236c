"""Adapters as mappings of module paths to changes."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Tuple, Union


from . import _lorakit
from ._arrays import Maps
from ._errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np


class Module:
    """What an adapter does to one module."""

    def __init__(self, adapter: "Adapter", facts: Dict[str, Any]) -> None:
        self._adapter = adapter
        self._facts = facts

    @property
    def path(self) -> str:
        """Its path in the model."""
        return str(self._facts["path"])

    @property
    def method(self) -> str:
        """How it is changed: ``LoRA``, ``DoRA``, ``LoHa`` …"""
        return str(self._facts["method"])

    @property
    def rank(self) -> Optional[int]:
        """r, where the method has one."""
        rank = self._facts.get("rank")
        return None if rank is None else int(rank)

    @property
    def alpha(self) -> Optional[float]:
        """α, where the method has one."""
        alpha = self._facts.get("alpha")
        return None if alpha is None else float(alpha)

    @property
    def scale(self) -> Optional[float]:
        """The factor s in ΔW = s·B·A."""
        scale = self._facts.get("scale")
        return None if scale is None else float(scale)

    def _factors(self) -> "Tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
        found = self._adapter._inner.factors(self.path)
        if found is None:
            raise UnsupportedError(f"`{self.path}` is not changed by one pair of factors, but by {self.method}")
        down, up = found
        return self._adapter._maps.array(down), self._adapter._maps.array(up)

    @property
    def a(self) -> "np.ndarray[Any, Any]":
        """A, ``[r, in]``, as it is stored."""
        return self._factors()[0]

    @property
    def b(self) -> "np.ndarray[Any, Any]":
        """B, ``[out, r]``, as it is stored."""
        return self._factors()[1]

    def delta(self) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """ΔW, ``[out, in]`` in float32, scale included."""
        import numpy as np

        data, rows, cols = self._adapter._inner.delta(self.path)
        return np.frombuffer(bytearray(data), dtype=np.float32).reshape(rows, cols)

    def singular_values(self) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """The singular values of ΔW, largest first."""
        import numpy as np

        return np.array(self._adapter._inner.singular_values(self.path), dtype=np.float64)

    def to_dict(self) -> Dict[str, Any]:
        """All that is known of it."""
        return dict(self._facts)

    def __repr__(self) -> str:
        return f"<Module {self.path}: {self.method}, rank {self.rank}, scale {self.scale}>"


class Adapter(Mapping[str, Module]):
    """What an adapter changes, by module path."""

    def __init__(self, path: Union[str, "os.PathLike[str]"]) -> None:
        self._inner = _lorakit.Adapter(os.fspath(path))
        self._maps = Maps()
        listed: List[Dict[str, Any]] = json.loads(self._inner.modules())
        self._modules: Dict[str, Module] = {}
        for one in listed:
            self._modules.setdefault(str(one["path"]), Module(self, one))

    @property
    def dialect(self) -> str:
        """How it is written: ``peft``, ``kohya`` …"""
        return self._inner.dialect

    def __getitem__(self, path: str) -> Module:
        return self._modules[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def open_adapter(path: Union[str, "os.PathLike[str]"]) -> Adapter:
    """Open an adapter of any dialect: its modules by path, with rank, alpha, scale, factors and ΔW."""
    return Adapter(path)
