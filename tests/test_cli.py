"""The command line: exit codes, what is said, and that its numbers and files are the library's."""

import csv
import errno
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_mm import files, runs, variants
from pyro_mm.cli import demo, main
from pyro_mm.cli.parser import make_parser
from pyro_mm.data import available
from pyro_mm.evaluation import generate, log_conditional, log_marginal
from pyro_mm.runs import open_run, read_settings
from pyro_mm.training import History, NonFiniteLoss
from pyro_mm.training.leg import Leg

TINY = ["--epochs", "1", "--dim", "3", "--batch-size", "256", "--quiet", "--device", "cpu"]
COMMANDS = (
    "demo",
    "list",
    "describe",
    "train",
    "evaluate",
    "certify",
    "diagnose",
    "compare",
    "generate",
    "plot",
    "reproduce",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "mvae"
    assert main(["train", "mvae", "--out", str(folder), *TINY]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(trained, tmp_path / "run")


def parameters(folder):
    return {f"{n}.{k}": v for n, m in open_run(folder).recipe.modules.items() for k, v in m.state_dict().items()}


def same(a, b):
    a, b = parameters(a), parameters(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def complaint(capsys, *arguments, code=2):
    """The one line on stderr of a command that fails."""
    assert main([str(a) for a in arguments]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


# --- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_gives_examples_that_parse(capsys, command):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    examples = [line.split("   ")[0].strip() for line in text.partition("examples:\n")[2].splitlines()]
    assert len(examples) >= 2
    for example in examples:
        words = example.partition(" | ")[0].split()
        assert words[:2] == ["pyro-mm", command]
        make_parser().parse_args(words[1:])  # would exit


def test_the_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert set(COMMANDS) <= set(re.findall(r"^    (\w+) ", text, re.MULTILINE))


def test_help_imports_only_what_the_package_does():
    """No ArviZ, matplotlib, Lightning or scikit-learn for a page of text."""
    code = (
        "import sys, pyro_mm; before = set(sys.modules); from pyro_mm.cli import main; main(['train', '--help']); "
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "print('NEW', *sorted(new & {'arviz', 'matplotlib', 'lightning_fabric', 'sklearn', 'torchvision', 'pandas'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1].strip() == "NEW"


def test_python_dash_m_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "pyro_mm", "train", "nvae"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "pyro-mm: unknown variant 'nvae': did you mean vae or svae or mvae?\n"


# --- train ---------------------------------------------------------------------------------------------------------


def test_flags_become_the_settings_of_the_run(tmp_path):
    folder = tmp_path / "a"
    flags = "--beta-warmup 2 --weights label=50,image=0.5 --alpha 0.3 --set width=32 --lr 0.01 --seed 3 --patience 4"
    assert main(["train", "JMVAE-kl", "--data", "digits", "--out", str(folder), *TINY, *flags.split()]) == 0
    settings = read_settings(folder)
    assert settings.variant == "jmvae_kl"
    assert settings.weights == {"label": 50.0, "image": 0.5}
    assert settings.options == {"width": 32, "alpha": 0.3}
    assert (settings.epochs, settings.dim, settings.batch_size, settings.patience) == (1, 3, 256, 4)
    assert (settings.beta_warmup, settings.lr, settings.seed) == (2.0, 0.01, 3)
    config = open_run(folder).recipe.config
    assert (config["alpha"], config["width"], config["dim"]) == (0.3, 32, 3)
    assert (config["beta"].epochs, config["beta"].end) == (2.0, 1.0)


@pytest.mark.parametrize(("flags", "asked"), [([], "auto"), (["--compile", "yes"], True), (["--compile", "no"], False)])
def test_compiling_is_fits_to_do(tmp_path, monkeypatch, flags, asked):
    seen = {}
    monkeypatch.setattr(
        "pyro_mm.training.fit",
        lambda *_, **options: seen.update(options) or History([{"stage": "training", "epoch": 1}]),
    )
    assert main(["train", "mvae", "--out", str(tmp_path / "r"), *TINY, *flags]) == 0
    assert seen["compile"] == asked


def test_a_resumed_run_equals_a_straight_one(tmp_path):
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    longer = ["--epochs", "3"]
    assert main(["train", "mvae", "--out", str(straight), *TINY, *longer]) == 0
    assert main(["train", "mvae", "--out", str(parts), *TINY]) == 0
    assert main(["train", "--resume", "--out", str(parts), "--quiet", "--device", "cpu", *longer]) == 0
    assert same(straight, parts)
    tables = [(f / "log.csv").read_text().splitlines() for f in (straight, parts)]
    logs = [[{**row, "seconds": 0} for row in csv.DictReader(table)] for table in tables]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 3


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    broken, straight = tmp_path / "broken run", tmp_path / "straight"
    real = Leg.step

    def stopped(self, batch, number, *more):
        if number == 7:
            raise KeyboardInterrupt
        return real(self, batch, number, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Leg, "step", stopped)
        line = complaint(capsys, "train", "mvae", "--out", broken, *TINY, "--epochs", 2, code=130)
    assert line == f"pyro-mm: interrupted; go on with: pyro-mm train --resume --out '{broken}'"
    assert main(["train", "--resume", "--out", str(broken), "--quiet", "--device", "cpu"]) == 0
    assert main(["train", "mvae", "--out", str(straight), *TINY, "--epochs", "2"]) == 0
    assert same(broken, straight)


def test_ctrl_c_before_anything_is_saved_promises_nothing(tmp_path, capsys, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "load_data", stopped)
    assert complaint(capsys, "train", "mvae", "--out", tmp_path / "a", *TINY, code=130) == "pyro-mm: interrupted"


def test_a_full_disk_is_one_line_and_a_way_on(tmp_path, capsys, monkeypatch):
    """The disk is full when the model is to be written, after the checkpoint."""
    real = files.os.replace

    def full(source, target):
        if Path(target).name == "weights.pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    folder = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        line = complaint(capsys, "train", "mvae", "--out", folder, *TINY)
    assert re.search(r"weights\.pt: No space left on device; free some space, then go on with: .*--resume", line)
    assert main(["train", "--resume", "--out", str(folder), "--quiet", "--device", "cpu"]) == 0


def test_a_full_disk_is_seen_behind_torchs_own_words(tmp_path, capsys, monkeypatch):
    """A checkpoint on a full disk: torch speaks of positions in a file, whatever the system said."""
    folder = tmp_path / "a"

    def full(path, state):
        raise OSError(errno.EIO, f"could not write {path}: unexpected pos 210240 vs 210132")

    monkeypatch.setattr("pyro_mm.training.checkpoint.write", full)
    assert "free some space" not in complaint(capsys, "train", "mvae", "--out", folder, *TINY)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    line = complaint(capsys, "train", "mvae", "--out", folder, "--overwrite", *TINY)
    assert line.endswith("; free some space")  # nothing was saved, so there is nothing to resume


def test_a_file_where_the_folder_should_be_is_named(tmp_path, capsys):
    (tmp_path / "a").write_text("mine")
    line = complaint(capsys, "train", "mvae", "--out", tmp_path / "a", *TINY)
    assert line == f"pyro-mm: {tmp_path / 'a'}: File exists"


def test_a_loss_that_is_not_finite_is_one_line(tmp_path, capsys, monkeypatch):
    def diverged(self, batch, number, *more):
        raise NonFiniteLoss("the loss is nan", number, 1, "training", ["term 'elbo', modality 'image'"])

    monkeypatch.setattr(Leg, "step", diverged)
    line = complaint(capsys, "train", "mvae", "--out", tmp_path / "a", *TINY, code=1)
    assert "modality 'image'" in line
    assert "--lr" in line


def test_training_says_what_comes_next(tmp_path, capsys):
    folder = tmp_path / "a"
    assert main(["train", "vae", "--out", str(folder), *[t for t in TINY if t != "--quiet"]]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"next: pyro-mm evaluate {folder}"
    assert main(["evaluate", str(folder), "-k", "5", "--rows", "5"]) == 0


# --- the user's mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "mvea"], "unknown variant 'mvea': did you mean mvae"),
        (["train", "zzz"], "unknown variant 'zzz': there are avae, avae-staged"),
        (["train", "mvae", "--data", "mnits"], "unknown data set 'mnits': did you mean mnist"),
        (["train", "mvae", "--data", "mnist"], "root=FOLDER"),
        (["train", "mvae", "--data", "mnist", "--root", "/nowhere"], "root=/nowhere holds no complete set"),
        (["train", "mvae", "--root", "/nowhere"], "'digits' is not read from a folder: it takes no root"),
        (["train"], "which variant?"),
        (["train", "mvae", "--epochs", "0"], "--epochs: must be a whole number of at least 1, got '0'"),
        (["train", "mvae", "--epochs", "many"], "--epochs: must be a whole number"),
        (["train", "mvae", "--lr", "nan"], "--lr: must be a number above 0, got 'nan'"),
        (["train", "mvae", "--beta", "-1"], "--beta: must be a number of at least 0"),
        (["train", "mvae", "--weights", "label"], "--weights: must look like label=50, got 'label'"),
        (["train", "mvae", "--weights", "sound=2"], "weights for ['sound']"),
        (["train", "mvae", "--alpha", "0.1"], "variant 'mvae' takes no alpha; it takes dim"),
        (["train", "mvae", "--set", "k"], "--set: must look like alpha=0.1"),
        (["train", "mvae", "--device", "tpu"], "no device 'tpu' here; there is"),
        (["train", "mvae", "--resume", "--out", "nowhere"], "there is no folder nowhere"),
        (["trian", "mvae"], "invalid choice: 'trian'"),
        ([], "required: COMMAND"),
        (["evaluate", "nowhere"], "there is no folder nowhere"),
        (["evaluate", "."], "holds no run: config.json is missing"),
        (["evaluate", "x", "-k", "0"], "-k: must be a whole number"),
        (["describe", "mvea"], "did you mean mvae"),
        (["describe", "runs/nowhere"], "there is no folder runs/nowhere"),
        (["describe", "mvae", "--data", "digit"], "did you mean digits"),
        (["plot", "x", "--only", "losss"], "unknown figure 'losss': did you mean loss"),
    ],
)
def test_a_mistake_is_one_line_with_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in complaint(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_a_run_is_not_overwritten_by_accident(run, capsys):
    line = complaint(capsys, "train", "mvae", "--out", run, *TINY)
    assert "already holds a run" in line
    assert "--overwrite" in line
    assert main(["train", "vae", "--out", str(run), "--overwrite", *TINY]) == 0
    assert open_run(run).recipe.name == "vae"


def test_resuming_with_other_settings_is_refused(run, capsys):
    assert "seed was 0, is 1" in complaint(capsys, "train", "--resume", "--out", run, "--seed", 1)
    assert "variant was 'mvae', is 'mopoe'" in complaint(capsys, "train", "mopoe", "--resume", "--out", run)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").write_text('{"variant"'), "config.json is truncated or corrupt"),
        (lambda f: (f / "run.json").unlink(), "run.json: No such file"),
        (lambda f: shutil.rmtree(f / "model"), "has no trained model: its folder model/ is missing"),
        (lambda f: (f / "model" / "recipe.json").unlink(), "holds no saved model"),
        (lambda f: (f / "model" / "weights.pt").write_bytes(b""), "weights.pt is corrupt"),
    ],
)
def test_a_damaged_run_is_named(run, capsys, damage, message):
    damage(run)
    for command in ("evaluate", "generate", "plot", "describe"):
        assert message in complaint(capsys, command, run)


def test_a_damaged_checkpoint_is_named_on_resuming(run, capsys):
    (run / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:1000])
    line = complaint(capsys, "train", "--resume", "--out", run, "--quiet")
    assert "checkpoint.pt cannot be read as a checkpoint" in line


def test_a_damaged_log_is_named(run, capsys):
    (run / "log.csv").write_text("")
    assert "log.csv" in complaint(capsys, "plot", run, "--only", "loss")


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        main(["evaluate", str(tmp_path / "nowhere"), "--debug"])


def test_a_bug_is_not_dressed_up_as_a_mistake(run, monkeypatch):
    """An error that no message of ours explains keeps its traceback."""

    def broken(*args, **kwargs):
        return torch.zeros(2) @ torch.zeros(3)

    monkeypatch.setattr("pyro_mm.runs.evaluate", broken)
    with pytest.raises(RuntimeError):
        main(["evaluate", str(run)])


# --- evaluate, generate, plot, list, describe ----------------------------------------------------------------------


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


def test_list_names_everything_on_one_line_each(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    first = [line.split()[0] for line in lines if line.startswith("  ")]
    variants_first, sets = first[: len(variants.__all__)], first[len(variants.__all__) :]
    assert sorted(variants_first) == sorted(v.replace("_", "-") for v in variants.__all__)
    assert sets == list(available())


def test_describe_shows_a_variant_and_a_run(run, tmp_path, capsys):
    assert main(["describe", "jmvae-kl", "--dim", "5", "--figure", str(tmp_path / "g.png")]) == 0
    said = capsys.readouterr().out
    assert "Suzuki" in said
    assert "KL(q(z | image, label) || q(z | image))" in said
    assert re.search(r"z +Normal +\(8,\) +\(5,\)", said)
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    assert main(["describe", str(run), "--no-figure"]) == 0
    assert "p(z) p(image | z) p(label | z)" in capsys.readouterr().out
    assert not (run / "figures" / "graph.png").exists()


def test_a_reader_that_stops_early_is_no_error():
    """`pyro-mm list | head -1`"""
    command = f"{sys.executable} -m pyro_mm list | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")


# --- certify and compare -------------------------------------------------------------------------------------------


def test_certify_prints_and_writes_both_ends(run, capsys):
    assert main(["certify", str(run), "--rows", "8", "-k", "50", "--temperatures", "3", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    table, found = said.splitlines(), json.loads((run / "certificates.json").read_text())
    assert [(c["quantity"], c["method"]) for c in found["certificates"]][:3] == [
        ("log p(image, label)", "sandwich"),
        ("log p(image, label)", "BDMC"),
        ("log p(image)", "sandwich"),
    ]
    for c in found["certificates"]:
        line = next(row for row in table if row.startswith(f"{c['quantity']}  {c['method']}"))
        assert f"{c['lower']:.3f}" in line and f"{c['upper']:.3f}" in line
    assert "What it does not say" in said and "What it says" in said
    assert max(map(len, table[:-1])) <= 120
    assert (run / "figures" / "certificates.png").is_file()
    assert main(["certify", str(run), "--rows", "4", "-k", "9", "--temperatures", "0", "--no-refine", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert {c["method"] for c in json.loads((run / "certificates.json").read_text())["certificates"]} == {"sandwich"}


def test_compare_prints_paired_differences(run, trained, tmp_path, capsys):
    other = tmp_path / "longer"
    assert main(["train", "mvae", "--out", str(other), *TINY, "--epochs", "4"]) == 0
    assert main(["compare", str(run), str(other), "--rows", "40", "-k", "50", "--no-refine"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^longer +-\d+\.\d+", said, re.MULTILINE) and "40 rows" in said
    assert said.index("longer") < said.index("run "), "the best comes first"
    assert "at least two runs" in complaint(capsys, "compare", run)


def test_diagnose_prints_what_the_functions_find(run, capsys):
    from pyro_mm import evaluation

    assert main(["diagnose", str(run), "--rows", "40", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    opened = open_run(run)
    pair, test = (opened.recipe.model, opened.recipe.guide), opened.splits.test[:40]
    for found in (
        evaluation.report(*pair, test, seed=0),
        evaluation.sbc(*pair, test, seed=0),
        evaluation.symmetric_divergence(*pair, test, seed=0),
    ):
        assert repr(found) in said
    assert {"report.png", "calibration.png"} <= {p.name for p in (run / "figures").iterdir()}


# --- demo ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(demo, "VARIANTS", ("mvae", "jmvae_kl"))
    monkeypatch.setattr(demo, "FIGURES", ("loss",))


def test_the_demo_prints_one_table_of_the_runs_numbers(tmp_path, capsys, few):
    out = tmp_path / "demo"
    for _ in range(2):  # a second demo replaces the first
        assert main(["demo", "--epochs", "1", "-k", "10", "--out", str(out)]) == 0
        said = capsys.readouterr().out
    assert max(map(len, said.splitlines()[:-1])) <= 100  # the last line is the folder
    assert re.search(r"^ +mvae +jmvae-kl$", said, re.MULTILINE)
    results = [json.loads((out / v / "results.json").read_text()) for v in ("mvae", "jmvae_kl")]
    for quantity in results[0]["likelihoods"]:
        row = re.search(rf"^{re.escape(quantity)} +(\S+) \+- (\S+) +(\S+) \+- (\S+)$", said, re.MULTILINE)
        assert row, quantity
        numbers = [f"{r['likelihoods'][quantity][s]:.2f}" for r in results for s in ("mean", "se")]
        assert list(row.groups()) == numbers
    row = re.search(r"^accuracy \(label \| image\) +(\S+) % +(\S+) %$", said, re.MULTILINE)
    assert row
    assert list(row.groups()) == [f"{100 * r['accuracy']['accuracy']['value']:.1f}" for r in results]
    assert (out / "table.txt").read_text() in said
    assert (out / "mvae" / "figures" / "loss.png").is_file()


def test_the_demo_does_not_replace_runs_of_yours(tmp_path, capsys, run, few):
    shutil.copytree(run, tmp_path / "mine" / "mvae")
    assert "holds runs that are not the demo's" in complaint(capsys, "demo", "--out", tmp_path / "mine")
    assert same(tmp_path / "mine" / "mvae", run)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # of wall time, on a busy machine
def test_the_demo_reads_labels_off_pictures(tmp_path, capsys):
    """The real thing, with a third of the epochs: every variant names more than 9 of 10 digits, in little time."""
    began = time.process_time()
    assert main(["demo", "--epochs", "40", "-k", "50", "--out", str(tmp_path / "demo")]) == 0
    assert time.process_time() - began < 400  # a slow core that other work shares
    for variant in demo.VARIANTS:
        results = json.loads((tmp_path / "demo" / variant / "results.json").read_text())
        assert results["accuracy"]["accuracy"]["value"] > 0.9
        assert results["accuracy"]["accuracy (guide)"]["value"] > 0.85
