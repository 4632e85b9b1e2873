"""Mixture proposals: several guide views and the prior, scored by the mixture's density (balance heuristic).

    q_mix(z) = sum_j a_j q_j(z) + a_0 p(z)

The prior part ("defensive", Hesterberg 1995) bounds every weight by p(x|z) / a_0 and makes a guide that misses a
mode visible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from math import log
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.distributions import independent_components
from pyro_mm.evaluation.modules import modules_of
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import Site, Sites, check_sites, per_datum, replay, run

__all__ = ["Draws", "Proposal", "evaluating", "shares_of"]


@dataclass(frozen=True)
class Draws:
    """Log-densities at K draws, all `(K, N)`: of the latents, of every observation, of the proposal."""

    log_prior: Tensor
    log_likelihood: dict[str, Tensor]
    log_q: Tensor
    values: dict[str, Tensor]
    prior_sites: tuple[str, ...]

    def log_weight(self, names: Sequence[str] | None = None) -> Tensor:
        """log p(x_S, z) - log q(z), S = `names` (default: every observation); float64, as a difference of sums."""
        total = self.log_prior.double() - self.log_q.double()
        for m in self.log_likelihood if names is None else names:
            total = total + self.log_likelihood[m]
        return total


@dataclass
class Proposal:
    """Guides with the views of the batch they see, and a share of prior draws.

    Args:
        model: the program whose latents are drawn.
        views: `(guide, view)` pairs; every guide is run on its own view.
        shares: `a_1..a_J` and, last, the prior's `a_0`; they sum to 1.
        independent: draw the component of every particle at random, also inside a guide's mixture, instead of in fixed
            proportions.
    """

    model: Program
    views: Sequence[tuple[Program, Batch]]
    shares: Sequence[float]
    independent: bool = False
    _exact: list[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.views) + 1 or abs(sum(self.shares) - 1) > 1e-9 or min(self.shares) < 0:
            raise ValueError(f"shares {list(self.shares)} must be {len(self.views) + 1} non-negative numbers of sum 1")
        self._exact = list(self.shares)

    def assign(self, k: int) -> Tensor:
        """The component of each of K particles, `(K, 1)`; the shares become exact multiples of 1/K.

        With `independent` it is `(K, N)`: an index shared by all data would make their errors alike.
        """
        if self.independent:
            n = len(self.views[0][1])
            drawn = torch.multinomial(torch.tensor(self.shares, dtype=torch.float64), k * n, replacement=True)
            return drawn.view(k, n)
        ends = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)
        # Spread evenly over the particles, so that every chunk of them sees every component.
        golden = (torch.arange(k, dtype=torch.float64) * 0.6180339887498949) % 1.0
        rank = golden.argsort().argsort()
        which = torch.bucketize((rank + 0.5) / k, ends[:-1])
        self._exact = (torch.bincount(which, minlength=len(ends)).double() / k).tolist()
        return which.unsqueeze(-1)

    def draw(self, batch: Batch, which: Tensor) -> Draws:
        """Draw one particle per entry of `which` and score it; `batch` says what the model observes."""
        k = len(which)
        guides = [(particles(g, k), view) for g, view in self.views]
        drawing = independent_components if self.independent else nullcontext  # a prior may be a mixture too
        with drawing():
            drawn = [run(g, view) for g, view in guides]
        which = which.to(batch.device).unsqueeze(1)

        def choose(msg: Any) -> Tensor | None:
            if msg["name"] not in drawn[0]:
                return None
            for sites in drawn:
                same_shape(msg["name"], msg["fn"], sites)
            shape = [*which.shape, *[1] * msg["fn"].event_dim]
            index = which.view(shape)
            value = msg["fn"].sample() if self._exact[-1] > 0 else drawn[0][msg["name"]].value
            for j, sites in enumerate(drawn):
                value = torch.where(index == j, sites[msg["name"]].value, value)
            return value

        with drawing():
            model = run(particles(self.model, k), batch, choose)
        values = {n: model[n].value for n in drawn[0] if n in model}
        for sites in drawn:
            check_sites(model, sites)
        single = len(drawn) == 1 and self._exact[-1] == 0
        scored = drawn if single else [replay(g, view, values) for g, view in guides]
        return self._scored(model, scored, values)

    def at(self, batch: Batch, values: dict[str, Tensor]) -> Draws:
        """Score given values of all the model's latents, one particle, as drawn under plates `(1, 1, N)`."""
        model = replay(particles(self.model, 1), batch, values)
        guides = [replay(particles(g, 1), view, values) for g, view in self.views]
        return self._scored(model, guides, {n: v for n, v in values.items() if n in guides[0]})

    def _scored(self, model: Sites, guides: Sequence[Sites], values: dict[str, Tensor]) -> Draws:
        log_prior = _total([s for n, s in model.items() if n in values])
        parts = [_total(list(g.values())) + log(a) for g, a in zip(guides, self._exact, strict=False) if a > 0]
        if self._exact[-1] > 0:
            parts.append(log_prior + log(self._exact[-1]))
        log_q = torch.logsumexp(torch.stack(torch.broadcast_tensors(*parts)), 0) if len(parts) > 1 else parts[0]
        likelihood = {n: row_wise(s) for n, s in model.items() if s.observed}
        hidden = tuple(n for n, s in model.items() if not s.observed and n not in values)
        return Draws(log_prior, likelihood, log_q, values, hidden)


