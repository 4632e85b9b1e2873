"""The table of data sets."""

import inspect
import subprocess
import sys
from pathlib import Path

import pyro_mm.data
from pyro_mm.data import Splits, available

OFFLINE = ("digits", "digit_halves", "digit_captions")
ROOT = Path(__file__).resolve().parents[2]


def test_available_sets():
    assert list(available()) == [
        "celeba",
        "digits",
        "digit_halves",
        "digit_captions",
        "farsi_kannada_mfcc",
        "farsi_kannada_speech",
        "fashion_mnist",
        "fashion_mnist_grey",
        "kannada_mnist",
        "kmnist",
        "mhd",
        "mhd_drawn",
        "mhd_like",
        "mnist",
        "mnist_grey",
        "mnist_halves",
        "mnist_quadrants",
        "poly_mnist_like",
    ]


def test_every_set_is_public_described_and_returns_splits():
    for name, make in available().items():
        assert getattr(pyro_mm.data, name) is make and name in pyro_mm.data.__all__ and make.__name__ == name
        assert inspect.signature(make).return_annotation in (Splits, "Splits")
        assert all(p.default is not p.empty for p in inspect.signature(make).parameters.values())


def test_first_lines_name_the_modalities():
    lines = {name: inspect.getdoc(make).splitlines()[0] for name, make in available().items()}
    assert len(set(lines.values())) == len(lines) and all(line.endswith(".") for line in lines.values())
    for name in OFFLINE:
        assert all(f"`{m}`" in lines[name] for m in available()[name]().names)


def test_offline_sets_carry_their_function_name():
    for name in OFFLINE:
        assert available()[name]().name == name


def test_importing_reads_nothing_heavy():
    code = "import sys, pyro_mm.data; print(*{m.split('.')[0] for m in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) & {"sklearn", "torchvision", "scipy", "matplotlib"} == set()
    assert "pyro_mm" in result.stdout.split()
