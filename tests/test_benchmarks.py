"""The benchmarks run: every file can be imported, a small measurement is made, and a page comes of measurements."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py"))
MADE = {
    "machine": "a machine, 2 cores",
    "threads": 1,
    "versions": {"Python": "3.11.7", "torch": "2.14", "numpyro": "not installed", "multivae": "not installed"},
    "commit": "abc",
    "time": "2026-11-29T00:00:00+00:00",
}
STEPS = {
    "PyTorch by hand": 4.0,
    "PyTorch by hand, compiled, fused Adam": 3.0,
    "matrix products and Adam alone": 2.0,
    "Pyro's SVI": 9.0,
    "fit(pair)": 5.0,
    "fit(pair, compile=True)": 3.3,
    "NumPyro, jit": "not installed",
    'fit(pair, precision="bf16-layers")': "no bf16 here",
}
LIKELIHOODS = {"matrix products of the decoders alone": 30.0, "log_marginal": 50.0, "log_marginal, chunk=2000": 40.0}
ROW = {"seconds": 9.0, "bias": -0.1, "rms": 0.4, "se": 0.3}
FOUND: dict[str, Any] = {
    "steps": {"wide": STEPS, "narrow": STEPS},
    "likelihoods": LIKELIHOODS,
    "modalities": [
        {"variant": v, "modalities": m, "width": w, "eager": 10.0 * m, "compiled": 8.0 * m, "MultiVae": "not installed"}
        for v in ("mmvae", "mopoe")
        for m in (2, 8)
        for w in (512, 64)
    ],
    "scaling": {"rows of a step": {"points": [16, 64], "ours": [2.0, 4.0], "by hand": [1.0, 4.0]}},
    "accuracy": {
        "time": {"guide, K = 20,000": ROW, "refined, K = 100": ROW | {"seconds": 0.9, "rms": 0.2}},
        "memory": {s: {"1000": 60.0, "5000": 63.0} for s in ("log_marginal", "PyTorch by hand, a datum at a time")},
    },
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """`bench(name)`: a file of the folder, imported as its own programs do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before & set(NAMES):
        del sys.modules[name]


def written(folder: Path, **changes: dict[str, Any]) -> Path:
    """Every file of measurements, some of them made otherwise."""
    for name, found in FOUND.items():
        by = MADE | changes.get(name, {})
        (folder / f"{name}.json").write_text(json.dumps({"made": by, "plan": {}, "found": found}))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_file_can_be_imported(name: str, bench: Callable[[str], Any]) -> None:
    assert callable(getattr(bench(name), "main", int))


def test_narrow_steps_are_measured(bench: Callable[[str], Any]) -> None:
    steps = bench("steps")
    names = [steps.REFERENCE, steps.FLOOR, steps.STOCK, steps.EAGER]
    found = steps.measured(64, 32, 1, names)
    assert list(found) == names and all(isinstance(t, float) and 0 < t < 1000 for t in found.values())
    assert found[steps.FLOOR] < found[steps.REFERENCE]
    assert steps.table({"narrow": found})[2] == "| PyTorch by hand | 1.00 |"


