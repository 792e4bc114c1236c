"""The verbs. Every option of the program is a keyword: ``--keep-format`` is ``keep_format=True``, ``--include X`` is ``include="X"``."""

from __future__ import annotations

import os
from typing import Callable, Iterable, List, Optional, Sequence, Tuple, Union

from . import _lorakit
from ._reports import (
    ConvertReport,
    ExtractReport,
    InspectReport,
    MergeReport,
    ResizeReport,
    StackReport,
    UnmergeReport,
)

PathLike = Union[str, "os.PathLike[str]"]
#: An adapter, or one with a weight.
Weighted = Union[PathLike, Tuple[PathLike, float]]
#: Hears how far a run is: bytes done, bytes in all.
Progress = Callable[[int, int], object]
#: The value of an option.
Option = Union[None, bool, int, float, str, "os.PathLike[str]", Sequence[Union[str, int, float, "os.PathLike[str]"]]]


def _path(path: PathLike) -> str:
    text = os.fspath(path)
    # What begins with a dash is an option elsewhere.
    return os.path.join(os.curdir, text) if text.startswith("-") else text


def _weighted(adapter: Weighted) -> str:
    if isinstance(adapter, tuple):
        path, weight = adapter
        return f"{_path(path)}:{float(weight)!r}"
    return _path(adapter)


def _several(adapters: Union[Weighted, Iterable[Weighted]]) -> List[str]:
    if isinstance(adapters, (str, os.PathLike)):
        return [_path(adapters)]
    if isinstance(adapters, tuple) and len(adapters) == 2 and isinstance(adapters[1], (int, float)):
        return [_weighted((adapters[0], adapters[1]))]
    return [_weighted(adapter) for adapter in adapters]


def _options(options: "dict[str, Option]") -> List[str]:
    words: List[str] = []
    for name, value in options.items():
        flag = "--" + name.rstrip("_").replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            words.append(flag)
            continue
        many = [value] if isinstance(value, (str, int, float, os.PathLike)) else list(value)
        words.extend(f"{flag}={os.fspath(one) if isinstance(one, os.PathLike) else one}" for one in many)
    return words


def merged(base: PathLike, adapters: Union[Weighted, Iterable[Weighted]], options: "dict[str, Option]") -> MergeReport:
    """A merge whose options are collected already."""
    return MergeReport(_run("merge", [_path(base), *_several(adapters)], options))


def _run(verb: str, words: Sequence[str], options: "dict[str, Option]", progress: Optional[Progress] = None) -> str:
    line = ["lorakit", verb, *_options(options), "--json", "--", *words]
    return _lorakit.run(line, progress)


def merge(
    base: PathLike,
    adapters: Union[Weighted, Iterable[Weighted]],
    *,
    out: PathLike,
    dtype: Optional[str] = None,
    progress: Optional[Progress] = None,
    **options: Option,
) -> MergeReport:
    """Add adapters to the weights of a model: W′ = W + Σ wᵢ·ΔWᵢ.

    ``base`` is a folder, a safetensors or GGUF file, or ``org/name`` in the Hugging Face cache; ``adapters`` one adapter, one with a
    weight ``(path, 0.7)``, or several. ``dtype`` casts the whole model, as ``"bf16"``. ``progress`` hears bytes done and bytes in all.

    >>> merge("base", ["style", ("detail", 0.7)], out="merged")
    """
    options = {"out": os.fspath(out), "dtype": dtype, **options}
    return MergeReport(_run("merge", [_path(base), *_several(adapters)], options, progress))


def extract(
    base: PathLike,
    tuned: PathLike,
    *,
    out: PathLike,
    rank: Optional[int] = None,
    progress: Optional[Progress] = None,
    **options: Option,
) -> ExtractReport:
    """Turn the change between two models into a LoRA of ``rank``, with a measured error.

    Without a way to choose ranks (``rank``, ``energy``, ``max_error``, ``max_size`` …) each ends at the rounding of ``tuned``.
    """
    options = {"out": os.fspath(out), "rank": rank, **options}
    return ExtractReport(_run("extract", [_path(base), _path(tuned)], options, progress))


def stack(
    adapters: Union[Weighted, Iterable[Weighted]],
    *,
    out: PathLike,
    rank: Optional[int] = None,
    method: Optional[str] = None,
    progress: Optional[Progress] = None,
    **options: Option,
) -> StackReport:
    """Make one adapter of several: their weighted sum, exactly, or cut to ``rank``."""
    options = {"out": os.fspath(out), "rank": rank, "method": method, **options}
    return StackReport(_run("stack", _several(adapters), options, progress))


def subtract(
    first: PathLike,
    others: Union[Weighted, Iterable[Weighted]],
    *,
    out: PathLike,
    progress: Optional[Progress] = None,
    **options: Option,
) -> Union[StackReport, UnmergeReport]:
    """Subtract adapters from an adapter, or take them out of a merged model (with ``base=`` bit for bit)."""
    options = {"out": os.fspath(out), **options}
    document = _run("subtract", [_path(first), *_several(others)], options, progress)
    report = StackReport(document)
    return report if "modules" in report else UnmergeReport(document)


def resize(
    adapters: Union[PathLike, Iterable[PathLike]],
    *,
    out: PathLike,
    rank: Optional[int] = None,
    progress: Optional[Progress] = None,
    **options: Option,
) -> ResizeReport:
    """Lower or raise the rank of an adapter, or of all in a folder or list."""
    options = {"out": os.fspath(out), "rank": rank, **options}
    return ResizeReport(_run("resize", _several(adapters), options, progress))


def convert(
    path: PathLike,
    *,
    out: PathLike,
    to: Optional[str] = None,
    dtype: Optional[str] = None,
    quant: Optional[str] = None,
    progress: Optional[Progress] = None,
    **options: Option,
) -> ConvertReport:
    """Write an adapter in another dialect (``to="kohya"``), or a model in another container, dtype or quantisation."""
    options = {"out": os.fspath(out), "to": to, "dtype": dtype, "quant": quant, **options}
    return ConvertReport(_run("convert", [_path(path)], options, progress))


def inspect(path: Union[PathLike, Iterable[PathLike]], **options: Option) -> InspectReport:
    """What a file is: format, method, modules, ranks, scales, problems. ``check=True`` reads the values too."""
    return InspectReport(_run("inspect", _several(path), dict(options)))


__all__ = ["convert", "extract", "inspect", "merge", "resize", "stack", "subtract"]
