"""What K importance draws cost: `log_marginal` of an ordinary Pyro pair beside the matrix products alone.

    python benchmarks/likelihood_speed.py --out runs/bench     # writes runs/bench/likelihoods.json, prints the table
    python benchmarks/likelihood_speed.py --device cuda --k 5000          # likelihoods-cuda.json

The pair of `benchmarks/plain.py` at width 512, plain importance sampling from the guide; all candidates take turns in
one process, and the figure is the floor's time over the candidate's (1: nothing but matrix products).  The package
has no compiled passes: the one here, for this pair and no other proposal, shows what they would bring.  With bf16
the first 16 rows are estimated in full precision as well, to tell what it changes; of the many data that are meant
for it, here 10 times as many, that is a small part.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import plain
import pyro
import torch
from measuring import Missing, Times, in_turn, made, save
from steps import NO_BF16, has_bf16
from torch import nn

from pyro_mm import log_marginal
from pyro_mm.batch import Batch
from pyro_mm.evaluation.effort import Effort, proposal_of
from pyro_mm.evaluation.marginal import Marginal
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.tables import markdown
from pyro_mm.tracing import UnseenValues
from pyro_mm.training.capture import can_compile

WIDTH = 512
STOCK = "Pyro's Importance, a datum at a time"
FLOOR = "matrix products of the decoders alone"
HALF_FLOOR = "the same in bfloat16"
OURS, HALF, MORE = "log_marginal", "log_marginal, bf16", 10


def main() -> int:
    """Measure, write, print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/bench"))
    p.add_argument("--rows", type=int, default=32)
    p.add_argument("--k", type=int, default=1000)
    p.add_argument("--rounds", type=int, default=6)
    p.add_argument("--chunks", type=int, nargs="+", default=[1000, 2000, 4000])
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    by, plan = made(arguments.device), {n: getattr(arguments, n) for n in ("rows", "k", "rounds", "chunks")}
    found = measured(**plan, device=arguments.device)
    save(path_of(arguments.out, arguments.device), by, plan, found)
    print("\n".join(table(found)))
    return 0


def path_of(folder: Path, device: str) -> Path:
    """Where the figures of a device are."""
    return folder / ("likelihoods.json" if device == "cpu" else f"likelihoods-{device}.json")


def measured(rows: int, k: int, rounds: int, chunks: list[int], device: str = "cpu") -> Times:
    """Milliseconds per row, by candidate."""
    encoder, image, label = plain.networks(WIDTH, device)
    model, guide, by_hand = plain.Model(image, label), plain.Guide(encoder), plain.Plain(encoder, image, label)
    batch = plain.data(rows).to(torch.device(device))
    many = plain.data(MORE * rows).to(batch.device)
    x, y = batch.x["x"], batch.x["label"]
    estimate = partial(log_marginal, model, guide, batch, k, refine=False, seed=0)
    few = max(1, k // 20)  # of Pyro's draws, whose time is K times that of one

    def half(run: Callable[[], object]) -> Callable[[], object]:
        if not has_bf16(device):
            raise Missing(NO_BF16)
        return run

    makers: dict[str, Callable[[], Any]] = {
        FLOOR: lambda: floor((image, label), k, rows, torch.float32),
        HALF_FLOOR: lambda: half(floor((image, label), k, rows, torch.bfloat16)),
        "PyTorch by hand, a datum at a time": lambda: partial(by_hand.log_marginal, x, y, k),
        OURS: lambda: estimate,
        **{f"{OURS}, chunk={c}": lambda c=c: partial(estimate, chunk=c) for c in chunks},
        "passes over two data, compiled": lambda: compiled_passes(model, guide, batch, k),
        HALF: lambda: half(partial(log_marginal, model, guide, many, k, refine=False, bf16=True, seed=0)),
        STOCK: lambda: partial(stock, model, guide, batch[:1], few),
    }
    times = in_turn(makers, rounds, device=device)
    data = dict.fromkeys(times, float(rows)) | {STOCK: few / k, HALF: float(MORE * rows)}
    return {name: 1e3 * t / data[name] if isinstance(t, float) else t for name, t in times.items()}


def compiled_passes(model: nn.Module, guide: nn.Module, batch: Batch, k: int) -> Callable[[], object]:
    """Passes of two rows as one graph, which torch compiles."""
    if batch.device.type != "cpu" or not can_compile(batch.device):
        raise Missing("measured on CPUs with a C++ compiler")
    from torch.fx.experimental.proxy_tensor import make_fx

    effort = Effort(k, refine=False)
    quantity = Marginal(model, guide, "log p(x, label)", effort)
    which = proposal_of(quantity, batch[:2], effort).assign(k)

    def one(x: torch.Tensor, label: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        rows = Batch._view({"x": x, "label": label}, dict(batch[:2].mask), batch.hidden)
        proposal = proposal_of(quantity, rows, effort)
        proposal.assign(k)
        return proposal.draw(rows, which).log_weight().logsumexp(0)

    with evaluating(model, guide, seed=0), pyro.validation_enabled(False), UnseenValues():
        graph = torch.compile(make_fx(one)(batch.x["x"][:2], batch.x["label"][:2], which), fullgraph=True)

    def run() -> None:
        with torch.no_grad():
            for i in range(0, len(batch), 2):
                graph(batch.x["x"][i : i + 2], batch.x["label"][i : i + 2], which)

    return run


def floor(nets: tuple[nn.Module, ...], k: int, rows: int, dtype: torch.dtype) -> Callable[[], None]:
    """The matrix products of all rows, a datum's K draws at a time."""
    layers = [m for net in nets for m in net.modules() if isinstance(m, nn.Linear)]
    work = [(torch.randn(k, m.in_features, device=m.weight.device), m.weight.detach().t()) for m in layers]
    work = [(x.to(dtype), w.to(dtype)) for x, w in work]

    def products() -> None:
        for _ in range(rows):
            for x, w in work:
                torch.mm(x, w)

    return products


@torch.no_grad()
def stock(model: nn.Module, guide: nn.Module, batch: object, k: int) -> None:
    """`pyro.infer.Importance` on one datum after the other."""
    from pyro.infer import Importance

    for i in range(len(batch)):  # type: ignore[arg-type]
        Importance(model, guide, num_samples=k).run(batch[i : i + 1])  # type: ignore[index]


def table(found: Times) -> list[str]:
    """Shares of the floor."""
    rows = [[name, share(found, FLOOR, name), f"{t:.1f}" if isinstance(t, float) else t] for name, t in found.items()]
    return markdown([["log p(x, label)", "floor / time", "ms per datum"], *rows])


def share(found: Times, floor: str, name: str) -> str:
    """The floor's time over the candidate's."""
    one, other = found.get(floor, "-"), found.get(name, "-")
    return f"{one / other:.2f}" if isinstance(one, float) and isinstance(other, float) else "-"


if __name__ == "__main__":
    sys.exit(main())
