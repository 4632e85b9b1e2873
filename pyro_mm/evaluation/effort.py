"""How a likelihood is estimated: how many draws, and from which proposal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pyro_mm.batch import Batch
from pyro_mm.evaluation.chunks import MEMORY, Plan
from pyro_mm.evaluation.components import Component
from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.latents import Coordinates
from pyro_mm.evaluation.proposals import Proposal
from pyro_mm.evaluation.refine import Cascade, GradientSteps, Laplace, Refined, Refiner
from pyro_mm.evaluation.target import Target
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import run

__all__ = ["Effort", "Quantity", "blank", "fit", "proposal_of"]

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
        return " + ".join([*parts, f"{self.defensive:g} prior"]) if self.defensive or len(parts) > 1 else guides[0]


class Quantity(Protocol):
    """A log-likelihood, as far as its estimation goes."""

    @property
    def model(self) -> Program: ...

    @property
    def guide(self) -> Program: ...

    def views(self, block: Batch) -> Sequence[Batch]:
        """What the guide is shown: one component of the proposal for each."""

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
    return Proposal(quantity.model, components, [*shares, effort.defensive], effort.independent)


def blank(quantity: Quantity, block: Batch) -> list[Refined]:
    """Standard normals in the place of refined densities, to be replaced row by row."""
    out = []
    for view in quantity.views(block):
        sites = run(particles(quantity.guide, 1), view)
        where = Coordinates.of(sites, len(view))
        loc = where.pack({n: s.value for n, s in sites.items()})[0] * 0
        out.append(Refined(where, loc, torch.eye(where.dim).to(loc).repeat(len(loc), 1, 1), label="refined"))
    return out


def fit(
    quantity: Quantity, block: Batch, refiner: Refiner, before: Sequence[Refined] = (), chunk: int = 4096
) -> list[Refined]:
    """A refined density for what every view shows, starting from draws of the guide and earlier densities.

    Raises:
        ValueError: naming a latent that is discrete, or unknown to the guide and not enumerated.
    """
    out = []
    for i, view in enumerate(quantity.views(block)):
        sites = run(particles(quantity.guide, PILOTS), view)
        where = Coordinates.of(sites, len(view))
        target = Target(quantity.model, view, where, chunk)
        pilots = where.pack({n: s.value for n, s in sites.items()})
        out.append(refiner(target, pilots, before[i] if before else None))
    return out