def _total(sites: Sequence[Site]) -> Tensor:
    total: Any = 0.0
    for site in sites:
        total = total + row_wise(site)
    return total


def row_wise(site: Site) -> Tensor:
    """The site's log-density `(K, N)`."""
    logp = per_datum(site)
    if logp.shape[1] > 1:
        raise ValueError(
            f"site '{site.name}' has {logp.shape[1]} values per row: a likelihood is of one view of the data; pass the "
            "programs themselves instead of in_subsets(...), and batch.only(...) instead of batch.subsets(...)"
        )
    return logp.squeeze(1)


def same_shape(name: str, fn: Any, guide: Sites) -> None:
    """Raise when the guides do not all have the site, or have it with another event shape than the model's `fn`."""
    if name not in guide:
        raise ValueError(f"site '{name}' is drawn by the guide under one view of the data and missing under another")
    if (ours := tuple(guide[name].fn.event_shape)) != (theirs := tuple(fn.event_shape)):
        raise ValueError(f"site '{name}' has event shape {ours} in the guide and {theirs} in the model")


def shares_of(count: int, defensive: float) -> list[float]:
    """Equal shares for `count` guides beside a share `defensive` of prior draws."""
    if not 0 <= defensive < 1:
        raise ValueError(f"the defensive share must be in [0, 1), got {defensive}")
    return [(1 - defensive) / count] * count + [defensive]


@contextmanager
def evaluating(*programs: Program, seed: int | None = None, stream: str = "draws") -> Iterator[None]:
    """Evaluation mode and no gradients, put back afterwards; with a seed, the caller's random state too.

    The modules behind wrapped programs and plain functions are found as well.  Streams of one seed are independent of
    each other and of `torch.manual_seed(seed)`: data simulated with a seed and then scored with the same one would
    otherwise meet the very noise that they were made from.
    """
    modules = modules_of(*programs)
    flags = [(m, m.training) for outer in modules for m in outer.modules()]
    devices = sorted({p.device.index or 0 for m in modules for p in m.parameters() if p.device.type == "cuda"})
    try:
        for module in modules:
            module.eval()
        with torch.random.fork_rng(devices, enabled=seed is not None), torch.no_grad():
            if seed is not None:
                torch.manual_seed(int.from_bytes(blake2b(f"{stream} {seed}".encode(), digest_size=8).digest()))
            yield
    finally:
        for module, flag in flags:
            module.training = flag
