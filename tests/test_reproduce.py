"""A published table in miniature: what is printed is what the estimators say of the saved models, and nothing twice."""

import csv
import json
import sys

import pytest
import torch

from pyro_mm import reproduce as module
from pyro_mm import storage
from pyro_mm.cli import main
from pyro_mm.data import mnist
from pyro_mm.evaluation import log_conditional, log_marginal
from pyro_mm.published import QUANTITIES, TABLES, mvae_networks
from pyro_mm.reproduce import Plan, build, reproduce, table
from tests.helpers.idx_files import miniature

MNIST = sys.modules[mnist.__module__]
MVAE_TABLE, JMVAE_TABLE = TABLES["mvae_table"], TABLES["jmvae_table"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MNIST, "FILES", miniature(MNIST.FILES, folder)[0])
        patch.setattr(module, "VALIDATION", 10)
        yield folder


def plan(root, **changes):
    given = {"root": str(root), "epochs": 1, "warmup": 1.0, "dim": 3, "k": 4, "batch_size": 10, "device": "cpu"}
    return Plan(**{**given, **changes})


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("table")
    return out, reproduce(plan(root), out, progress=False)


def test_figures_are_those_of_the_saved_models(root, made):
    out, found = made
    test = mnist(root, validation=10).test
    assert {s: tuple(r["found"]) for s, r in found.items()} == MVAE_TABLE.systems
    for system, names in MVAE_TABLE.systems.items():
        recipe = storage.load(out / system / "model")
        pair = recipe.model, recipe.guide
        for name in names:
            if name.endswith("label)") and "|" in name:
                ev = log_conditional(*pair, test, "image", "label", 4, refine=True, seed=0)
            else:
                ev = log_marginal(*pair, test if "," in name else test.only("image"), 4, refine=True, seed=0)
            assert found[system]["found"][name]["mean"] == pytest.approx(ev.estimate.mean().item(), abs=1e-4)
            assert found[system]["found"][name]["k"] == 4
    assert json.loads((out / "table.json").read_text()) == found


def test_networks_are_the_papers(root):
    splits = mnist(root, validation=10)
    recipe = build("mvae", plan(root, dim=64), splits)
    shapes = [tuple(p.shape) for n, p in recipe.guide.named_parameters() if n.endswith("weight")]
    assert shapes == [(512, 784), (512, 512), (128, 512), (512, 10), (512, 512), (128, 512)]
    shapes = [tuple(p.shape) for n, p in recipe.model.named_parameters() if n.endswith("weight")]
    assert shapes == [(512, 64), (512, 512), (512, 512), (784, 512), (512, 64), (512, 512), (512, 512), (10, 512)]
    swish = {type(m) for m in recipe.model.modules() if isinstance(m, torch.nn.SiLU | torch.nn.ReLU)}
    assert swish == {torch.nn.SiLU} and [m.name for m in mvae_networks(splits)] == ["image", "label"]
    assert "50" in repr(recipe.objective)


def test_jmvaes_table_differs_by_alpha_alone(root):
    splits, at = mnist(root, validation=10), plan(root, dim=64, table="jmvae_table")
    recipes = {s: build(s, at, splits) for s in JMVAE_TABLE.systems}
    alphas = {s: r.objective.weights[1:] for s, r in recipes.items()}
    assert alphas == {
        "jmvae_zero": [], "jmvae_kl_0.01": [0.01] * 2, "jmvae_kl_0.1": [0.1] * 2, "jmvae_kl_1": [1.0] * 2
    }  # fmt: skip
    assert [r.name for r in recipes.values()] == ["jmvae_zero", "jmvae_kl", "jmvae_kl", "jmvae_kl"]
    shapes = [tuple(p.shape) for n, p in recipes["jmvae_zero"].guide.named_parameters() if n.endswith("weight")]
    image, label = [(512, 784), (512, 512), (512, 512)], [(512, 10), (512, 512), (512, 512)]
    assert shapes == [*image, *label, (512, 1024), (128, 512)]
    shapes = [tuple(p.shape) for n, p in recipes["jmvae_zero"].model.named_parameters() if n.endswith("weight")]
    assert shapes == [(512, 64), (512, 512), (784, 512), (512, 64), (512, 512), (10, 512)]


def test_jmvaes_table_in_miniature(root, tmp_path):
    at = plan(root, table="jmvae_table", systems=("jmvae_zero", "jmvae_kl_1"))
    found = reproduce(at, tmp_path, progress=False)
    assert [tuple(r["found"]) for r in found.values()] == [tuple(QUANTITIES)] * 2
    lines = table(found, at).splitlines()
    assert len(lines) == 1 + 2 * len(QUANTITIES)
    assert [line.split()[-4] for line in lines if "image, label), jmvae" in line] == ["-86.96", "-89.28"]
    for system in found:
        assert (tmp_path / system / "cross_generation.png").stat().st_size > 10_000
        recipe = storage.load(tmp_path / system / "model")
        rows = mnist(root, validation=10).test
        ev = log_conditional(recipe.model, recipe.guide, rows, "label", "image", 4, refine=True, seed=0)
        assert found[system]["found"]["log p(label | image)"]["mean"] == pytest.approx(
            ev.estimate.mean().item(), abs=1e-4
        )


