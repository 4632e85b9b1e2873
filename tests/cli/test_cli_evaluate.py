"""`pyro-mm evaluate | generate | plot`: numbers and files are the library's."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pyro_mm.cli import main
from pyro_mm.evaluation import generate, log_conditional, log_marginal
from pyro_mm.runs import open_run
from tests.helpers.cli import TINY, complaint


def test_evaluate_prints_and_writes_the_estimators_numbers(run, capsys):
    assert main(["evaluate", str(run), "-k", "20", "--rows", "25", "--seed", "3", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    found = json.loads((run / "results.json").read_text())["likelihoods"]
    opened = open_run(run)
    pair, test = (opened.recipe.model, opened.recipe.guide), opened.splits.test[:25]
    joint = log_marginal(*pair, test, k=20, refine=True, seed=3)
    conditional = log_conditional(*pair, test, "label", "image", k=20, refine=True, seed=3)
    assert found["log p(image, label)"]["mean"] == joint.mean
    assert found["log p(label | image)"]["mean"] == conditional.mean
    row = re.search(r"^log p\(image, label\) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+) %$", said, re.MULTILINE)
    assert row, said
    assert row[1] == f"{joint.mean:.2f}"
    assert row[2] == f"{joint.mean_se:.2f}"
    assert float(row[5]) == pytest.approx(100 * joint.unreliable_share, abs=0.06)
    assert max(map(len, said.splitlines())) <= 100
    assert main(["evaluate", str(run), "-k", "20", "--rows", "25", "--seed", "3", "--no-refine", "--quiet"]) == 0
    plain = json.loads((run / "results.json").read_text())["likelihoods"]["log p(image, label)"]
    assert plain["mean"] == log_marginal(*pair, test, k=20, seed=3).mean
    assert plain["proposal"] == "0.9 guide + 0.1 prior"


def test_evidence_for_arviz_holds_the_same_estimates(run):
    from pyro_mm import arviz

    assert main(["evaluate", str(run), "-k", "10", "--rows", "12", "--quiet", "--device", "cpu"]) == 0
    opened = open_run(run)
    pair, test = (opened.recipe.model, opened.recipe.guide), opened.splits.test[:12]
    joint = log_marginal(*pair, test, k=10, refine=True, seed=0)
    stored = arviz.load(run / "evidence.nc")["log_likelihood"]["log p(image, label)"]
    np.testing.assert_allclose(np.ravel(stored), joint.estimate.numpy())


def test_evaluate_without_a_netcdf_package_only_notes_it(run, capsys, monkeypatch):
    def missing(*args):
        raise ImportError("netCDF files need h5netcdf")

    monkeypatch.setattr("pyro_mm.arviz.save", missing)
    assert main(["evaluate", str(run), "-k", "5", "--rows", "5", "--device", "cpu"]) == 0
    assert "no evidence.nc: netCDF files need h5netcdf" in capsys.readouterr().err
    assert json.loads((run / "results.json").read_text())["k"] == 5


def test_a_conditional_model_is_evaluated_as_far_as_it_goes(tmp_path, capsys):
    folder = tmp_path / "cvae"
    assert main(["train", "cvae", "--out", str(folder), *TINY]) == 0
    assert main(["evaluate", str(folder), "-k", "10", "--rows", "10"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"log p\(image \| label\) +-\d", said)
    assert said.count("not available") == 5
    assert "accuracy" not in said
    assert "without label" in complaint(capsys, "generate", folder, "--given", "image")
    assert main(["generate", str(folder)]) == 0
    assert (folder / "figures" / "from_label.npz").is_file()


def test_generate_writes_the_models_draws(run, tmp_path):
    out = tmp_path / "deep" / "g"
    flags = ["--given", "image", "--rows", "0", "5", "9", "-k", "4", "--seed", "2", "--out", str(out)]
    assert main(["generate", str(run), *flags]) == 0
    with np.load(out.with_name("g.npz")) as file:
        found = dict(file)
    opened = open_run(run)
    batch = opened.splits.test[[0, 5, 9]]
    pair = opened.recipe.model, opened.recipe.guide
    fns = generate(*pair, batch.only("image"), 4, seed=2)
    np.testing.assert_allclose(found["mean.image"], fns["image"].mean.mean(0).detach(), rtol=1e-6)
    np.testing.assert_allclose(found["probabilities.label"], fns["label"].probs.mean(0).detach(), rtol=1e-6)
    assert found["draws.image"].shape == (4, 3, 8, 8)
    assert found["draws.label"].shape == (4, 3)
    np.testing.assert_array_equal(found["truth.label"], batch.x["label"])
    assert found["rows"].tolist() == [0, 5, 9]
    assert out.with_name("g.png").read_bytes().startswith(b"\x89PNG")


def test_generate_shows_one_row_of_every_class_by_default(run):
    assert main(["generate", str(run), "--given", "none", "-k", "2"]) == 0
    with np.load(run / "figures" / "from_prior.npz") as file:
        assert file["truth.label"].tolist() == list(range(10))


def test_generate_names_what_it_cannot_do(run, capsys):
    assert "unknown modality 'sound'" in complaint(capsys, "generate", run, "--given", "sound")
    assert "there are test rows 0 to 358, not 9999" in complaint(capsys, "generate", run, "--rows", 1, 9999)


def test_plot_draws_every_figure(run, capsys):
    assert main(["plot", str(run), "-k", "10", "--rows", "10"]) == 0
    drawn = capsys.readouterr().out.split()
    names = ["loss", "cross_generation", "cross_generation_sheet", "reconstructions", "prior_samples"]
    names += ["latent_map", "traversal", "khat"]
    assert drawn == [str(run / "figures" / f"{n}.png") for n in names]
    assert all(Path(p).read_bytes().startswith(b"\x89PNG") for p in drawn)
    assert main(["plot", str(run), "--only", "loss", "--format", "svg"]) == 0
    assert "<svg" in (run / "figures" / "loss.svg").read_text()
    assert "matplotlib writes no '.doc'" in complaint(capsys, "plot", run, "--only", "loss", "--format", "doc")
