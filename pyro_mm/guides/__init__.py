"""Inference programs: each is an `nn.Module` whose `forward(batch)` is a Pyro guide with the model's sites."""

from pyro_mm.guides.bottom_up import BottomUp, Unimodal
from pyro_mm.guides.classed import ClassExperts, Classifier, Enumerated
from pyro_mm.guides.dropout import kept_sets, perceptual_dropout
from pyro_mm.guides.experts import Experts
from pyro_mm.guides.fusion import (
    barycentre,
    mixture_of_experts,
    mixture_of_products,
    product_of_experts,
    product_of_posteriors,
)
from pyro_mm.guides.joint_encoder import Concatenation, JointEncoder
from pyro_mm.guides.messages import Attention, Messages, mean_of_messages, sum_of_messages
from pyro_mm.guides.private_experts import PrivateExperts, shared_given
from pyro_mm.guides.randomness import random_views, semi_implicit
from pyro_mm.guides.recombination import conjunction, ignore, in_common
from pyro_mm.guides.surrogate import Surrogate
from pyro_mm.guides.top_down import Evidences, TopDown

__all__ = [
    "Attention",
    "BottomUp",
    "ClassExperts",
    "Classifier",
    "Concatenation",
    "Enumerated",
    "Evidences",
    "Experts",
    "JointEncoder",
    "Messages",
    "PrivateExperts",
    "Surrogate",
    "TopDown",
    "Unimodal",
    "barycentre",
    "conjunction",
    "ignore",
    "in_common",
    "kept_sets",
    "mean_of_messages",
    "mixture_of_experts",
    "mixture_of_products",
    "perceptual_dropout",
    "product_of_experts",
    "product_of_posteriors",
    "random_views",
    "semi_implicit",
    "shared_given",
    "sum_of_messages",
]
