"""Variants trained alike and measured alike: the table's numbers are the library's, and what fails says why."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyro_mm.cli import main
from pyro_mm.contest import Contest, contest
from pyro_mm.metrics import evaluate_metrics
from pyro_mm.run_comparison import compare_runs, evidence_of_run
from pyro_mm.runs import open_run
from pyro_mm.settings import Settings

COMMON = Settings("mvae", epochs=1, dim=3, batch_size=256)
NAMES = ["mvae", "mopoe", "mmvm"]
HOW = {"k": 30, "rows": 40, "refine": False, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> tuple[Contest, object]:
    folder = tmp_path_factory.mktemp("contest")
    return contest(NAMES, COMMON, folder, **HOW), folder


def test_numbers_are_those_of_the_runs(played) -> None:
    found, folder = played
    direct = compare_runs([folder / "mvae", folder / "mopoe"], k=30, rows=40, refine=False)
    numbers = {v["variant"]: v for v in found.to_json()["variants"]}
    for name in ("mvae", "mopoe"):
        assert numbers[name]["log_p"] == pytest.approx(direct.results[name].mean)
    worse = direct.names[1]
    assert [s.variant for s in found.standings] == [*direct.names, "mmvm"]
    assert numbers[worse]["difference"] == pytest.approx(direct.difference(worse, direct.best).mean)
    metrics = evaluate_metrics(open_run(folder / "mvae"), ["coherence"], rows=40)
    label = next(e for e in metrics["cross_accuracy"] if e["target"] == "label")
    assert numbers["mvae"]["label_accuracy"] == pytest.approx(label["accuracy"])
    assert numbers["mvae"]["joint_coherence"] == pytest.approx(metrics["joint_coherence"]["value"])


def test_what_has_no_likelihood_says_why(played) -> None:
    found, folder = played
    last = found.standings[-1]
    assert last.evidence is None and "no density of the data" in last.why and last.metrics is not None
    assert "mmvm: " in repr(found) and json.loads((folder / "contest.json").read_text()) == found.to_json()


def test_a_model_of_less_shows_its_number_and_is_compared_with_none(tmp_path) -> None:
    """`vae` models the image alone, and nothing from anything else; `cvae` models the image given its label."""
    found = contest(["vae", "cvae", "mvae", "mopoe"], COMMON, tmp_path, **HOW)
    assert [s.variant for s in found.standings[2:]] == ["vae", "cvae"]
    assert found.comparison.names == tuple(s.variant for s in found.standings[:2])
    numbers = {v["variant"]: v for v in json.loads((tmp_path / "contest.json").read_text())["variants"]}
    vae, cvae = numbers["vae"], numbers["cvae"]
    assert vae["quantity"] == "log p(image)" and vae["difference"] is None
    assert vae["why"].startswith("log p(image) only; ") and "accuracy needs a source" in vae["why"]
    assert cvae["log_p"] is None and cvae["quantity"] is None and "given label" in cvae["why"]
    assert cvae["one_given"] is not None and numbers["mvae"]["quantity"] == "log p(image, label)"
    said = repr(found)
    assert "vae: log p(image) only" in said and f"{vae['log_p']:.2f} +-" in said
    alone = contest(["vae"], COMMON, tmp_path, coherence=False, **HOW)
    assert alone.comparison is None and "log p(image) only" in repr(alone)


def test_every_variant_makes_as_many_steps_in_however_many_stages(tmp_path) -> None:
    """3 epochs do not divide by 2 stages, so that all have 4: of 1,258 rows in minibatches of 256 that is 20 steps."""
    how = {**HOW, "k": 2, "rows": 2}
    found = contest(["mvae", "scan", "avae_staged"], replace(COMMON, epochs=3), tmp_path, coherence=False, **how)
    numbers = {v["variant"]: v for v in json.loads((tmp_path / "contest.json").read_text())["variants"]}
    assert {n: (v["steps"], v["stages"]) for n, v in numbers.items()} == {
        "mvae": (20, 1), "scan": (20, 2), "avae_staged": (20, 2),
    }  # fmt: skip
    for name in numbers:
        rows = list(csv.DictReader((Path(tmp_path) / name / "log.csv").open()))
        assert len(rows) == 4 and int(rows[-1]["step"]) == 20
    said = repr(found)
    assert "Each had 4 epochs of training (3, rounded up to a multiple of the stages)" in said
    assert "scan 2 x 2" in said and "avae_staged 2 x 2" in said and "steps" in said.splitlines()[0]
    least = contest(["scan"], replace(COMMON, epochs=1), tmp_path / "least", coherence=False, **how)
    assert least.epochs == 2 and least.standings[0].steps == 10


def test_the_seed_is_that_of_the_draws_too(tmp_path) -> None:
    settings = replace(COMMON, seed=3)
    (one,) = contest(["mvae"], settings, tmp_path, coherence=False, **HOW).standings
    run = open_run(tmp_path / "mvae")
    same, other = (evidence_of_run(run, None, (), 30, 40, False, seed).estimate for seed in (3, 0))
    assert torch.equal(one.evidence.estimate, same) and not torch.equal(one.evidence.estimate, other)


def test_what_is_trained_is_not_trained_again(played) -> None:
    found, folder = played
    before = (folder / "mvae" / "run.json").read_text()
    again = contest(["mvae"], COMMON, folder, **HOW)
    assert (folder / "mvae" / "run.json").read_text() == before
    one = next(s for s in found.standings if s.variant == "mvae")
    assert torch.equal(again.standings[0].evidence.estimate, one.evidence.estimate)
    with pytest.raises(FileExistsError, match="other settings"):
        contest(["mvae"], replace(COMMON, dim=4), folder, **HOW)


def test_what_cannot_be_built_does_not_stop_the_others(tmp_path) -> None:
    with pytest.raises(ValueError, match="takes no alpha"):
        contest(["mvae"], replace(COMMON, options={"alpha": 1.0}), tmp_path, **HOW)
    mixed = contest(["mvae", "jmvae_kl"], replace(COMMON, options={"alpha": 0.1}), tmp_path, coherence=False, **HOW)
    assert [s.variant for s in mixed.standings] == ["jmvae_kl", "mvae"]
    assert "takes no alpha" in mixed.standings[1].why and mixed.standings[1].seconds is None


def test_the_command_prints_the_table(tmp_path, capsys) -> None:
    tiny = ["--epochs", "1", "--dim", "3", "--batch-size", "256", "--device", "cpu"]
    command = [
        "compare",
        "--variants",
        "mvae",
        "MoPoE",
        *tiny,
        "-k",
        "10",
        "--rows",
        "10",
        "--no-refine",
        "--no-coherence",
    ]
    assert main([*command, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("+-") == 3 and "minus the best" in said
    assert main([*command, "--of", "label", "--out", str(tmp_path)]) == 2


def test_the_command_puts_guides_on_a_runs_model(played, capsys) -> None:
    folder = played[1] / "mvae"
    before = {n: p.clone() for n, p in open_run(folder).recipe.model.state_dict().items()}
    tiny = ["--epochs", "1", "-k", "20", "--rows", "10", "--device", "cpu"]
    assert main(["compare", str(folder), "--guides", "mvae", "mopoe", *tiny]) == 0
    said = capsys.readouterr().out
    assert "IWAE, K = 20" in said and "mopoe" in said
    assert all(torch.equal(p, before[n]) for n, p in open_run(folder).recipe.model.state_dict().items())
    assert main(["compare", "--guides", "mvae", *tiny]) == 2
