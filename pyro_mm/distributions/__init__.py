"""Distributions that torch and Pyro lack: mixtures of experts and token sequences."""

from pyro_mm.distributions.mixture import Mixture, independent_components
from pyro_mm.distributions.tokens import TokenSequence

__all__ = ["Mixture", "TokenSequence", "independent_components"]