def test_what_cannot_be_measured_is_told(bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    measuring, others = bench("measuring"), bench("others")
    monkeypatch.setattr(others, "installed", lambda *names: False)
    found = measuring.in_turn({"jit": lambda: others.numpyro_step(64, 32), "sum": lambda: torch.ones(3).sum}, 2)
    assert found["jit"] == "not installed" and isinstance(found["sum"], float)


def test_one_thread_has_one_core_and_gives_it_back(bench: Callable[[str], Any]) -> None:
    os = pytest.importorskip("os")
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not pin threads")
    before = os.sched_getaffinity(0)
    with bench("measuring").one_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_an_interrupted_measurement_goes_on(
    bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modalities, path = bench("modalities"), tmp_path / "modalities.json"
    cells = [(64, m, v) for m in (2, 4) for v in ("mmvae", "mopoe")]
    plan = {"rows": 8, "rounds": 1, "compiled": False}
    asked: list[tuple[str, int]] = []

    def measured(variant: str, m: int, width: int, *rest: Any) -> dict[str, Any]:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append((variant, m))
        return {"variant": variant, "modalities": m, "width": width, "eager": 1.0}

    monkeypatch.setattr(modalities, "measured", measured)
    with pytest.raises(KeyboardInterrupt):
        modalities.all_of(cells, path, plan)
    assert len(json.loads(path.read_text())["found"]) == 2
    asked.clear()
    assert len(modalities.all_of(cells, path, plan)) == 4 and asked == [("mmvae", 4), ("mopoe", 4)]
    asked.clear()
    with pytest.raises(KeyboardInterrupt):  # of another plan everything is measured
        modalities.all_of(cells, path, plan | {"rows": 16})
    assert "another plan" in capsys.readouterr().err and len(asked) == 2


def test_the_page_has_aims_and_what_is_not_installed(bench: Callable[[str], Any], tmp_path: Path) -> None:
    text = bench("report").report(written(tmp_path), tmp_path / "performance.md")
    assert "a machine, 2 cores, 1 thread: Python 3.11.7, torch 2.14, numpyro not installed" in text
    assert "commit abc" in text and "No figure here is a GPU's" in text and "on a GPU" not in text
    for line in (
        "| NumPyro, jit | not installed | not installed |",
        "| wide | compiled / NumPyro | not installed | at most 1.05 |",
        "| wide | layers in bfloat16 / PyTorch by hand | no bf16 here | at most 0.60 |",
        "| wide | compiled / PyTorch by hand, compiled | 1.10 | at most 1.05 |",
        "| matrix products / log_marginal, best chunk | 0.75 | at least 0.90 |",
        "| MultiVae / ours, MoPoE of 8 modalities at width 512 | not installed | at least 15 |",
        "| rows of a step | 16: 2.00; 64: 1.00 | 2.0 for 4 |",
        "| as accurate as guide, K = 20,000, in this share of its time | 0.100 (refined, K = 100) | at most 0.05 |",
        "| extra memory at K = 5,000, MB | 63 | at most 64 |",
    ):
        assert f"\n{line}\n" in text, line
    for name in ("modalities", "scaling", "accuracy"):
        assert f"(performance/{name}.png)" in text and (tmp_path / "performance" / f"{name}.png").stat().st_size > 5000


def test_a_gpus_figures_have_their_own_tables(bench: Callable[[str], Any], tmp_path: Path) -> None:
    for name in ("steps", "likelihoods"):
        gpu = {"made": MADE | {"machine": "a GPU"}, "plan": {}, "found": FOUND[name]}
        (written(tmp_path) / f"{name}-cuda.json").write_text(json.dumps(gpu))
    text = bench("report").report(tmp_path, tmp_path / "performance.md")
    assert "## One step of training, on a GPU" in text and "* a GPU, 1 thread" in text and "No figure" not in text


@pytest.mark.parametrize(
    "change", [{"machine": "another"}, {"commit": "def"}, {"versions": {"torch": "1.0"}}, {"threads": 2}]
)
def test_mixtures_are_refused_or_asked_for(change: dict[str, Any], bench: Callable[[str], Any], tmp_path: Path) -> None:
    report, folder = bench("report").report, written(tmp_path, scaling=change)
    with pytest.raises(SystemExit, match=r"do not belong together.*\n.*scaling\.json"):
        report(folder, tmp_path / "performance.md")
    assert "below every table" in report(folder, tmp_path / "performance.md", mixed=True)


def test_old_files_are_not_taken_for_new_ones(bench: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_text(json.dumps({"wide": STEPS}))
    with pytest.raises(SystemExit, match="does not tell on what machine"):
        bench("report").report(tmp_path, tmp_path / "performance.md")
    (tmp_path / "steps.json").unlink()
    with pytest.raises(SystemExit, match="holds no measurements"):
        bench("report").report(tmp_path, tmp_path / "performance.md")


@pytest.mark.slow
def test_small_versions_of_the_others(bench: Callable[[str], Any]) -> None:
    likelihoods, modalities, scaling = (bench(n) for n in ("likelihood_speed", "modalities", "scaling"))
    cell = modalities.measured(modalities.SAMPLED, 3, 16, 8, 1, False)
    assert set(cell) == {"variant", "modalities", "width", "eager"}
    panel = scaling.measured(scaling.PANELS["particles of a step, 32 rows"][0], (1, 3), 1, width=16)
    assert panel["points"] == [1, 3] and len(panel["ours"]) == len(panel["by hand"]) == 2
    memory = bench("accuracy").in_a_process(bench("accuracy").SIDES[1], (10, 5000), width=16)
    assert memory["10"] <= memory["5000"] and 5 < memory["5000"] < 500
    found = likelihoods.floor((torch.nn.Linear(3, 4),), 5, 2, torch.float32)
    assert found() is None
