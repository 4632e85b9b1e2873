"""The one place that imports torchvision."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyro_mm.data import vision

ROOT = Path(__file__).resolve().parents[2]
BROKEN = """
import sys, types
sys.modules["torchvision._meta"] = types.ModuleType("torchvision._meta")
raise RuntimeError("operator torchvision::nms does not exist")
"""
PROBE = """
import sys
from pyro_mm.data.vision import torchvision
assert "torchvision" not in sys.modules and "sklearn" not in sys.modules
for attempt in range(2):
    try:
        torchvision()
    except ImportError as error:
        print(error)
    assert not [m for m in sys.modules if m.split(".")[0] == "torchvision"]
"""


def test_a_mismatched_pair_is_named_with_its_cure(tmp_path):
    """In a process of its own, with a torchvision that fails as the real one does beside another torch."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(BROKEN)
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n{PROBE}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    import torch

    said = result.stdout.strip().splitlines()
    assert len(said) == 2 and said[0] == said[1]  # the second attempt fails in the same way
    assert f"built for another torch than {torch.__version__}" in said[0]
    assert "torchvision::nms" in said[0] and "pip install --upgrade torch torchvision" in said[0]


def test_an_absent_torchvision_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"torchvision cannot be imported.*pip install --upgrade torch torchvision"):
        vision.torchvision()


def test_torchvision_knows_the_archives():
    pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError, OSError))
    from pyro_mm.data.sets import mnist

    files = sys.modules[mnist.__module__].FILES
    archives = {name for name, _ in vision.torchvision().datasets.MNIST.resources}
    assert archives == {f"{stem}.gz" for stem, *_ in files.values()}


def test_download_is_torchvisions(monkeypatch, tmp_path):
    calls = []

    def fake(root, train, download):
        calls.append((root, download))

    monkeypatch.setattr(vision, "torchvision", lambda: SimpleNamespace(datasets=SimpleNamespace(MNIST=fake)))
    vision.download_mnist(tmp_path)
    assert calls == [(str(tmp_path), True)]


def test_a_failed_download_names_the_other_way(monkeypatch, tmp_path):
    def fake(root, train, download):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(vision, "torchvision", lambda: SimpleNamespace(datasets=SimpleNamespace(MNIST=fake)))
    with pytest.raises(RuntimeError, match=r"could not be downloaded.*Error downloading train(.|\n)*pass root="):
        vision.download_mnist(tmp_path)
