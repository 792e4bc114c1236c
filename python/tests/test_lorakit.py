"""The Python package: the bytes of the program, typed reports, errors by blame, interrupts, threads, memory."""

import json
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import lorakit

LORAKIT = Path(sys.executable).parent / "lorakit"


def files(folder):
    if folder.is_file():
        return {"": folder.read_bytes()}
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def program(*words):
    subprocess.run([str(LORAKIT), *map(str, words), "-q"], check=True)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sparse(path, bytes_each, count=1):
    header = {
        f"layer.{at}.weight": {"dtype": "F16", "shape": [bytes_each // 4096, 2048], "data_offsets": [at * bytes_each, (at + 1) * bytes_each]}
        for at in range(count)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + count * bytes_each)


def test_every_verb_writes_the_bytes_of_the_program(base, adapter, tmp_path):
    tuned = tmp_path / "tuned"
    lorakit.merge(base, (adapter, 0.5), out=tuned)
    cases = {
        "merge": (lambda out: lorakit.merge(base, [adapter, (adapter, -0.25)], out=out, dtype="f16"),
                  ["merge", base, adapter, f"{adapter}:-0.25", "--dtype", "f16"]),
        "extract": (lambda out: lorakit.extract(base, tuned, out=out, rank=2), ["extract", base, tuned, "--rank", "2"]),
        "stack": (lambda out: lorakit.stack([adapter, (adapter, 0.5)], out=out, rank=4), ["stack", adapter, f"{adapter}:0.5", "--rank", "4"]),
        "subtract": (lambda out: lorakit.subtract(adapter, (adapter, 0.5), out=out), ["subtract", adapter, f"{adapter}:0.5"]),
        "unmerge": (lambda out: lorakit.subtract(tuned, (adapter, 0.5), out=out, base=base), ["subtract", tuned, f"{adapter}:0.5", "--base", base]),
        "resize": (lambda out: lorakit.resize(adapter, out=out, energy=0.9), ["resize", adapter, "--energy", "0.9"]),
        "convert": (lambda out: lorakit.convert(adapter, out=out, to="mlx", include=["layers\\.0", "layers\\.1"]),
                    ["convert", adapter, "--to", "mlx", "--include", "layers\\.0", "--include", "layers\\.1"]),
    }
    for name, (call, words) in cases.items():
        ours, theirs = tmp_path / f"{name}-a" / "out", tmp_path / f"{name}-b" / "out"
        ours.parent.mkdir(), theirs.parent.mkdir()
        report = call(ours)
        program(*words, "-o", theirs)
        assert files(ours) == files(theirs), name
        assert report.out == ours and report.to_dict()["schema"] == 1
        assert str(report) and report._repr_html_().startswith("<table>") and report.seconds >= 0.0


def test_reports_say_what_came_of_it(base, adapter, tmp_path):
    merged = lorakit.merge(base, adapter, out=tmp_path / "merged")
    assert (merged.changed, merged["tensors"]["copied"]) == (14, 7)
    assert 0.9 < merged.retained < 1.1 and "14 tensors changed" in merged.verdict
    extracted = lorakit.extract(base, tmp_path / "merged", out=tmp_path / "lora", rank=4)
    assert len(extracted.modules) == 14 and 0.9 < extracted.kept <= 1.0 and extracted.relative_error < 0.2
    found = lorakit.inspect(adapter)
    assert found["kind"] == "adapter" and found.problems == []


def test_errors_are_sorted_by_blame_and_have_a_way_out(base, adapter, tmp_path):
    with pytest.raises(lorakit.InputError) as failed:
        lorakit.merge(tmp_path / "missing", adapter, out=tmp_path / "out")
    assert "missing" in failed.value.path and isinstance(failed.value, OSError)
    with pytest.raises(lorakit.InvalidError):
        lorakit.merge(base, adapter, out=tmp_path / "out", no_such_option=1)
    with pytest.raises(lorakit.InvalidError):
        lorakit.resize(adapter, out=tmp_path / "out")
    with pytest.raises(lorakit.LorakitError) as failed:
        lorakit.merge(adapter, base, out=tmp_path / "out")
    assert failed.value.hint and failed.value.hint in str(failed.value)
    (tmp_path / "bad.safetensors").write_bytes(struct.pack("<Q", 8) + b"no json!")
    with pytest.raises(lorakit.MalformedError):
        lorakit.open_checkpoint(tmp_path / "bad.safetensors")
    with pytest.raises(KeyError):
        lorakit.open_checkpoint(base)["missing"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.safetensors"]


def test_modules_have_their_numbers(adapter):
    opened = lorakit.open_adapter(adapter)
    assert opened.dialect == "peft" and len(opened) == 14
    module = opened["model.layers.0.mlp.down_proj"]
    assert (module.rank, module.alpha, module.scale, module.method) == (4, 8.0, 2.0, "LoRA")
    product = module.scale * module.b.astype(np.float32) @ module.a.astype(np.float32)
    assert module.delta().dtype == np.float32 and np.abs(module.delta() - product).max() < 1e-6
    values = np.linalg.svd(product.astype(np.float64), compute_uv=False)[:4]
    assert np.allclose(module.singular_values(), values, rtol=1e-5)


def test_a_tensor_is_a_view_of_the_mapped_file(base, tmp_path):
    opened = lorakit.open_checkpoint(base)
    assert len(opened) == 21 and set(opened) == set(opened.keys())
    path = tmp_path / "huge.safetensors"
    sparse(path, 7 << 30, 10)
    before = resident()
    huge = lorakit.open_checkpoint(path)
    tensor = huge["layer.9.weight"]
    assert tensor.nbytes == 7 << 30 and tensor[12345, 67] == 0.0
    assert np.shares_memory(tensor, huge["layer.9.weight"]), "one map for all views"
    assert not tensor.flags.writeable
    assert resident() - before < 64 << 20


def test_a_state_dict_gets_the_bits_of_the_file_merge(base, adapter, tmp_path):
    lorakit.merge(base, [(adapter, 0.5), (adapter, -0.1)], out=tmp_path / "merged")
    wanted = lorakit.open_checkpoint(tmp_path / "merged")
    state = {name: np.array(tensor) for name, tensor in lorakit.open_checkpoint(base).items()}
    held = state["model.layers.0.mlp.down_proj.weight"]
    lorakit.merge_into(state, [(adapter, 0.5), (adapter, -0.1)])
    assert state["model.layers.0.mlp.down_proj.weight"] is held, "in place"
    assert all(np.array_equal(state[name].view(np.uint8), wanted[name].view(np.uint8)) for name in wanted)


def test_torch_tensors_are_merged_in_place(base, adapter, tmp_path):
    torch = pytest.importorskip("torch")
    lorakit.merge(base, adapter, out=tmp_path / "merged")
    wanted = lorakit.open_checkpoint(tmp_path / "merged")
    state = {name: torch.from_numpy(np.array(tensor).view(np.int16)).view(torch.bfloat16) for name, tensor in lorakit.open_checkpoint(base).items()}
    held = state["model.layers.0.mlp.down_proj.weight"]
    lorakit.merge_into(state, adapter)
    assert state["model.layers.0.mlp.down_proj.weight"] is held
    assert all(np.array_equal(state[name].view(torch.int16).numpy(), wanted[name].view(np.int16)) for name in wanted)


def big(tmp_path):
    """A model of 400 MB and an adapter for it."""
    model, lora = tmp_path / "model.safetensors", tmp_path / "lora"
    sparse(model, 4 << 20, 100)
    lora.mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": [str(at) for at in range(100)]}))
    header, data, offset = {}, [], 0
    for at in range(100):
        for role, shape in (("lora_A", [8, 2048]), ("lora_B", [1024, 8])):
            values = np.full(shape, 0.01, dtype=np.float16)
            header[f"base_model.model.layer.{at}.{role}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + values.nbytes]}
            data.append(values.tobytes())
            offset += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (lora / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))
    return model, lora


def test_progress_is_told_and_an_interrupt_leaves_nothing(tmp_path):
    model, lora = big(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    heard = []
    lorakit.merge(model, lora, out=tmp_path / "out.safetensors", progress=lambda done, total: heard.append((done, total)), threads=1)
    assert heard and all(0 <= done <= total for done, total in heard)
    (tmp_path / "out.safetensors").unlink()
    for record in tmp_path.glob("*.lorakit.json"):
        record.unlink()

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lorakit.merge(model, lora, out=tmp_path / "out.safetensors", progress=stop, threads=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    # The same by a signal, in a process of its own.
    script = "import sys, lorakit\nlorakit.merge(sys.argv[1], sys.argv[2], out=sys.argv[3], threads=1, progress=lambda d, t: print(d, flush=True))"
    for _ in range(10):
        words = [sys.executable, "-c", script, str(model), str(lora), str(tmp_path / "out.safetensors")]
        running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        running.stdout.readline()
        running.send_signal(2)
        _, errors = running.communicate()
        if running.returncode != 0:
            break
        # It was done before the signal came.
        [path.unlink() for path in tmp_path.glob("out.*")]
    assert running.returncode != 0 and b"KeyboardInterrupt" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_threads_run_beside_each_other(base, adapter, tmp_path):
    done = []

    def one(at):
        lorakit.merge(base, adapter, out=tmp_path / f"out-{at}")
        done.append(at)

    threads = [threading.Thread(target=one, args=(at,)) for at in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(done) == list(range(8))
    first = files(tmp_path / "out-0")
    assert all(files(tmp_path / f"out-{at}") == first for at in range(8))


def test_the_lock_is_released(tmp_path):
    model, lora = big(tmp_path)
    ticks = []
    running = threading.Thread(target=lambda: lorakit.merge(model, lora, out=tmp_path / "out.safetensors", threads=1))
    running.start()
    while running.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    assert len(ticks) > 5


def test_a_hundred_merges_do_not_leak(base, adapter, tmp_path):
    sizes = []
    for at in range(100):
        lorakit.merge(base, adapter, out=tmp_path / "out", force=True)
        sizes.append(resident())
    assert sizes[-1] - sizes[30] < 4 << 20, (sizes[30], sizes[-1])


def test_importing_is_quick_and_brings_no_torch():
    script = (
        "import sys, time\nbegun = time.perf_counter()\nimport lorakit\ntook = time.perf_counter() - begun\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\nprint(took)"
    )
    times = [float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    # 0.03 s on the machine of the measurements; this one may be any, and the module is built without optimisation.
    assert min(times) < 0.25, times


def test_the_program_is_there(tmp_path, base, adapter):
    said = subprocess.run([str(LORAKIT), "--version"], capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"lorakit {lorakit.__version__}"
    refused = subprocess.run([str(LORAKIT), "merge", "nope", "x", "-o", str(tmp_path / "out")], capture_output=True, text=True)
    assert refused.returncode == 1 and "nope" in refused.stderr
