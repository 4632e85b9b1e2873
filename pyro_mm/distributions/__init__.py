"""Distributions that torch and Pyro lack, get wrong or do slowly: mixtures, flows, diffusions, tokens, grey pixels."""

from pyro_mm.distributions.bernoulli import Bernoulli, Binomial
from pyro_mm.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_mm.distributions.diffused import Diffused, DiffusedBound
from pyro_mm.distributions.flow import Flowed, MaskedFlow
from pyro_mm.distributions.mixture import Mixture, independent_components
from pyro_mm.distributions.mixture_of import MixtureOf
from pyro_mm.distributions.normal import Normal
from pyro_mm.distributions.quicker import log_prob_of
from pyro_mm.distributions.tokens import TokenSequence

__all__ = [
    "Bernoulli",
    "Binomial",
    "ContinuousBernoulli",
    "Diffused",
    "DiffusedBound",
    "Flowed",
    "MaskedFlow",
    "Mixture",
    "MixtureOf",
    "Normal",
    "TokenSequence",
    "independent_components",
    "log_prob_of",
]
