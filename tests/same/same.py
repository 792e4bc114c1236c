#!/usr/bin/env python3
"""Do two builds of lorakit still do the same? Runs the command lines of `lines.py` with both and compares everything.

    same.py OLD [--new target/release/lorakit]

Every byte of every output, every name, every exit code, and what was said on stdout and stderr. Exit code 1 if an output or an
exit code differs and `allowed.txt` does not list it; reports that differ are counted, and decide only with --strict-reports.
"""

import argparse
import collections
import concurrent.futures
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import differences
from lines import Lines

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SECONDS = 120
SHOWN = 12


class Allowed:
    """The differences that are meant, from a file in two sections."""

    def __init__(self, file):
        self.rules = {"outputs": [], "reports": []}
        self.used = set()
        section = None
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("[") and line.strip("[]") in self.rules:
                section = line.strip("[]")
            elif line.strip() and not line.startswith("#"):
                pattern, mark, reason = line.rpartition("  # ")
                if section is None or not mark or not reason.strip():
                    sys.exit(f"{file}: `{line}` is not `regular expression  # reason` below [outputs] or [reports]")
                self.rules[section].append(re.compile(pattern.strip()))

    def takes(self, section, line):
        """Whether a rule knows this line."""
        rule = next((rule for rule in self.rules[section] if rule.search(line)), None)
        self.used.add(rule)
        return rule is not None

    def unused(self):
        """Rules that no line needed."""
        return [rule.pattern for rules in self.rules.values() for rule in rules if rule not in self.used]


def main():
    """The whole run."""
    args = arguments()
    roots = {"fixtures": args.fixtures.resolve(), "reference": args.reference.resolve()}
    roots = {label: path for label, path in roots.items() if path.is_dir()}
    cases = [case for case in Lines(roots, args.times).cases if re.search(args.only, case.name)]
    if args.list:
        for case in cases:
            print(case.name, *(f"    lorakit {' '.join(step)}" for step in case.steps), sep="\n")
        return census(cases)
    for label in {"fixtures", "reference"} - roots.keys():
        print(f"NOT RUN: no {label} here", file=sys.stderr)
    allowed, started = Allowed(args.allowed), time.monotonic()
    binaries = [args.old.resolve(), args.new.resolve()]
    for binary in binaries:
        if not os.access(binary, os.X_OK):
            sys.exit(f"{binary} cannot be run")
    found, ran = collections.Counter(), collections.Counter()
    directory = Path(tempfile.mkdtemp(prefix="same-")).resolve()
    try:
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            places = {path: label for label, path in roots.items()}
            work = [(binaries, case, directory / str(at), places, args.keep) for at, case in enumerate(cases)]
            for case, (outputs, reports, done) in zip(cases, pool.map(compare, work)):
                judge(case, outputs, reports, allowed, found)
                ran.update(done)
    finally:
        if args.keep:
            print(f"kept: {directory}", file=sys.stderr)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    verbs = sorted({verb for verb, _ in ran}, key=lambda verb: -ran[verb, True])
    print("exit 0 in both, and refused by both:", ", ".join(f"{verb} {ran[verb, True]} + {ran[verb, False]}" for verb in verbs))
    print(f"{ran.total()} command lines in {len(cases)} cases, {time.monotonic() - started:.0f} s")
    for what in ["outputs", "reports"]:
        print(f"cases with differing {what}: {found[what]}, and {found[what, 'allowed']} that are allowed")
    if args.only == "":
        for pattern in allowed.unused():
            print(f"{args.allowed.name}: nothing differs as `{pattern}` says")
    return 1 if found["outputs"] or (args.strict_reports and found["reports"]) else 0


def arguments():
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD", help="the binary before")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--new", type=Path, default=target / "release/lorakit", help="the binary now")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name matches")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="N times as many forms for every input")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="cases at the same time")
    parser.add_argument("--list", action="store_true", help="print the command lines, run nothing")
    parser.add_argument("--keep", action="store_true", help="leave the directories")
    parser.add_argument("--strict-reports", action="store_true", help="a report that differs fails the run as well")
    parser.add_argument("--allowed", type=Path, default=HERE / "allowed.txt", help="differences that are meant")
    parser.add_argument("--fixtures", type=Path, default=ROOT / "fixtures")
    parser.add_argument("--reference", type=Path, default=ROOT / "../shared/reference")
    return parser.parse_args()


def census(cases):
    """How many command lines there are, by verb."""
    verbs = collections.Counter(step[0] for case in cases for step in case.steps)
    print(f"{verbs.total()} command lines in {len(cases)} cases:", ", ".join(f"{verb} {n}" for verb, n in verbs.most_common()))


def judge(case, outputs, reports, allowed, found):
    """Counts and prints what differs in a case."""
    for section, lines in [("outputs", outputs), ("reports", reports)]:
        meant = [allowed.takes(section, f"{case.name}: {line}") for line in lines]
        if not lines:
            continue
        if all(meant):
            found[section, "allowed"] += 1
            continue
        found[section] += 1
        new = [line for line, known in zip(lines, meant) if not known]
        for line in new[:SHOWN]:
            print(f"{section.upper().removesuffix('S')} {case.name}: {line}")
        if len(new) > SHOWN:
            print(f"{section.upper().removesuffix('S')} {case.name}: … {len(new) - SHOWN} more lines")
    sys.stdout.flush()


def compare(work):
    """One case with both binaries: differing outputs and exit codes, differing reports, and what ran."""
    binaries, case, directory, places, keep = work
    sides = [directory / name for name in ["old", "new"]]
    outputs, reports, done = [], [], collections.Counter()
    for side in sides:
        side.mkdir(parents=True)
    for step in case.steps:
        before = differences.tree(sides[1]).keys()
        (old, old_said), (new, new_said) = (run(binary, step, side, places) for binary, side in zip(binaries, sides))
        at = f"`{step[0]}` " if len(case.steps) > 1 else ""
        if old != new:
            outputs.append(f"{at}exit {old} -> {new}: {last(new_said if new else old_said)}")
            break
        done[step[0], new == 0] += 1
        reports += [line for one, two in zip(old_said, new_said) for line in differences.of_reports(one, two)]
        if new and (more := sorted(differences.tree(sides[1]).keys() - before)):
            outputs.append(f"{at}exit {new}, and left {', '.join(more[:5])}")
        # What follows a refusal would say no more than that; but `finish` is asked again.
        if new and not case.name.startswith("finish/"):
            break
    if not outputs:
        outputs += differences.of_trees(*sides)
    if not keep or not (outputs or reports):
        shutil.rmtree(directory, ignore_errors=True)
    return outputs, reports, done


def run(binary, step, directory, places):
    """Exit code, and the lines of stdout and stderr, of one command line."""
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(directory.parent), "LC_ALL": "C.UTF-8", "NO_COLOR": "1"}
    process = subprocess.Popen(
        ["lorakit", *step], executable=binary, cwd=directory, env=environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    try:
        said = process.communicate(timeout=SECONDS)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, code = process.communicate(), f"none after {SECONDS} s"
    return code, [differences.report(text, {directory: "DIRECTORY", **places}) for text in said]


def last(said):
    """The line that says most about why a run ended: the first of stderr."""
    return next((line for line in said[1] if line.strip()), "")


if __name__ == "__main__":
    sys.exit(main())
