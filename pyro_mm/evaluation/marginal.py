"""log p(x_S), S the modalities present in a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.chunks import MEMORY, Plan
from pyro_mm.evaluation.effort import Effort
from pyro_mm.evaluation.estimation import estimated
from pyro_mm.evaluation.evidence import Evidence, NoLikelihood, why_none
from pyro_mm.evaluation.proposals import Proposal
from pyro_mm.evaluation.refine import Refiner
from pyro_mm.evaluation.streaming import WeightSums
from pyro_mm.handlers import Program
from pyro_mm.likelihoods import PseudoBernoulli
from pyro_mm.modality import Modality

__all__ = ["log_marginal"]


def log_marginal(
    model: Program,
    guide: Program,
    batch: Batch,
    k: int | None = None,
    *,
    target_se: float | None = None,
    refine: Refiner | bool | None = None,
    defensive: float = 0.1,
    independent: bool = False,
    chunk: int | None = None,
    memory: int = MEMORY,
    bf16: bool = False,
    seed: int | None = None,
) -> Evidence:
    """log p(x_S) per datum by importance sampling, S the modalities present in each row (Burda et al. 2016, eq. 8).

    lhat = log 1/K sum_k p(x_S, z_k) / q_mix(z_k),  q_mix = (1 - a) q(z | x_S) + a p(z):  a lower bound in expectation.
    The joint likelihood is that of a full batch, a marginal that of `batch.only(...)`.  Training weights (beta,
    likelihood weights, plate subsampling) never enter.  A row with nothing present gives 0, and counts in no mean.
    Discrete latents of the
    model that are marked `infer={"enumerate": "parallel"}` and unknown to the guide are summed over.

    Args:
        k: draws per datum, 1,000 by default; with `target_se` the most that a datum may get, 100,000 by default.
        target_se: draw until the standard error of a datum is this small, in nats; `Evidence.reached` says of which
            data it became so, `Evidence.draws` with how many draws.
        refine: fit a proposal to each datum first (Kim et al. 2018): `Laplace()`, `GradientSteps()`, `HMCFit()`, or
            True for the first and, where that is poor, the second.  By default only with `target_se`, for data that
            would need many draws without.
        defensive: the share a of draws from the prior.
        independent: draw components at random instead of in fixed proportions: the estimate is noisier, and `se` is
            exact instead of on the safe side.
        chunk: rows x particles per pass, by default what is fast and fits into `memory`; it changes no result but
            rounding and the random draws.
        memory: bytes that a pass may hold.
        bf16: compute the model's linear and convolution layers in bfloat16, for hardware that is fast at it; densities
            stay in full precision.  `Evidence.rounding` says what that changes, as seen on a few rows.
        seed: draw with this seed and leave the caller's random state alone.

    Raises:
        NoLikelihood: the model defines no such density.
        ValueError: the pair breaks a convention (a guide-only site, a site outside the data plate), or a proposal
            cannot be refined (discrete latents in the guide).
    """
    require_likelihood(model)
    effort = Effort(k, target_se, refine, defensive, independent, chunk, memory, seed, bf16)
    return estimated(Marginal(model, guide, quantity_of(model, batch), effort), batch, effort)


@dataclass(frozen=True)
class Marginal:
    """log p(x_S), S what a block's rows have."""

    model: Program
    guide: Program
    name: str
    effort: Effort

    def views(self, block: Batch) -> Sequence[Batch]:
        """The guide sees what the model is asked about."""
        return [block]

    def asks(self, batch: Batch) -> Tensor:
        """Rows in which something of the model's is present."""
        return about(self.model, batch)

    def measured(self, proposal: Proposal, block: Batch, plan: Plan, k: int) -> Evidence:
        """From the sums over K draws."""
        sums = WeightSums(k)
        prior_sites: tuple[str, ...] = ()
        # With nothing observed log p is 0, whatever the draws are.
        some = self.asks(block)
        for which in plan.slices(proposal.assign(k)):
            draws = proposal.draw(block, which)
            sums.add(torch.where(some, draws.log_weight(), 0.0))
            prior_sites = draws.prior_sites
        return evidence_of(sums, self.name, self.effort.describe(["guide"], proposal), prior_sites)


def evidence_of(sums: WeightSums, quantity: str, proposal: str, prior_sites: tuple[str, ...] = ()) -> Evidence:
    """A result from the sums over all draws."""
    v = sums.variance
    return Evidence(
        quantity,
        sums.estimate,
        v.sqrt() if sums.k > 1 else torch.full_like(v, torch.nan),  # one draw tells nothing of its error
        1 / sums.concentration,
        sums.khat,
        -v / 2,
        sums.k,
        proposal,
        prior_sites,
    )


def quantity_of(model: Any, batch: Batch) -> str:
    """`log p(image, label)`: the model's modalities that are present in at least one row."""
    known = getattr(model, "names", None) or tuple(batch.mask)
    present = [m for m, mask in batch.mask.items() if m in known and m not in batch.hidden and bool(mask.any())]
    return titled(model, f"log p({', '.join(present)})", present)


def titled(model: Any, quantity: str, names: Iterable[str]) -> str:
    """The quantity under its own name: `pseudo-log p(image)` where one of these modalities has a pseudo-likelihood."""
    parts = model.modules() if isinstance(model, torch.nn.Module) else ()
    own = [m for part in parts if isinstance(m := getattr(part, "modality", None), Modality)]
    pseudo = {m.name for m in own if isinstance(m.likelihood, PseudoBernoulli)}
    return f"pseudo-{quantity}" if pseudo & set(names) else quantity


def about(model: Any, batch: Batch) -> Tensor:
    """Rows in which something of the model's is present, bool `(N,)`."""
    return batch.present(getattr(model, "names", None) or None)


def require_likelihood(model: Any, given: tuple[str, ...] = (), of: tuple[str, ...] = ()) -> None:
    """Raise NoLikelihood when the model does not define the density that is asked for.

    A model or a part of it says so by `no_likelihood` (a reason), or by `conditioned_on` (modalities it is given, never
    generates).
    """
    if reason := why_none(model):
        raise NoLikelihood(f"{type(model).__name__} has no likelihood: {reason}")
    names = getattr(model, "names", None)
    if names and (absent := [m for m in of if m not in names]):
        raise NoLikelihood(f"{type(model).__name__} generates {list(names)}, so it has no density of {absent}")
    conditions = tuple(getattr(model, "conditioned_on", ()))
    if missing := [m for m in conditions if m not in given]:
        raise NoLikelihood(
            f"{type(model).__name__} is a model of {', '.join(model.names)} given {', '.join(conditions)}: it has "
            f"log_conditional(of={list(model.names)}, given={list(conditions)}) only; not given here: {missing}"
        )
