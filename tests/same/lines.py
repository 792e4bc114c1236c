"""Which command lines are run: rules over what lies in `fixtures/` and, where present, in the reference data.

A case is one or several command lines that run in one empty directory, one after the other. Inputs are absolute paths, outputs
relative ones. Every input gets a few of the forms that apply, in turn one of each verb, beginning at a place that its name gives:
a new fixture does not move the choice of the others. `times` as many forms run on request; all together are 38 000.
"""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path

# Dialects of language models, and of diffusion pipelines: others are refused, which two forms show.
LANGUAGE = ["peft", "mlx", "gguf", "adapterhub", "torchtune", "safetensors"]
DIFFUSION = ["kohya", "comfyui", "diffusers", "xlabs", "safetensors", "peft"]
# Dialects whose adapter is one file.
FILES = {"kohya": "out.safetensors", "comfyui": "out.safetensors", "gguf": "out.gguf"}

MERGES = [
    ["--dtype", "f32"],
    ["--dtype", "bf16", "--json"],
    ["--rounding", "peft-safe"],
    ["--rounding", "stochastic", "--seed", "7", "--dtype", "bf16"],
    ["--dtype", "f16", "--cast-all", "--json"],
    ["--dtype", "f8_e4m3"],
    ["--max-shard-size", "60kB"],
    ["--max-memory", "1MB", "-j", "1"],
    ["--dry-run", "-v"],
    ["--hash-base", "--json", "-v"],
    ["--include", r"layers\.0\.|blocks\.0\."],
    ["--weight-for", "q_proj|to_q|query=0.25", "--allow-unused", "*"],
]
CASTS = [
    ["--json"],
    ["--dtype", "bf16"],
    ["--dtype", "f16", "--json"],
    ["--dtype", "f32", "--max-shard-size", "100kB"],
    ["--dtype", "f8_e4m3"],
    ["--rounding", "stochastic", "--seed", "3", "--dtype", "f16"],
    ["--dtype", "f8_e5m2", "--exclude", "norm|embed"],
]
QUANTS = ["f32", "f16", "q8_0", "q4_k_m", "q5_1", "q4_0", "q6_k", "q3_k_m", "iq4_nl", "q2_k", "q5_k_s"]
INSPECTS = [[], ["--json"], ["--tensors"], ["-v"], ["--check"], ["--json", "--tensors", "--check"]]
RANKS = [
    ["--rank", "2"],
    ["--energy", "0.9", "--json"],
    ["--max-error", "0.3"],
    ["--max-size", "20kB"],
    ["--max-params", "3000", "--json"],
    ["--noise"],
    ["--rank-method", "sv_ratio", "--rank-param", "3"],
    ["--rank-method", "sv_fro", "--rank-param", "0.9"],
    ["--rank-method", "sv_cumulative", "--rank-param", "0.8", "--max-rank", "3"],
    ["--rank", "4", "--conv-rank", "2", "--dtype", "bf16"],
]
RESIZES = RANKS + [
    ["--rank", "24", "--uniform-rank"],
    ["--rank", "3", "--alpha", "6", "--json"],
    ["--rank", "2", "--to", "mlx"],
    ["--rank-method", "sv_ratio", "--rank-param", "3", "--compat", "kohya"],
    ["--energy", "0.95", "--dry-run"],
]
EXTRACTS = RANKS + [
    ["--rank", "4", "--compute", "fast", "--json"],
    ["--rank", "3", "--alpha", "6"],
    ["--energy", "0.9", "--uniform-rank"],
    ["--rank", "4", "--full", "lm_head|embed", "--skip", "norm"],
    ["--rank", "2", "--to", "mlx"],
    ["--rank", "2", "--dtype", "f16", "--dry-run", "--json"],
]
DENSE = ["--rank", "4", "--density", "0.5"]
STACKS = [
    [],
    ["--rank", "4", "--json"],
    ["--energy", "0.9"],
    ["--max-error", "0.2", "--compute", "fast"],
    ["--max-params", "4000"],
    ["--method", "ties", *DENSE],
    ["--method", "ties", *DENSE, "--majority", "frequency", "--json"],
    ["--method", "dare", *DENSE, "--seed", "5"],
    ["--method", "dare-ties", *DENSE],
    ["--method", "magnitude", *DENSE],
    ["--method", "factor-average"],
    ["--alpha", "3", "--dtype", "bf16"],
    ["--to", "mlx", "--json"],
    ["--to", "kohya"],
    ["--weight-for", "q_proj|to_q=0", "--dry-run"],
]
# PEFT's `combination_type` → how `stack` is asked for the like.
COMBINATIONS = {
    "cat": [],
    "linear": ["--method", "factor-average"],
    "svd": ["--rank", "8"],
    "ties": ["--method", "ties", *DENSE],
    "ties_svd": ["--method", "ties", *DENSE],
    "dare_linear": ["--method", "dare", *DENSE],
    "dare_linear_svd": ["--method", "dare", *DENSE],
    "dare_ties": ["--method", "dare-ties", *DENSE],
    "dare_ties_svd": ["--method", "dare-ties", *DENSE],
    "magnitude_prune": ["--method", "magnitude", *DENSE],
    "magnitude_prune_svd": ["--method", "magnitude", *DENSE],
}
VERBS = ["merge", "extract", "stack", "subtract", "resize", "convert", "inspect", "finish"]


