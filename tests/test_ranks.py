"""Two processes agree with each other, and with one: training, stopping, resuming and evaluation over ranks.

One pair of processes runs everything (tests/helpers/two_processes.py); the tests look at what it wrote.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pyro_mm.objectives import elbo
from pyro_mm.ranks import Ranks, derived_seed
from pyro_mm.training import fit
from tests.helpers.parallel import exact_loss
from tests.helpers.training import data, pair

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 550  # on a machine that does other things as well


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes wrote their results; made once for all of xdist's workers."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two_processes"
    done = folder / "done"
    try:
        folder.mkdir()
    except FileExistsError:
        until = time.monotonic() + SECONDS
        while not done.exists() and time.monotonic() < until:
            time.sleep(0.2)
    else:
        program = [sys.executable, str(ROOT / "tests" / "helpers" / "two_processes.py"), str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=SECONDS)
        done.write_text(result.stdout + result.stderr if result.returncode else "")
    assert done.read_text() == ""
    return folder


@pytest.fixture(scope="session")
def found(out: Path) -> dict[str, Any]:
    """Results by `processes-rank`."""
    return {name: json.loads((out / f"{name}.json").read_text()) for name in ("2-0", "2-1", "1-0")}


def numbers(result: dict[str, Any]) -> torch.Tensor:
    """All parameters, and all numbers of the history."""
    logged = [v for row in result["rows"] for v in row.values() if isinstance(v, int | float)]
    return torch.tensor([*result["parameters"], *logged], dtype=torch.float64)


@pytest.mark.parametrize("name", ["keyed", "keyed_mixture", "keyed_subsets", "without_noise", "stages", "blocks"])
def test_two_processes_train_as_one(name, found):
    """The same minibatches, the last of them uneven, and the same noise: weights, logs and validation to rounding."""
    first, second, one = (numbers(found[n][name]) for n in ("2-0", "2-1", "1-0"))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, one, rtol=1e-11, atol=1e-12)


def test_noise_differs_between_processes_and_rows_are_shared_out(found):
    first, second = found["2-0"]["streams"], found["2-1"]["streams"]
    assert sorted(first["asked"] + second["asked"]) == list(range(24)) and len(first["asked"]) == 12
    assert first["noise"] != second["noise"]


def test_the_loss_over_processes_is_unbiased(found):
    """19 rows as 8 + 8 + 3, of which one process has 2 and the other 1: the mean over epochs is the exact ELBO."""
    losses = torch.tensor(found["2-0"]["monte_carlo"]["losses"], dtype=torch.float64)
    error = losses.std() / len(losses) ** 0.5
    assert error < 0.03 and abs(losses.mean() - exact_loss()) < 4 * error


def test_batch_statistics_are_those_of_the_first_process(found):
    """With and without validation."""
    first, second = found["2-0"]["batch_norm"], found["2-1"]["batch_norm"]
    assert first == second and len(first["buffers"]) == 6


def test_networks_may_be_left_out_of_a_step(found):
    """Random subsets differ between processes; a modality that no row has leaves its networks where they were."""
    first, second = found["2-0"]["unused"], found["2-1"]["unused"]
    assert first == second and 0 < first["still"] < first["all"] / 2


def test_what_is_not_finite_in_one_process_stops_both(found):
    first, second = found["2-0"], found["2-1"]
    training, validation = first["nan_in_training"], first["nan_in_validation"]
    assert training == second["nan_in_training"] and validation == second["nan_in_validation"]
    assert training["step"] == 3 and "the loss is nan in process 1 at step 3" in training["error"]
    assert "the validation loss is nan in process 1 at step 3" in validation["error"]


@pytest.mark.parametrize("name", ["sigterm", "callback"])
def test_asked_to_stop_in_one_process_both_save_and_go_on_to_the_bit(name, found):
    for rank in ("2-0", "2-1"):
        result = found[rank][name]
        assert result["interrupted"] and result["step"] == 4
        assert result["resumed"] == result["straight"]
    assert found["2-0"][name]["straight"] == found["2-1"][name]["straight"]


def test_sigterm_saves_and_stops_a_single_process(found):
    result = found["1-0"]["sigterm"]
    assert result["interrupted"] and result["step"] == 4 and result["resumed"] == result["straight"]


def test_early_stopping_and_callbacks_stop_both(found):
    first, second = found["2-0"], found["2-1"]
    assert first["early"] == second["early"] and first["early"]["stopped"] and len(first["early"]["rows"]) < 30
    assert first["stopped_by_one"] == second["stopped_by_one"]
    assert [row["step"] for row in first["stopped_by_one"]["rows"]] == [2]


def test_only_the_first_process_writes(found):
    assert found["2-0"]["own_folders"]["files"] == ["checkpoint.pt", "log.csv", "log.jsonl"]
    assert found["2-1"]["own_folders"]["files"] == []


def test_data_loaders_are_shared_and_may_be_uneven(found):
    """23 rows in minibatches of 4, twice; and streams of 5 and of 2 minibatches: five steps, then both end."""
    loaders = found["2-0"]["loaders"]
    assert loaders == found["2-1"]["loaders"]
    assert [row["step"] for row in loaders["shuffled"]["rows"]] == [3, 6]
    assert [row["step"] for row in loaders["uneven"]["rows"]] == [5, 10]


def test_sharded_evaluation_is_that_of_one_process(found):
    first, second, one = (found[n]["evaluated"] for n in ("2-0", "2-1", "1-0"))
    for what in ("joint", "conditional", "values"):
        assert first[what] == second[what] == one[what]
    assert len(one["joint"]["estimate"]) == len(one["conditional"]) == 22
    assert second["error"] == one["error"] == "ArithmeticError: this block"
    assert first["error"] == "RuntimeError: sharded stopped because of process 1: ArithmeticError: this block"


def test_a_run_of_two_processes_is_not_resumed_by_one(out):
    with pytest.raises(ValueError, match="ranks was 2, is None"):
        fit(elbo(*pair()), data(23), 2, batch_size=4, lr=1e-2, seed=3, folder=out / "own-2-0", resume=True)


def test_one_process_asks_nobody():
    alone = Ranks()
    assert alone.sums(2, True) == [2.0, 1.0] and alone.any(True) and not alone.any(False)
    assert alone.gathered("x") == ["x"] and alone.seed(7) == 7 and not alone.several
    assert (Ranks.now().rank, Ranks.now().world) == (0, 1)


def test_derived_seeds_differ():
    seeds = {derived_seed(seed, "rank", rank) for seed in range(30) for rank in range(30)}
    assert len(seeds) == 900 and max(seeds) < 2**32 and derived_seed(1, "a") == derived_seed(1, "a")


def test_only_whole_models_in_every_process():
    sharded = SimpleNamespace(world_size=2, strategy=SimpleNamespace())
    with pytest.raises(ValueError, match=r"several processes by strategy .ddp. only, .* got SimpleNamespace"):
        fit(elbo(*pair()), data(), 1, fabric=sharded)


def test_torchruns_processes_must_be_as_many_as_asked_for(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun has started 2 processes on this machine, but devices is 3"):
        fit(elbo(*pair()), data(), 1, devices=3)
