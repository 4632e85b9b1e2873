"""`pyro-mm evaluate --metrics`: what is measured, written and said."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from pyro_mm import judges as module
from pyro_mm.cli import main
from pyro_mm.data import digits
from pyro_mm.judges import Judges, Training
from pyro_mm.metrics import metrics_table
from tests.helpers.cli import TINY


@pytest.fixture(scope="module")
def own(trained, tmp_path_factory):
    return shutil.copytree(trained, tmp_path_factory.mktemp("metrics") / "run")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Untrained judges, kept as if trained: the command must find them."""
    folder, splits = tmp_path_factory.mktemp("judges"), digits()
    torch.manual_seed(0)
    judges = Judges(splits.modalities, "label", 10)
    facts = {"format": module.FORMAT, "data": splits.fingerprint(), "training": repr(Training())}
    module._save(judges, folder, {**facts, "networks": module._digest(judges)})
    return folder


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    monkeypatch.setattr(module, "_fit", None)


def evaluated(folder, *more):
    return main(["evaluate", str(folder), "--rows", "20", "-k", "5", "--no-refine", "--device", "cpu", *map(str, more)])


def clean(folder):
    for name in ("results.json", "metrics.json", "evidence.nc"):
        (folder / name).unlink(missing_ok=True)


def test_likelihoods_alone_by_default(own, capsys):
    clean(own)
    assert evaluated(own) == 0
    assert (own / "results.json").is_file() and not (own / "metrics.json").exists()
    assert "Frechet" not in capsys.readouterr().out


def test_other_metrics_are_written_and_printed(own, kept, capsys):
    clean(own)
    assert evaluated(own, "--metrics", "coherence,rank", "--judges", kept, "--seed", 3) == 0
    found = json.loads((own / "metrics.json").read_text())
    assert not (own / "results.json").exists()
    assert (found["rows"], found["seed"], list(found["rank"])) == (20, 3, ["image"])
    assert capsys.readouterr().out == f"mvae on digits, 20 test rows\n\n{metrics_table(found)}\n"


def test_all_at_once_and_quietly(own, kept, capsys):
    clean(own)
    assert evaluated(own, "--metrics", "rank,likelihood", "--judges", kept) == 0
    first, _, second = capsys.readouterr().out.partition("\n\nmvae on digits, 20 test rows\n")
    assert "log p(image, label)" in first and "Frechet" in second
    clean(own)
    assert evaluated(own, "--metrics", "rank,likelihood", "--judges", kept, "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert (own / "results.json").is_file() and (own / "metrics.json").is_file()


def test_an_unknown_metric_is_one_line_that_lists_the_known(own, capsys):
    assert evaluated(own, "--metrics", "coherence,fid") == 2
    error = capsys.readouterr().err
    assert error == "pyro-mm: unknown metric 'fid': there are likelihood, coherence, rank\n"


def test_data_without_a_label_are_refused_in_one_line(tmp_path, capsys):
    folder = tmp_path / "a"
    assert main(["train", "mvae", "--data", "digit_captions", "--out", str(folder), *TINY]) == 0
    assert evaluated(folder, "--metrics", "coherence") == 2
    error = capsys.readouterr().err
    assert error == "pyro-mm: data set 'digit_captions' has no label: judges are classifiers and need one\n"
