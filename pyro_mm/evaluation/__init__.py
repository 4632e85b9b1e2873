"""Likelihoods with error bars, certificates, calibration, diagnoses and generation for any model/guide pair."""

from pyro_mm.evaluation.ais import ais, log_marginal_ais
from pyro_mm.evaluation.bits import Bits, bits_per_dim, dequantised
from pyro_mm.evaluation.calibration import Calibration, Divergence, sbc, symmetric_divergence
from pyro_mm.evaluation.certificate import MEANING, Certificate
from pyro_mm.evaluation.check import CheckReport, PairError, check_pair
from pyro_mm.evaluation.classify import classify, classify_plug_in
from pyro_mm.evaluation.coherence import CrossAccuracy, Proportion, cross_accuracy, joint_coherence
from pyro_mm.evaluation.compare import Comparison, compare
from pyro_mm.evaluation.conditional import log_conditional, log_conditional_difference, plug_in
from pyro_mm.evaluation.curves import KCurve, k_curve
from pyro_mm.evaluation.disentanglement import Disentanglement, disentanglement
from pyro_mm.evaluation.evidence import Evidence, NoLikelihood
from pyro_mm.evaluation.flow_product import product_of_flows
from pyro_mm.evaluation.frechet import Rank, frechet, frechet_distance, rank, split_half
from pyro_mm.evaluation.gaps import Gaps, gaps
from pyro_mm.evaluation.generation import Posterior, encode, generate, simulate
from pyro_mm.evaluation.hmc_means import Means, hmc_means
from pyro_mm.evaluation.inception import inception_fid
from pyro_mm.evaluation.likelihood import log_likelihood
from pyro_mm.evaluation.marginal import log_marginal
from pyro_mm.evaluation.psis import psis, psis_estimate, threshold
from pyro_mm.evaluation.ranking import Measure, average_precision
from pyro_mm.evaluation.refine import Cascade, GradientSteps, HMCFit, Laplace
from pyro_mm.evaluation.report import Report, report
from pyro_mm.evaluation.retrieval import Retrieval, retrieve
from pyro_mm.evaluation.retrieval_density import CrossConditional, by_likelihood, cross_conditional
from pyro_mm.evaluation.retrieval_scores import Score, by_cosine, by_kl, by_sampled_kl, by_wasserstein
from pyro_mm.evaluation.sandwich import sandwich
from pyro_mm.evaluation.sharded import sharded

__all__ = [
    "MEANING",
    "Bits",
    "Calibration",
    "Cascade",
    "Certificate",
    "CheckReport",
    "Comparison",
    "CrossAccuracy",
    "CrossConditional",
    "Disentanglement",
    "Divergence",
    "Evidence",
    "Gaps",
    "GradientSteps",
    "HMCFit",
    "KCurve",
    "Laplace",
    "Means",
    "Measure",
    "NoLikelihood",
    "PairError",
    "Posterior",
    "Proportion",
    "Rank",
    "Report",
    "Retrieval",
    "Score",
    "ais",
    "average_precision",
    "bits_per_dim",
    "by_cosine",
    "by_kl",
    "by_likelihood",
    "by_sampled_kl",
    "by_wasserstein",
    "check_pair",
    "classify",
    "classify_plug_in",
    "compare",
    "cross_accuracy",
    "cross_conditional",
    "dequantised",
    "disentanglement",
    "encode",
    "frechet",
    "frechet_distance",
    "gaps",
    "generate",
    "inception_fid",
    "hmc_means",
    "joint_coherence",
    "k_curve",
    "log_conditional",
    "log_conditional_difference",
    "log_likelihood",
    "log_marginal",
    "log_marginal_ais",
    "plug_in",
    "product_of_flows",
    "psis",
    "psis_estimate",
    "rank",
    "report",
    "retrieve",
    "sandwich",
    "sbc",
    "sharded",
    "simulate",
    "split_half",
    "symmetric_divergence",
    "threshold",
]
