"""Every Python block of the guide runs, in one process and in order."""

import re
import shutil

from conftest import ROOT


def test_the_guide_runs(tmp_path, monkeypatch, base, adapter):
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(adapter, tmp_path / "lora")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/guides/python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 6
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert not (tmp_path / "never").exists()