@dataclass(frozen=True)
class Case:
    """Command lines that belong together."""

    name: str
    steps: tuple


@dataclass
class Adapter:
    """An adapter, and the models it may be merged into."""

    name: str
    path: Path
    bases: list = field(default_factory=list)
    untrained: Path | None = None

    def of_diffusion(self):
        """Whether it belongs to a pipeline: the files of kohya and LyCORIS."""
        return "kohya" in self.name or "lyco" in self.name

    def plain(self):
        """Whether it is a LoRA that can be summed with others."""
        if not (self.path / "adapter_config.json").exists():
            return "lora" in self.name
        config = read(self.path / "adapter_config.json")
        special = ["use_dora", "alora_invocation_tokens", "layer_replication", "modules_to_save", "trainable_token_indices"]
        ordinary = config.get("init_lora_weights") in [True, None] and not any(config.get(key) for key in special)
        return ordinary and config.get("peft_type", "LORA") == "LORA"


class Lines:
    """All cases over these folders, `{"fixtures": path, …}`."""

    def __init__(self, roots, times=1):
        self.times = times
        self.cases = []
        self.names = set()
        for label, root in roots.items():
            few = label == "fixtures"
            adapters = list(find_adapters(label, root))
            for at, adapter in enumerate(adapters):
                self.of_adapter(adapter, partner(adapters, at), 10 if few else 2)
            for name, path in find_checkpoints(label, root):
                self.of_checkpoint(name, path, 4 if few else 1)
            self.combinations(label, root)
            self.extractions(label, root)
            self.into_gguf(label, root)
            self.bad(label, root)
        if "fixtures" in roots:
            self.parts(roots["fixtures"])
            self.usage(roots["fixtures"])

    def add(self, name, *steps):
        """One more case; a name that is there already is the same case."""
        steps = tuple(tuple(str(word) for word in step) for step in steps)
        if name not in self.names:
            self.names.add(name)
            self.cases.append(Case(name, steps))

    def add_some(self, name, groups, count):
        """`count` forms out of `groups`, lists of (name, steps), in turn one of each."""
        start, width = zlib.crc32(name.encode()), len(groups)
        picked = []
        for turn in range(min(count * self.times, width * max(map(len, groups)))):
            group = groups[(start + turn) % width]
            picked.append(group[(start // 16 + turn // width) % len(group)])
        for form, steps in picked:
            verb = steps[-1][0]
            self.add(f"{verb}/{name} {form}".strip(), *steps)

    def of_adapter(self, adapter, other, count):
        """Everything that can be done with an adapter, and with the next one for the same model."""
        path, bases = adapter.path, adapter.bases
        for base in bases:
            self.add(f"merge/{adapter.name} on {base.name}", ["merge", base, path, "-o", beside(base), "-v"])
        known = ["--base", bases[0]] if bases else []
        dialects, others = (DIFFUSION, LANGUAGE) if adapter.of_diffusion() else (LANGUAGE, DIFFUSION)
        groups = [
            forms(["convert", path], CASTS[:3] + [["--strip-metadata", "ss_*"]], beside(path)),
            [(f"to {to}", [["convert", path, "-o", FILES.get(to, "out"), "--to", to, *known]]) for to in dialects + others[:2]],
            [(words(more), [["inspect", path, *more]]) for more in INSPECTS + [["--spectrum", *known], known]],
        ]
        # Real models are large: a product of Kronecker factors takes half a minute to decompose.
        if "/real/" not in adapter.name or "lora" in path.parent.name:
            groups.append(forms(["resize", path, *known], RESIZES, "out"))
        if known:
            base = bases[0]
            bare = [(f"to {to} without base", [["convert", path, "-o", FILES.get(to, "out"), "--to", to]]) for to in dialects]
            untrained = [["--residual-base"], ["--base", base], ["--init-adapter", adapter.untrained]]
            more = MERGES + (untrained if adapter.untrained else [])
            merged = ["merge", base, path, "-o", beside(base, "merged"), "-q"]
            back = ["subtract", beside(base, "merged"), path, "-o", beside(base, "back")]
            groups += [
                forms(["merge", base, path], more, beside(base)),
                [("at -0.5", [["merge", base, f"{path}:-0.5", "-o", beside(base), "--json"]])],
                [("as lora", [["convert", path, "-o", "out", "--as", "lora", *known]]), *bare],
                forms(["resize", path], RESIZES, "out"),
                [("of merged", [merged, back]), ("of merged, with base", [merged, [*back, *known, "--json"]])],
                [(f"of merged {words(more)}", [merged, ["extract", base, merged[4], "-o", "out", *more]]) for more in EXTRACTS],
            ]
            if other:
                two = [path, f"{other.path}:0.5"]
                groups += [
                    forms(["stack", *two], STACKS, "out"),
                    [("with base", [["stack", *two, "-o", "out", *known]])],
                    forms(["subtract", *two], [[], ["--rank", "3", "--json"], [*known, "--rank", "4"]], "out"),
                    forms(["merge", base, *two], [[], ["--dtype", "f32", "--json"]], beside(base)),
                ]
        self.add_some(adapter.name, groups, count)

    def of_checkpoint(self, name, path, count):
        """Conversions of a model, and what `inspect` says of it."""
        gguf = ["convert", path, "-o", "out.gguf"]
        groups = [
            forms(["convert", path, "--to", "safetensors"], CASTS, "out.safetensors" if path.suffix == ".safetensors" else "out"),
            [(words(more), [["inspect", path, *more]]) for more in INSPECTS],
            [("to gguf", [gguf])],
        ]
        # llama.cpp loads no model without a tokenizer, so others are refused, once.
        if path.suffix == ".gguf" or (path / "tokenizer.json").exists():
            groups[-1] += [("to gguf --dtype f16", [[*gguf[:2], "-o", "out", "--to", "gguf", "--dtype", "f16", "--json"]])]
            groups += [[(f"as {quant}", [[*gguf, "--quant", quant]]) for quant in QUANTS[at::2]] for at in range(2)]
        self.add_some(name, groups, count)

    def combinations(self, label, root):
        """What PEFT's `add_weighted_adapter` was asked for."""
        for file in sorted(root.glob("combos/*/case.json")):
            case = read(file)
            inputs = [root / name / "adapter" for name in case.get("inputs", [])]
            if not inputs or not all(path.exists() for path in inputs):
                continue
            weighted = [f"{path}:{weight}" for path, weight in zip(inputs, case["weights"])]
            how = COMBINATIONS.get(case["combination_type"], [])
            name = f"{label}/combos/{case['name']}"
            self.add(f"stack/{name}", ["stack", *weighted, "-o", "out", *how])
            ranks = how if "--method" not in how else ["--rank", "4"]
            self.add(f"subtract/{name}", ["subtract", *weighted, "-o", "out", *ranks, "--json"])

    def extractions(self, label, root):
        """Pairs of a base and a tuned model."""
        for file in sorted(root.glob("extract/*/case.json")):
            base, tuned = root / read(file).get("base", ""), file.parent / "tuned"
            if not tuned.exists() or not base.exists():
                continue
            for form, steps in forms(["extract", base, tuned], EXTRACTS, "out"):
                self.add(f"extract/{label}/extract/{file.parent.name} {form}", *steps)

    def into_gguf(self, label, root):
        """Every type of GGUF base with adapters in turn, and with other types for what changes."""
        adapters = sorted(root.glob("gguf/*/adapter"))
        quants = [[], ["--quant", "q8_0"], ["--json"], ["--quant", "f16"], ["--rounding", "stochastic"], ["--quant", "q4_k"]]
        for at, base in enumerate(sorted(root.glob("gguf/bases/*.gguf"))):
            for turn in range(min(2 * self.times, len(adapters))):
                adapter, more = adapters[(at + turn * 3) % len(adapters)], quants[(at + turn) % len(quants)]
                name = f"merge/{label}/gguf/{adapter.parent.name} on {base.name} {words(more)}".strip()
                self.add(name, ["merge", base, adapter, "-o", "out.gguf", *more])

    def bad(self, label, root):
        """Files that must be refused, and pickles that must not run."""
        for case in read(root / "bad" / "cases.json") if (root / "bad" / "cases.json").exists() else []:
            base, adapter = root / case["base"], case["adapter"] and root / case["adapter"]
            steps = ["merge", base, adapter, "-o", "out"] if adapter else ["inspect", base]
            self.add(f"{case['verb']}/{label}/bad/{case['name']}", steps)
        for folder in ["hostile", "good"]:
            for file in sorted(root.glob(f"pickle/{folder}/*")):
                if file.suffix in [".bin", ".pt", ".ckpt"]:
                    self.add(f"convert/{label}/pickle/{file.name}", ["convert", file, "-o", "out.safetensors"])

    def parts(self, root):
        """Work in parts, whole and with something missing."""
        base, adapter, model = root / "tiny" / "base", root / "tiny" / "adapter", root / "gguf" / "models" / "llama"
        works = {
            "merge": ["merge", base, adapter, "-o", "out"],
            "merge small shards": ["merge", base, adapter, "-o", "out", "--max-shard-size", "40kB", "--dtype", "f32"],
            "merge stochastic": ["merge", base, adapter, "-o", "out", "--rounding", "stochastic", "--seed", "9"],
            "convert": ["convert", base, "-o", "out", "--dtype", "f16", "--max-shard-size", "50kB"],
            "convert to gguf": ["convert", model, "-o", "out", "--to", "gguf", "--max-shard-size", "50kB"],
            "subtract": ["subtract", base, adapter, "-o", "out", "--max-shard-size", "50kB"],
        }
        for name, work in works.items():
            def part(at, of, work=work):
                return [*work, "--part", f"{at}/{of}"]

            finish = ["finish", "out"]
            self.add(f"finish/{name}, two parts", part(1, 2), part(2, 2), finish)
            self.add(f"finish/{name}, three parts backwards", part(3, 3), part(2, 3), part(1, 3), [*finish, "--json"])
            self.add(f"finish/{name}, one part missing", part(1, 3), part(3, 3), finish, part(2, 3), finish)
            self.add(f"finish/{name}, a part twice", part(1, 2), part(1, 2), part(2, 2), finish, finish)
            self.add(f"finish/{name}, other options", part(1, 2), [*part(2, 2), "--exclude", "layers.1"], finish)
        self.add("finish/nothing", ["finish", "out"])

    def usage(self, root):
        """The words around the work: help, wrong usage, outputs that are there."""
        base, adapter = root / "tiny" / "base", root / "tiny" / "adapter"
        for verb in [*VERBS, "completions", "man"]:
            self.add(f"{verb}/usage --help", [verb, "--help"])
            self.add(f"{verb}/usage nothing", [verb])
        for shell in ["bash", "zsh", "fish"]:
            self.add(f"completions/{shell}", ["completions", shell])
        merge = ["merge", base, adapter, "-o", "out"]
        stack, resize = ["stack", adapter, "-o", "out"], ["resize", adapter, "-o", "out", "--rank", "2"]
        convert, extract = ["convert", base, "-o", "out"], ["extract", base, base, "-o", "out", "--rank", "2"]
        for work in [merge, stack, resize, convert]:
            verb = work[0]
            self.add(f"{verb}/usage OUT exists", work, work)
            self.add(f"{verb}/usage OUT exists, --force", work, [*work, "--force"])
            self.add(f"{verb}/usage inspect OUT", work, ["inspect", "out", "-v"], ["inspect", "out", "--json", "--tensors"])
        self.add("extract/usage nothing changed", extract)
        self.add("merge/usage adapter and base exchanged", ["merge", adapter, base, "-o", "out"])
        self.add("merge/usage no such base", ["merge", "no-such-folder", adapter, "-o", "out"])
        self.add("merge/usage no such dtype", [*merge, "--dtype", "f12"])
        self.add("merge/usage weight that is none", ["merge", base, f"{adapter}:x", "-o", "out"])
        self.add("merge/usage the same twice", ["merge", base, adapter, f"{adapter}:-1", "-o", "out"])
        self.add("merge/usage OUT in a folder that is not there", ["merge", base, adapter, "-o", "a/b/out"])
        self.add("resize/usage two policies", [*resize, "--energy", "0.9"])
        self.add("resize/usage no policy", resize[:4])
        self.add("resize/usage a folder of adapters", ["resize", root / "peft", "-o", "out", "--rank", "2"])
        self.add("resize/usage several", ["resize", adapter, root / "peft" / "lora-r8" / "adapter", "-o", "out", "--rank", "2"])
        self.add("inspect/usage all fixtures", ["inspect", root / "peft", root / "dialects", root / "tiny"])
        self.add("inspect/usage bases", ["inspect", root / "peft" / "bases", "-v"])
        itself = ["convert", "out", "-o", "out", "--dtype", "f16"]
        self.add("convert/usage into its own folder", convert, itself)
        self.add("convert/usage into its own folder, --force", convert, [*itself, "--force"])


def forms(start, options, out):
    """`(name, [command line])` for each of the options."""
    return [(words(more), [[*start, "-o", out, *more]]) for more in options]


def words(options):
    """Options as a part of a name: without the folders of paths."""
    return " ".join(Path(word).name if isinstance(word, Path) else str(word) for word in options)


def beside(base, name="out"):
    """An output of the kind of `base`: a file for a file, else a directory."""
    suffix = base.suffix if base.suffix in [".safetensors", ".gguf"] else ".safetensors"
    return f"{name}{suffix}" if base.is_file() else name


def partner(adapters, at):
    """The next plain adapter for the same model."""
    after = adapters[at + 1 :] + adapters[:at]
    bases = adapters[at].bases[:1]
    return next((other for other in after if bases and other.bases[:1] == bases and other.plain()), None)


def find_adapters(label, root):
    """Adapters of the case folders, of `tiny` and of `dialects`."""
    if (root / "tiny").exists():
        yield Adapter(f"{label}/tiny", root / "tiny" / "adapter", [root / "tiny" / "base"])
    alone = ["dialects/*", "gguf/lora*.gguf", "quant/*/adapter-*", "quant/adapters-b/*"]
    for path in sorted(path for pattern in alone for path in root.glob(pattern)):
        yield Adapter(f"{label}/{path.relative_to(root)}", path)
    for file in sorted(root.glob("*/*/case.json")):
        folder, case = file.parent, read(file)
        if folder.name == "bases":
            continue
        named = case.get("adapter")
        paths = [folder / "adapter", folder / "lora.safetensors", folder / named if isinstance(named, str) else folder / "adapter"]
        paths += [folder] if (folder / "adapter_config.json").exists() else []
        bases = [base for base in find_bases(folder, case, root) if base.exists()]
        untrained = folder / "init" if (folder / "init").exists() else None
        for path in dict.fromkeys(path.resolve() for path in paths if path.exists()):
            yield Adapter(f"{label}/{folder.relative_to(root)}", path, bases, untrained)
        for path in sorted(folder.glob("converter*.gguf")):
            yield Adapter(f"{label}/{path.relative_to(root)}", path, bases)


def find_bases(folder, case, root):
    """The models a case names, in every way the cases do."""
    found = {}
    for key in ["base", "base_for_low"]:
        name = case.get(key)
        if isinstance(name, str):
            places = [folder / name, folder.parent / name, folder.parent / "bases" / name, root / name]
            found.update(dict.fromkeys(place for place in places if place.exists()))
    if isinstance(case.get("bases"), dict):
        found.update(dict.fromkeys(folder.parent / name for name in case["bases"].values() if isinstance(name, str)))
    found.update(dict.fromkeys(folder / name for name in ["checkpoint", "model", "model.safetensors"]))
    if (folder / "adapter_config.json").exists():
        found.update(dict.fromkeys(folder.parent.glob("base-*")))
    return found


def find_checkpoints(label, root):
    """Models: plain, quantised, GGUF, diffusion."""
    patterns = [
        "tiny/base", "peft/bases/*", "experts/bases/*", "adapterhub/base-*", "extract/*/tuned", "kohya/base", "kohya/base/*",
        "gguf/models/*", "gguf/bases/*", "gguf/written.gguf",
        "quant/bases-*/*", "quant/*/checkpoint", "quant/*/model", "quant/*/model.safetensors",
    ]
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        models = path.suffix in [".gguf", ".safetensors"] if path.is_file() else not path.name.startswith("adapter")
        if models:
            yield f"{label}/{path.relative_to(root)}", path


def read(file):
    """A JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))
