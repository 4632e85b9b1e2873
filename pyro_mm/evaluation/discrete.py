"""Latents that a model enumerates and a guide leaves to it: their posterior given the others and what is present."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.components import log_density
from pyro_mm.handlers import Impute, Program, particles
from pyro_mm.weights import Sites, depth_of, replay

__all__ = ["draw_enumerated", "enumerated_sites", "left_to_model", "log_posterior"]


def left_to_model(sites: Sites, guide: Sites) -> list[str]:
    """Enumerated latents of a model's run that the guide says nothing about."""
    return [n for n, s in sites.items() if s.enumerated and n not in guide]


def enumerated_sites(
    model: Program, batch: Batch, guide: Sites, k: int, known: Mapping[str, Tensor]
) -> tuple[Sites, int]:
    """The model's sites at the guide's draws (its own for what is masked there), classes that are not known enumerated.

    And the number of dimensions of plates.
    """
    depth = depth_of(guide)
    with Impute({n: (s.value, s.mask) for n, s in guide.items()}):
        return replay(particles(model, k), batch, known, depth), depth


def log_posterior(sites: Sites, depth: int) -> Tensor:
    """log p(c | z, what is present) `(..., K, N)`, one leading dimension for each of c.

    Every factor counts that depends on c, p(z | c) among them; the others cancel.
    """
    total = log_density(sites, depth)
    out: Tensor = total - total.logsumexp(tuple(range(total.dim() - 2)), keepdim=True)
    return out


def draw_enumerated(model: Program, batch: Batch, guide: Sites, k: int, names: list[str]) -> dict[str, Tensor]:
    """c ~ p(c | z, what is present), one value for every draw and row: `(k, 1, N)`.

    Several are drawn one after the other, each with those after it summed out.
    """
    drawn: dict[str, Tensor] = {}
    for name in names:
        sites, depth = enumerated_sites(model, batch, guide, k, drawn)
        log_p = log_posterior(sites, depth)
        value = sites[name].value
        # Which of the leading dimensions is this latent's: the one along which its values lie.
        place = value.dim() - sites[name].fn.event_dim - depth  # 1 for the first to be enumerated, then 2, ...
        mine = log_p.dim() - 2 - place
        others = [d for d in range(log_p.dim() - 2) if d != mine]
        log_p = (log_p.logsumexp(others) if others else log_p).movedim(0, -1)
        index = torch.distributions.Categorical(logits=log_p).sample()  # (K, N)
        drawn[name] = value.reshape(-1, *sites[name].fn.event_shape)[index].unsqueeze(1)
    return drawn
