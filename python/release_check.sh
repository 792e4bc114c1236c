#!/usr/bin/env bash
# Crate, archive and checksums beside the wheel in dist/; each is installed in an empty place, and README's commands run there.
set -euo pipefail
cd "$(dirname "$0")/.."
root="$PWD" version="$(cargo pkgid | sed 's/.*[#@]//')" target="$(rustc -vV | sed -n 's/host: //p')"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
try() {
    # README's main command, with nothing on the path but the system's programs.
    local program="$1" place="$2"
    mkdir -p "$place" && cp -r fixtures/tiny "$place/tiny"
    (cd "$place" && env PATH=/usr/bin:/bin "$program" --version && env PATH=/usr/bin:/bin "$program" merge tiny/base tiny/adapter -o merged)
}

echo "== the crate"
cargo package --locked --allow-dirty --target-dir "$work/package"
cp "$work/package/package/lorakit-$version.crate" dist/
tar xf "dist/lorakit-$version.crate" -C "$work"
cargo install --locked --path "$work/lorakit-$version" --root "$work/cargo" --target-dir "$work/build"
try "$work/cargo/bin/lorakit" "$work/of-crate"

echo "== the archive"
name="lorakit-$version-$target"
mkdir -p "$work/$name/man" "$work/$name/completions"
cp "$work/cargo/bin/lorakit" README.md LICENSE-MIT LICENSE-APACHE CHANGELOG.md "$work/$name/"
"$work/cargo/bin/lorakit" man --dir "$work/$name/man"
for shell in bash zsh fish; do "$work/cargo/bin/lorakit" completions "$shell" > "$work/$name/completions/lorakit.$shell"; done
tar czf "dist/$name.tar.gz" -C "$work" "$name"
mkdir "$work/unpacked" && tar xf "dist/$name.tar.gz" -C "$work/unpacked"
try "$work/unpacked/$name/lorakit" "$work/of-archive"

echo "== the wheel and the source distribution"
for file in dist/*.whl dist/*.tar.gz; do
    case "$file" in *"$name"*) continue ;; esac
    venv="$work/venv-$(basename "$file")"
    python3 -m venv "$venv"
    case "$file" in
        # Without Rust on the path.
        *.whl) env PATH="$venv/bin:/usr/bin:/bin" "$venv/bin/pip" install -q "$file" ;;
        *) "$venv/bin/pip" install -q "$file" ;;
    esac
    try "$venv/bin/lorakit" "$work/of-$(basename "$file")"
    (cd "$work/of-$(basename "$file")" && env PATH=/usr/bin:/bin "$venv/bin/python" "$root/examples/python/merge_and_plot.py" tiny/base tiny/adapter again)
done
(cd dist && sha256sum -- *.whl *.crate *.tar.gz > SHA256SUMS && cat SHA256SUMS)
