"""Write docs/performance.md, and its figures beside it, from what the other benchmarks left in one folder.

    python benchmarks/report.py runs/bench docs/performance.md

All files must be of one machine (a GPU's of one GPU), one commit, and the same versions and number of threads.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accuracy
import figures
import likelihood_speed
import modalities
import scaling
import steps
from measuring import ABSENT, made_alike

from pyro_mm.files import write_atomic
from pyro_mm.tables import markdown

File = dict[str, Any]
HEAD = """\
# Performance

Written by `make bench`.  Figures are medians of CPU time, and only ratios within what took turns in one process mean
anything: above every table is said what that was.  The tables are measured one after the other, by several programs.

{made}
"""
WHY_STEPS = """\
Where an aim is missed: the aims come from another machine.  "Matrix products and Adam alone" is the least that a step
can take on this one, and at 64 wide it is about what the aim allows for the whole step.  NumPyro's step is one call
into XLA; ours at 64 wide spends a good part of its time between kernels, where Python hands a graph its tensors.
Layers in bfloat16 return float32, which costs them passes that autocast does not make (`docs/decisions.md`).
"""
WHY_LIKELIHOODS = """\
Where the aim is missed: beside its matrix products a pass adds biases, applies activations and takes a sigmoid and a
logarithm of every pixel, in one sweep over memory each; and Python runs the programs once for every pass, which larger
chunks share among more particles.  The row by hand spends more on pixels, because torch's own binary cross-entropy
goes through `log1p`, which is slow; the pair by Pyro's own classes is scored without.
"""
WHY_MODALITIES = """\
Where an aim is missed: at 512 wide a step is matrix products on either side, and there are no more of them on one.  At
64 wide JMVAE-kl's eager step runs one small program for every KL, whose Python MultiVae's single loss function does
not have; compiled it has none either, but compiling many modalities takes minutes, so that only two are shown.
"""


def main() -> int:
    """Put the tables together."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("page", type=Path)
    p.add_argument("--mixed", action="store_true", help="take files of different machines, versions or commits")
    arguments = p.parse_args()
    write_atomic(arguments.page, report(arguments.folder, arguments.page, arguments.mixed))
    return 0


def report(folder: Path, page: Path, mixed: bool = False) -> str:
    """The page's text; its figures are written."""
    files = {name: read(folder / f"{name}.json") for name in SECTIONS if (folder / f"{name}.json").is_file()}
    if not files:
        raise SystemExit(f"{folder} holds no measurements: {', '.join(f'{n}.json' for n in SECTIONS)}")
    alike = refuse_mixtures(files, mixed)
    drawn = figures.draw({name: file["found"] for name, file in files.items()}, page.with_suffix(""))
    by = "\n".join(told(files)) if alike else "What was made where is said below every table."
    gpu = "" if any(kind_of(name) == "cuda" for name in files) else "\nNo figure here is a GPU's.\n"
    parts = [HEAD.format(made=f"{by.rstrip()}\n{gpu}")]
    for name, file in files.items():
        parts.append(SECTIONS[name](file["found"]))
        if not alike:
            parts += told({name: file})
        if name in drawn:
            title, path = drawn[name]
            parts.append(f"![{title}]({page.stem}/{path.name})\n")
    return "\n".join(parts)


def read(path: Path) -> File:
    """A file of measurements.

    Raises:
        SystemExit: it does not tell how it was made.
    """
    file = json.loads(path.read_text())
    if not isinstance(file, dict) or not {"made", "found"} <= file.keys():
        raise SystemExit(f"{path} does not tell on what machine and by which commit it was made: measure again")
    return file


