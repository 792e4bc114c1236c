"""What differs between two runs: in the files they left, and in what they said."""

import difflib
import json
import re
import struct

# What no two runs have in common. Whole numbers and words stay.
MEASURED = [
    (re.compile(r'("(?:seconds|gb_per_second|peak_resident_bytes)":\s*)(?:null|[-+.\deE]+)'), r"\1…"),
    (re.compile(r"(?m)^(\s*time\s+)\S.*$"), r"\1…"),
]


def report(text, places):
    """What a run said, without times and memory, with words for `places` {path: word}; a JSON document a value a line."""
    text = text.decode("utf-8", "backslashreplace")
    for path, word in places.items():
        text = text.replace(str(path), word)
    if text[:1] in ("{", "["):
        try:
            text = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
        except ValueError:
            pass
    for pattern, instead in MEASURED:
        text = pattern.sub(instead, text)
    return text.splitlines()


def of_reports(old, new):
    """The lines that went, with `-`, and that came, with `+`."""
    changed = difflib.unified_diff(old, new, n=0, lineterm="")
    return [line for line in changed if not line.startswith(("---", "+++", "@@"))]


def tree(directory):
    """Everything below, `{relative path: file, or None for what is no file}`; links are not followed."""
    found = {}
    for path in sorted(directory.rglob("*")):
        plain = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(directory))] = path if plain else None
    return found


def of_trees(old, new):
    """One line for every path that one side lacks or that differs."""
    old, new = tree(old), tree(new)
    lines = [f"{path}: only {'NEW' if path in new else 'OLD'} has it" for path in sorted(old.keys() ^ new.keys())]
    for path in sorted(old.keys() & new.keys()):
        if (old[path] is None) != (new[path] is None):
            lines.append(f"{path}: a file on one side only")
        elif old[path]:
            one, two = old[path].read_bytes(), new[path].read_bytes()
            if one != two:
                lines.append(f"{path}: {first_difference(path, one, two)}")
    return lines


def first_difference(path, one, two):
    """Where two files part, in the words of their format."""
    try:
        if path.endswith(".safetensors"):
            return of_safetensors(one, two)
        if path.endswith(".json"):
            return of_values("", json.loads(one), json.loads(two)) or of_bytes(one, two)
    except (ValueError, KeyError, TypeError, struct.error):
        pass
    return of_bytes(one, two)


def of_bytes(one, two):
    """Lengths and the first byte that differs."""
    at = next((at for at, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))
    lengths = f"{len(one)} bytes" if len(one) == len(two) else f"{len(one)} bytes before, {len(two)} now"
    return f"first differing byte {at}, {lengths}"


def of_safetensors(one, two):
    """Header entries, then tensors: the first that differs, and how many do."""
    (old, old_data), (new, new_data) = header(one), header(two)
    values = of_values("", old.pop("__metadata__", None), new.pop("__metadata__", None))
    if values:
        return f"__metadata__{values}"
    names = [f"tensor `{name}` only {'now' if name in new else 'before'}" for name in sorted(old.keys() ^ new.keys())]
    if names:
        return f"{names[0]} ({len(names)} such)"
    shapes = [name for name in old if any(old[name][key] != new[name][key] for key in ["dtype", "shape"])]
    if shapes:
        before, now = (f"{entries[shapes[0]]['dtype']} {entries[shapes[0]]['shape']}" for entries in (old, new))
        return f"tensor `{shapes[0]}`: {before} before, {now} now ({len(shapes)} such)"
    differing = []
    for name in old:
        (a, b), (c, d) = old[name]["data_offsets"], new[name]["data_offsets"]
        if old_data[a:b] != new_data[c:d]:
            differing.append((name, of_bytes(old_data[a:b], new_data[c:d])))
    if differing:
        return f"tensor `{differing[0][0]}`: {differing[0][1]} ({len(differing)} of {len(old)} tensors differ)"
    return f"equal tensors, other order or padding: {of_bytes(one, two)}"


def header(data):
    """The header of a safetensors file, and its tensors' bytes."""
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]


def of_values(at, one, two):
    """The first place where two JSON values differ, or nothing."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in [*one, *(key for key in two if key not in one)]:
            if key not in one or key not in two:
                return f"{at}.{key} only {'now' if key in two else 'before'}"
            if found := of_values(f"{at}.{key}", one[key], two[key]):
                return found
        return None
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return next(filter(None, (of_values(f"{at}[{n}]", a, b) for n, (a, b) in enumerate(zip(one, two)))), None)
    return None if one == two and type(one) is type(two) else f"{at}: {short(one)} before, {short(two)} now"


def short(value):
    """A value in a line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
