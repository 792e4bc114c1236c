#!/usr/bin/env python3
"""The timed part of race.sh: runs commands one at a time, prints a markdown table. Standard library only.

Fair play: before every run the inputs are read (warm page cache), the output of the run before is deleted and the disk
is synced, all outside of the timing; the two sides alternate, so a slow minute hits both. The output is deleted as late
as possible on purpose: on a virtual machine memory that was free for some seconds goes back to the host, and touching
it again makes any writer several times slower.

`cp -r` leaves its data in the page cache, lorakit's output is on the disk when it ends (fsync before the rename).
--fsync adds `cp -r` followed by `sync` of its files, which is the same promise.

Peak resident memory is the kernel's own maximum (wait4); peak anonymous memory is RssAnon in /proc/PID/status, sampled
every 10 ms. Mapped pages of the base are resident but not anonymous: the kernel can drop them at any time.
"""
import argparse
import fcntl
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

SAMPLE_SECONDS = 0.01
MIB = 1 << 20


def files(path):
    return sorted(f for f in Path(path).rglob("*") if f.is_file())


def size(path):
    return sum(f.stat().st_size for f in files(path))


def prepare(inputs, out):
    """Warm inputs, no output, nothing waiting to be written."""
    buffer = bytearray(4 * MIB)
    for path in inputs:
        for file in files(path):
            with open(file, "rb", buffering=0) as f:
                while f.readinto(buffer):
                    pass
    shutil.rmtree(out, ignore_errors=True)
    os.sync()


def watch(pid, peak, stop):
    """Keeps the largest RssAnon of `pid` in `peak`, in KiB."""
    while not stop.wait(SAMPLE_SECONDS):
        try:
            with open(f"/proc/{pid}/status") as f:
                text = f.read()
        except OSError:
            return
        for line in text.splitlines():
            if line.startswith("RssAnon:"):
                peak[0] = max(peak[0], int(line.split()[1]))


def run(command, inputs, out):
    prepare(inputs, out)
    peak, stop = [0], threading.Event()
    with open(os.devnull, "w") as null:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=null, stderr=subprocess.PIPE)
        watcher = threading.Thread(target=watch, args=(process.pid, peak, stop))
        watcher.start()
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    stop.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"`{' '.join(command)}` ended with {process.returncode}:\n{errors.decode(errors='replace')}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "user": usage.ru_utime, "resident": usage.ru_maxrss / 1024, "anonymous": peak[0] / 1024}


def median(runs, key="wall"):
    return statistics.median(r[key] for r in runs)


def spread(runs):
    walls = [r["wall"] for r in runs]
    return f"{median(runs):.2f} ({min(walls):.2f}–{max(walls):.2f})"


def race(size_name, rank, a):
    """Alternating runs after one warm-up of each; returns the runs by side."""
    base, adapter, out = a.dir / f"{size_name}-base", a.dir / f"{size_name}-r{rank}", a.out
    merge = [str(a.lorakit), "merge", str(base), str(adapter), "-o", str(out), "-j", str(a.threads), "-q"]
    sides = {"cp": ["cp", "-r", str(base), str(out)], "merge": merge}
    if a.old:
        sides["old"] = [str(a.old), *merge[1:]]
    if a.fsync:
        sides["cp+fsync"] = ["sh", "-c", 'cp -r "$1" "$2" && sync "$2"/*', "sh", str(base), str(out)]
    runs = {side: [] for side in sides}
    for k in range(a.runs + 1):
        for side, command in sides.items():
            result = run(command, [base, adapter], out)
            written, wanted = size(out), size(base)
            if written < wanted * 0.99:
                sys.exit(f"{side}: the output has {written} bytes, the base {wanted}")
            if k:
                runs[side].append(result)
            print(f"{size_name} r{rank} {side} {'warm-up' if k == 0 else k}: {result['wall']:.2f} s", file=sys.stderr)
    return runs


def peft(size_name, rank, a):
    base, adapter, out = a.dir / f"{size_name}-base", a.dir / f"{size_name}-r{rank}", a.out
    result = run([a.peft, str(a.peft_script), str(base), str(adapter), str(out)], [base, adapter], out)
    print(f"{size_name} r{rank} peft: {result['wall']:.2f} s", file=sys.stderr)
    return result


