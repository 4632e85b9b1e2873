"""A checkpoint is plain, holds every tensor once, and survives whatever goes wrong while it is written."""

import functools
import os
import resource
import signal
import subprocess
import sys
from collections import Counter, OrderedDict

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pyro_mm.files import BadFile
from pyro_mm.handlers import given
from pyro_mm.objectives import elbo, kl
from pyro_mm.training import checkpoint, fit
from tests.helpers.training import At, data, pair, raising, same, values


def trained(folder, **options):
    model, guide = pair()
    objective = elbo(model, guide) + kl(guide, given(guide, "image"))
    options = {"progress": False, "batch_size": 8} | options
    return model, guide, fit(objective, data(), options.pop("epochs", 2), folder=folder, **options)


def test_every_tensor_is_stored_once(tmp_path):
    """The objective holds both programs twice."""
    model, guide, _ = trained(tmp_path)
    saved = torch.load(tmp_path / checkpoint.FILE)["modules"]
    programs = {"model": model.state_dict(), "guide": guide.state_dict()}
    expected = {f"training.terms.0.{k}.{n}": t for k, v in programs.items() for n, t in v.items()}
    assert same(saved, expected)


def test_given_names_are_used_and_the_rest_is_not_lost(tmp_path):
    model, guide = pair()
    fit(elbo(model, guide), data(), 1, progress=False, folder=tmp_path, modules={"net": model})
    saved = torch.load(tmp_path / checkpoint.FILE)["modules"]
    fresh = pair(seed=99)
    checkpoint.copy_into({"net": fresh[0], "training": elbo(*fresh)}, saved)
    assert same(values(*fresh), values(model, guide))
    assert {n.split(".")[0] for n in saved} == {"net", "training"}


def test_the_file_is_read_by_the_safe_loader_and_holds_plain_things_only(tmp_path):
    trained(tmp_path, validation=data(9, seed=2), schedule=functools.partial(LambdaLR, lr_lambda=lambda e: 0.5**e))
    state = torch.load(tmp_path / checkpoint.FILE, weights_only=True)
    kinds = set()

    def walk(value):
        kinds.add(type(value))
        if isinstance(value, dict):
            for item in [*value.keys(), *value.values()]:
                walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)

    walk(state)
    assert kinds <= {dict, list, tuple, torch.Tensor, int, float, str, bool, type(None)}
    assert state["leg"]["best"]["weights"].keys() == state["modules"].keys()


def test_what_the_safe_loader_would_refuse_is_refused_before_writing(tmp_path):
    class Odd(LambdaLR):
        def state_dict(self):
            return {"where": {"deep": [object()]}}

    with pytest.raises(TypeError, match=r"checkpoint\.leg\.scheduler\.where\.deep\[0\] is a builtins\.object"):
        trained(tmp_path, schedule=functools.partial(Odd, lr_lambda=lambda e: 1.0))
    assert os.listdir(tmp_path) == ["log.csv"]


@pytest.mark.parametrize("kind", [dict, OrderedDict, Counter])
def test_what_is_let_through_can_be_read(kind, tmp_path):
    value = kind({"a": 1})
    checkpoint.write(tmp_path / "x.pt", {"format": 1, "value": value, "more": [(1, 2.5), {3}, None, True]})
    assert checkpoint.read(tmp_path / "x.pt")["value"] == value


def damage_replace(monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))


def damage_save(monkeypatch):
    real = torch.save

    def half(state, file):
        real(state, file)
        file.truncate(100)
        raise RuntimeError("PytorchStreamWriter failed writing file data/2: file write failed")

    monkeypatch.setattr(torch, "save", half)


def damage_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda *a: (_ for _ in ()).throw(OSError(5, "Input/output error")))


