"""What one optimisation step costs: ordinary Pyro programs beside hand-written PyTorch.

    python benchmarks/steps.py --out runs/bench            # writes runs/bench/steps.json and prints the table
    python benchmarks/steps.py --device cuda               # steps-cuda.json

A JMVAE on 784 pixels and a label, wide (512, 128 rows) and narrow (64, 32 rows).  All candidates of a size step in
turn in one process, a few steps at a time; ratios to hand-written PyTorch with default Adam.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import plain
import torch
from measuring import Candidate, Missing, Times, in_turn, made, save

from pyro_mm.batch import Batch
from pyro_mm.half import BF16_LAYERS
from pyro_mm.tables import markdown

Step = Callable[[], object]
Maker = Callable[[int, int, str], Candidate | Step]
SIZES = {"wide": (512, 128), "narrow": (64, 32)}
REFERENCE = "PyTorch by hand"
NO_BF16 = "no bf16 here"


def main() -> int:
    """Measure, write, print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/bench"))
    p.add_argument("--rounds", type=int, default=15, help="of every candidate (default: 15)")
    p.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    by = made(arguments.device)
    found = {s: measured(*SIZES[s], arguments.rounds, device=arguments.device) for s in arguments.sizes}
    save(path_of(arguments.out, arguments.device), by, {"rounds": arguments.rounds}, found)
    print("\n".join(table(found)))
    return 0


def path_of(folder: Path, device: str) -> Path:
    """Where the figures of a device are."""
    return folder / ("steps.json" if device == "cpu" else f"steps-{device}.json")


def measured(width: int, rows: int, rounds: int, names: Iterable[str] | None = None, device: str = "cpu") -> Times:
    """Milliseconds per step by candidate, of those named or of all."""
    makers = {n: partial(CANDIDATES[n], width, rows, device) for n in (CANDIDATES if names is None else names)}
    each = max(2, 512 // width) if device == "cpu" else 20
    times = in_turn(makers, rounds, each, warm=12, device=device)  # compiling, choosing, warming
    return {name: 1e3 * t if isinstance(t, float) else t for name, t in times.items()}


def has_bf16(device: str) -> bool:
    """Does it multiply bfloat16 by instructions of its own?  Elsewhere that is slower."""
    if device != "cpu":
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def by_hand(
    width: int, rows: int, device: str, *, fused: bool = False, compiled: bool = False, half: bool = False, k: int = 0
) -> Step:
    """Loss, gradients, Adam; with K draws of z, if it is given."""
    if half and not has_bf16(device):
        raise Missing(NO_BF16)
    model = plain.Plain(*plain.networks(width, device))
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=fused or None)
    batch = plain.data(rows).to(torch.device(device))
    loss: Any = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model
    loss = partial(model.many, k=k) if k else loss

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16) if half else nullcontext():
            value = loss(batch.x["x"], batch.x["label"])
        value.backward()
        optimiser.step()

    return step


def products_and_adam(width: int, rows: int, device: str) -> Step:
    """The floor."""
    nets = plain.networks(width, device)
    products, parameters = plain.floor(nets, rows), [p for net in nets for p in net.parameters()]
    optimiser = torch.optim.Adam(parameters, 1e-3, fused=True)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        products()
        optimiser.step()

    return step


def pair(width: int, device: str = "cpu") -> tuple[plain.Model, plain.Guide]:
    """The programs."""
    encoder, image, label = plain.networks(width, device)
    return plain.Model(image, label), plain.Guide(encoder)


def stock(width: int, rows: int, device: str) -> Candidate:
    """`pyro.infer.SVI` on a model and a guide with `pyro.module`, as Pyro's tutorials have it, validation included."""
    import pyro
    from pyro.infer import SVI, Trace_ELBO
    from pyro.optim import Adam

    programs = plain.Tutorial(*plain.networks(width, device))
    batch = plain.data(rows).to(torch.device(device))
    trained = SVI(programs.model, programs.guide, Adam({"lr": 1e-3}), loss=Trace_ELBO())
    state: dict[str, Any] = {"params": {}, "constraints": {}}

    @contextmanager
    def around() -> Iterator[None]:
        """A parameter store of its own: `fit` refuses to work beside a filled one."""
        with pyro.get_param_store().scope(state), pyro.validation_enabled(True):
            yield

    return Candidate(lambda: trained.step(batch.x["x"], batch.x["label"]), around)


