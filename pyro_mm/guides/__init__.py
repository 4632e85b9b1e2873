"""Inference programs: each is an `nn.Module` whose `forward(batch)` is a Pyro guide with the model's sites."""

from pyro_mm.guides.experts import Experts
from pyro_mm.guides.fusion import (
    barycentre,
    mixture_of_experts,
    mixture_of_products,
    product_of_experts,
    product_of_posteriors,
)
from pyro_mm.guides.joint_encoder import Concatenation, JointEncoder
from pyro_mm.guides.randomness import random_views, semi_implicit
from pyro_mm.guides.surrogate import Surrogate

__all__ = [
    "Concatenation",
    "Experts",
    "JointEncoder",
    "Surrogate",
    "barycentre",
    "mixture_of_experts",
    "mixture_of_products",
    "product_of_experts",
    "product_of_posteriors",
    "random_views",
    "semi_implicit",
]
