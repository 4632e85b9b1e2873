"""Modules trained apart that exchange messages about a latent they share: SERKET and Neuro-SERKET.

    p(c) p(z | c) p(x_1 | z) p(x_2 | c),   cut at z and at c

A VAE (`models.Joint` and any guide) knows p(x_1 | z), a mixture p(c) p(z | c), a co-occurrence module p(x_2 | c).  Each
is a Pyro program with its own training; what the rest of the model says reaches it as another prior at the site where
it was cut (`believe`, `informed`).  `agree` lets modules of classes talk until they agree, `exchange` is the outer loop
with a VAE.  Tomoaki Nakamura, Takayuki Nagai, Tadahiro Taniguchi, "SERKET: An architecture for connecting stochastic
models to realize a large-scale cognitive model", Front. Neurorobot. 12:25, 2018; Taniguchi et al., "Neuro-SERKET:
Development of integrative cognitive system through the composition of deep probabilistic generative models", New
Gener. Comput. 38, 2020.
"""

from pyro_mm.modules.classes import (
    ClassMixture,
    em,
    k_means,
    likelihood_message,
    log_evidence,
    log_responsibilities,
    posterior_message,
)
from pyro_mm.modules.exchange import Exchange, agree, exchange
from pyro_mm.modules.parts import Counts, Gaussians, Part, UnitGaussians

__all__ = [
    "ClassMixture",
    "Counts",
    "Exchange",
    "Gaussians",
    "Part",
    "UnitGaussians",
    "agree",
    "em",
    "exchange",
    "k_means",
    "likelihood_message",
    "log_evidence",
    "log_responsibilities",
    "posterior_message",
]
