"""A trained run, and copies of it that a test may damage."""

import shutil

import pytest

from pyro_mm.cli import main
from tests.helpers.cli import TINY


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "mvae"
    assert main(["train", "mvae", "--out", str(folder), *TINY]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(trained, tmp_path / "run")
