"""How a likelihood is estimated: how many draws, and from which proposal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.chunks import MEMORY, Plan
from pyro_mm.evaluation.components import Component
from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.latents import Coordinates
from pyro_mm.evaluation.proposals import Proposal, evaluating
from pyro_mm.evaluation.refine import Cascade, GradientSteps, Laplace, Refined, Refiner
from pyro_mm.evaluation.refine.laplace import spread_of
from pyro_mm.evaluation.target import Target
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import run

__all__ = ["Effort", "Quantity", "blank", "fit", "fit_all", "gradients", "latents_of", "proposal_of", "refinable"]

K, CAP = 1000, 100_000
PILOTS = 200  # draws of the guide that a refiner starts from
STAGES: Sequence[Refiner] = (Laplace(), GradientSteps(50, 4), GradientSteps(300, 8))
REFINED = 0.75  # share of a refined density beside the guide that it came from


@dataclass(frozen=True)
class Effort:
    """The options that all estimators share; `log_marginal` says what they mean."""

    k: int | None = None
    target_se: float | None = None
    refine: Refiner | bool | None = None
    defensive: float = 0.1
    independent: bool = False
    chunk: int | None = None
    memory: int = MEMORY
    seed: int | None = None
    bf16: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.defensive < 1:
            raise ValueError(f"the defensive share must be in [0, 1), got {self.defensive}")
        if self.target_se is not None and not self.target_se > 0:
            raise ValueError(f"target_se must be above 0, got {self.target_se}")

    @property
    def draws(self) -> int:
        """K, or the most draws of a datum."""
        return self.k if self.k is not None else K if self.target_se is None else CAP

    @property
    def refiners(self) -> Sequence[Refiner]:
        """What refines a proposal, the cheapest first."""
        wanted = self.target_se is not None if self.refine is None else self.refine
        if wanted is True:
            return STAGES if self.target_se is not None else [Cascade(STAGES[:2])]
        return [wanted] if wanted else []

    def describe(self, guides: Sequence[str], proposal: Proposal) -> str:
        """`0.9 guide + 0.1 prior`, or with a refined density beside each guide."""
        each = (1 - self.defensive) / len(guides)
        kinds = [c.label for c in proposal.components if isinstance(c, Refined)]
        parts = [f"{each * (1 - REFINED if kinds else 1.0):g} {name}" for name in guides]
        parts += [f"{each * REFINED:g} {kind}" for kind in kinds]
        parts += [f"{self.defensive:g} prior"] if self.defensive else []
        return " + ".join(parts) if len(parts) > 1 else guides[0]


class Quantity(Protocol):
    """A log-likelihood, as far as its estimation goes."""

    @property
    def model(self) -> Program: ...

    @property
    def guide(self) -> Program: ...

    def views(self, block: Batch) -> Sequence[Batch]:
        """What the guide is shown: one component of the proposal for each."""

    def asks(self, batch: Batch) -> Tensor:
        """Rows that have something of what it is about, bool `(N,)`."""

    def measured(self, proposal: Proposal, block: Batch, plan: Plan, k: int) -> Evidence:
        """The estimate from K draws of a proposal."""


def proposal_of(quantity: Quantity, block: Batch, effort: Effort, refined: Sequence[Refined] = ()) -> Proposal:
    """Equal shares for every view, each split between guide and refined density; and a share of prior draws."""
    views = quantity.views(block)
    each = (1 - effort.defensive) / len(views)
    components: list[Component | tuple[Program, Batch]] = [(quantity.guide, view) for view in views]
    shares = [each * (1 - REFINED if refined else 1.0)] * len(views)
    if refined:
        components += refined
        shares += [each * REFINED] * len(refined)
    return Proposal(quantity.model, components, [*shares, effort.defensive], effort.independent, effort.bf16)


def refinable(model: Program, guide: Program, batch: Batch) -> bool:
    """Can proposals be refined?  All latents of the guide must be continuous, and the model's others enumerated."""
    with evaluating(model, guide, seed=0):
        try:
            sites = run(particles(guide, 1), batch[:1])
            Target(model, batch[:1], Coordinates.of(sites, 1))
        except ValueError:
            return False
    return True


def latents_of(guide: Program, batch: Batch) -> int:
    """How many latents the guide draws for a row."""
    with evaluating(guide, seed=0):
        return len(run(particles(guide, 1), batch[:1]))


def fit_all(quantity: Quantity, block: Batch, effort: Effort, chunk: int = 4096) -> list[Refined]:
    """The refined densities asked for, one for every view; none where none was asked for."""
    refined: list[Refined] = []
    for refiner in effort.refiners:
        refined = fit(quantity, block, refiner, refined, chunk)
    return refined


def blank(quantity: Quantity, block: Batch, chunk: int = 4096) -> list[Refined]:
    """The guide's moments in the place of refined densities, to be replaced row by row."""
    out = []
    for view in quantity.views(block):
        where, pilots = piloted(quantity.guide, view, chunk)
        out.append(Refined(where, pilots.mean(0), torch.diag_embed(spread_of(pilots))))
    return out


def piloted(guide: Program, view: Batch, chunk: int, k: int = PILOTS) -> tuple[Coordinates, Tensor]:
    """The guide's latents as real numbers, and K of its draws `(K, N, D)`, `chunk` rows x particles at a time."""
    parts, step = [], max(1, chunk // len(view))
    for start in range(0, k, step):
        sites = run(particles(guide, min(step, k - start)), view)
        where = Coordinates.of(sites, len(view))
        parts.append(where.pack({n: s.value for n, s in sites.items()}))
    return where, torch.cat(parts)


def gradients(quantity: Quantity, block: Batch, k: int) -> None:
    """What a refiner does in one pass: the posterior's gradient at K draws of the guide."""
    view = quantity.views(block)[0]
    where, pilots = piloted(quantity.guide, view, k * len(view), k)
    Target(quantity.model, view, where, k * len(view)).gradient(pilots)


def fit(
    quantity: Quantity, block: Batch, refiner: Refiner, before: Sequence[Refined] = (), chunk: int = 4096
) -> list[Refined]:
    """A refined density for what every view shows, starting from draws of the guide and earlier densities.

    Raises:
        ValueError: naming a latent that is discrete, or unknown to the guide and not enumerated.
    """
    out = []
    for i, view in enumerate(quantity.views(block)):
        where, pilots = piloted(quantity.guide, view, chunk)
        target = Target(quantity.model, view, where, chunk)
        out.append(refiner(target, pilots, before[i] if before else None))
    return out
