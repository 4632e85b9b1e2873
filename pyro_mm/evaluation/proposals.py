"""Mixture proposals: several guide views and the prior, scored by the mixture's density (balance heuristic).

    q_mix(z) = sum_j a_j q_j(z) + a_0 p(z)

The prior part ("defensive", Hesterberg 1995) bounds every weight by p(x|z) / a_0 and makes a guide that misses a
mode visible.  A component that is blind to a latent in some rows (private latents of a modality that its view hides)
is completed by the model: it draws the latent from p(. | those above it), which is then part of its density.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from math import log
from typing import Any

import pyro
import torch
from pyro.distributions import is_validation_enabled as pyro_validates
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.distributions import independent_components
from pyro_mm.distributions.lazy import deferring
from pyro_mm.evaluation.components import Component, GuideView, guide_views, log_density, row_wise
from pyro_mm.evaluation.modules import modules_of
from pyro_mm.half import HalfLayers
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import Sites, depth_of, replay, run

__all__ = ["Draws", "Proposal", "evaluating", "proposal_name", "shares_of", "summed"]

Shares = Sequence[tuple[float, Component]]


@dataclass(frozen=True)
class Draws:
    """Log-densities at K draws: of the latents and of every observation, `(K, N)` or, with enumerated latents,
    `(..., K, N)`; and of the proposal, `(K, N)`.
    """

    log_prior: Tensor
    log_likelihood: dict[str, Tensor]
    log_q: Tensor
    values: dict[str, Tensor]
    prior_sites: tuple[str, ...]

    def log_terms(self, names: Sequence[str] | None = None) -> Tensor:
        """log p(x_S, z, c) - log q(z), c the enumerated latents, S = `names` (default: every observation).

        float64, as a difference of sums; `(..., K, N)`, one leading dimension for each of c.
        """
        total = self.log_prior.double() - self.log_q.double()
        for m in self.log_likelihood if names is None else names:
            total = total + self.log_likelihood[m]
        return total

    def log_weight(self, names: Sequence[str] | None = None) -> Tensor:
        """log p(x_S, z) - log q(z) `(K, N)`, enumerated latents summed over."""
        return summed(self.log_terms(names))


def summed(log_terms: Tensor) -> Tensor:
    """log sum over enumerated latents: `(..., K, N)` to `(K, N)`."""
    lead = tuple(range(log_terms.dim() - 2))
    return log_terms.logsumexp(lead) if lead else log_terms


@dataclass
class Proposal:
    """A mixture of components, and a share of prior draws.

    Args:
        model: the program whose latents are drawn.
        views: components, or `(guide, view)` pairs; every guide is run on its own view.
        shares: `a_1..a_J` and, last, the prior's `a_0`; they sum to 1.
        independent: draw the component of every particle at random, also inside a guide's mixture, instead of in fixed
            proportions.
        bf16: run the model's layers in bfloat16.  The guide's are not: they cost little, and its density must be that
            of the draws.
    """

    model: Program
    views: Sequence[Component | tuple[Program, Batch]]
    shares: Sequence[float]
    independent: bool = False
    bf16: bool = False
    components: list[Component] = field(init=False, repr=False)
    _exact: list[float] = field(init=False, repr=False)
    _validated: bool = field(init=False, repr=False, default=False)

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.views) + 1 or abs(sum(self.shares) - 1) > 1e-9 or min(self.shares) < 0:
            raise ValueError(f"shares {list(self.shares)} must be {len(self.views) + 1} non-negative numbers of sum 1")
        self.components, shares = [], []
        for share, view in zip(self.shares, self.views, strict=False):
            for part, component in guide_views(*view) if isinstance(view, tuple) else [(1.0, view)]:
                self.components.append(component)
                shares.append(share * part)
        self.shares = [*shares, self.shares[-1]]
        self._exact = list(self.shares)

    def assign(self, k: int) -> Tensor:
        """The component of each of K particles, `(K, 1)`; the shares become exact multiples of 1/K.

        With `independent` it is `(K, N)`: an index shared by all data would make their errors alike.
        """
        if self.independent:
            rows = self.components[0].rows
            drawn = torch.multinomial(torch.tensor(self.shares, dtype=torch.float64), k * rows, replacement=True)
            return drawn.view(k, rows)
        ends = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)
        # Spread evenly over the particles, so that every chunk of them sees every component.
        golden = (torch.arange(k, dtype=torch.float64) * 0.6180339887498949) % 1.0
        rank = golden.argsort().argsort()
        which = torch.bucketize((rank + 0.5) / k, ends[:-1])
        self._exact = (torch.bincount(which, minlength=len(ends)).double() / k).tolist()
        return which.unsqueeze(-1)

    def draw(self, batch: Batch, which: Tensor) -> Draws:
        """Draw one particle per entry of `which` and score it; `batch` says what the model observes.

        Distributions validate their arguments and data in the first call only: it reads every element several times.
        """
        with pyro.validation_enabled(pyro_validates() and not self._validated):
            found = self._draw(batch, which)
        self._validated = True
        return found

    def _draw(self, batch: Batch, which: Tensor) -> Draws:
        k = len(which)
        which = which.to(batch.device)
        drawing = independent_components if self.independent else nullcontext  # a prior may be a mixture too
        with drawing():
            drawn = [c.draw(k) for c in self.components]

        def choose(msg: Any) -> Tensor | None:
            name, event = msg["name"], msg["fn"].event_dim
            if name not in drawn[0].values:
                return None
            for c in self.components:
                if isinstance(c, GuideView):
                    c.same_shape(name, msg["fn"])
            index = which.view(k, 1, -1, *[1] * event)
            blind = [_where_blind(c.seen(name), msg["mask"]) for c in self.components]
            fresh = self._exact[-1] > 0 or any(b is not None for b in blind)
            value = own = msg["fn"].sample() if fresh else drawn[0].values[name]
            for j, part in enumerate(drawn):
                mine, hidden = part.values[name], blind[j]
                if hidden is not None:
                    mine = torch.where(hidden.reshape(hidden.shape + (1,) * event), own, mine)
                value = torch.where(index == j, mine, value)
            return value

        with drawing(), self._layers():
            model = run(particles(self.model, k), batch, choose)
        values = {n: model[n].value for n in drawn[0].values if n in model}
        for component in self.components:
            component.check(model)
        log_q = [part.log_q for part in drawn]
        if len(self.components) > 1 or self._exact[-1] > 0:
            others = [c.log_prob(values, k) for c in self.components]
            log_q = [torch.where(which == j, *pair) for j, pair in enumerate(zip(log_q, others, strict=True))]
        log_q = [q + _completion(c, model, values) for c, q in zip(self.components, log_q, strict=True)]
        return self._scored(self._enumerated(model, batch, k), log_q, values)

    def at(self, batch: Batch, values: dict[str, Tensor], k: int = 1) -> Draws:
        """Score given values of all the model's latents, as drawn under plates `(K, 1, N)`."""
        with self._layers():
            model = replay(particles(self.model, k), batch, values)
        log_q = [c.log_prob(values, k) + _completion(c, model, values) for c in self.components]
        known = {n: v for n, v in values.items() if n in model and n in self.components[0].names}
        return self._scored(self._enumerated(model, batch, k), log_q, known)

    def _enumerated(self, model: Sites, batch: Batch, k: int) -> tuple[Sites, int | None]:
        """The model's sites with marked latents that no component draws enumerated, and the number of plates."""
        known = self.components[0].names
        if not any(s.enumerated and n not in known for n, s in model.items()):
            return model, None
        held = {n: s.value for n, s in model.items() if not s.observed and (n in known or not s.enumerated)}
        depth = depth_of(model)
        with self._layers():
            return replay(particles(self.model, k), batch, held, depth), depth

    def _layers(self) -> AbstractContextManager[object]:
        return HalfLayers() if self.bf16 else nullcontext()

    def _scored(self, enumerated: tuple[Sites, int | None], log_q: list[Tensor], values: dict[str, Tensor]) -> Draws:
        model, depth = enumerated
        hidden = {n: s for n, s in model.items() if not s.observed and n not in values}
        summed_over = {n for n, s in hidden.items() if s.enumerated and depth is not None}
        # Drawn with one value of an enumerated latent, and scored under all of them: such a draw does not cancel.
        tied = {n for n, s in hidden.items() if n not in summed_over and row_wise(s, depth).dim() > 2}
        log_prior = log_density({n: s for n, s in model.items() if n in values or n in summed_over | tied}, depth)
        if tied:
            drawn = summed(log_density({n: hidden[n] for n in summed_over | tied}, depth))
            log_q = [q + drawn for q in log_q]
        parts = [q + log(a) for q, a in zip(log_q, self._exact, strict=False) if a > 0]
        if self._exact[-1] > 0:
            parts.append(summed(log_prior) + log(self._exact[-1]))
        total = torch.logsumexp(torch.stack(torch.broadcast_tensors(*parts)), 0) if len(parts) > 1 else parts[0]
        likelihood = {n: row_wise(s, depth) for n, s in model.items() if s.observed}
        return Draws(log_prior, likelihood, total, values, tuple(n for n in hidden if n not in summed_over))