def machine():
    model = platform.processor() or platform.machine()
    try:
        fields = json.loads(subprocess.run(["lscpu", "-J"], capture_output=True, text=True, check=True).stdout)["lscpu"]
        model = next(f["data"] for f in fields if f["field"].startswith("Model name"))
    except (OSError, subprocess.CalledProcessError, KeyError, StopIteration, ValueError):
        pass
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {ram:.0f} GiB RAM, Linux {platform.release()}"


def races(a):
    """All races; returns the rows of the table and those about PEFT."""
    ranks, rows, peers = a.ranks.split(","), [], []
    for size_name in a.sizes.split(","):
        gb = size(a.dir / f"{size_name}-base") / 1e9
        theirs = peft(size_name, ranks[0], a) if a.peft else None
        if theirs:
            peers.append(f"| {size_name} | {ranks[0]} | {theirs['wall']:.1f} | {theirs['anonymous']:.0f} | {theirs['resident']:.0f} |")
        for rank in ranks:
            runs = race(size_name, rank, a)
            ratio = statistics.median(m["wall"] / c["wall"] for m, c in zip(runs["merge"], runs["cp"]))
            peak = {key: max(r[key] for r in runs["merge"]) for key in ("anonymous", "resident")}
            row = [size_name, f"{gb:.2f}", rank, spread(runs["cp"]), spread(runs["merge"]), f"{ratio:.2f}",
                   f"{gb / median(runs['merge']):.2f}", f"{median(runs['merge'], 'cpu'):.1f}", f"{peak['anonymous']:.0f}", f"{peak['resident']:.0f}"]
            if a.fsync:
                row[4:4] = [spread(runs["cp+fsync"])]
            if a.old:
                pairs = statistics.median(o["user"] / m["user"] for m, o in zip(runs["merge"], runs["old"]))
                row += [spread(runs["old"]), f"{median(runs['merge'], 'user'):.2f}", f"{median(runs['old'], 'user'):.2f}", f"{pairs:.2f}"]
            if theirs:
                row.append(f"{theirs['wall'] / median(runs['merge']):.1f}")
            rows.append(row)
    return rows, peers


def report(a, rows, peers):
    head = ["size", "GB", "rank", "`cp -r`, s", "lorakit, s", "ratio", "GB/s", "CPU s", "anonymous MiB", "resident MiB"]
    if a.fsync:
        head[4:4] = ["`cp -r` + fsync, s"]
    if a.old:
        head += ["old, s", "user s", "old user s", "old user / user"]
    if a.peft:
        head.append("× PEFT")
    print(f"{machine()}\n")
    print(f"Median (min–max) of {a.runs} alternating runs after a warm-up, `-j {a.threads}`; ratio = median of the pairs' "
          "lorakit / `cp -r`; memory is lorakit's largest of all runs.\n")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    if peers:
        print("\n| PEFT | rank | s | anonymous MiB | resident MiB |\n|---|---|---|---|---|\n" + "\n".join(peers))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--dir", type=Path, required=True)
    ap.add_argument("--lorakit", type=Path, required=True)
    ap.add_argument("--sizes", default="1b,3b")
    ap.add_argument("--ranks", default="16,64")
    ap.add_argument("--runs", type=int, default=5)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--fsync", action="store_true", help="also race `cp -r` followed by sync of its files")
    ap.add_argument("--old", type=Path, help="another binary, run in turn with the other sides; user times are compared in pairs")
    ap.add_argument("--peft", help="python with torch, transformers and peft")
    ap.add_argument("--peft-script", type=Path)
    a = ap.parse_args()
    a.out = a.dir / f"out-{os.getpid()}"
    lock = open(a.dir / ".lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another race runs in {a.dir}; the figures of both would be worthless")
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"note: the load of this machine is {busy:.1f}; nothing else should run", file=sys.stderr)
    try:
        rows, peers = races(a)
    finally:
        shutil.rmtree(a.out, ignore_errors=True)
    report(a, rows, peers)


if __name__ == "__main__":
    main()
