"""A mistake is one line with exit code 2, a damaged file is named, a bug shows its traceback."""

import shutil

import pytest
import torch

from pyro_mm.cli import main
from pyro_mm.runs import open_run
from tests.helpers.cli import TINY, complaint


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
