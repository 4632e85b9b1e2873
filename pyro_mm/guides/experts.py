"""Unimodal experts fused into one posterior over the shared latent."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.guides.fusion import SYMMETRIC, Fusion, barycentre
from pyro_mm.models.priors import StandardNormal, moments_of

__all__ = ["Experts", "opinions", "single"]


class Experts(nn.Module):
    """z ~ q(z | x_S) = fuse(unimodal experts q_m(z | x_m), presence).

    Args:
        encoders: name -> network x_m -> location-scale distribution over z.  A modality without an encoder is never
            seen by the guide.
        fuse: a fusion rule, e.g. `product_of_experts`; swap it to swap the guide.  A rule with parameters of its own
            is an `nn.Module`, such as `WeightedProduct`.
        prior: the model's prior module when it is not N(0, I); `fuse` must then take `prior=(loc, scale)`, and of a
            mixture (`Clusters`) `prior=(loc, scale, weights)`, as `mixture_of_experts` does.

    Raises:
        TypeError: `prior` is given and `fuse` has no such argument.
    """

    symbol: str = "q"
    """What it is called in printed objectives."""
    printed_members: tuple[str, ...] = ()
    """The components of its mixture, in printed objectives."""

    def __init__(self, encoders: Mapping[str, nn.Module], fuse: Fusion, prior: nn.Module | None = None) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.fuse = fuse
        self.prior = None if prior is None or isinstance(prior, StandardNormal) else prior
        rule = fuse.forward if isinstance(fuse, nn.Module) else fuse
        if self.prior is not None and "prior" not in inspect.signature(rule).parameters:
            raise TypeError(f"{fuse!r} takes no `prior`, so it cannot fall back on a prior other than N(0, I)")

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it can see."""
        return tuple(self.encoders)

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        """q(z | the present modalities), batch shape `(N,)` or `(S, N)`."""
        loc, scale, mask = opinions(self.encoders, batch, blanks=self.fuse not in SYMMETRIC)
        extra: dict[str, Any] = {}
        if self.prior is not None:
            extra["prior"] = moments_of(self.prior)
        return self.fuse(loc, scale, mask, **extra)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))


def opinions(encoders: nn.ModuleDict, batch: Batch, *, blanks: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Every expert's `loc` and `scale` `(N, M, D)` and presence `(..., N, M)`.

    Encoders of modalities that are hidden in every row are not run; their places are filled, or left out with
    `blanks=False`, but for one where there is nothing else.
    """
    seen = [m for m in encoders if m in batch.x and m not in batch.hidden]
    run = {m: encoders[m](batch.x[m]).base_dist for m in seen or _any_readable(encoders, batch)}
    blank = next(iter(run.values())).loc.detach()
    zero, one = torch.zeros_like(blank), torch.ones_like(blank)
    told = list(encoders) if blanks else list(run)
    loc = torch.stack([run[m].loc if m in run else zero for m in told], -2)
    scale = torch.stack([run[m].scale if m in run else one for m in told], -2)
    never = torch.zeros(len(batch), dtype=torch.bool, device=batch.device)
    mask = torch.stack(torch.broadcast_tensors(*(batch.mask.get(m, never) for m in told)), -1)
    return loc, scale, mask


def _any_readable(encoders: nn.ModuleDict, batch: Batch) -> list[str]:
    """One modality to read shapes from when all are hidden."""
    readable = [m for m in encoders if m in batch.x]
    if not readable:
        raise ValueError(f"the guide reads {list(encoders)}, the batch holds {list(batch.x)}")
    return readable[:1]


def single(encoders: Mapping[str, nn.Module], prior: nn.Module | None = None) -> Experts:
    """q(z | x_m) of the one modality that has an encoder, whatever else there is; the prior where it is missing.

    Raises:
        ValueError: more than one encoder.
    """
    if len(encoders) != 1:
        raise ValueError(f"single() is about one modality, got {list(encoders)}")
    return Experts(encoders, barycentre, prior)  # of one expert: that expert
