"""What goes wrong, sorted by who is to blame."""

from __future__ import annotations

import json
from typing import Any, Mapping, Optional


class LorakitError(Exception):
    """A verb that could not be done. Nothing was written.

    ``hint`` is the way out, ``path``, ``tensor`` and ``option`` say what it is about, each ``None`` where there is none.
    """

    def __init__(self, message: str, document: Optional[Mapping[str, Any]] = None) -> None:
        super().__init__(message)
        document = document or {}
        self.hint: Optional[str] = document.get("hint")
        self.path: Optional[str] = document.get("path")
        self.tensor: Optional[str] = document.get("tensor")
        self.option: Optional[str] = document.get("option")

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n\nhint: {self.hint}" if self.hint else message


class InputError(LorakitError, OSError):
    """A file cannot be read or written."""


class MalformedError(LorakitError, ValueError):
    """A file is damaged, or not what it says it is."""


class UnsupportedError(LorakitError):
    """What is asked cannot be done with this file."""


class MismatchError(LorakitError, ValueError):
    """Two inputs do not fit each other."""


class InvalidError(LorakitError, ValueError):
    """An argument makes no sense."""


class LimitError(LorakitError):
    """A number is beyond what is accepted."""


class NumericError(LorakitError, ArithmeticError):
    """A value is not finite, or leaves the range of its type."""


_BY_KIND = {
    "io": InputError,
    "malformed": MalformedError,
    "unsupported": UnsupportedError,
    "mismatch": MismatchError,
    "invalid": InvalidError,
    "usage": InvalidError,
    "limit": LimitError,
    "numeric": NumericError,
}


def made(document: str) -> LorakitError:
    """The exception of a failure as the library describes it."""
    failure = json.loads(document)
    kind = _BY_KIND.get(failure.get("kind", ""), LorakitError)
    return kind(failure["error"], failure)
