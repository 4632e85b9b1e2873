"""What K importance draws cost: `log_marginal` of an ordinary Pyro pair beside the matrix products alone.

    python benchmarks/likelihood_speed.py --out runs/bench     # writes runs/bench/likelihoods.json, prints the table

The pair of `benchmarks/plain.py` at width 512, plain importance sampling from the guide; candidates take turns, and the
figure is the floor's CPU time over the candidate's (1: nothing but matrix products).  The package has no compiled
passes: the one here, for this pair and no other proposal, shows what they would bring.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import plain
import pyro
import torch
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
FAST_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # by instructions of its own: elsewhere it is slower


def main() -> int:
    """Measure, write, print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/bench"))
    p.add_argument("--rows", type=int, default=32)
    p.add_argument("--k", type=int, default=1000)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--chunks", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    p.add_argument("--threads", type=int, default=1)
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    found = measured(arguments.rows, arguments.k, arguments.rounds, arguments.chunks)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "likelihoods.json").write_text(json.dumps(found, indent=1))
    print("\n".join(table(found)))
    return 0


def measured(rows: int, k: int, rounds: int, chunks: list[int]) -> dict[str, float]:
    """Milliseconds of CPU per row, by candidate."""
    encoder, image, label = plain.networks(WIDTH)
    model, guide, by_hand = plain.Model(image, label), plain.Guide(encoder), plain.Plain(encoder, image, label)
    batch = plain.data(rows)
    x, y = batch.x["x"], batch.x["label"]
    candidates: dict[str, Callable[[], object]] = {
        FLOOR: lambda: [products(image, label, k) for _ in range(rows)],
        "PyTorch by hand, a datum at a time": lambda: by_hand.log_marginal(x, y, k),
        "log_marginal": lambda: log_marginal(model, guide, batch, k, refine=False, seed=0),
        **{
            f"log_marginal, chunk={c}": lambda c=c: log_marginal(model, guide, batch, k, refine=False, chunk=c, seed=0)
            for c in chunks
        },
    }
    if (compiled := compiled_passes(model, guide, batch, k)) is not None:
        candidates["passes over two data, compiled"] = compiled
    if FAST_BF16:
        candidates["log_marginal, bf16"] = lambda: log_marginal(model, guide, batch, k, refine=False, bf16=True, seed=0)
    candidates[STOCK] = lambda: stock(model, guide, batch[:1], max(1, k // 20))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            began = time.process_time()
            run()
            times[name].append(time.process_time() - began)
    out = {name: 1e3 * statistics.median(t[1:]) / rows for name, t in times.items()}
    return out | {STOCK: out[STOCK] * rows * k / max(1, k // 20)}  # its time is K times that of one draw


def compiled_passes(model: nn.Module, guide: nn.Module, batch: Batch, k: int) -> Callable[[], object] | None:
    """Passes of two rows as one graph, which torch compiles; None without a compiler."""
    if not can_compile(batch.device):
        return None
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


@torch.no_grad()
def products(image: nn.Module, label: nn.Module, k: int) -> None:
    """One datum's."""
    for net in (image, label):
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                torch.mm(NOISE[:k, : layer.in_features], layer.weight.t())


NOISE = torch.randn(20_000, 512)


@torch.no_grad()
def stock(model: nn.Module, guide: nn.Module, batch: object, k: int) -> None:
    """`pyro.infer.Importance` on one datum after the other."""
    from pyro.infer import Importance

    for i in range(len(batch)):  # type: ignore[arg-type]
        Importance(model, guide, num_samples=k).run(batch[i : i + 1])  # type: ignore[index]


def table(found: dict[str, float]) -> list[str]:
    """Shares of the floor."""
    rows = [[name, f"{found[FLOOR] / t:.2f}", f"{t:.1f}"] for name, t in found.items()]
    return markdown([["log p(x, label)", "floor / time", "CPU ms per datum"], *rows])


if __name__ == "__main__":
    sys.exit(main())
