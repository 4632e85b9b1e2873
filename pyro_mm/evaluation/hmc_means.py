"""Hamiltonian Monte Carlo as a witness: does it see the posterior that importance sampling sees, on real data?

Both start from the guide.  Importance sampling corrects it by weights, HMC by moving its draws, so that an error of one
is hardly that of the other.  A mode that the guide never comes near is missing from both.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.calibration import mean_and_error
from pyro_mm.evaluation.chunks import Plan
from pyro_mm.evaluation.collapse import finite
from pyro_mm.evaluation.effort import Effort, fit_all, proposal_of
from pyro_mm.evaluation.evidence import over, those_scored
from pyro_mm.evaluation.gaps import Nats, posterior_and_draws
from pyro_mm.evaluation.latents import Coordinates
from pyro_mm.evaluation.marginal import Marginal, require_likelihood
from pyro_mm.evaluation.proposals import Proposal, evaluating
from pyro_mm.evaluation.refine import HMCFit, Refiner
from pyro_mm.handlers import Program

__all__ = ["Means", "hmc_means"]

CHAINS = HMCFit(chains=16, warmup=100, draws=100)
MIXED = 1.05  # R-hat above which chains disagree


@dataclass(frozen=True)
class Means:
    """Posterior means of real coordinates u by two methods, and the ends of log p(x_S) that follow.

    Attributes:
        hmc: mean over all chains `(N, D)`, its standard error from the chains' spread; NaN where a latent is masked.
        importance: self-normalised importance-sampling average and its standard error, likewise.
        sd: standard deviations of the posterior, from the chains.
        rhat: split R-hat of the chains (Gelman et al. 2013, section 11.4).
        lower: log p(x_S) by importance sampling `(N,)`, nats; at most the truth in expectation.
        upper: the same with one weight replaced by that of a chain's state, as in `sandwich`: in expectation at least
            the truth where the chains have mixed.
        coordinates: names of the entries of u.
        scored: bool `(N,)`, rows that have something, over which means of log p are; None for all.
    """

    hmc: Nats
    importance: Nats
    sd: Tensor
    rhat: Tensor
    lower: Tensor
    upper: Tensor
    coordinates: tuple[str, ...]
    scored: Tensor | None = None

    @property
    def difference(self) -> Tensor:
        """Importance sampling minus HMC, in standard deviations of the posterior, `(N, D)`."""
        return (self.importance.value - self.hmc.value) / self.sd

    @property
    def z(self) -> Tensor:
        """The difference in its own standard errors, `(N, D)`: of size 1 where both are right."""
        apart = self.importance - self.hmc
        return apart.value / apart.se

    @property
    def gap(self) -> tuple[float, float]:
        """Mean of upper - lower, and its standard error over data."""
        return mean_and_error(over(self.scored, self.upper - self.lower))

    @property
    def ends(self) -> tuple[float, float]:
        """Means of lower and upper."""
        return over(self.scored, self.lower).mean().item(), over(self.scored, self.upper).mean().item()

    @property
    def unmixed_share(self) -> float:
        """Share of coordinates of data whose chains disagree: R-hat is above 1.05."""
        return (self._known(self.rhat) > MIXED).double().mean().item()

    def summary(self) -> dict[str, Any]:
        """Numbers for a table or JSON; None for what is not finite."""
        found = {
            "rms_z": self._known(self.z).square().mean().sqrt().item(),
            "largest_difference": self._known(self.difference).abs().max().item(),
            "unmixed_share": self.unmixed_share,
            "lower": self.ends[0],
            "upper": self.ends[1],
            "gap": self.gap[0],
            "gap_se": self.gap[1],
        }
        return {"n": len(self.sd), "coordinates": len(self.coordinates), **{k: finite(v) for k, v in found.items()}}

    def __repr__(self) -> str:
        away = self._known(self.difference).abs().max().item()
        return (
            f"posterior means of {len(self.coordinates)} coordinates, importance sampling against HMC (N="
            f"{len(self.sd)}): rms z {self._known(self.z).square().mean().sqrt().item():.2f}, largest difference "
            f"{away:.3f} sd, R-hat > {MIXED:g}: {self.unmixed_share:.1%}; log p {self.ends[0]:.3f} to "
            f"{self.ends[1]:.3f} nats, gap {self.gap[0]:.4f} +- {self.gap[1]:.4f}"
        )

    def _known(self, values: Tensor) -> Tensor:
        return values[~self.sd.isnan()]


def hmc_means(
    model: Program,
    guide: Program,
    batch: Batch,
    k: int = 1000,
    *,
    hmc: HMCFit = CHAINS,
    refine: Refiner | bool = True,
    defensive: float = 0.1,
    chunk: int | None = None,
    seed: int | None = None,
) -> Means:
    """E[u | x_S] of every row by HMC and by importance sampling, S what is present in it, u the latents' coordinates.

    What `sandwich` certifies on simulated data this makes plausible on real ones: chains instead of known latents, to
    be believed as far as they have mixed.  It is costly; a few dozen rows say enough.

    Args:
        hmc: chains, transitions and steps; every chain starts from a draw of the guide.
        k, refine, defensive: the estimator to check, as in `log_marginal`; draws are independent.
        chunk: rows x particles per pass.
        seed: draw with this seed and leave the caller's random state alone.

    Raises:
        NoLikelihood: the model defines no density.
        ValueError: fewer than 2 chains, or than 4 draws of each; latents that are discrete, or unknown to the guide and
            not enumerated.
    """
    require_likelihood(model, tuple(getattr(model, "conditioned_on", ())))
    if hmc.chains < 2 or hmc.draws < 4:
        raise ValueError(f"at least 2 chains of 4 draws are needed, got {hmc.chains} of {hmc.draws}")
    effort = Effort(k, refine=refine, defensive=defensive, independent=True, chunk=chunk)
    quantity = Marginal(model, guide, "", effort)
    plan = Plan.for_batch(batch, k, chunk)
    both: list[tuple[Nats, Nats]] = []
    plain: list[tuple[Tensor, ...]] = []
    with evaluating(model, guide, seed=seed):
        for block in plan.blocks(batch):
            target, pilots = posterior_and_draws(model, guide, block, plan.units)
            proposal = proposal_of(quantity, block, effort, fit_all(quantity, block, effort, plan.units))
            importance, log_w = _weighted(proposal, block, plan, target.coordinates, k)
            kept = hmc.sample(target, pilots)
            chains, *widths = _moments(kept.double(), target.coordinates)
            upper = _upper(proposal, block, target.coordinates, kept, log_w)
            both.append((chains, importance))
            plain.append((*widths, log_w.logsumexp(0) - log(k), upper))
    first, second = (Nats.join(column) for column in zip(*both, strict=True))
    sd, rhat, lower, upper = (torch.cat(column) for column in zip(*plain, strict=True))
    names = tuple(target.coordinates.labels())
    return Means(first, second, sd, rhat, lower, upper, names, those_scored(quantity.asks(batch)))


def _weighted(proposal: Proposal, block: Batch, plan: Plan, where: Coordinates, k: int) -> tuple[Nats, Tensor]:
    """Mean of u, and the log-weights `(K, N)` behind it."""
    points, logs = [], []
    for which in plan.slices(proposal.assign(k)):
        draws = proposal.draw(block, which)
        points.append(where.pack(draws.values).double())
        logs.append(draws.log_weight())
    u, log_w = torch.cat(points), torch.cat(logs)
    w = log_w.softmax(0).unsqueeze(-1)
    mean = (w * u).sum(0)
    return _seen(mean, (w * (u - mean)).square().sum(0).sqrt(), where), log_w


def _upper(proposal: Proposal, block: Batch, where: Coordinates, kept: Tensor, log_w: Tensor) -> Tensor:
    """log 1/K (w_0 + w_2 + ... + w_K), w_0 the weight of a state, in the mean over states `(draws, chains, N, D)`."""
    rest, total = log_w[1:].logsumexp(0), torch.zeros_like(log_w[0])
    for state in kept:
        own = proposal.at(block, where.unpack(state)[0], len(state)).log_weight()
        total = total + torch.logaddexp(rest, own).mean(0)
    return total / len(kept) - log(len(log_w))


def _moments(kept: Tensor, where: Coordinates) -> tuple[Nats, Tensor, Tensor]:
    """Mean of u, its standard deviation and R-hat `(N, D)`, from states `(draws, chains, N, D)`."""
    each = kept.mean(0)
    halves = torch.cat(kept[len(kept) % 2 :].chunk(2), 1)
    within = halves.var(0).mean(0)
    total = (1 - 1 / len(halves)) * within + halves.mean(0).var(0)
    sd, rhat = (part.sqrt().masked_fill(~where.seen, torch.nan) for part in (total, total / within))
    return _seen(each.mean(0), each.std(0) / sqrt(len(each)), where), sd, rhat


def _seen(value: Tensor, se: Tensor, where: Coordinates) -> Nats:
    return Nats(*(part.masked_fill(~where.seen, torch.nan) for part in (value, se)))
