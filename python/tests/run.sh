#!/usr/bin/env bash
# Builds the Python package into an environment of its own and tests it: pytest, mypy --strict, stubtest.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv="${CARGO_TARGET_DIR:-target}/python-venv"
if ! python3 -m venv "$venv" || ! "$venv/bin/pip" install -q 'maturin>=1.9,<2' pytest mypy numpy ml_dtypes; then
    echo "SKIPPED: PyPI cannot be reached, so the Python package was not tested"
    exit 0
fi
export PATH="$PWD/$venv/bin:$PATH" VIRTUAL_ENV="$PWD/$venv"
maturin develop --locked
python -m pytest -q python/tests
(cd python && mypy --config-file ../pyproject.toml --python-version 3.10 lorakit ../examples/python)
# Away from the sources, so that what is installed is looked at.
(cd "$(mktemp -d)" && python -m mypy.stubtest lorakit._lorakit)
