"""Training objectives: losses over a batch that add and scale like the formulas in the papers."""

from pyro_mm.objectives.algebra import Objective, Term
from pyro_mm.objectives.elbo import componentwise_elbo, elbo, kl, nll
from pyro_mm.objectives.multisample import dreg, iwae, looser
from pyro_mm.objectives.schedules import Schedule, Warmup

__all__ = [
    "Objective",
    "Schedule",
    "Term",
    "Warmup",
    "componentwise_elbo",
    "dreg",
    "elbo",
    "iwae",
    "kl",
    "looser",
    "nll",
]
