"""Runs as folders: their numbers are those of the library, a resumed run is the straight one, and damage is named."""

import csv
import json

import pytest
import torch

from pyro_mm import runs
from pyro_mm.batch import Batch
from pyro_mm.evaluation import log_conditional, log_marginal
from pyro_mm.evaluation.classify import classify, classify_plug_in
from pyro_mm.files import BadFile
from pyro_mm.likelihoods import Categorical, Normal
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP
from pyro_mm.results import evaluate, quantities, table
from pyro_mm.runs import evaluate_run, open_run, read_settings, train_run
from pyro_mm.settings import Settings, build_recipe, load_data
from pyro_mm.training.leg import Leg
from pyro_mm.variants import cvae, mvae, vae


def small(variant="mvae", epochs=2, **more):
    return Settings(variant, epochs=epochs, dim=3, batch_size=256, **more)


def trained(folder, settings=None, **more):
    return train_run(settings or small(), folder, progress=False, device="cpu", **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "a")


def parameters(run):
    return {f"{n}.{k}": v for n, m in run.recipe.modules.items() for k, v in m.state_dict().items()}


def same(a, b):
    a, b = parameters(a), parameters(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def log_of(folder):
    """log.csv without the times."""
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_results_are_those_of_the_estimators(run):
    evaluate_run(run, k=20, rows=30, seed=5)
    found = json.loads((run.folder / "results.json").read_text())
    pair, test = (run.recipe.model, run.recipe.guide), run.splits.test[:30]
    options = {"k": 20, "refine": True, "seed": 5}
    direct = {
        "log p(image, label)": log_marginal(*pair, test, **options),
        "log p(image)": log_marginal(*pair, test.only("image"), **options),
        "log p(label)": log_marginal(*pair, test.only("label"), **options),
        "log p(image | label)": log_conditional(*pair, test, "image", "label", **options),
        "log p(label | image)": log_conditional(*pair, test, "label", "image", **options),
    }
    assert list(found["likelihoods"]) == list(direct)
    for name, evidence in direct.items():
        assert found["likelihoods"][name] == evidence.summary()
        assert evidence.quantity == name
    label = test.x["label"]
    plain = {"k": 20, "seed": 5}
    for name, f, used in (("accuracy", classify, options), ("accuracy (guide)", classify_plug_in, plain)):
        hits = (f(*pair, test, "label", "image", **used).argmax(-1) == label).double()
        assert found["accuracy"][name]["value"] == hits.mean().item()
    assert (found["k"], found["seed"], found["rows"]) == (20, 5, 30)


def test_an_opened_run_evaluates_to_the_same_numbers(run):
    first = evaluate_run(run, k=10, rows=20).to_json()
    assert evaluate_run(run.folder, k=10, rows=20).to_json() == first


def test_training_weights_and_beta_never_enter_the_results(tmp_path):
    """The same parameters under other weights: the same numbers."""
    splits = load_data(small())
    plain = build_recipe(small(), splits)
    weighted = build_recipe(small(weights={"label": 50.0}, beta=0.1, beta_warmup=3), splits)
    assert repr(plain.objective) != repr(weighted.objective)
    a, b = (evaluate(r, splits.test[:10], "label", k=10).to_json() for r in (plain, weighted))
    assert a == b


def test_what_a_model_does_not_define_is_listed_not_raised():
    modalities = [
        Modality("image", (4,), Normal(1.0), MLP((8,))),
        Modality("label", (), Categorical(3), MLP((8,))),
    ]
    batch = Batch({"image": torch.randn(5, 4), "label": torch.arange(5) % 3})
    conditional = evaluate(cvae(modalities, 2), batch, "label", k=10)
    assert list(conditional.evidence) == ["log p(image | label)"]
    assert "image given label" in conditional.unavailable["log p(image)"]
    assert conditional.accuracy == {}
    alone = evaluate(vae(modalities, 2), batch, "label", k=10)
    assert list(alone.evidence) == ["log p(image)"]
    assert "has no label" in alone.unavailable["log p(label | image)"]
    text = table(conditional.to_json())
    assert text.count("not available") == 5  # four quantities, and the heading of the reasons
    assert max(map(len, text.splitlines())) <= 100


def test_accuracy_counts_rows_that_have_a_label_and_an_image():
    modalities = [
        Modality("image", (4,), Normal(1.0), MLP((8,))),
        Modality("label", (), Categorical(3), MLP((8,))),
    ]
    x = {"image": torch.randn(6, 4), "label": torch.arange(6) % 3}
    mask = {"image": torch.tensor([1, 1, 1, 0, 1, 1]).bool(), "label": torch.tensor([1, 1, 0, 1, 1, 1]).bool()}
    found = evaluate(mvae(modalities, 2), Batch(x, mask), "label", k=10)
    assert {s.n for s in found.accuracy.values()} == {4}


def test_quantities_of_three_modalities():
    found = quantities(("a", "b", "c"))
    assert found[0] == (("a", "b", "c"), ())
    assert found[1:4] == [(("a",), ()), (("b",), ()), (("c",), ())]
    assert found[4:] == [(("a",), ("b", "c")), (("b",), ("a", "c")), (("c",), ("a", "b"))]
    assert quantities(("a",)) == [(("a",), ())]


def test_the_record_says_how_the_run_came_about(run):
    record = json.loads((run.folder / "run.json").read_text())
    assert record["data_fingerprint"] == run.splits.fingerprint()
    assert record["versions"]["torch"] == torch.__version__
    assert (record["status"], record["seed"], record["dtype"], record["device"]) == ("trained", 0, "float32", "cpu")
    assert (record["epochs"], record["resumed"]) == (2, 0)
    assert read_settings(run.folder) == small()
    assert len(log_of(run.folder)) == 2


@pytest.mark.parametrize("variant", ["mvae", "mvae_sampled", "mmvae_dreg", "jmvae_kl"])
def test_a_resumed_run_equals_the_straight_one(tmp_path, variant):
    more = {"beta_warmup": 3.0, "weights": {"label": 5.0}}
    straight = trained(tmp_path / "straight", small(variant, 4, **more))
    trained(tmp_path / "parts", small(variant, 2, **more))
    parts = trained(tmp_path / "parts", small(variant, 4, **more), resume=True)
    assert same(straight, parts)
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "straight")
    assert same(open_run(tmp_path / "parts"), straight)
    assert parts.record["resumed"] == 1


