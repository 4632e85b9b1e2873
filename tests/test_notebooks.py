"""The committed notebooks are their sources; that they run is tested by executing them (see the Makefile)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"


def cells_of_source(path: Path) -> list[str]:
    """Code cells of a percent-format script."""
    text = path.read_text(encoding="utf-8")
    parts = text.split("\n# %%")[1:]
    return [p.split("\n", 1)[1].strip() for p in parts if not p.startswith(" [markdown]")]


@pytest.mark.parametrize("source", sorted(FOLDER.glob("[0-9]*.py")), ids=lambda p: p.stem)
def test_the_notebook_is_its_source(source: Path) -> None:
    notebook = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    code = ["".join(c["source"]).strip() for c in notebook["cells"] if c["cell_type"] == "code"]
    assert code == cells_of_source(source)
    assert not [o for c in notebook["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"]


def test_the_unseen_variant_is_complete_in_under_forty_lines() -> None:
    cells = cells_of_source(FOLDER / "02_write_your_own_variant.py")
    objective = next(c for c in cells if "objective = " in c).split("objective = ")[1].split("\nobjective")[0]
    lines = [x for x in (cells[0] + "\n" + objective).splitlines() if x.strip()]
    assert "class Clustered" in cells[0] and "class Barycentre" in cells[0]
    assert len(lines) < 40
