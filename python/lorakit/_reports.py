"""What the verbs say of their work."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple


class Report(Mapping[str, Any]):
    """A report: a mapping of the documented keys, with the everyday ones as attributes."""

    _title = "report"
    _shown: Tuple[str, ...] = ("out", "seconds", "peak_resident_bytes")

    def __init__(self, document: str) -> None:
        self._data: Dict[str, Any] = json.loads(document)

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def to_dict(self) -> Dict[str, Any]:
        """The whole document: the keys of ``docs/reference/json.md``."""
        copied: Dict[str, Any] = json.loads(json.dumps(self._data))
        return copied

    @property
    def out(self) -> Path:
        """Where the result is."""
        return Path(self._data["out"])

    @property
    def seconds(self) -> float:
        """Wall time in seconds."""
        return float(self._data.get("seconds") or 0.0)

    @property
    def notes(self) -> List[str]:
        """What is worth knowing."""
        return list(self._data.get("notes") or [])

    @property
    def verdict(self) -> str:
        """What came of it, in one sentence."""
        return self._title

    def _rows(self) -> List[Tuple[str, str]]:
        rows = [(key, self._data.get(key)) for key in self._shown]
        return [(key, _text(value)) for key, value in rows if value is not None]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.verdict}>"

    def __str__(self) -> str:
        lines = [self.verdict] + [f"  {key:<12} {value}" for key, value in self._rows()]
        return "\n".join(lines + [f"  note         {note}" for note in self.notes])

    def _repr_html_(self) -> str:
        rows = self._rows() + [("note", note) for note in self.notes]
        cells = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in rows)
        return f"<table><caption>{html.escape(self.verdict)}</caption>{cells}</table>"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


class MergeReport(Report):
    """What ``merge`` did."""

    _shown = ("out", "base", "tensors", "bytes", "seconds", "peak_resident_bytes")

    @property
    def changed(self) -> int:
        """Tensors that the adapters changed."""
        return int(self._data["tensors"]["changed"])

    @property
    def retained(self) -> Optional[float]:
        """Share of the change that is in the weights after rounding: 1 is all of it. ``None`` in dry runs."""
        survival = self._data.get("survival") or {}
        value = survival.get("retained")
        return None if value is None else float(value)

    @property
    def verdict(self) -> str:
        if self._data.get("dry_run"):
            return f"dry run: {self.changed} tensors would change"
        kept = "" if self.retained is None else f", {100 * self.retained:.4g} % of the change kept"
        return f"merged: {self.changed} tensors changed{kept}"


class _NewAdapter(Report):
    _shown = ("out", "to", "ranks", "parameters", "kept_energy", "relative_error", "bytes", "seconds")
    _done = "made"

    @property
    def kept(self) -> float:
        """Share of ‖ΔW‖² that is kept, over all modules."""
        return float(self._data["kept_energy"])

    @property
    def relative_error(self) -> float:
        """‖ΔW − result‖ ∕ ‖ΔW‖ over all modules, at most."""
        return float(self._data["relative_error"])

    @property
    def modules(self) -> List[Dict[str, Any]]:
        """One entry per module: the keys of ``modules[]`` in ``docs/reference/json.md``."""
        return list(self._data["modules"])

    @property
    def verdict(self) -> str:
        if self._data.get("averaged") is not None:
            return f"averaged: {self._data['averaged']} tensors"
        how = "exactly" if self._data.get("exact") else f"{100 * self.kept:.4g} % kept"
        return f"{self._done}: {len(self._data['modules'])} modules, {how}"


class ExtractReport(_NewAdapter):
    """What ``extract`` did."""

    _done = "extracted"


class StackReport(_NewAdapter):
    """What ``stack`` or ``subtract`` did with adapters."""

    _done = "stacked"


class ResizeReport(Report):
    """What ``resize`` did."""

    _shown = ("out", "to", "failed", "seconds")

    @property
    def adapters(self) -> List[Dict[str, Any]]:
        """One entry per adapter."""
        return list(self._data["adapters"])

    @property
    def verdict(self) -> str:
        return f"resized: {len(self.adapters)} adapters"


class ConvertReport(Report):
    """What ``convert`` did."""

    _shown = ("out", "input", "from", "to", "bytes", "seconds")

    @property
    def verdict(self) -> str:
        return f"converted: {self._data.get('to') or self._data.get('kind') or 'done'}"


class UnmergeReport(Report):
    """What ``subtract`` did with a merged model."""

    _shown = ("out", "merged", "tensors", "seconds")

    @property
    def verdict(self) -> str:
        return "taken out of the merged model"


class InspectReport(Report):
    """What a file is."""

    _shown = ("path", "kind", "dialect", "method", "parameters", "tensors", "problems")

    @property
    def problems(self) -> List[str]:
        """What is wrong with it."""
        found = self._data.get("problems")
        return list(found) if isinstance(found, list) else []

    @property
    def verdict(self) -> str:
        return f"{self._data.get('path', 'files')}: {self._data.get('kind', 'several entries')}"
