"""Distributions that torch and Pyro lack or get wrong: mixtures of experts, token sequences, saturated grey pixels."""

from pyro_mm.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_mm.distributions.mixture import Mixture, independent_components
from pyro_mm.distributions.tokens import TokenSequence

__all__ = ["ContinuousBernoulli", "Mixture", "TokenSequence", "independent_components"]