def interrupt_at(monkeypatch, step):
    """Ctrl-C at the start of this step."""
    real = Leg.step

    def wrapped(self, batch, number, rows):
        if number == step:
            raise KeyboardInterrupt
        return real(self, batch, number, rows)

    monkeypatch.setattr(Leg, "step", wrapped)


@pytest.mark.parametrize("step", [1, 7])
def test_an_interrupted_run_is_resumed_as_if_nothing_had_happened(tmp_path, monkeypatch, step):
    straight = trained(tmp_path / "straight", small(epochs=3))
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        broken = trained(tmp_path / "broken", small(epochs=3))
    assert broken.interrupted
    assert json.loads((tmp_path / "broken" / "run.json").read_text())["status"] == "interrupted"
    if step == 1:
        with pytest.raises(FileNotFoundError, match="no trained model: its state is 'interrupted'"):
            open_run(tmp_path / "broken")
    resumed = trained(tmp_path / "broken", small(epochs=3), resume=True)
    assert not resumed.interrupted
    assert same(straight, resumed)


def test_a_run_is_not_written_over(tmp_path):
    trained(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already holds a run"):
        trained(tmp_path / "a")
    evaluate_run(tmp_path / "a", k=5, rows=5)
    again = trained(tmp_path / "a", small(seed=1), overwrite=True)
    assert again.settings.seed == 1
    assert not (tmp_path / "a" / "results.json").exists()  # it belonged to the old model
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"


def test_overwriting_waits_until_the_request_is_found_sound(tmp_path):
    first = trained(tmp_path / "a")
    with pytest.raises(ValueError, match="takes no alpha"):
        trained(tmp_path / "a", small(options={"alpha": 1}), overwrite=True)
    assert same(open_run(tmp_path / "a"), first)


def test_resuming_with_other_settings_names_them(run):
    with pytest.raises(ValueError, match=r"holds another run: lr was 0\.001, is 0\.01"):
        trained(run.folder, small(lr=0.01), resume=True)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        trained(run.folder / "nowhere", resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "nvae"}, "no variant 'nvae'"),
        ({"variant": "mvae", "data": "digitz"}, "no data set 'digitz'"),
        ({"variant": "mvae", "root": "/tmp"}, "takes no root"),
        ({"variant": "mvae", "weights": {"sound": 2.0}}, r"weights for \['sound'\].*image, label"),
        ({"variant": "mvae", "options": {"alpha": 2.0}}, "takes no alpha; it takes dim"),
        ({"variant": "mvae", "epochs": 0}, "epochs must be at least 1"),
        ({"variant": "mvae", "lr": -1.0}, "lr must be positive"),
        ({"variant": "mvae", "beta_warmup": -1.0}, "must not be negative"),
        ({"variant": "mmvae_iwae", "options": {"k": "many"}}, r"does not take \{'k': 'many'\}"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        trained(tmp_path / "a", Settings(**settings))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").write_text('{"variant": "mv'), "truncated or corrupt"),
        (lambda f: (f / "config.json").write_text('{"format": 9, "variant": "mvae"}'), "has format 9"),
        (lambda f: (f / "config.json").write_text('{"format": 1, "variant": "mvae", "dims": 3}'), r"\['dims'\]"),
        (
            lambda f: (f / "config.json").write_text('{"format": 1, "variant": "mvae", "dim": "x"}'),
            "no usable settings",
        ),
        (lambda f: (f / "run.json").write_text('{"data_fingerprint": "0"}'), "with fingerprint 0"),
        (lambda f: (f / "model" / "weights.pt").write_bytes(b"PK"), "corrupt"),
    ],
)
def test_a_damaged_run_is_named(tmp_path, damage, message):
    trained(tmp_path / "a", small(epochs=1))
    damage(tmp_path / "a")
    with pytest.raises(BadFile, match=message):
        open_run(tmp_path / "a")


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: config\.json is missing"):
        open_run(tmp_path)


def test_the_card_of_a_run_states_its_data_and_seed(run):
    card = (run.folder / "model" / "MODEL_CARD.md").read_text()
    for part in (run.splits.note, run.splits.fingerprint(), "seed: 0", "256 rows per step"):
        assert part in card


def test_a_disk_that_fills_up_leaves_a_run_to_resume(tmp_path, monkeypatch):
    """The model cannot be written; checkpoint and settings are whole, and the run goes on once there is room."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "weights.pt")

    with monkeypatch.context() as patch:
        patch.setattr(runs.storage, "write_atomic", full)
        with pytest.raises(OSError, match="No space left"):
            trained(tmp_path / "a")
    assert same(trained(tmp_path / "a", resume=True), trained(tmp_path / "b"))
