"""What the speed benchmarks share: candidates that take turns, and files that say where they come from."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyro_mm.files import write_atomic
from pyro_mm.provenance import commit, now

__all__ = ["ABSENT", "Candidate", "Missing", "Times", "found_at", "in_turn", "made", "made_alike", "one_core", "save"]

ABSENT = "not installed"
PACKAGES = ("pyro_mm", "torch", "pyro-ppl", "numpyro", "jax", "multivae")
Times = dict[str, float | str]
"""Seconds of a step by candidate, or why there are none."""


class Missing(Exception):
    """A candidate cannot be measured here; the message is what the table says instead."""


@dataclass
class Candidate:
    """A step, and what has to be around several of them without being part of them."""

    step: Callable[[], object]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


def in_turn(
    makers: Mapping[str, Callable[[], Candidate | Callable[[], object]]],
    rounds: int,
    each: int = 1,
    warm: int = 1,
    device: str = "cpu",
) -> Times:
    """Median seconds of a step: candidates take turns, `each` steps at a time, after `warm` steps that are not counted.

    Seconds of CPU on a CPU, where one thread is kept to one core; by the clock on a GPU.
    """
    ready: dict[str, Candidate] = {}
    out: Times = {}
    for name, make in makers.items():
        out[name] = "-"  # the order of the table
        try:
            made_one = make()
            ready[name] = made_one if isinstance(made_one, Candidate) else Candidate(made_one)
            with ready[name].around():
                for _ in range(warm):
                    ready[name].step()
        except Missing as why:
            ready.pop(name, None)
            out[name] = str(why)
    times: dict[str, list[float]] = {name: [] for name in ready}
    with one_core():
        for _ in range(rounds):
            for name, candidate in ready.items():
                times[name].append(_clocked(candidate, each, device))
    return out | {name: statistics.median(t) for name, t in times.items()}


def _clocked(candidate: Candidate, each: int, device: str) -> float:
    gpu = device != "cpu"
    clock = time.perf_counter if gpu else time.process_time
    with candidate.around():
        if gpu:
            torch.cuda.synchronize()
        began = clock()
        for _ in range(each):
            candidate.step()
        if gpu:
            torch.cuda.synchronize()
        return (clock() - began) / each


@contextmanager
def one_core() -> Iterator[None]:
    """One core for this thread and those that it starts, if torch has one thread: OMP_NUM_THREADS limits torch, but not
    the pool of XLA, which has as many threads as there are cores when it starts.
    """
    if torch.get_num_threads() > 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def made(device: str = "cpu") -> dict[str, Any]:
    """On what, with what and when something is measured."""
    return {
        "machine": _machine(device),
        "threads": torch.get_num_threads(),
        "versions": {"Python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "commit": commit() or "unknown",
        "time": now(),
    }


def made_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """By the same machine, threads, versions and commit?"""
    return all(one.get(key) == other.get(key) for key in ("machine", "threads", "versions", "commit"))


def save(path: Path, by: Mapping[str, Any], plan: Mapping[str, Any], found: Any) -> None:
    """What was found, by which plan, and as `made` told before it was measured."""
    write_atomic(path, json.dumps({"made": by, "plan": dict(plan), "found": found}, indent=1))


def found_at(path: Path, by: Mapping[str, Any], plan: Mapping[str, Any]) -> Any:
    """What an interrupted run of the same plan left, or None; what was made otherwise is told, and made anew."""
    if not path.is_file():
        return None
    there = json.loads(path.read_text())
    if there["plan"] == json.loads(json.dumps(plan)) and made_alike(there["made"], by):
        return there["found"]
    print(f"{path} is of another plan, machine, version or commit: measured anew", file=sys.stderr)
    return None


def _machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{(named or [platform.processor() or platform.machine()])[0]}, {os.cpu_count()} cores"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version" if importlib.util.find_spec(package.replace("-", "_")) else ABSENT
