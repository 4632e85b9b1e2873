"""Multimodal deep generative models as Pyro model/guide pairs.

A model is a Pyro program, its inference is another, a training objective is a sum of ELBO terms between programs, and
a log-likelihood is a number with an error bar.  Start with `pyro_mm.variants`, or `help(pyro_mm.models.Joint)`.
"""

from pyro_mm import (
    data,
    guides,
    handlers,
    input_noise,
    likelihoods,
    models,
    modules,
    networks,
    objectives,
    plots,
    variants,
)
from pyro_mm.batch import Batch
from pyro_mm.beliefs import believe, informed, tilted
from pyro_mm.evaluation import (
    Certificate,
    Evidence,
    GradientSteps,
    HMCFit,
    Laplace,
    NoLikelihood,
    ais,
    check_pair,
    classify,
    compare,
    encode,
    generate,
    k_curve,
    log_conditional,
    log_conditional_difference,
    log_marginal,
    log_marginal_ais,
    plug_in,
    report,
    sandwich,
    sbc,
)
from pyro_mm.guides import (
    BottomUp,
    Experts,
    JointEncoder,
    PrivateExperts,
    Surrogate,
    TopDown,
    random_views,
    semi_implicit,
)
from pyro_mm.handlers import RandomSubsets, frozen, given, in_rows, in_subsets, particles
from pyro_mm.judges import Judges, train_judges
from pyro_mm.modality import Modality
from pyro_mm.models import Hierarchical, Joint, Private
from pyro_mm.objectives import Warmup, componentwise_elbo, dreg, elbo, iwae, kl, looser, nll
from pyro_mm.post_hoc import with_prior
from pyro_mm.recipe import Paper, Recipe
from pyro_mm.storage import load, save
from pyro_mm.training import History, NonFiniteLoss, Stage, fit, svi
from pyro_mm.weights import log_weights

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BottomUp",
    "Certificate",
    "Evidence",
    "Experts",
    "GradientSteps",
    "HMCFit",
    "Hierarchical",
    "History",
    "Joint",
    "JointEncoder",
    "Judges",
    "Laplace",
    "Modality",
    "NoLikelihood",
    "NonFiniteLoss",
    "Paper",
    "Private",
    "PrivateExperts",
    "RandomSubsets",
    "Recipe",
    "Stage",
    "Surrogate",
    "TopDown",
    "Warmup",
    "ais",
    "believe",
    "check_pair",
    "classify",
    "compare",
    "componentwise_elbo",
    "data",
    "dreg",
    "elbo",
    "encode",
    "fit",
    "frozen",
    "generate",
    "given",
    "guides",
    "handlers",
    "input_noise",
    "in_rows",
    "in_subsets",
    "informed",
    "iwae",
    "k_curve",
    "kl",
    "likelihoods",
    "load",
    "log_conditional",
    "log_conditional_difference",
    "log_marginal",
    "log_marginal_ais",
    "log_weights",
    "looser",
    "models",
    "modules",
    "networks",
    "nll",
    "objectives",
    "particles",
    "plots",
    "plug_in",
    "random_views",
    "report",
    "sandwich",
    "save",
    "sbc",
    "semi_implicit",
    "svi",
    "tilted",
    "train_judges",
    "variants",
    "with_prior",
]
