"""`pyro-mm train`: settings, resuming, interruptions, full disks; models and figures are those of `fit`."""

import csv
import errno
import re
import shutil
from pathlib import Path

import pytest

from pyro_mm import files, runs
from pyro_mm.cli import main
from pyro_mm.runs import open_run, read_settings
from pyro_mm.training import History, NonFiniteLoss
from pyro_mm.training.leg import Leg
from tests.helpers.cli import TINY, complaint, same


def test_flags_become_the_settings_of_the_run(tmp_path):
    folder = tmp_path / "a"
    flags = (
        "--beta-warmup 2 --weights label=50,image=0.5 --alpha 0.3 --set width=32 --lr 0.01 --seed 3 --patience 4 --bf16"
        " --noise image=0.7"
    )
    assert main(["train", "JMVAE-kl", "--data", "digits", "--out", str(folder), *TINY, *flags.split()]) == 0
    settings = read_settings(folder)
    assert settings.variant == "jmvae_kl"
    assert settings.weights == {"label": 50.0, "image": 0.5}
    assert settings.noise == {"image": 0.7}
    assert settings.options == {"width": 32, "alpha": 0.3}
    assert (settings.epochs, settings.dim, settings.batch_size, settings.patience) == (1, 3, 256, 4)
    assert (settings.beta_warmup, settings.lr, settings.seed) == (2.0, 0.01, 3)
    assert settings.precision == "bf16-layers"
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
