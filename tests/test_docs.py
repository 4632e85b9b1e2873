"""The code in docs/likelihoods.md and docs/writing.md runs as it stands, in order, but for fewer epochs and rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"
TEXT, WRITING = ((DOCS / f"{page}.md").read_text(encoding="utf-8") for page in ("likelihoods", "writing"))
BLOCKS, OWN = (re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for text in (TEXT, WRITING))
FEW = {
    "epochs=20": "epochs=12, progress=False",
    "test[:100]": "test[:6]",
    "test[:30]": "test[:2]",
    "test[:20]": "test[:2]",
}


def smaller(block: str) -> str:
    for size, few in FEW.items():
        block = block.replace(size, few)
    return block


def test_every_block_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(smaller(block), names)
    printed = capsys.readouterr().out
    for head in ("log p(image, label) = ", "log p(label | image) = ", "log plug-in(label | image) = ", "bits/dim"):
        assert head in printed
    for head in ("sandwich of", "posterior means of 8", "calibration on", "gaps in nats", "K-sample bounds", "ELBO"):
        assert head in printed
    assert "0.225 guide + 0.675 refined + 0.1 prior" in names["refined"].proposal
    assert names["aimed"].target_se == 0.05 and names["small"].k == names["joint"].k == 1000
    assert 0 < names["largest_change"] < 0.1 and names["rows"] <= 16
    assert len(names["a"]) == len(names["b"]) == len(names["c"]) == 6
    assert torch.equal(names["joint"].corrected, names["joint"].estimate - names["joint"].bias)


def test_every_call_of_the_table_exists() -> None:
    import pyro_mm as mm
    from pyro_mm import evaluation as ev

    calls = re.findall(r"`(mm|ev)\.(\w+)", TEXT)
    assert {"log_marginal", "compare", "sandwich", "GradientSteps"} <= {name for _, name in calls}
    missing = [name for home, name in calls if not hasattr({"mm": mm, "ev": ev}[home], name)]
    assert set(missing) <= {"ais"}, missing


def test_your_own_pair_passes_its_checks_and_does_all_that_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in OWN:
        exec(smaller(block), names)
    printed = capsys.readouterr().out
    assert "maximise  ELBO(" in printed and "sandwich of log p(image, label)" in printed
    assert tuple(names["images"].shape) == (3, 5, 8, 8)
    kept, own = names["again"].model.state_dict(), names["model"].state_dict()
    assert all(torch.equal(kept[k], own[k]) for k in own)
