"""Tensors of files as numpy arrays, mapped and not copied. They cannot be written to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple


from ._errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

#: Where a tensor is: file, first byte, bytes, the bytes themselves where no file has them, dtype, shape.
Place = Tuple[Path, int, int, Optional[bytes], str, "list[int]"]

_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}

#: Types that ``ml_dtypes`` adds to numpy.
_MORE = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


def dtype_of(name: str) -> "np.dtype[Any]":
    """numpy's dtype of a tensor that is stored as ``name``."""
    import numpy as np

    if name in _NAMES:
        return np.dtype(_NAMES[name])
    if name in _MORE:
        try:
            import ml_dtypes
        except ImportError:
            hint = "`pip install ml_dtypes` brings it"
            raise UnsupportedError(f"numpy has no {name} by itself", {"hint": hint}) from None
        more: "np.dtype[Any]" = np.dtype(getattr(ml_dtypes, _MORE[name]))
        return more
    raise UnsupportedError(f"numpy has no type for {name}", {"hint": "`convert` with a dtype makes plain numbers of it"})


class Maps:
    """The mapped files, each once."""

    def __init__(self) -> None:
        self._maps: Dict[Path, "np.ndarray[Any, np.dtype[np.uint8]]"] = {}

    def array(self, place: Place) -> "np.ndarray[Any, Any]":
        """The tensor at ``place``."""
        import numpy as np

        path, start, size, held, name, shape = place
        dtype = dtype_of(name)
        if held is not None:
            return np.frombuffer(bytearray(held), dtype=dtype).reshape(shape)
        if size == 0:
            return np.zeros(shape, dtype=dtype)
        if path not in self._maps:
            self._maps[path] = np.memmap(path, dtype=np.uint8, mode="r")
        found: "np.ndarray[Any, Any]" = np.asarray(self._maps[path][start : start + size]).view(dtype).reshape(shape)
        return found