def _where_blind(seen: Any, mask: Any) -> Tensor | None:
    """Where a component has no density of a latent that the model has; None where that is nowhere for certain."""
    if seen is True or seen is mask or mask is False:
        return None
    hidden = ~torch.as_tensor(seen, device=mask.device if isinstance(mask, Tensor) else None)
    return hidden & mask if isinstance(mask, Tensor) else hidden


def _completion(component: Component, model: Sites, values: dict[str, Tensor]) -> Tensor | float:
    """The model's own log-density of latents where the component is blind to them, `(K, N)`.

    Raises:
        ValueError: such a latent depends on an enumerated one.
    """
    total: Tensor | float = 0.0
    for name in values:
        site = model[name]
        blind = _where_blind(component.seen(name), site.mask)
        if blind is None:
            continue
        logp = row_wise(replace(site, mask=blind))
        total = total + logp
    return total


def proposal_name(defensive: float, guide: str = "guide") -> str:
    """`0.9 guide + 0.1 prior`."""
    return f"{1 - defensive:g} {guide} + {defensive:g} prior" if defensive else guide


def shares_of(count: int, defensive: float) -> list[float]:
    """Equal shares for `count` guides beside a share `defensive` of prior draws."""
    if not 0 <= defensive < 1:
        raise ValueError(f"the defensive share must be in [0, 1), got {defensive}")
    return [(1 - defensive) / count] * count + [defensive]


@contextmanager
def evaluating(*programs: Program, seed: int | None = None, stream: str = "draws") -> Iterator[None]:
    """Evaluation mode and no gradients, put back afterwards; with a seed, the caller's random state too.

    Decoders of modalities that every row hides are run only where what they make is asked for.  The modules behind
    wrapped programs and plain functions are found as well.  Streams of one seed are independent of
    each other and of `torch.manual_seed(seed)`: data simulated with a seed and then scored with the same one would
    otherwise meet the very noise that they were made from.
    """
    modules = modules_of(*programs)
    flags = [(m, m.training) for outer in modules for m in outer.modules()]
    devices = sorted({p.device.index or 0 for m in modules for p in m.parameters() if p.device.type == "cuda"})
    try:
        for module in modules:
            module.eval()
        with torch.random.fork_rng(devices, enabled=seed is not None), torch.no_grad(), deferring():
            if seed is not None:
                torch.manual_seed(int.from_bytes(blake2b(f"{stream} {seed}".encode(), digest_size=8).digest()))
            yield
    finally:
        for module, flag in flags:
            module.training = flag
