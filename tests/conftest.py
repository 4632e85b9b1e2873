"""What every test shares: one thread, no display, a fixed seed, and a global parameter store left empty."""

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parents[1]
DATA = "PYRO_MM_DATA"  # the folder of real data; a skip for want of it names this variable and is counted

os.environ["MPLBACKEND"] = "Agg"  # the environment, so that tests' own subprocesses see it too
torch.set_num_threads(1)
# Machines differ in speed, so no deadlines; and the same examples on every run.
hypothesis.settings.register_profile("pyro_mm", deadline=None, derandomize=True)
hypothesis.settings.load_profile("pyro_mm")


@pytest.fixture(autouse=True)
def seeded_and_clean() -> Iterator[None]:
    """Each test starts from seed 0 and leaves no global parameters: parameters live in modules.

    A test of stock Pyro's `pyro.param` or `pyro.module` runs inside `pyro.get_param_store().scope()`.
    """
    import pyro

    pyro.set_rng_seed(0)
    yield
    left = sorted(pyro.get_param_store().keys())
    pyro.clear_param_store()
    assert not left, f"the test left parameters in Pyro's global store: {left}"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; skips where there is none."""
    folder = os.environ.get(DATA)
    if not folder:
        pytest.skip(f"{DATA} is not set: no real data")
    return Path(folder)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`pytest -n 2` runs in one process what shares something dear: a module's fixture, or a battery's trained guide.

    Not xdist's own `--dist loadgroup`, which does nothing under pytest 9.
    """
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return shared_by(nodeid)

    return Scheduling(config, log)


def shared_by(nodeid: str) -> str:
    """What tests that belong together have in common."""
    file, _, test = nodeid.partition("::")
    if file.endswith("battery.py") and "[" in test:
        system, *more = test.partition("[")[2].rstrip("]").split("-")
        guide = more[-1] if more and not more[-1].isdigit() else system  # [model-guide], or [system-modalities]
        return f"{file}::{guide}"
    return file if _has_fixtures_of_its_own(file) else nodeid


@cache
def _has_fixtures_of_its_own(file: str) -> bool:
    path = ROOT / file
    return path.suffix == ".py" and bool(re.search(r'scope="(module|session)"', path.read_text()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    missing = sum(DATA in str(report.longrepr) for report in skipped)
    terminalreporter.write_line(f"{missing} tests skipped for missing real data ({DATA})")
