#!/usr/bin/env bash
# Puts manual pages and completions, made by the program in the wheel itself, into every wheel of dist/.
set -euo pipefail
cd "$(dirname "$0")/.."
for wheel in "${1:-dist}"/*.whl; do
    work="$(mktemp -d)"
    python3 -m wheel unpack "$wheel" -d "$work" > /dev/null
    root="$(echo "$work"/*)"
    share="$root/$(basename "$root").data/data/share"
    mkdir -p "$share/man/man1" "$share/bash-completion/completions" "$share/zsh/site-functions" "$share/fish/vendor_completions.d"
    program() { PYTHONPATH="$root" python3 -m lorakit "$@"; }
    program man --dir "$share/man/man1" > /dev/null
    program completions bash > "$share/bash-completion/completions/lorakit"
    program completions zsh > "$share/zsh/site-functions/_lorakit"
    program completions fish > "$share/fish/vendor_completions.d/lorakit.fish"
    find "$root" -name __pycache__ -prune -exec rm -r {} +
    rm "$wheel" && python3 -m wheel pack "$root" -d "$(dirname "$wheel")" > /dev/null
    rm -r "$work"
done
