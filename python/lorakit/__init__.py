"""Merge, extract, stack, subtract, resize, convert and inspect LoRA adapters, without torch and without a GPU.

>>> import lorakit
>>> report = lorakit.merge("base", ["style", ("detail", 0.7)], out="merged")
>>> print(report.verdict)

Every verb takes paths as strings or ``os.PathLike``, writes to ``out`` and returns a report. What goes wrong raises a
:class:`LorakitError`; ``error.hint`` is the way out. Nothing is left behind then, nor after a ``KeyboardInterrupt``.
"""

from ._adapter import Adapter, Module, open_adapter
from ._checkpoint import Checkpoint, open_checkpoint
from ._errors import (
    InputError,
    InvalidError,
    LimitError,
    LorakitError,
    MalformedError,
    MismatchError,
    NumericError,
    UnsupportedError,
)
from ._lorakit import __version__
from ._memory import merge_into
from ._reports import (
    ConvertReport,
    ExtractReport,
    InspectReport,
    MergeReport,
    Report,
    ResizeReport,
    StackReport,
)
from ._verbs import convert, extract, inspect, merge, resize, stack, subtract

__all__ = [
    "Adapter",
    "Checkpoint",
    "ConvertReport",
    "ExtractReport",
    "InputError",
    "InspectReport",
    "InvalidError",
    "LimitError",
    "LorakitError",
    "MalformedError",
    "MergeReport",
    "MismatchError",
    "Module",
    "NumericError",
    "Report",
    "ResizeReport",
    "StackReport",
    "UnsupportedError",
    "__version__",
    "convert",
    "extract",
    "inspect",
    "merge",
    "merge_into",
    "open_adapter",
    "open_checkpoint",
    "resize",
    "stack",
    "subtract",
]
