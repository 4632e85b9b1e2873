"""`fit` with compiled steps: a compiler that fails, what is said, steps ahead, resuming, and decoders' rows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.likelihoods import Bernoulli
from pyro_mm.modality import Modality
from pyro_mm.models.views import decoded
from pyro_mm.networks import MLP
from pyro_mm.objectives import Objective, Warmup, elbo
from pyro_mm.tracing import is_traced
from pyro_mm.training import fit
from pyro_mm.training.capture import capture
from tests.helpers.training import At, Losses, data, pair, raising, rows_of, same, values
from tests.training.test_capture_stale import ROWS, Annealed, Penalty, Ridge

OPTIONS: dict[str, Any] = {"batch_size": 8, "lr": 0.05, "progress": False}


def as_it_is(monkeypatch, whole: bool = True) -> None:
    """Graphs are not compiled; with `whole` they hold the optimiser's update as if they were."""
    monkeypatch.setattr("pyro_mm.training.graphs.can_compile", lambda device: whole)
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)


def failing(graph: Any, **options: Any) -> Any:
    """A compiler that fails as torch's does: in the first call, and when it has drawn random numbers."""

    def call(*inputs: Any) -> Any:
        graph(*inputs)
        raise RuntimeError("CppCompileError: C++ compile error\nsomewhere")

    return call


def test_a_compiler_that_fails_moves_nothing(monkeypatch) -> None:
    found = []
    for how in (False, True):
        objective = Ridge()
        if how:
            monkeypatch.setattr("pyro_mm.training.graphs.can_compile", lambda device: True)
            monkeypatch.setattr(torch, "compile", failing)
            with pytest.warns(
                UserWarning, match="not compiled: torch's compiler failed: RuntimeError, CppCompileError: C"
            ):
                fit(objective, ROWS, 2, compile=True, **OPTIONS)
        else:
            fit(objective, ROWS, 2, **OPTIONS)
        found.append(values(objective))
    assert same(*found)


FAILS = """
import torch, warnings
from pyro_mm.training import fit
from tests.training.test_capture_stale import ROWS, Ridge
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    history = fit(Ridge(), ROWS, 2, batch_size=8, progress=False, compile=True)
print(len(history), len(said), *[w.message for w in said])
"""


@pytest.mark.slow
def test_a_broken_c_compiler_is_survived(tmp_path: Path) -> None:
    env = {**os.environ, "CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    run = subprocess.run([sys.executable, "-c", FAILS], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("2 1 training is trained eagerly, not compiled: torch's compiler failed:"), run.stdout


def said(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "pyro_mm.training.graphs"]


def test_auto_says_what_is_not_compiled(monkeypatch, caplog) -> None:
    """In the log, once for each reason; not where so few steps are ahead that nobody would compile them."""
    as_it_is(monkeypatch)
    options = OPTIONS | {"compile": "auto"}
    fit(Annealed(), ROWS, 8, **options)
    fit(elbo(*pair()), data(), 1, **options, precision="bf16-layers")
    assert not said(caplog)
    monkeypatch.setattr("pyro_mm.training.graphs.WORTHWHILE", 1)
    monkeypatch.setattr("pyro_mm.training.graphs.TRIAL", 2)
    fit(Annealed(), ROWS, 3, **options)
    fit(elbo(*pair()), data(), 1, **options, precision="bf16-layers")
    stale, half = said(caplog)
    assert stale.startswith(
        "training goes on eagerly, no longer compiled: Python changed what the graph has as it was ("
    )
    assert half == "only training on one device at full precision is compiled; this is eager"


def test_auto_says_what_it_refuses(monkeypatch, caplog) -> None:
    as_it_is(monkeypatch)
    monkeypatch.setattr("pyro_mm.training.graphs.WORTHWHILE", 1)
    monkeypatch.setattr("pyro_mm.training.graphs.TRIAL", 2)
    objective = Ridge()
    objective.layer.register_forward_hook(lambda module, given, out: None)
    fit(objective, ROWS, 4, **OPTIONS, compile="auto")
    line = "training is trained eagerly, not compiled: it has module or gradient hooks (layer), which a graph would"
    assert [text.startswith(line) for text in said(caplog)] == [True]


def test_auto_counts_the_steps_that_are_still_to_come(monkeypatch, tmp_path) -> None:
    ahead: list[int | None] = []

    def wanted(asked: bool | str, steps: int | None, device: torch.device) -> bool:
        ahead.append(steps)
        return False

    monkeypatch.setattr("pyro_mm.training.turn.wanted", wanted)
    fit(Ridge(), ROWS, 4, folder=tmp_path, callbacks=[At(3, raising(KeyboardInterrupt()))], compile="auto", **OPTIONS)
    fit(Ridge(), ROWS, 10, folder=tmp_path, resume=True, compile="auto", **OPTIONS)
    assert ahead == [4 * 2, 10 * 2 - 3]


@pytest.mark.parametrize("step", [None, 2, 3], ids=["whole steps", "between epochs", "within an epoch"])
def test_resuming_is_exact(step: int | None, monkeypatch, tmp_path) -> None:
    """The last, smaller minibatch of an epoch is eager.

    Where a callback looks at every step the update is not in the graph, so that whole steps end between epochs only.
    """
    as_it_is(monkeypatch, whole=step is None)

    def run(folder: str, epochs: int, callback: Any, resume: bool = False) -> tuple[Any, dict[str, Tensor]]:
        torch.manual_seed(1 + resume)
        objective = Objective([(Warmup(3), Penalty())])
        options = OPTIONS | {"seed": 3, "clip_norm": 5.0, "callbacks": [callback] if callback else []}
        history = fit(objective, ROWS[:14], epochs, folder=tmp_path / folder, resume=resume, compile=True, **options)
        return history, values(objective)

    watch = None if step is None else Losses()
    history, straight = run("straight", 4, watch)
    run("parts", *((2, None) if step is None else (4, At(step, raising(KeyboardInterrupt())))))
    again, parts = run("parts", 4, watch, resume=True)
    assert rows_of(again) == rows_of(history) and same(straight, parts)


def test_drawn_subsets_are_decoded_besides_the_fixed_ones_that_see_a_modality(monkeypatch) -> None:
    """Of M = 6 modalities all, each alone and two drawn subsets: 4 of 9 views in each of 6 decoders."""
    rows: list[int] = []

    def counted(m: str, decode: Any, z: Tensor, batch: Batch) -> Any:
        def count(z: Tensor) -> Any:
            if is_traced():
                rows.append(z.shape[:-1].numel())
            return decode(z)

        return decoded(m, count, z, batch)  # type: ignore[arg-type]

    monkeypatch.setattr("pyro_mm.models.joint.decoded", counted)
    names = "abcdef"
    recipe = variants.mvae_sampled([Modality(m, (4,), Bernoulli(), MLP((6,))) for m in names], 2, k=2)
    batch = Batch({m: (torch.rand(10, 4) < 0.5).float() for m in names})
    step = capture(recipe.objective, batch, compiled=False)
    assert rows == [4 * 10] * 2 * len(names)  # two traces
    torch.manual_seed(0)
    wanted = recipe.objective(batch).detach()
    torch.manual_seed(0)
    torch.testing.assert_close(step(batch)[0], wanted)