def ours(width: int, rows: int, device: str, *, compiled: bool = False, half: bool = False, k: int = 1) -> Step:
    """The step that `fit` makes, finite checks and meters included."""
    if half and not has_bf16(device):
        raise Missing(NO_BF16)
    from pyro_mm.objectives import elbo

    objective = elbo(*pair(width, device), particles=k, analytic_kl=True)
    return fit_step(objective, plain.data(rows).to(torch.device(device)), device, compiled=compiled, half=half)


def fit_step(objective: Any, batch: Batch, device: str = "cpu", *, compiled: bool = False, half: bool = False) -> Step:
    """A step of `fit` on this minibatch; the first is made here, because it may tell that it is not compiled."""
    from pyro_mm.training.leg import Leg
    from pyro_mm.training.options import Options, make_fabric
    from pyro_mm.training.stages import Stage

    stage, fabric = Stage(objective, 1), make_fabric(device, 1, BF16_LAYERS if half else None, None)
    fabric.to_device(objective)
    objective(batch)  # what `fit` does first
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        leg = Leg(stage, Options(compile=compiled), fabric, None)
        leg.step(batch, 1)
    if compiled and any("eager" in str(warning.message) for warning in told):
        raise Missing("eager: fit does not compile it")
    return lambda: leg.step(batch, 1)


def numpyro(width: int, rows: int, device: str) -> Step:
    """The same programs in NumPyro, jitted, if it is installed."""
    if device != "cpu":
        raise Missing("measured on CPUs")
    import others

    return others.numpyro_step(width, rows)


FLOOR, STOCK, JIT = "matrix products and Adam alone", "Pyro's SVI", "NumPyro, jit"
EAGER, COMPILED = "fit(pair)", "fit(pair, compile=True)"
HAND_COMPILED = "PyTorch by hand, compiled, fused Adam"
HALVES = (f'fit(pair, precision="{BF16_LAYERS}")', f'fit(pair, precision="{BF16_LAYERS}", compile=True)')
CANDIDATES: dict[str, Maker] = {
    REFERENCE: by_hand,
    "PyTorch by hand, fused Adam": partial(by_hand, fused=True),
    HAND_COMPILED: partial(by_hand, fused=True, compiled=True),
    FLOOR: products_and_adam,
    STOCK: stock,
    EAGER: ours,
    COMPILED: partial(ours, compiled=True),
    JIT: numpyro,
    "PyTorch by hand, fused Adam, bf16 autocast": partial(by_hand, fused=True, half=True),
    "PyTorch by hand, compiled, fused Adam, bf16 autocast": partial(by_hand, fused=True, compiled=True, half=True),
    HALVES[0]: partial(ours, half=True),
    HALVES[1]: partial(ours, half=True, compiled=True),
}


def table(found: Mapping[str, Times]) -> list[str]:
    """Ratios to the reference, and the reference in milliseconds."""
    names = list(dict.fromkeys(n for times in found.values() for n in times))
    head = ["step", *(f"{size}: width {SIZES[size][0]}, {SIZES[size][1]} rows" for size in found)]
    rows = [[n, *(cell(t.get(n, "-"), t[REFERENCE]) for t in found.values())] for n in names]
    rows.append([f"{REFERENCE}, ms", *(f"{t[REFERENCE]:.2f}" for t in found.values())])
    return markdown([head, *rows])


def cell(time: float | str, reference: float | str) -> str:
    """A ratio, or why there is none."""
    return f"{time / reference:.2f}" if isinstance(time, float) and isinstance(reference, float) else str(time)


if __name__ == "__main__":
    sys.exit(main())
