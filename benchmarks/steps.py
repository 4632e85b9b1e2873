"""What one optimisation step costs: ordinary Pyro programs beside hand-written PyTorch, in one interleaved run.

    python benchmarks/steps.py --out runs/bench            # writes runs/bench/steps.json and prints the table

A JMVAE on 784 pixels and a label, wide (512, 128 rows) and narrow (64, 32 rows).  Every candidate steps in turn, a few
steps at a time; figures are medians of CPU seconds, and ratios to hand-written PyTorch with default Adam.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain
import torch

from pyro_mm.tables import markdown

Step = Callable[[], object]
SIZES = {"wide": (512, 128), "narrow": (64, 32)}
REFERENCE = "PyTorch by hand"


def main() -> int:
    """Measure, write, print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/bench"))
    p.add_argument("--rounds", type=int, default=15, help="of every candidate (default: 15)")
    p.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    p.add_argument("--threads", type=int, default=1)
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {size: measured(*SIZES[size], arguments.rounds) for size in arguments.sizes}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "steps.json").write_text(json.dumps(found, indent=1))
    print("\n".join(table(found)))
    return 0


def measured(width: int, rows: int, rounds: int) -> dict[str, float]:
    """Milliseconds of CPU per step, by candidate; what is not installed is left out."""
    steps = {name: make(width, rows) for name, make in CANDIDATES.items()}
    each = max(2, 512 // width)
    for step in (s for s in steps.values() if s is not None):
        for _ in range(12):  # compiling, choosing, warming
            step()
    times: dict[str, list[float]] = {name: [] for name, step in steps.items() if step is not None}
    for _ in range(rounds):
        for name in times:
            times[name].append(clocked(steps[name], each))
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def clocked(step: Step | None, each: int) -> float:
    """CPU seconds per step."""
    assert step is not None
    began = time.process_time()
    for _ in range(each):
        step()
    return (time.process_time() - began) / each


def by_hand(width: int, rows: int, *, fused: bool = False, compiled: bool = False) -> Step:
    """Loss, gradients, Adam."""
    model = plain.Plain(*plain.networks(width))
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=fused or None)
    batch = plain.data(rows)
    loss: Any = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model

    def step() -> None:
        optimiser.zero_grad()
        loss(batch.x["x"], batch.x["label"]).backward()
        optimiser.step()

    return step


def products_and_adam(width: int, rows: int) -> Step:
    """The floor."""
    nets = plain.networks(width)
    products, parameters = plain.floor(nets, rows), [p for net in nets for p in net.parameters()]
    optimiser = torch.optim.Adam(parameters, 1e-3, fused=True)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        products()
        optimiser.step()

    return step


def pair(width: int) -> tuple[plain.Model, plain.Guide]:
    """The programs."""
    encoder, image, label = plain.networks(width)
    return plain.Model(image, label), plain.Guide(encoder)


def stock(width: int, rows: int) -> Step:
    """`pyro.infer.SVI` as its tutorials have it."""
    import pyro
    from pyro.infer import Trace_ELBO
    from pyro.optim import Adam

    from pyro_mm.training import svi

    trained, batch = svi(*pair(width), Adam({"lr": 1e-3}), Trace_ELBO(max_plate_nesting=1)), plain.data(rows)

    def step() -> None:
        with pyro.validation_enabled(True):  # Pyro's default
            trained.step(batch)

    return step


def ours(width: int, rows: int, *, compiled: bool) -> Step:
    """The step that `fit` makes, finite checks and meters included."""
    from pyro_mm.objectives import elbo
    from pyro_mm.training.leg import Leg
    from pyro_mm.training.options import Options, make_fabric
    from pyro_mm.training.stages import Stage

    stage = Stage(elbo(*pair(width), analytic_kl=True), 1)
    leg = Leg(stage, Options(compile=compiled), make_fabric("cpu", 1, None, None), None)
    batch = plain.data(rows)
    stage.objective(batch)  # what `fit` does first
    return lambda: leg.step(batch, 1)


def numpyro(width: int, rows: int) -> Step | None:
    """The same programs in NumPyro, jitted, if it is installed."""
    if importlib.util.find_spec("numpyro") is None:
        return None
    import others

    return others.numpyro_step(width, rows)


CANDIDATES: dict[str, Callable[[int, int], Step | None]] = {
    REFERENCE: by_hand,
    "PyTorch by hand, fused Adam": lambda w, n: by_hand(w, n, fused=True),
    "PyTorch by hand, compiled, fused Adam": lambda w, n: by_hand(w, n, fused=True, compiled=True),
    "matrix products and Adam alone": products_and_adam,
    "Pyro's SVI": stock,
    "fit(pair)": lambda w, n: ours(w, n, compiled=False),
    "fit(pair, compile=True)": lambda w, n: ours(w, n, compiled=True),
    "NumPyro, jit": numpyro,
}


def table(found: dict[str, dict[str, float]]) -> list[str]:
    """Ratios to the reference, and the reference in milliseconds."""
    names = list(dict.fromkeys(n for times in found.values() for n in times))
    head = ["step", *(f"{size}: width {SIZES[size][0]}, {SIZES[size][1]} rows" for size in found)]
    rows = [[n, *(f"{t[n] / t[REFERENCE]:.2f}" if n in t else "-" for t in found.values())] for n in names]
    return markdown([head, *rows])


if __name__ == "__main__":
    sys.exit(main())
