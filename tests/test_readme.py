"""The README's examples run as they stand, but for fewer epochs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyro_mm as mm

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def execute(block: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(re.sub(r"epochs=\d+", "epochs=2, progress=False", block), names)
    return names


def test_examples(capsys, tmp_path, monkeypatch) -> None:
    import pandas

    monkeypatch.chdir(tmp_path)
    first = execute(BLOCKS[0], {})
    printed = capsys.readouterr().out
    for quantity in ("log p(image, label) = ", "log p(image) = ", "log p(label | image) = "):
        assert quantity in printed
    assert "maximise  sum_S ELBO(x_S; q(z | x_S)), S in {image, label}" in printed
    assert "maximise  ELBO(image, label; q(z | image, label))" in printed
    images = first["images"]
    assert tuple(images.shape) == (5, 359, 8, 8)
    assert bool(((images >= 0) & (images <= 16)).all())

    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(rng.normal(size=(110, 5)), columns=list("abcde"))
    frame["sick"] = (frame["a"] > 0).astype(float)
    frame.loc[::4, "sick"] = np.nan
    frame.to_csv("patients.csv", index=False)
    second = execute(BLOCKS[1], first)
    printed = capsys.readouterr().out
    scored = int(second["test"].mask["sick"].sum())
    assert "log p(sick | blood) = " in printed and f"N={scored} of 50 rows" in printed
    assert f"log p(sick | blood), {scored} rows" in printed and "of sick from blood:" in printed
    kept, own = mm.load("patients").guide.state_dict(), second["recipe"].guide.state_dict()
    assert kept.keys() == own.keys() and all(torch.equal(kept[k], own[k]) for k in own)
    assert torch.equal(second["batch"].mask["sick"], torch.tensor(~frame["sick"].isna().to_numpy()))


def test_the_first_example_has_fifteen_lines() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 15
