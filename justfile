# List what can be done.
default:
    @just --list

# Does it compile?
check:
    cargo check --all-targets

# Format the code.
fmt:
    cargo fmt

# Clippy, warnings are errors.
lint:
    cargo clippy --all-targets -- -D warnings

# All tests.
test:
    cargo test

# Races: `just bench merge` against cp (and PEFT, with --peft PYTHON); `just bench extract|resize|stack|scaling` against
# mergekit, a full SVD and PEFT (with --peers PYTHON); `just bench gguf` against llama-export-lora; `just bench profile BASE ADAPTER` says where a merge spends its time; `just bench kernels` and `just bench svd` time the inner loops.
bench what="merge" *args:
    #!/usr/bin/env bash
    set -euo pipefail
    case "{{what}}" in
        merge) cargo build --release && benches/race.sh {{args}} ;;
        gguf) cargo build --release && python3 benches/gguf.py {{args}} ;;
        profile) cargo build --profile profiling && python3 benches/profile.py target/profiling/lorakit {{args}} ;;
        extract|resize|stack|scaling) cargo build --release && python3 benches/algebra.py {{what}} {{args}} ;;
        quant) cargo build --release && python3 benches/quant.py {{args}} ;;
        kernels|svd) cargo bench --bench {{what}} -- {{args}} ;;
        *) echo "unknown bench: {{what}}" >&2; exit 2 ;;
    esac

# Make the fixtures again.
fixtures:
    python3 fixtures/generate.py
    python3 fixtures/bad/generate.py

# The real peers (torch, transformers, PEFT): see tests/peers/README.md.
peers python="python3" *args:
    cargo build --release
    {{python}} tests/peers/load_tiny.py
    {{python}} tests/peers/containers.py
    {{python}} tests/peers/loaders.py
    {{python}} tests/peers/archs.py
    {{python}} tests/peers/experts.py
    {{python}} tests/peers/intruders.py
    {{python}} tests/peers/llama_cpp.py
    {{python}} tests/peers/real.py {{args}}

# Does OLD, a binary from before, do the same? Some 2100 command lines of all verbs: every output byte, exit code and report.
# A minute or two. `--only REGEX`, `--times 4`, `--strict-reports`; what is meant to differ: tests/same/allowed.txt.
same old *args:
    cargo build --release
    python3 tests/same/same.py {{old}} {{args}}

# Outputs, tables and the picture in README and docs, as the program has them today; read the diff.
docs:
    LORAKIT_UPDATE_DOCS=1 cargo test --test docs

# The documentation of the library.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

# The wheel, with the program and the module in it, for glibc 2.17 and later; and the source distribution. In dist/.
wheel:
    python3 -m venv target/venv && target/venv/bin/pip install -q 'maturin>=1.9,<2' ziglang wheel
    PATH="$PWD/target/venv/bin:$PATH" maturin build --release --zig --compatibility manylinux2014 -o dist
    PATH="$PWD/target/venv/bin:$PATH" python/add_data.sh dist
    PATH="$PWD/target/venv/bin:$PATH" maturin sdist -o dist

# Every test, with the ways that go on every system.
portable:
    LORAKIT_PORTABLE=1 cargo test --locked

# The Python package as the tests want it.
python-test:
    python/tests/run.sh

# Builds everything that is released, installs each in an empty place and runs README's commands there. In dist/.
release-check: wheel
    python/release_check.sh

# Everything that must pass before a change lands.
ci:
    bash .ci/run
