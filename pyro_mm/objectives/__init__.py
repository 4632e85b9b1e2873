"""Training objectives: losses over a batch that add and scale like the formulas in the papers."""

from pyro_mm.objectives.adversarial import Discriminator, adversarial, discrimination
from pyro_mm.objectives.algebra import Objective, Term, total
from pyro_mm.objectives.coded import coded
from pyro_mm.objectives.denoising import denoising, denoising_data, masked_denoising
from pyro_mm.objectives.distance import symmetric_kl, wasserstein
from pyro_mm.objectives.elbo import componentwise_elbo, componentwise_kl, elbo, kl, nll
from pyro_mm.objectives.mixing import Shares, entropy, shared_elbo
from pyro_mm.objectives.mmd import mmd
from pyro_mm.objectives.multisample import dreg, iwae, looser
from pyro_mm.objectives.mutual import mutual
from pyro_mm.objectives.schedules import Schedule, Warmup

__all__ = [
    "Discriminator",
    "Objective",
    "Schedule",
    "Shares",
    "Term",
    "Warmup",
    "adversarial",
    "coded",
    "componentwise_elbo",
    "componentwise_kl",
    "denoising",
    "denoising_data",
    "discrimination",
    "dreg",
    "elbo",
    "entropy",
    "iwae",
    "kl",
    "looser",
    "masked_denoising",
    "mmd",
    "mutual",
    "nll",
    "shared_elbo",
    "symmetric_kl",
    "total",
    "wasserstein",
]
