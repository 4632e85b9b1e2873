"""Refined proposals: an explicit density per row, fitted to its posterior by optimisation or sampling.

A refiner is a function of the posterior (`Target`) and some of the guide's draws; what it returns is ordinary: a
density that can be drawn from and scored, so that importance sampling from it is as valid as from any guide.
"""

from pyro_mm.evaluation.refine.cascade import Cascade, Refiner
from pyro_mm.evaluation.refine.density import Refined
from pyro_mm.evaluation.refine.gradient import GradientSteps
from pyro_mm.evaluation.refine.hmc import HMCFit
from pyro_mm.evaluation.refine.laplace import Laplace

__all__ = ["Cascade", "GradientSteps", "HMCFit", "Laplace", "Refined", "Refiner"]