@pytest.mark.parametrize("damage", [damage_replace, damage_save, damage_disk])
def test_failed_writing_leaves_the_old_checkpoint(damage, tmp_path, monkeypatch):
    trained(tmp_path, epochs=1)
    old = (tmp_path / checkpoint.FILE).read_bytes()
    with pytest.raises(OSError, match=r"could not write .*checkpoint\.pt.*the previous checkpoint is unchanged"):
        trained(tmp_path, epochs=3, resume=True, callbacks=[At(5, lambda state: damage(monkeypatch))])
    monkeypatch.undo()
    assert (tmp_path / checkpoint.FILE).read_bytes() == old
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pt", "log.csv"]
    model, guide, history = trained(tmp_path, epochs=3, resume=True)
    straight = trained(None, epochs=3)
    assert same(values(model, guide), values(*straight[:2])) and history["loss"] == straight[2]["loss"]


def test_first_write_shows_a_bad_folder_before_any_training(tmp_path, monkeypatch):
    damage_replace(monkeypatch)
    steps = []
    with pytest.raises(OSError, match=r"No space left on device.*log\.csv"):
        trained(tmp_path, callbacks=[At(1, steps.append)])
    assert steps == []


FULL_DISK = """
import resource, signal, sys, torch
from pyro_mm.training import checkpoint
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
checkpoint.write(path, {"format": 1, "value": torch.zeros(1000)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.write(path, {"format": 1, "value": torch.ones(100_000)})
except OSError as error:
    assert "unchanged" in str(error), error
    assert checkpoint.read(path)["value"].sum() == 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    sys.exit(7)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file sizes")
def test_a_file_system_that_takes_no_more(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "x.pt")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 7, result.stderr


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from pyro_mm.training import checkpoint
path = Path(sys.argv[1])
checkpoint.write(path, {"format": 1, "value": torch.zeros(10)})
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.write(path, {"format": 1, "value": torch.ones(10)})
"""


def test_killed_while_writing(tmp_path):
    path = tmp_path / checkpoint.FILE
    result = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, timeout=120)
    assert result.returncode == -signal.SIGKILL
    assert checkpoint.read(path)["value"].sum() == 0
    path.unlink()
    assert len(os.listdir(tmp_path)) == 1  # what it had begun to write
    trained(tmp_path, epochs=1)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pt", "log.csv"]


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    path = tmp_path / checkpoint.FILE
    trained(tmp_path, epochs=1)
    whole = path.read_bytes()
    for content in (b"", b"not a file of torch's", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(BadFile, match=r"checkpoint\.pt cannot be read as a checkpoint"):
            trained(tmp_path, resume=True)
    torch.save({"format": 99}, path)
    with pytest.raises(BadFile, match="has checkpoint format 99; this version reads format 1"):
        trained(tmp_path, resume=True)


def test_a_failed_run_keeps_the_last_good_checkpoint(tmp_path):
    """Parameters that a last step made NaN are no checkpoint, though every loss so far was finite."""

    def spoil(state):
        with torch.no_grad():
            next(state.objective.parameters()).fill_(float("nan"))

    with pytest.raises(ArithmeticError, match="the parameters are not finite after the last step at step 6"):
        trained(tmp_path, epochs=3, callbacks=[At(6, spoil)])
    saved = checkpoint.read(tmp_path / checkpoint.FILE)
    assert saved["step"] == 3 and all(torch.isfinite(t).all() for t in saved["modules"].values())


def test_copy_into_names_what_does_not_fit():
    tensors = {"m.weight": torch.zeros(2, 3), "m.bias": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"m\.bias has shape \(2,\) there and \(4,\) here"):
        checkpoint.copy_into({"m": nn.Linear(3, 4)}, tensors | {"m.weight": torch.zeros(4, 3)})
    with pytest.raises(ValueError, match=r"m\.bias \(only in the checkpoint\)"):
        checkpoint.copy_into({"m": nn.Linear(3, 2, bias=False)}, tensors)
    tied = nn.ModuleDict({"a": nn.Linear(3, 2)})
    tied["b"] = tied["a"]
    checkpoint.copy_into({"m": tied["b"], "again": tied}, tensors)
    assert tied["a"].weight.abs().sum() == 0


def test_state_that_is_no_tensor_is_refused():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

    with pytest.raises(TypeError, match=r"'m\._extra_state' is a dict"):
        checkpoint.tensors_of({"m": Extra(1, 1)})


def test_an_error_elsewhere_is_not_called_a_write_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"^mine$"):
        trained(tmp_path, callbacks=[At(1, raising(RuntimeError("mine")))])
