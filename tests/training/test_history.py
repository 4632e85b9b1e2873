"""The history in memory and in files: the same numbers, each row once."""

import csv
import json
import math

import pytest
import torch

from pyro_mm.objectives import elbo
from pyro_mm.training import History, Stage, fit
from tests.helpers.training import At, data, pair, raising


def run(folder, epochs=3, **options):
    options = {"progress": False, "batch_size": 8, "validation": data(9, seed=2)} | options
    return fit(elbo(*pair()), data(), epochs, folder=folder, **options)


def read_csv(path):
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return [{k: v if k == "stage" else float(v) for k, v in row.items()} for row in rows]


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_hold_the_history(tmp_path):
    history = run(tmp_path, jsonl=True)
    assert read_csv(tmp_path / "log.csv") == read_jsonl(tmp_path / "log.jsonl") == history.rows
    assert history["validation/elbo"] == pytest.approx([-v for v in history["validation"]], rel=1e-6)


def test_rows_after_the_checkpoint_are_dropped_and_come_once(tmp_path):
    """Checkpoints every 2 epochs, a crash in epoch 4: its log shows 3 rows, of which the resumed run repeats one."""
    with pytest.raises(RuntimeError):
        run(tmp_path, 5, jsonl=True, checkpoint_every=2, callbacks=[At(11, raising(RuntimeError("crash")))])
    assert [r["epoch"] for r in read_csv(tmp_path / "log.csv")] == [1, 2, 3]
    run(tmp_path, 5, jsonl=True, checkpoint_every=2, resume=True, callbacks=[At(7, raising(KeyboardInterrupt()))])
    assert [r["epoch"] for r in read_csv(tmp_path / "log.csv")] == [1, 2]
    history = run(tmp_path, 5, jsonl=True, checkpoint_every=2, resume=True)
    assert read_csv(tmp_path / "log.csv") == read_jsonl(tmp_path / "log.jsonl") == history.rows
    assert history["epoch"] == [1, 2, 3, 4, 5]


def test_stages_with_other_terms_share_one_csv(tmp_path):
    model, guide = pair()
    objective = elbo(model, guide)
    stages = [Stage(Plain(objective), 1, name="plain"), Stage(objective, 1, name="terms")]
    history = fit(stages, data(), folder=tmp_path, progress=False)
    first, second = csv.DictReader((tmp_path / "log.csv").read_text().splitlines())
    assert first["elbo/kl"] == "" and float(second["elbo/kl"]) == history.rows[1]["elbo/kl"]
    assert history["elbo/kl"][1] == history.rows[1]["elbo/kl"] and math.isnan(history["elbo/kl"][0])
    assert "stage" in history.table() and "plain" in history.table()


class Plain(torch.nn.Module):
    """An objective without terms."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, batch):
        return self.inner(batch)


def test_columns_table_and_best_epoch():
    rows = [
        {"stage": "a", "epoch": 1, "step": 4, "loss": 2.0, "validation": 1.0},
        {"stage": "b", "epoch": 1, "step": 8, "loss": 12345.678, "validation": 3.0},
        {"stage": "b", "epoch": 2, "step": 12, "loss": 1.0, "validation": 2.0, "validation/elbo": -2.0},
    ]
    history = History(rows)
    assert history.best_epoch == 2 and history["loss"] == [2.0, 12345.678, 1.0]
    assert history.table().splitlines() == [
        "stage  epoch     loss  validation",
        "    a      1        2           1",
        "    b      1  12345.7           3",
        "    b      2        1           2",
    ]
    assert history.table(last=1, names=["step", "validation/elbo"]).splitlines() == [
        "step  validation/elbo",
        "  12               -2",
    ]
    assert repr(history).startswith("History(3 epochs, best at 2)\n")
    with pytest.raises(KeyError, match=r"no column 'elbo'; there are .*'loss'"):
        history["elbo"]
    assert History().best_epoch is None and repr(History()) == "History(0 epochs)\n"


def test_tensorboard_and_other_loggers_get_every_row(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    seen = []

    class Logger:
        def log_metrics(self, metrics, step):
            seen.append((step, metrics["loss"]))

        def finalize(self, status):
            seen.append(status)

    history = run(tmp_path, tensorboard=True, loggers=[Logger()])
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = [(e.step, e.value) for e in events.Scalars("elbo/kl")]
    assert logged == [(s, pytest.approx(v, rel=1e-6)) for s, v in zip(history["step"], history["elbo/kl"], strict=True)]
    assert seen == [*zip(history["step"], history["loss"], strict=True), "success"]


def test_absent_tensorboard_is_said(tmp_path, monkeypatch):
    import lightning_fabric.loggers

    def absent(**kwargs):
        raise ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available.")

    monkeypatch.setattr(lightning_fabric.loggers, "TensorBoardLogger", absent)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        run(tmp_path, tensorboard=True)
