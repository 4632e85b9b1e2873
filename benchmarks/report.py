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


WHY_STEPS = """\
Where an aim is missed: the aims come from another machine.  "Matrix products and Adam alone" is the least that a step
can take on this one, and at 64 wide it is about what the aim allows for the whole step.
"""
WHY_LIKELIHOODS = """\
Where the aim is missed: beside its matrix products a pass adds biases, applies activations and takes logarithms and
exponentials of every pixel, in one sweep over memory each, as the row by hand does; and Python runs the programs once
for every pass, which larger chunks share among more particles.  A compiled pass makes one sweep of many.
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
    return "\n".join([*lines, "", WHY_STEPS])


def of_likelihoods(found: dict[str, float]) -> str:
    """Plain importance sampling."""
    story = (likelihood_speed.__doc__ or "").split("\n\n")[2].strip()
    best = min(t for n, t in found.items() if n.startswith("log_marginal") and "bf16" not in n)
    aims = [
        ["matrix products / log_marginal, best chunk", f"{found[likelihood_speed.FLOOR] / best:.2f}", "at least 0.90"]
    ]
    lines = [*likelihood_speed.table(found), "", *markdown([["ratio", "here", "aim"], *aims])]
    return "\n".join(["## Likelihoods", "", story, "", *lines, "", WHY_LIKELIHOODS, ""])


def of_modalities(found: list[dict[str, Any]]) -> str:
    """Growth with M."""
    story = (modalities.__doc__ or "").split("\n\n")[2].strip()
    lines, aims = modalities.table(found), [(512, 1.15), (64, 3.5)]
    beside = [
        [f["width"], f["MultiVae"] / min(f["eager"], f.get("compiled", f["eager"])), f]
        for f in found
        if "MultiVae" in f
    ]
    rows = [["width", "MultiVae / ours, least to most", "aim"]]
    for width, aim in aims:
        ratios = [r for w, r, _ in beside if w == width]
        rows += [[str(width), f"{min(ratios):.2f} to {max(ratios):.2f}", f"at least {aim}"]] if ratios else []
    most = [(w, r) for w, r, f in beside if f["variant"] == "mopoe" and f["modalities"] == 8]
    rows += [[str(w), f"{r:.1f}, MoPoE of 8 modalities", "at least 15"] for w, r in most]
    lines += ["", *markdown(rows)] if len(rows) > 1 else []
    return "\n".join(["## Many modalities", "", story, "", *lines, ""])


SECTIONS = {"steps": of_steps, "likelihoods": of_likelihoods, "modalities": of_modalities}

if __name__ == "__main__":
    sys.exit(main())
