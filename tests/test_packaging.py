"""The set-up files agree with each other, and `import pyro_mm` stays light."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]

# Where conda-forge's name differs from pip's. It has no lightning-fabric: pytorch-lightning contains it.
PIP_NAME = {"pytorch": "torch", "pytorch-lightning": "lightning-fabric"}
# `import pyro_mm` may import torch, pyro and numpy; all of these wait for their first use.
LAZY = {"arviz", "lightning", "lightning_fabric", "matplotlib", "pandas", "sklearn", "torchvision"}


def pip_bounds(*extras: str) -> dict[str, str]:
    """`{name: specifier}` of the core dependencies and of these extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return {r.name: str(r.specifier) for r in map(Requirement, lines)}


def conda_bounds() -> dict[str, str]:
    """`{pip's name: specifier}` from environment.yml, read by hand: PyYAML is no dependency of ours."""
    text = (ROOT / "environment.yml").read_text(encoding="utf-8").partition("\ndependencies:\n")[2]
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    entries = [re.fullmatch(r"- ([\w-]+)([<>=]\S+)?", line) for line in lines if line]
    assert entries and all(entries), f"environment.yml has a line that is not a plain package:\n{text}"
    return {PIP_NAME.get(e[1], e[1]): e[2] or "" for e in entries if e}


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_environment_yml_names_what_pyproject_needs():
    conda = conda_bounds()
    assert conda.pop("python") == PROJECT["requires-python"].replace(">=", "=")
    del conda["pip"]  # for the second command, `pip install --no-deps -e .`
    assert set(conda) == set(pip_bounds("dev", "notebooks", "eval", "train"))


def test_environment_yml_states_pyprojects_bounds():
    conda, pip = conda_bounds(), pip_bounds(*EXTRAS)
    differ = {name: (conda[name], pip[name]) for name in conda.keys() & pip if conda[name] and pip[name]}
    assert differ  # else the two lists were not read
    assert {name: pair for name, pair in differ.items() if pair[0] != pair[1]} == {}


def test_pyproject_has_lower_bounds_only():
    extras = [line for extra in EXTRAS.values() for line in extra]
    lines = PYPROJECT["build-system"]["requires"] + PROJECT["dependencies"] + extras
    operators = {line: {s.operator for s in Requirement(line).specifier} for line in lines}
    assert {line: found for line, found in operators.items() if not found <= {">="}} == {}
    assert PROJECT["requires-python"] == ">=3.11"


def test_entry_point_exists():
    module, _, function = PROJECT["scripts"]["pyro-mm"].partition(":")
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_one_version_everywhere():
    source = (ROOT / "pyro_mm" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__(?:: str)? = "(.+)"$', source, re.MULTILINE)
    assert found, "pyro_mm/__init__.py needs __version__ as a literal: the build reads it without importing"
    assert f"\nversion: {found[1]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{found[1]}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_readme_names_the_commands(command):
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")


def test_import_is_lazy():
    imported = set(run("import sys, pyro_mm; print(*sys.modules)").split())
    assert "torch" in imported
    assert imported & LAZY == set()


def test_import_is_fast():
    """Under 0.3 of pyro's own import: the median of 5 fresh interpreters.

    A ratio, and of this process's CPU seconds: shared machines are up to twice as slow at times.
    """
    clock = "time.process_time()"
    code = f"import time; a = {clock}; import pyro; b = {clock}; import pyro_mm; print(({clock} - b) / (b - a))"
    assert statistics.median(float(run(code)) for _ in range(5)) < 0.3
