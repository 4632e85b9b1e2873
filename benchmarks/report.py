"""Write docs/performance.md from what the other benchmarks of this folder left in one folder.

python benchmarks/report.py runs/bench docs/performance.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import likelihood_speed
import modalities
import pyro
import steps
import torch

import pyro_mm
from pyro_mm.files import write_atomic
from pyro_mm.tables import markdown

HEAD = """\
# Performance

Written by `make bench`: every table is one interleaved run of one process with one thread, on the machine below.
Figures are medians of CPU time; only ratios within a table mean anything.

{machine}

"""


def main() -> int:
    """Put the tables together."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("page", type=Path)
    arguments = p.parse_args()
    parts = [HEAD.format(machine=machine())]
    for name, section in SECTIONS.items():
        path = arguments.folder / f"{name}.json"
        if path.is_file():
            parts.append(section(json.loads(path.read_text())))
    write_atomic(arguments.page, "\n".join(parts))
    return 0


def machine() -> str:
    """Processor, system, versions."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = named[0] if named else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none (so no figure here is a GPU's)"
    versions = f"pyro_mm {pyro_mm.__version__}, torch {torch.__version__}, pyro-ppl {pyro.__version__}"
    return f"{model}, {os.cpu_count()} cores; GPU: {gpu}; Python {platform.python_version()}, {versions}."


def of_steps(found: dict[str, dict[str, float]]) -> str:
    """Steps, and the targets they are held against."""
    ratio = {size: (lambda a, b, t=t: t[a] / t[b]) for size, t in found.items()}  # type: ignore[misc]
    hand, compiled = steps.REFERENCE, "PyTorch by hand, compiled, fused Adam"
    floor, graph, eager, stock = "matrix products and Adam alone", "fit(pair, compile=True)", "fit(pair)", "Pyro's SVI"
    targets = [
        ("wide", "compiled / PyTorch by hand, compiled", ratio["wide"](graph, compiled), "at most 1.05"),
        ("wide", "compiled / matrix products and Adam", ratio["wide"](graph, floor), "at most 1.15"),
        ("wide", "eager / PyTorch by hand", ratio["wide"](eager, hand), "at most 0.95"),
        ("narrow", "compiled / PyTorch by hand", ratio["narrow"](graph, hand), "at most 0.33"),
        ("narrow", "Pyro's SVI / compiled", ratio["narrow"](stock, graph), "at least 7"),
        ("narrow", "eager / PyTorch by hand", ratio["narrow"](eager, hand), "at most 1.25"),
    ]
    if "NumPyro, jit" in found["wide"]:
        targets.insert(2, ("wide", "compiled / NumPyro", ratio["wide"](graph, "NumPyro, jit"), "at most 1.05"))
        targets.append(("narrow", "compiled / NumPyro", ratio["narrow"](graph, "NumPyro, jit"), "at most 1.05"))
    lines = ["## One step of training", "", (steps.__doc__ or "").split("\n\n")[2].strip(), "", *steps.table(found), ""]
    lines += markdown([["size", "ratio", "here", "aim"], *([s, n, f"{v:.2f}", aim] for s, n, v, aim in targets)])
    return "\n".join([*lines, ""])


def of_likelihoods(found: dict[str, float]) -> str:
    """Plain importance sampling."""
    story = (likelihood_speed.__doc__ or "").split("\n\n")[2].strip()
    return "\n".join(["## Likelihoods", "", story, "", *likelihood_speed.table(found), ""])


def of_modalities(found: list[dict[str, Any]]) -> str:
    """Growth with M."""
    story = (modalities.__doc__ or "").split("\n\n")[2].strip()
    return "\n".join(["## Many modalities", "", story, "", *modalities.table(found), ""])


SECTIONS = {"steps": of_steps, "likelihoods": of_likelihoods, "modalities": of_modalities}

if __name__ == "__main__":
    sys.exit(main())
