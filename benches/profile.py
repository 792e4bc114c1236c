#!/usr/bin/env python3
"""Where a merge spends its time: samples of `perf` by part. Needs perf; the models are those that race.sh makes.

    benches/profile.py LORAKIT BASE ADAPTER [OPTION ...]

The shares are of all samples of both threads: `one pass` is decoding, product, rounding and survey of what low-rank products
change, the four after it are the same of everything else, `kernel` is the operating system (page faults, copying into the
page cache), `files` memcpy and hashing.
"""
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PARTS = [
    ("one pass", r"one_pass::"),
    ("decode", r"decode|widen"),
    ("product", r"low_rank::"),
    ("encode, survey", r"encode|survey|narrow|nearest|stochastic"),
    ("kernel", r"^\[k\]"),
    ("files", r"memmove|memcpy|blake3|sha2"),
    ("other", r""),
]


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    lorakit, base, adapter, *options = sys.argv[1:]
    place = Path(tempfile.mkdtemp(prefix="lorakit-profile-", dir=Path(base).resolve().parent))
    try:
        data = str(place / "perf.data")
        merge = [lorakit, "merge", base, adapter, "-o", str(place / "out"), "-q", *options]
        subprocess.run(["perf", "record", "-q", "-F", "2000", "-o", data, *merge], check=True)
        report = ["perf", "report", "-q", "-i", data, "--stdio", "--sort", "symbol", "--percent-limit", "0.05"]
        text = subprocess.run(report, capture_output=True, text=True, check=True).stdout
    finally:
        shutil.rmtree(place)
    shares = dict.fromkeys((part for part, _ in PARTS), 0.0)
    for share, symbol in re.findall(r"^\s*([\d.]+)%\s+(.*)$", text, re.M):
        shares[next(part for part, pattern in PARTS if re.search(pattern, symbol))] += float(share)
    print("| " + " | ".join(shares) + " |\n|" + "---|" * len(shares))
    print("| " + " | ".join(f"{share:.1f} %" for share in shares.values()) + " |")


if __name__ == "__main__":
    main()
