"""Likelihoods with error bars, certificates, generation and contract checks for any model/guide pair."""

from pyro_mm.evaluation.check import CheckReport, PairError, check_pair
from pyro_mm.evaluation.conditional import log_conditional, log_conditional_difference, plug_in
from pyro_mm.evaluation.evidence import Evidence, NoLikelihood
from pyro_mm.evaluation.generation import Posterior, encode, generate, simulate
from pyro_mm.evaluation.marginal import log_marginal
from pyro_mm.evaluation.sandwich import Certificate, sandwich

__all__ = [
    "Certificate",
    "CheckReport",
    "Evidence",
    "NoLikelihood",
    "PairError",
    "Posterior",
    "check_pair",
    "encode",
    "generate",
    "log_conditional",
    "log_conditional_difference",
    "log_marginal",
    "plug_in",
    "sandwich",
    "simulate",
]
