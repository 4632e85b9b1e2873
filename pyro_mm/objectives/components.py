"""Divergences of mixtures taken component by component: upper bounds with closed forms where the mixture has none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_mm.distributions import Mixture

__all__ = ["component_kl"]


def component_kl(q: Any, p: Any) -> Tensor:
    """sum_j w_j KL(q_j || p), or sum_j w_j KL(q || p_j), whichever is the `Mixture`, over the batch shape.

    At least KL(q || p), which is convex in either.  The other one is an independent location-scale distribution with
    the same batch shape.
    """
    mixture, other = (q, p) if isinstance(q, Mixture) else (p, q)
    base = other.base_dist
    single = type(base)(base.loc.unsqueeze(-2), base.scale.unsqueeze(-2), validate_args=False).to_event(1)
    parts = mixture.components()
    each = kl_divergence(parts, single) if mixture is q else kl_divergence(single, parts)
    weights = mixture.log_weights.exp()
    return (weights * torch.where(weights > 0, each, 0.0)).sum(-1)