def refuse_mixtures(files: Mapping[str, File], mixed: bool) -> bool:
    """Are all files made alike?  A GPU's files are compared with each other, and by commit with the rest.

    Raises:
        SystemExit: they are not, and a mixture is not asked for.
    """
    first, differ = {kind_of(n): f["made"] for n, f in reversed(files.items())}, []
    for name, file in files.items():
        by, one = file["made"], first[kind_of(name)]
        if not made_alike(by, one) or by["commit"] != next(iter(files.values()))["made"]["commit"]:
            differ.append(f"{name}.json: {by['machine']}, {by['versions']}, commit {by['commit']}")
    if differ and not mixed:
        others = "\n  ".join(differ)
        one = next(iter(files.values()))["made"]
        raise SystemExit(
            f"measurements that do not belong together; the first is of {one['machine']}, {one['versions']}, commit "
            f"{one['commit']}, and not alike are\n  {others}\nMeasure again, or say --mixed"
        )
    return not differ


def kind_of(name: str) -> str:
    """The device that a file is about."""
    return "cuda" if name.endswith("-cuda") else "cpu"


def told(files: Mapping[str, File]) -> list[str]:
    """Machine, versions, commit and time, of every kind of device."""
    out = []
    for kind in dict.fromkeys(map(kind_of, files)):
        own = [f["made"] for n, f in files.items() if kind_of(n) == kind]
        by, times = own[0], sorted(f["time"] for f in own)
        versions = ", ".join(f"{n} {v}" for n, v in by["versions"].items())
        when = times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"
        out += [f"* {by['machine']}, {by['threads']} thread{'s' * (by['threads'] != 1)}: {versions}; commit"]
        out[-1] += f" {by['commit']}; {when}."
    return [*out, ""]


def story(module: Any) -> str:
    """What a benchmark says of itself, without its commands."""
    return "\n\n".join((module.__doc__ or "").strip().split("\n\n")[2:])


def aims(rows: list[tuple[str, ...]], head: tuple[str, ...] = ("ratio", "here", "aim")) -> list[str]:
    """A table of what was aimed at."""
    return markdown([head, *rows])


def ratio(times: Mapping[str, float | str], name: str, other: str) -> str:
    """Of two candidates' times, or why there is none."""
    for which in (name, other):
        if not isinstance(times.get(which), float):
            return str(times.get(which, "not measured"))
    return f"{times[name] / times[other]:.2f}"  # type: ignore[operator]


def of_steps(found: dict[str, dict[str, float | str]]) -> str:
    """Steps, and the targets they are held against."""
    s, wide, narrow = steps, found.get("wide", {}), found.get("narrow", {})
    compiled_hand = ratio(wide, s.COMPILED, s.HAND_COMPILED)
    halves = [n for n in s.HALVES if isinstance(wide.get(n), float)]
    half = min(halves, key=lambda n: wide[n]) if halves else s.HALVES[0]
    rows = [
        ("wide", "compiled / PyTorch by hand, compiled", compiled_hand, "at most 1.05"),
        ("wide", "compiled / matrix products and Adam", ratio(wide, s.COMPILED, s.FLOOR), "at most 1.15"),
        ("wide", "compiled / NumPyro", ratio(wide, s.COMPILED, s.JIT), "at most 1.05"),
        ("wide", "eager / PyTorch by hand", ratio(wide, s.EAGER, s.REFERENCE), "at most 0.95"),
        ("wide", "layers in bfloat16 / PyTorch by hand", ratio(wide, half, s.REFERENCE), "at most 0.60"),
        ("narrow", "compiled / PyTorch by hand", ratio(narrow, s.COMPILED, s.REFERENCE), "at most 0.33"),
        ("narrow", "Pyro's SVI / compiled", ratio(narrow, s.STOCK, s.COMPILED), "at least 7"),
        ("narrow", "eager / PyTorch by hand", ratio(narrow, s.EAGER, s.REFERENCE), "at most 1.25"),
        ("narrow", "compiled / NumPyro", ratio(narrow, s.COMPILED, s.JIT), "at most 1.05"),
    ]
    lines = ["## One step of training", "", story(steps), "", *steps.table(found), ""]
    return "\n".join([*lines, *aims(rows, ("size", "ratio", "here", "aim")), "", WHY_STEPS])


