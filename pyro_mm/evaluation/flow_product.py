"""Draws from a product of flows, whose normaliser nobody knows, by Hamiltonian Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mm.batch import Batch
from pyro_mm.evaluation.hmc import Look, State, adapted, first_step, transition
from pyro_mm.evaluation.target import value_and_gradient
from pyro_mm.guides.flow_surrogate import FlowSurrogate
from pyro_mm.handlers import Verb

__all__ = ["FlowProduct", "product_of_flows"]

PILOTS = 32  # draws per row that say how wide the posterior may be


@dataclass(frozen=True)
class Effort:
    """Transitions that adapt the step, transitions after that, leapfrog steps in one, and chains at least."""

    warmup: int
    steps: int
    leaps: int
    chains: int


class FlowProduct(Verb):
    """See `product_of_flows`.

    Attributes:
        acceptance: of the last call's chains after adaptation, by row `(N,)`; NaN where none was needed.
        step: leapfrog steps that the adaptation came to `(N,)`, likewise.
    """

    program: FlowSurrogate

    def __init__(self, guide: FlowSurrogate, effort: Effort) -> None:
        super().__init__(guide)
        self.effort = effort
        self.acceptance, self.step = torch.empty(0), torch.empty(0)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", _Chains(self, batch))

    def draws(self, batch: Batch, k: int) -> Tensor:
        """z `(K, N, D)`: the last states of K chains of each row."""
        guide, effort = self.program, self.effort
        mask = guide.presence(batch)
        if mask.dim() != 2:
            raise ValueError("product_of_flows takes masks (N,): run it on one subset of the modalities at a time")
        start = guide.posterior(batch)
        several = (mask.sum(-1) > 1) & ~mask.all(-1)
        self.acceptance, self.step = torch.full((2, len(batch)), torch.nan, device=batch.device).unbind()
        if not bool(several.any()):
            return start.expand((k, len(batch))).sample()
        chains = max(k, effort.chains)
        drawn = start.expand((chains, len(batch))).sample()
        rows, inside = batch[several], drawn[:, several]
        spread = guide.posterior(rows).expand((PILOTS, len(rows))).sample().std(0)
        look, root = _look(guide, rows, mask[several]), torch.diag_embed(spread)
        state, step = look(inside), first_step(inside.shape[-1], len(rows), batch.device)
        rates = []
        for t in range(effort.warmup + effort.steps):
            state, rate = transition(state, look, root, step, effort.leaps)
            if t < effort.warmup:
                step = adapted(step, rate, effort.leaps)
            else:
                rates.append(rate.mean(0))
        self.acceptance[several] = torch.stack(rates).mean(0).to(self.acceptance)
        self.step[several] = step.to(self.step)
        drawn[:, several] = state.u
        return drawn[:k]


def product_of_flows(
    guide: FlowSurrogate, *, warmup: int = 50, steps: int = 50, leaps: int = 10, chains: int = 4
) -> FlowProduct:
    """z ~ p(z)^(1-|S|) prod_{m in S} q_m(z | x_m), normalised, in rows with several modalities but not all; in others
    the guide itself (JNF, Senellart et al. 2025).

    A guide for `generate` and `encode`, a JNF recipe's `sampler`, not for likelihoods: it has draws but no density.
    Every draw is the last state of a chain of its own, which starts from the mixture of the q_m.  Steps are adapted to
    each row, and `acceptance` says how it went (the authors' code has a fixed step, 0.01).  Where flows are wider than
    the prior the product may not be normalisable, and chains drift.

    Args:
        warmup: transitions that adapt the step; steps: transitions after that; leaps: leapfrog steps in each.
        chains: how many at least are run per row, to adapt the step by.

    Raises:
        TypeError: another guide than a `FlowSurrogate`.
        ValueError: fewer than 1 transition after the adaptation, leapfrog step or chain.
    """
    if not isinstance(guide, FlowSurrogate):
        raise TypeError(f"product_of_flows takes the guide of a JNF (a FlowSurrogate), got {type(guide).__name__}")
    if warmup < 0 or min(steps, leaps, chains) < 1:
        raise ValueError(f"at least 1 step, leap and chain are needed, got {steps}, {leaps} and {chains}")
    return FlowProduct(guide, Effort(warmup, steps, leaps, chains))


class _Chains(TorchDistribution):
    """What `pyro.sample` calls: K chains for the plate of K particles."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, program: FlowProduct, batch: Batch, shape: torch.Size | None = None) -> None:
        self.program, self.batch = program, batch
        event = program.program.prior().event_shape
        super().__init__(torch.Size([len(batch)]) if shape is None else shape, event, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Chains:
        return _Chains(self.program, self.batch, torch.Size(batch_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        return self.program.draws(self.batch, shape[:-1].numel()).reshape(*shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError(
            "a product of flows is known up to a constant only: give likelihoods the recipe's own guide"
        )


def _look(guide: FlowSurrogate, batch: Batch, mask: Tensor) -> Look:
    """The product's log-density up to a constant, and its gradient, as a state of HMC."""
    experts = {m: guide.expert(m, batch.x[m]) for m in guide.names if m in batch.x and m not in batch.hidden}
    seen = {m: mask[:, guide.names.index(m)] for m in experts}
    prior, others = guide.prior(), 1 - mask.sum(-1)

    def density(u: Tensor) -> Tensor:
        total = others * prior.log_prob(u)
        return total + sum(torch.where(seen[m], q.log_prob(u), 0.0) for m, q in experts.items())

    def look(u: Tensor) -> State:
        value, slope = value_and_gradient(density, u)
        return State(u, value, slope, torch.zeros_like(value), torch.zeros_like(slope))

    return look
