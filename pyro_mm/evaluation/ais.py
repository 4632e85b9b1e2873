"""Annealed importance sampling, forwards on any data and in both directions on data simulated from the model.

    f_b(u) = q(u)^(1-b) p(x, u)^b,   0 = b_0 < b_1 < ... < b_T = 1
    forward:  u_0 ~ q,  u_t ~ HMC_{b_t}(u_{t-1}),   w = prod_t f_{b_t}(u_{t-1}) / f_{b_{t-1}}(u_{t-1}),   E[w] = p(x)
    reverse:  u_T a posterior draw, the same transitions backwards,   E[1/w] = 1/p(x)

(Neal 2001; Grosse, Ghahramani & Adams 2015, "bidirectional Monte Carlo"; Wu et al. 2017 for decoders.)  Every chain of
every datum is accepted by itself.  Step sizes are adapted in a pilot and then frozen: adapting while running would
break what makes the weights exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.annealing import Path, Schedule
from pyro_mm.evaluation.certificate import Certificate
from pyro_mm.evaluation.chunks import MEMORY
from pyro_mm.evaluation.conditional import Names, asked_for, conditional_name
from pyro_mm.evaluation.effort import Effort
from pyro_mm.evaluation.estimation import planned
from pyro_mm.evaluation.evidence import Evidence, those_scored
from pyro_mm.evaluation.generation import simulated
from pyro_mm.evaluation.marginal import Marginal, about, evidence_of, quantity_of, require_likelihood
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.evaluation.refine import Refiner
from pyro_mm.evaluation.sandwich import Ends, conditional_ends, exact_latents
from pyro_mm.evaluation.streaming import WeightSums
from pyro_mm.handlers import Program
from pyro_mm.weights import Sites

__all__ = ["ais", "log_marginal_ais"]


def ais(
    model: Program,
    guide: Program,
    batch: Batch,
    temperatures: int = 300,
    *,
    chains: int = 8,
    leaps: int = 2,
    of: Names | None = None,
    given: Names | None = None,
    refine: Refiner | bool = False,
    defensive: float = 0.0,
    memory: int = MEMORY,
    seed: int | None = None,
) -> Certificate:
    """Lower and upper ends of log p(x_S) by annealing in both directions (BDMC), on data drawn from the model.

    lower = log mean w of the forward chains, upper = -log mean 1/w of the reverse ones, which start at the latents that
    the data came from.  Both hold in expectation, and P(lower > log p(x) + c) <= exp(-c), likewise above.  Where the
    guide is poor this closes a gap that the `sandwich` of any affordable K leaves open.

    Args:
        temperatures: T; more of them close the gap.
        chains: per datum and direction.
        leaps: leapfrog steps per transition, one transition per temperature.
        of, given: for the ends of log p(x_A | x_B).
        refine: anneal from a refined proposal instead of from the guide.
        defensive: the share of the prior in the density q that annealing starts from; chains that start far away only
            widen the gap.
        memory, seed: as in `log_marginal`.

    Raises:
        NoLikelihood: the model defines no such density.
        ValueError: a discrete latent that is not enumerated, one that the guide lacks, a guide with hidden randomness;
            `of` without `given`, unknown modalities; numbers below 1.
    """
    settings = Settings(temperatures, chains, leaps)
    effort = Effort(chains, None, refine, defensive, True, None, memory, seed)
    with evaluating(model, guide, seed=seed):
        data, truth = simulated(model, batch)
        if of is None and given is None:
            require_likelihood(model)
            return settings.certificate(
                *_both(model, guide, data, truth, effort, settings), data, quantity_of(model, data), about(model, data)
            )
        a, b = asked_for(model, data, of, given)
        both, rate = _both(model, guide, data.only(*a, *b), truth, effort, settings)
        part, other = _both(model, guide, data.only(*b), truth, effort, settings)
        found = conditional_ends(both, part)
        return settings.certificate(found, min(rate, other), data, conditional_name(model, a, b), data.present(a))


def log_marginal_ais(
    model: Program,
    guide: Program,
    batch: Batch,
    temperatures: int = 300,
    *,
    chains: int = 16,
    leaps: int = 2,
    refine: Refiner | bool = False,
    defensive: float = 0.0,
    memory: int = MEMORY,
    seed: int | None = None,
) -> Evidence:
    """log p(x_S) of real data by forward annealing: like `log_marginal`, a lower bound in expectation.

    For data on which every proposal is poor.  `k` counts chains; a standard error over few chains is rough.  Arguments
    and errors as in `ais`.
    """
    require_likelihood(model)
    settings = Settings(temperatures, chains, leaps)
    effort = Effort(chains, None, refine, defensive, True, None, memory, seed)
    quantity = Marginal(model, guide, quantity_of(model, batch), effort)
    parts = []
    with evaluating(model, guide, seed=seed):
        for block in planned(quantity, batch, effort).blocks(batch):
            path = Path(quantity, block, effort)
            log_w, _ = path.forward(settings.schedule(path), chains)
            parts.append(evidence_of(_sums(log_w), quantity.name, settings.name(path)))
    return replace(Evidence.join(parts), scored=those_scored(quantity.asks(batch)))


@dataclass(frozen=True)
class Settings:
    """T, chains and leapfrog steps."""

    temperatures: int
    chains: int
    leaps: int

    def __post_init__(self) -> None:
        for name in ("temperatures", "chains", "leaps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def schedule(self, path: Path) -> Schedule:
        """Temperatures, and the step sizes that a pilot adapts."""
        return path.piloted(Schedule.sigmoid(self.temperatures, self.leaps), self.chains)

    def name(self, path: Path) -> str:
        """`annealed in 100 steps from 0.9 guide + 0.1 prior`."""
        return f"annealed in {self.temperatures} steps from {path.name}"

    def certificate(self, ends: Ends, rate: float, data: Batch, quantity: str, asked: Tensor) -> Certificate:
        """With what is needed to repeat it; `asked` are the rows that it is about."""
        made = ends.certificate(data, self.chains, "BDMC", quantity, asked)
        return replace(
            made, settings={"temperatures": self.temperatures, "leaps": self.leaps, "acceptance": round(rate, 3)}
        )


def _both(
    model: Program, guide: Program, data: Batch, truth: Sites, effort: Effort, settings: Settings
) -> tuple[Ends, float]:
    """Both ends, and the mean acceptance rate."""
    quantity = Marginal(model, guide, "", effort)
    parts, rates = [], []
    for block, exact in exact_latents(data, truth, planned(quantity, data, effort)):
        path = Path(quantity, block, effort)
        schedule = settings.schedule(path)
        up, rate_up = path.forward(schedule, settings.chains)
        down, rate_down = path.reverse(schedule, settings.chains, exact)
        sums = _sums(up)
        upper = -(torch.logsumexp(-down, 0) - log(settings.chains))
        parts.append(Ends(sums.estimate, upper, 1 / sums.concentration, sums.khat))
        rates += [rate_up, rate_down]
    return Ends.join(parts), sum(rates) / len(rates)


def _sums(log_w: Tensor) -> WeightSums:
    sums = WeightSums(len(log_w))
    sums.add(log_w)
    return sums
