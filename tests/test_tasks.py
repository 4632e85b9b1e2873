"""`evaluate --tasks`: figures against plain code on a run, and what is refused."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
import torch

from pyro_mm.batch import Batch
from pyro_mm.cli import main
from pyro_mm.data.corrupt import occluded, salt_and_pepper, swapped
from pyro_mm.evaluation import generate, retrieve
from pyro_mm.runs import Settings, open_run, train_run
from pyro_mm.task_tables import WORDS, tasks_table
from pyro_mm.tasks import SCORES, classification, evaluate_tasks, retrieval, spoilt


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks") / "run"
    return train_run(Settings("mvae", data="digits", dim=4, epochs=2), folder, progress=False, device="cpu")


def test_classification_counts_rows_that_are_named_rightly(run) -> None:
    test, pair = run.test_rows(60), (run.recipe.model, run.recipe.guide)
    found = classification(*pair, test, "label", levels=(0.0, 1.0), k=7, seed=3)
    assert [(e["given"], e["noise"], e["n"]) for e in found] == [(["image"], 0.0, 60), (["image"], 1.0, 60)]
    for entry in found:
        noisy = spoilt(test, "label", entry["noise"], 3)
        p = generate(*pair, noisy.only("image"), 7, seed=3 * 1_000_003)["label"].probs.mean(0)
        right = (p.argmax(-1) == test.x["label"]).double().mean().item()
        assert entry["accuracy"] == pytest.approx(right)
        assert entry["se"] == pytest.approx((right * (1 - right) / 60) ** 0.5)
        assert entry["low"] < right < entry["high"] and entry["groups"] == 60


@pytest.mark.parametrize("level", [0.25, 1.0])
def test_noise_has_the_root_mean_square_that_it_is_said_to_have(run, level) -> None:
    """In standard deviations of each modality, after rounding and clamping, which take some of it away."""
    test = run.test_rows(200)
    grey = torch.rand(200, 1, 8, 8) ** 3
    free = torch.randn(200, 5) * 3
    rows = Batch({**test.x, "grey": grey, "free": free})
    noisy = spoilt(rows, "label", level, 0)
    assert torch.equal(noisy.x["label"], test.x["label"])
    for m in ("image", "grey", "free"):
        rms = (noisy.x[m] - rows.x[m]).square().mean().sqrt()
        assert rms == pytest.approx(level * rows.x[m].std().item(), rel=0.015), m
    assert noisy.x["grey"].min() >= 0 and noisy.x["grey"].max() <= 1
    assert torch.equal(noisy.x["image"], noisy.x["image"].round()) and spoilt(test, "label", 0.0) is test


def test_other_corruptions_are_those_of_the_data(run) -> None:
    test = run.test_rows(50)
    for kind, by_hand in (("salt_and_pepper", salt_and_pepper), ("occlusion", occluded)):
        assert torch.equal(spoilt(test, "label", 0.3, 4, kind).x["image"], by_hand(test, "image", 0.3, 4).x["image"])
    exchanged = swapped(test, "image", 1.0, 4, label="label").x["image"]
    assert torch.equal(spoilt(test, "label", 1.0, 4, "swap").x["image"], exchanged)
    pair = run.recipe.model, run.recipe.guide
    hidden = classification(*pair, test, "label", levels=(1.0,), k=3, kind="occlusion")[0]
    black = Batch({**test.x, "image": torch.full_like(test.x["image"], test.x["image"].min())})
    assert hidden["accuracy"] == classification(*pair, black, "label", levels=(0.0,), k=3)[0]["accuracy"]


def test_zeros_and_ones_are_flipped_in_proportion_to_the_noise() -> None:
    torch.manual_seed(0)
    x = (torch.rand(200, 100) < 0.1).float()
    for level in (0.25, 1.0):
        noisy = spoilt(Batch({"x": x}), "label", level).x["x"]
        assert set(noisy.unique().tolist()) == {0.0, 1.0}
        assert (noisy != x).float().mean() == pytest.approx((level * x.std().item()) ** 2, rel=0.1)


def test_missing_modalities_leave_rows_out(run) -> None:
    test = run.test_rows(40)
    mask = torch.arange(40) % 4 != 0
    fewer = type(test)(test.x, {"image": mask, "label": torch.ones(40, dtype=torch.bool)})
    (entry,) = classification(run.recipe.model, run.recipe.guide, fewer, "label", levels=(0.0,), k=2)
    assert entry["n"] == 30


def test_the_command_writes_and_prints_them(run, tmp_path, capsys) -> None:
    found = main(
        [
            "evaluate",
            str(run.folder),
            "--tasks",
            "classification,generation",
            "--rows",
            "80",
            "--judges",
            str(tmp_path / "judges"),
        ]
    )
    assert found == 0
    said = capsys.readouterr().out
    written = json.loads((run.folder / "tasks.json").read_text())
    assert tasks_table(written) in said and "log p" not in said
    image = written["generation"]["image"]
    assert image["n"] == 80 and image["frechet"] > image["frechet_halves"] > 0
    kept = json.loads((tmp_path / "judges" / "judges.json").read_text())["accuracy"]
    assert {m: [j["accuracy"], j["n"]] for m, j in written["judges"].items()} == kept, "by whom it was judged"
    assert 0 <= image["precision"] <= 1 and 0 <= image["recall"] <= 1 and image["kernel"] > 0
    assert [e["noise"] for e in written["classification"]] == [0.0, 0.25, 0.5, 1.0]
    evaluate_tasks(run, ["classification"], 80)
    assert json.loads((run.folder / "tasks.json").read_text()) == written  # the other task stays
    evaluate_tasks(run, ["classification"], 80, draws=2)
    assert "generation" not in json.loads((run.folder / "tasks.json").read_text())


def test_retrieval_goes_in_every_direction() -> None:
    from tests.helpers.training import data, pair

    model, guide = pair()
    found = retrieval(model, guide, data(20), "label")
    names = data(20).names
    assert [(e["given"], e["of"]) for e in found] == [([a], [b]) for a, b in permutations(names, 2)]
    alone = retrieve(model, guide, data(20), data(20), of="count", given="image", label="label").to_json()
    assert [e for e in found if (e["given"], e["of"]) == (["image"], ["count"])] == [alone]
    with_labels = [e for e in found if "label" in e["given"] + e["of"]]
    assert all(e["recall"] == {} and e["median_rank"] is None and e["mean_precision"] for e in with_labels)


def test_every_score_ranks_a_runs_rows(run, capsys) -> None:
    names = "cosine,kl,sampled-kl,wasserstein,likelihood"
    assert main(["evaluate", str(run.folder), "--tasks", "retrieval", "--scores", names, "--rows", "60"]) == 0
    said, found = capsys.readouterr().out, json.loads((run.folder / "tasks.json").read_text())["retrieval"]
    assert [e["score"] for e in found[::2]] == list(WORDS)
    assert [said.count(f"retrieval {what}\n") for what in WORDS.values()] == [1] * 5
    test, pair = run.test_rows(60), (run.recipe.model, run.recipe.guide)
    for entry, (name, score) in zip(found[::2], SCORES.items(), strict=True):
        alone = retrieve(*pair, test, test, of="label", given="image", score=score, pairs=(), label="label")
        assert entry == alone.to_json(), name


def test_what_cannot_be_done_is_said(run, capsys) -> None:
    assert main(["evaluate", str(run.folder), "--tasks", "segmentation"]) == 2
    assert "unknown task 'segmentation': there are classification, generation, retrieval" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"scores of retrieval are cosine, kl, .*; got \['dot'\]"):
        evaluate_tasks(run, ["retrieval"], scores=["dot"])
    assert main(["evaluate", str(run.folder), "--tasks", "retrieval", "--scores", "dot"]) == 2
    assert "unknown score 'dot': there are cosine, kl" in capsys.readouterr().err
    with pytest.raises(ValueError, match="inputs are spoilt by noise, salt_and_pepper, occlusion, swap; got 'rain'"):
        evaluate_tasks(run, ["classification"], kind="rain")
    with pytest.raises(ValueError, match="tasks are classification, generation, retrieval; got"):
        evaluate_tasks(open_run(run.folder), [])
