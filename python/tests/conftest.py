"""What the tests work with: the fixtures of the repository."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def base() -> Path:
    return ROOT / "fixtures/tiny/base"


@pytest.fixture
def adapter() -> Path:
    return ROOT / "fixtures/tiny/adapter"
