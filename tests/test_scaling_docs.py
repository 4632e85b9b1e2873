"""The code in docs/scaling.md runs as it stands, in order and in one process, but for fewer epochs and rows."""

import re
from pathlib import Path
from typing import Any

import pytest

TEXT = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_every_block_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        smaller = block.replace("epochs=20", "epochs=1, progress=False").replace("k=100", "k=10")
        exec(re.sub(r"digits\.(test|train)(?=[,)\n])", r"digits.\1[:40]", smaller), names)
    printed = capsys.readouterr().out
    for head in ("log p(image, label) = ", "log p(label | image) = ", "K=150", " parameters, "):
        assert head in printed
    assert (tmp_path / "runs" / "mvae" / "model").is_dir() and len(names["rows"]) == 256
    assert len(names["joint"]) == len(names["by_rows"]) == len(names["by_seeds"]) == 40
