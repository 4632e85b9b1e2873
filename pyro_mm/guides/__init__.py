"""Inference programs: each is an `nn.Module` whose `forward(batch)` is a Pyro guide with the model's sites."""

from pyro_mm.guides.backed import backed
from pyro_mm.guides.bottom_up import BottomUp, Unimodal
from pyro_mm.guides.classed import ClassExperts, Classifier, Enumerated
from pyro_mm.guides.dropout import kept_sets, perceptual_dropout
from pyro_mm.guides.experts import Experts, single
from pyro_mm.guides.flow_surrogate import FlowSurrogate
from pyro_mm.guides.fusion import (
    barycentre,
    mixture_of_experts,
    mixture_of_products,
    product_of_a_subset,
    product_of_experts,
    product_of_posteriors,
)
from pyro_mm.guides.joint_encoder import Concatenation, JointEncoder
from pyro_mm.guides.latent_diffusion import LatentDiffusion
from pyro_mm.guides.messages import Attention, Messages, mean_of_messages, sum_of_messages
from pyro_mm.guides.peers import Borrowing, Peers
from pyro_mm.guides.pooling import (
    CorrelatedExperts,
    OverSubsets,
    WeightedProduct,
    geometric_mean,
    hoelder_pooling,
    mixture_with_prior,
    product_without_prior,
    weighted_product,
)
from pyro_mm.guides.private_experts import PrivateExperts, shared_given
from pyro_mm.guides.randomness import random_views, semi_implicit
from pyro_mm.guides.recombination import conjunction, ignore, in_common
from pyro_mm.guides.set_attention import SetAttention
from pyro_mm.guides.sum_pooling import SumPooling
from pyro_mm.guides.surrogate import Surrogate
from pyro_mm.guides.surrogate_experts import SurrogateExperts
from pyro_mm.guides.top_down import Evidences, TopDown
from pyro_mm.guides.unconditional import Prior, prior
from pyro_mm.guides.workspace import Workspace

__all__ = [
    "Attention",
    "Borrowing",
    "BottomUp",
    "ClassExperts",
    "Classifier",
    "Concatenation",
    "CorrelatedExperts",
    "Enumerated",
    "Evidences",
    "Experts",
    "FlowSurrogate",
    "JointEncoder",
    "LatentDiffusion",
    "Messages",
    "OverSubsets",
    "Peers",
    "Prior",
    "PrivateExperts",
    "SetAttention",
    "SumPooling",
    "Surrogate",
    "SurrogateExperts",
    "TopDown",
    "Unimodal",
    "WeightedProduct",
    "Workspace",
    "backed",
    "barycentre",
    "conjunction",
    "geometric_mean",
    "hoelder_pooling",
    "ignore",
    "in_common",
    "kept_sets",
    "mean_of_messages",
    "mixture_of_experts",
    "mixture_of_products",
    "mixture_with_prior",
    "perceptual_dropout",
    "prior",
    "product_of_a_subset",
    "product_of_experts",
    "product_of_posteriors",
    "product_without_prior",
    "random_views",
    "semi_implicit",
    "shared_given",
    "sum_of_messages",
    "weighted_product",
    "single",
]
