#!/usr/bin/env bash
# lorakit merge against `cp -r` of the same checkpoint: wall time and peak memory, in paired runs.
#
#   benches/race.sh [--sizes 1b,3b] [--ranks 16,64] [--runs 5] [--threads 2] [--fsync] [--old LORAKIT] [--peft PYTHON] [-- LORAKIT]
#
# Called by `just bench merge`. LORAKIT is the binary (default: target/release/lorakit).
# LORAKIT_BENCH_DIR  where the synthetic models are made and kept, 17 GB for both sizes with an output
#                    (default: ${TMPDIR:-/tmp}/lorakit-bench)
# LORAKIT_PYTHON     a python with numpy, to make the models the first time (default: python3)
# --old LORAKIT      also time another build, and compare user times in pairs
# --peft PYTHON      also time PEFT's merge, once per size, with a python that has torch, transformers and peft
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
tools=$here/../../shared/tools
dir=${LORAKIT_BENCH_DIR:-${TMPDIR:-/tmp}/lorakit-bench}
python=${LORAKIT_PYTHON:-python3}
sizes=1b,3b ranks=16,64 lorakit=$here/../target/release/lorakit
pass=()

while [ $# -gt 0 ]; do
    case $1 in
        --sizes) sizes=$2; shift 2 ;;
        --ranks) ranks=$2; shift 2 ;;
        --runs|--threads) pass+=("$1" "$2"); shift 2 ;;
        --peft) pass+=(--peft "$2" --peft-script "$tools/bench_peft_merge.py"); shift 2 ;;
        --old) pass+=(--old "$2"); shift 2 ;;
        --fsync) pass+=(--fsync); shift ;;
        --) lorakit=${2:?"-- needs the path of a binary"}; shift 2 ;;
        *) echo "race.sh: unknown argument \`$1\`" >&2; sed -n '4p' "$0" >&2; exit 2 ;;
    esac
done

[ -x "$lorakit" ] || { echo "race.sh: no binary at $lorakit; run \`cargo build --release\` first" >&2; exit 1; }

# A model counts as made once its marker stands beside it: an interrupted run starts it anew.
make() {
    local name=$1
    shift
    [ -e "$dir/$name.done" ] && return
    if [ ! -f "$tools/synth.py" ]; then
        echo "SKIPPED: $dir/$name is not there and neither is ../shared/tools/synth.py, which makes it" >&2
        exit 1
    fi
    rm -rf "${dir:?}/$name"
    "$python" "$tools/synth.py" "$@" >&2
    touch "$dir/$name.done"
}

mkdir -p "$dir"
for size in ${sizes//,/ }; do
    make "$size-base" base "$size" "$dir/$size-base"
    for rank in ${ranks//,/ }; do
        make "$size-r$rank" adapter "$size" "$dir/$size-r$rank" --rank "$rank"
    done
done

exec python3 "$here/race.py" --dir "$dir" --lorakit "$lorakit" --sizes "$sizes" --ranks "$ranks" ${pass[@]+"${pass[@]}"}
