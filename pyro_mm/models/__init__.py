"""Generative programs: each is an `nn.Module` whose `forward(batch)` is a Pyro model."""

from pyro_mm.models.conditional import Conditional
from pyro_mm.models.joint import Joint
from pyro_mm.models.priors import LearntScale, StandardNormal

__all__ = ["Conditional", "Joint", "LearntScale", "StandardNormal"]
