"""Distributions that torch and Pyro lack, get wrong or do slowly: mixtures of experts, sequences, grey pixels."""

from pyro_mm.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_mm.distributions.mixture import Mixture, independent_components
from pyro_mm.distributions.normal import Normal
from pyro_mm.distributions.tokens import TokenSequence

__all__ = ["ContinuousBernoulli", "Mixture", "Normal", "TokenSequence", "independent_components"]