def test_a_second_call_trains_and_measures_nothing(root, made, monkeypatch):
    out, found = made
    monkeypatch.setattr(module, "fit", None)
    monkeypatch.setattr(module, "log_likelihood", None)
    assert reproduce(plan(root, device="cpu:0"), out, progress=False) == found


def test_an_interrupted_training_goes_on(root, tmp_path, monkeypatch):
    whole = reproduce(plan(root, epochs=2, systems=("mvae",)), tmp_path / "a", progress=False)

    def stopped(*args, callbacks=(), **options):
        class Stop:
            def on_epoch(self, state):
                raise KeyboardInterrupt

        return fit(*args, callbacks=[Stop()], **{**options, "checkpoint_every": 1})

    fit = module.fit
    with monkeypatch.context() as patch:
        patch.setattr(module, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            reproduce(plan(root, epochs=2, systems=("mvae",)), tmp_path / "b", progress=False)
    assert not (tmp_path / "b" / "mvae" / "model").exists()
    again = reproduce(plan(root, epochs=2, systems=("mvae",)), tmp_path / "b", progress=False)
    assert again["mvae"]["found"] == whole["mvae"]["found"]


def test_the_learning_rate_falls_over_the_last_epochs(root, tmp_path):
    reproduce(plan(root, epochs=4, decay=2, lr=3e-3, systems=("mvae",)), tmp_path, progress=False)
    with (tmp_path / "mvae" / "log.csv").open() as file:
        assert [float(row["lr"]) for row in csv.DictReader(file)] == pytest.approx([3e-3, 3e-3, 2e-3, 1e-3])


def test_another_plan_is_refused(root, made):
    with pytest.raises(FileExistsError, match="was made by another plan"):
        reproduce(plan(root, epochs=3), made[0], progress=False)


def test_the_table_has_the_published_figures(made):
    lines = table(made[1], plan("mnist")).splitlines()
    found = {line.split("  ")[0]: line.split() for line in lines[1:]}
    assert len(found) == len(MVAE_TABLE.published["mnist"]) == 8
    for (system, name), value in MVAE_TABLE.published["mnist"].items():
        assert f"{value:.2f}" in found[f"{name}, {system.replace('_', '-')}"]
    assert "-86.37" not in table(made[1], plan("", data="fashion_mnist"))
    text = (made[0] / "table.md").read_text()
    assert text.startswith("| nats per test row | ours |") and '"epochs": 1' in text


def test_the_command_prints_the_table(root, tmp_path, capsys):
    arguments = ["reproduce", "mvae-table", "--root", str(root), "--epochs", "1", "-k", "3", "--rows", "4", "--quiet"]
    arguments += ["--systems", "cvae", "--device", "cpu", "--out", str(tmp_path / "t"), "--batch-size", "7"]
    assert main([*arguments, "--lr", "0.002", "--decay", "1", "--bf16", "--clip-norm", "500"]) == 0
    made_by = json.loads((tmp_path / "t" / "cvae" / "plan.json").read_text())["plan"]
    assert (made_by["batch_size"], made_by["lr"], made_by["decay"]) == (7, 0.002, 1)
    assert made_by["precision"] == "bf16-layers" and made_by["clip_norm"] == 500
    said = capsys.readouterr().out
    assert "log p(image | label), cvae" in said and "-83.45" in said
    assert main(["reproduce", "mvae-tabel", "--root", str(root)]) == 2
    assert "did you mean mvae-table or jmvae-table?" in capsys.readouterr().err
    assert main(["reproduce", "mvae-table", "--root", str(tmp_path)]) == 2
    assert "MNIST: root=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "digits"}, "the table is of mnist, .* not of 'digits'"),
        ({"systems": ("mmvae",)}, r"unknown systems \['mmvae'\]"),
        ({"k": 0}, "k must be at least 1"),
        ({"decay": 2}, "decay must be some of the 1 epochs"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"precision": "bf16"}, "precision is one of 32-true, bf16-layers, not 'bf16'"),
        ({"table": "vae_table"}, "there are the tables mvae_table, jmvae_table, not 'vae_table'"),
        ({"table": "jmvae_table", "systems": ("vae",)}, r"unknown systems \['vae'\]; there are jmvae_zero"),
    ],
)
def test_plans_are_checked(root, changes, message):
    with pytest.raises(ValueError, match=message):
        plan(root, **changes)
