"""Two-sided ends of log p(x) from importance weights, one of which is that of an exact posterior draw.

On data simulated from the model the latents they came from are known: z_0 is a draw of p(z | x_S) for every S.  With
w_k = p(x, z_k) / q(z_k), z_k ~ q independently,

    lower = log 1/K (w_1 + w_2 + ... + w_K),   upper = log 1/K (w_0 + w_2 + ... + w_K)

E[lower] <= log p(x) <= E[upper]: mean(w) / p(x) is the density ratio of "one of K from the posterior" to "all from q".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.certificate import Certificate
from pyro_mm.evaluation.chunks import MEMORY, Plan
from pyro_mm.evaluation.conditional import Names, asked_for, conditional_name
from pyro_mm.evaluation.effort import Effort, fit_all, proposal_of
from pyro_mm.evaluation.estimation import planned
from pyro_mm.evaluation.evidence import those_scored
from pyro_mm.evaluation.generation import simulated
from pyro_mm.evaluation.marginal import Marginal, about, quantity_of, require_likelihood
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.evaluation.refine import Refiner
from pyro_mm.evaluation.streaming import WeightSums
from pyro_mm.handlers import Program
from pyro_mm.weights import Site, Sites

__all__ = ["Ends", "conditional_ends", "ends", "exact_latents", "sandwich"]


@dataclass(frozen=True)
class Ends:
    """Both ends, and ESS and k-hat of the weights behind the lower one, all `(N,)`."""

    lower: Tensor
    upper: Tensor
    ess: Tensor
    khat: Tensor

    @staticmethod
    def join(parts: list[Ends]) -> Ends:
        """The rows of several blocks."""
        return Ends(*(torch.cat([getattr(p, f) for p in parts]) for f in ("lower", "upper", "ess", "khat")))

    def certificate(self, data: Batch, k: int, method: str, quantity: str, asked: Tensor) -> Certificate:
        """What they certify; `asked` are the rows that it is about."""
        scored = those_scored(asked)
        return Certificate(self.lower, self.upper, data, k, method, quantity, self.ess, self.khat, scored=scored)


def sandwich(
    model: Program,
    guide: Program,
    batch: Batch,
    k: int = 1000,
    *,
    of: Names | None = None,
    given: Names | None = None,
    refine: Refiner | bool = False,
    defensive: float = 0.1,
    chunk: int | None = None,
    memory: int = MEMORY,
    seed: int | None = None,
) -> Certificate:
    """Lower and upper ends of log p(x_S) on data drawn from the model with the batch's missingness.

    Both hold in expectation, for means over data, not for every datum.  A guide that misses a mode shows as a gap.  It
    certifies the estimator for this model, not the model for real data.

    Args:
        of, given: for the ends of log p(x_A | x_B): [lower_AB - upper_B, upper_AB - lower_B].
        k, refine, defensive, chunk, memory, seed: the estimator to certify, as in `log_marginal`; draws are
            independent, which is at most a little worse than its fixed proportions.

    Raises:
        NoLikelihood: the model defines no such density.
        ValueError: `of` without `given` or the other way round, unknown modalities; and as in `log_marginal`.
    """
    effort = Effort(k, None, refine, defensive, True, chunk, memory, seed)
    with evaluating(model, guide, seed=seed):
        data, truth = simulated(model, batch)
        if of is None and given is None:
            require_likelihood(model)
            found = ends(model, guide, data, truth, effort)
            return found.certificate(data, k, "sandwich", quantity_of(model, batch), about(model, data))
        a, b = asked_for(model, data, of, given)
        parts = (ends(model, guide, view, truth, effort) for view in (data.only(*a, *b), data.only(*b)))
        return conditional_ends(*parts).certificate(data, k, "sandwich", conditional_name(model, a, b), data.present(a))


def conditional_ends(both: Ends, part: Ends) -> Ends:
    """Ends of log p(x_A | x_B) from those of log p(x_A, x_B) and log p(x_B)."""
    ess, khat = torch.minimum(both.ess, part.ess), torch.maximum(both.khat, part.khat)
    return Ends(both.lower - part.upper, both.upper - part.lower, ess, khat)


def ends(model: Program, guide: Program, data: Batch, truth: Sites, effort: Effort) -> Ends:
    """Of p(x_S), or p(x_S | conditions) for a model that is given something, on data whose latents are known."""
    quantity = Marginal(model, guide, "", effort)
    plan = planned(quantity, data, effort)
    parts = []
    for block, exact in exact_latents(data, truth, plan):
        proposal = proposal_of(quantity, block, effort, fit_all(quantity, block, effort, plan.units))
        # Assigned first: how a guide with hidden randomness is scored does not depend on it, but its shares do.
        which = proposal.assign(effort.draws)
        sums, rest = WeightSums(effort.draws), torch.full((len(block),), -torch.inf, dtype=torch.float64)
        for i, chosen in enumerate(plan.slices(which)):
            log_w = proposal.draw(block, chosen).log_weight()
            sums.add(log_w)
            kept = log_w[1:] if i == 0 else log_w
            if len(kept):
                rest = torch.logaddexp(rest.to(kept.device), kept.logsumexp(0))
        first = proposal.at(block, exact).log_weight()[0]
        upper = torch.logaddexp(rest.to(first.device), first) - log(effort.draws)
        parts.append(Ends(sums.estimate, upper, 1 / sums.concentration, sums.khat))
    return Ends.join(parts)


def exact_latents(data: Batch, truth: Sites, plan: Plan) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Blocks of rows, and the latents they came from as values under plates `(1, 1, N)`."""
    start = 0
    for block in plan.blocks(data):
        rows = slice(start, start + len(block))
        start += len(block)
        yield block, {n: _block(site, rows) for n, site in truth.items()}


def _block(site: Site, rows: slice) -> Tensor:
    """A latent's value in some rows, with its batch dimensions padded to those of one particle, `(1, 1, N, *event)`."""
    event = site.fn.event_dim
    value = site.value.narrow(-1 - event, rows.start, rows.stop - rows.start)
    return value.reshape(*[1] * (3 + event - value.dim()), *value.shape)