def of_steps_on_gpu(found: dict[str, dict[str, float | str]]) -> str:
    """The same on a GPU, by the clock."""
    own = [t for n in (steps.EAGER, steps.COMPILED) if isinstance(t := found.get("wide", {}).get(n), float)]
    rows = [("a step at 512 wide, ms", f"{min(own):.2f}" if own else "not measured", "at most 0.25")]
    head = "## One step of training, on a GPU\n\nThe same candidates, by the clock."
    return "\n".join([head, "", *steps.table(found), "", *aims(rows), ""])


def of_likelihoods(found: dict[str, float | str]) -> str:
    """Plain importance sampling."""
    ours = {n: t for n, t in found.items() if n.startswith(likelihood_speed.OURS) and isinstance(t, float)}
    whole = {n: t for n, t in ours.items() if n != likelihood_speed.HALF}
    best = min(whole, key=lambda n: whole[n]) if whole else likelihood_speed.OURS
    rows = [("matrix products / log_marginal, best chunk", ratio(found, likelihood_speed.FLOOR, best), "at least 0.90")]
    lines = ["## Likelihoods", "", story(likelihood_speed), "", *likelihood_speed.table(found), "", *aims(rows)]
    return "\n".join([*lines, "", WHY_LIKELIHOODS])


def of_likelihoods_on_gpu(found: dict[str, float | str]) -> str:
    """The same on a GPU, by the clock."""
    share = ratio(found, likelihood_speed.HALF_FLOOR, likelihood_speed.HALF)
    rows = [("matrix products in bfloat16 / log_marginal, bf16", share, "at least 0.50")]
    head = "## Likelihoods, on a GPU\n\nThe same candidates, by the clock."
    return "\n".join([head, "", *likelihood_speed.table(found), "", *aims(rows), ""])


def of_modalities(found: list[dict[str, Any]]) -> str:
    """Growth with M."""
    lines, rows = modalities.table(found), []
    beside = [(f, over(f)) for f in found if over(f) is not None]
    for width, least in ((512, 1.15), (64, 3.5)):
        own = [r for f, r in beside if f["width"] == width and r is not None]
        here = f"{min(own):.2f} to {max(own):.2f}" if own else ABSENT
        rows.append((f"MultiVae / ours at width {width}, least to most", here, f"at least {least}"))
    most = [f"{r:.1f}" for f, r in beside if (f["variant"], f["modalities"], f["width"]) == ("mopoe", 8, 512)]
    rows.append(("MultiVae / ours, MoPoE of 8 modalities at width 512", most[0] if most else ABSENT, "at least 15"))
    return "\n".join(["## Many modalities", "", story(modalities), "", *lines, "", *aims(rows), "", WHY_MODALITIES])


def over(f: Mapping[str, Any]) -> float | None:
    """MultiVae's time over our faster one."""
    own = modalities.own_times(f)
    return f["MultiVae"] / min(own) if own and isinstance(f.get("MultiVae"), float) else None


def of_scaling(found: dict[str, Any]) -> str:
    """Growth with everything else."""
    return "\n".join(["## Growth", "", story(scaling), "", *scaling.table(found), ""])


def of_accuracy(found: dict[str, Any]) -> str:
    """Time and memory of an accuracy."""
    best = accuracy.cheapest(found["time"])
    here = f"{accuracy.ratio(found['time'], best)} ({best})" if best else "nothing was as accurate"
    memory = found["memory"][accuracy.SIDES[0]]
    rows = [(f"as accurate as {accuracy.BASE}, in this share of its time", here, "at most 0.05")]
    rows += [(f"extra memory at K = {int(k):,}, MB", f"{mb:.0f}", "at most 64") for k, mb in memory.items()]
    tables = [*accuracy.table(found["time"]), "", *accuracy.memory_table(found["memory"]), "", *aims(rows)]
    return "\n".join(["## Accuracy and memory", "", story(accuracy), "", *tables, ""])


SECTIONS = {
    "steps": of_steps,
    "likelihoods": of_likelihoods,
    "modalities": of_modalities,
    "scaling": of_scaling,
    "accuracy": of_accuracy,
    "steps-cuda": of_steps_on_gpu,
    "likelihoods-cuda": of_likelihoods_on_gpu,
}

if __name__ == "__main__":
    sys.exit(main())
