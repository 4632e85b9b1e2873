"""Generative programs: each is an `nn.Module` whose `forward(batch)` is a Pyro model."""

from pyro_mm.models.classed import Classed
from pyro_mm.models.conditional import Conditional
from pyro_mm.models.diffusion_decoder import DiffusionDecoder
from pyro_mm.models.diffusion_prior import DiffusionPrior
from pyro_mm.models.directed import Directed
from pyro_mm.models.hierarchical import Hierarchical, Independent
from pyro_mm.models.joint import Joint
from pyro_mm.models.learnt_priors import FlowPrior, GaussianMixture, VampPrior
from pyro_mm.models.priors import Clusters, LearntScale, StandardLaplace, StandardNormal
from pyro_mm.models.private import Private, WithPriors
from pyro_mm.models.pseudo import PseudoSamples

__all__ = [
    "Classed",
    "Clusters",
    "Conditional",
    "DiffusionDecoder",
    "DiffusionPrior",
    "Directed",
    "FlowPrior",
    "GaussianMixture",
    "Hierarchical",
    "Independent",
    "Joint",
    "LearntScale",
    "Private",
    "PseudoSamples",
    "StandardLaplace",
    "StandardNormal",
    "VampPrior",
    "WithPriors",
]
