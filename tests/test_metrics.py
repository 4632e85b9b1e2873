"""Metrics of a run are those of the functions beneath; their file and their table say the same."""

from __future__ import annotations

import json

import pytest
import torch

from pyro_mm.evaluation.coherence import Proportion, conditions, cross_accuracy, joint_coherence
from pyro_mm.evaluation.frechet import rank
from pyro_mm.judges import Judges
from pyro_mm.metrics import evaluate_metrics, known, metrics_table
from pyro_mm.runs import train_run
from pyro_mm.settings import Settings


def trained(folder, variant="mvae", **more):
    return train_run(Settings(variant, epochs=1, dim=3, batch_size=256, **more), folder, progress=False, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("metrics") / "a", data="digit_halves")


@pytest.fixture(scope="module")
def judges(run):
    """Untrained, which is enough to compare numbers."""
    torch.manual_seed(0)
    found = Judges(run.splits.modalities, "label", 10)
    found.accuracy = {"top": Proportion(0.8, 359), "bottom": Proportion(0.75, 359)}
    return found


@pytest.mark.parametrize("means", [(), ("z",)])
def test_the_file_holds_what_the_functions_find(run, judges, means):
    run.recipe.means = means
    found = evaluate_metrics(run, ["coherence", "rank"], judges, 80, draws=50, seed=4)
    assert found == json.loads((run.folder / "metrics.json").read_text())
    args, test = (run.recipe.model, run.recipe.guide, judges), run.splits.test[:80]
    options = {"means": means, "seed": 4}
    assert found["cross_accuracy"] == cross_accuracy(*args, test, "label", **options).to_json()
    joint = joint_coherence(*args, run.recipe.modalities, 50, **options)
    assert found["joint_coherence"] == {"value": joint.value, "se": joint.se, "n": 50}
    assert found["rank"] == {m: r.to_json() for m, r in rank(*args, test, **options).items()}
    assert list(found["rank"]) == ["top", "bottom"]
    names = ("top", "bottom", "label")
    pairs = [(e["target"], tuple(e["given"])) for e in found["cross_accuracy"]]
    assert pairs == [(m, s) for m in names for s in conditions(names, m)]
    assert found["judges"]["top"] == {"accuracy": 0.8, "se": Proportion(0.8, 359).se, "n": 359}
    assert (found["rows"], found["seed"], found["means"]) == (80, 4, list(means))
    assert found["data_fingerprint"] == run.splits.fingerprint()
    run.recipe.means = ()


def test_only_what_is_asked_for_is_measured(run, judges):
    for which, there in (("coherence", {"cross_accuracy", "joint_coherence"}), ("rank", {"rank"})):
        found = evaluate_metrics(run, [which], judges, 20, draws=10)
        assert {"cross_accuracy", "joint_coherence", "rank"} & set(found) == there
    kept = json.loads((run.folder / "metrics.json").read_text())  # of both calls: the rest was the same
    assert {"cross_accuracy", "joint_coherence", "rank"} < set(kept) and kept["rank"] == found["rank"]
    evaluate_metrics(run, ["rank"], judges, 21)
    assert "cross_accuracy" not in json.loads((run.folder / "metrics.json").read_text())  # of other rows


def test_a_conditional_model_has_no_prior_to_be_coherent(tmp_path):
    run = trained(tmp_path / "a", "cvae")
    found = evaluate_metrics(run, judges=Judges(run.splits.modalities, "label", 10), rows=30)
    assert [(e["target"], e["given"]) for e in found["cross_accuracy"]] == [("image", ["label"])]
    assert "joint_coherence" not in found
    assert (found["rank"]["image"]["prior"], found["rank"]["image"]["sd"]) == (None, None)
    assert json.loads((run.folder / "metrics.json").read_text()) == found
    assert " -" in metrics_table(found)


def entry(target, given, accuracy):
    return {"target": target, "given": given, "accuracy": accuracy, "se": 0.01, "n": 100}


def test_the_table_groups_sets_by_size_with_their_means():
    a = [entry("image", ["sound"], 0.5), entry("image", ["label"], 0.9), entry("image", ["sound", "label"], 1.0)]
    found = {
        "judges": {"image": {"accuracy": 0.975, "se": 0.004, "n": 100}, "sound": {"accuracy": 0.9, "se": 0.01, "n": 9}},
        "cross_accuracy": [*a, entry("label", ["image"], 0.25)],
        "joint_coherence": {"value": 0.333, "se": 0.015, "n": 1000},
        "rank": {"image": {"mean": 12.5, "sd": None, "every": 3.25, "prior": 20.0, "baseline": 0.5}},
    }
    assert metrics_table(found).splitlines() == [
        "accuracy of the judges on real test rows",
        "",
        "image  97.5 % +- 0.4 %",
        "sound  90.0 % +- 1.0 %",
        "",
        "accuracy of what is generated",
        "",
        "target  accuracy          given",
        "image   50.0 % +- 1.0 %   sound",
        "image   90.0 % +- 1.0 %   label",
        "image   70.0 %            mean over sets of one",
        "image   100.0 % +- 1.0 %  sound, label",
        "label   25.0 % +- 1.0 %   image",
        "",
        "joint coherence of 1,000 draws from the prior: 33.3 % +- 1.5 %",
        "",
        "Frechet distance to the test rows, by what is given",
        "",
        "target  one other (mean +- sd)   all  nothing  halves of the data",
        "image               12.50 +- -  3.25    20.00                0.50",
    ]


def test_names_are_checked_and_each_counts_once():
    assert known("rank, coherence,rank") == ["rank", "coherence"]
    with pytest.raises(ValueError, match="unknown metric 'rnak', 'fid': there are likelihood, coherence, rank"):
        known("rnak,likelihood,fid")
    with pytest.raises(ValueError, match="no metric is named: there are likelihood"):
        known(" , ")


def test_errors_name_what_is_wrong(run, judges, tmp_path):
    with pytest.raises(ValueError, match=r"metrics are coherence and rank; got \['likelihood'\]"):
        evaluate_metrics(run, ["likelihood"], judges)
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        evaluate_metrics(run, ["coherence"], judges, draws=0)
    with pytest.raises(ValueError, match="rows must be at least 1"):
        evaluate_metrics(run, ["coherence"], judges, 0)
    captions = trained(tmp_path / "b", data="digit_captions")
    with pytest.raises(ValueError, match="'digit_captions' has no label"):
        evaluate_metrics(captions)
