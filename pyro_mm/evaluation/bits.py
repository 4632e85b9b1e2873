"""Bits per dimension: log-likelihoods in the unit that image models are compared in, and the noise it asks for.

A density of grey values is not comparable with a probability of them, and can be made as large as one likes.  What is:
the density of *dequantised* data (Theis et al. 2016, section 3.1).  Pixels v in {0, ..., L-1} become

    y = (v + u) / L,   u ~ U[0, 1)^D,   y in [0, 1)^D

and a density p of y defines the probability P(v) = integral over u of p(y) / L^D, so that by Jensen's inequality

    log P(v) >= E_u log p(y) - D log L

    bits / dimension = -log p(y) / (D log 2) + log2 L   >=   -log2 P(v) / D   on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, log2, prod, sqrt
from typing import Any

import torch
from torch import Tensor

from pyro_mm import likelihoods
from pyro_mm.batch import Batch
from pyro_mm.evaluation.evidence import Evidence, NoLikelihood
from pyro_mm.modality import Modality

__all__ = ["Bits", "bits_per_dim", "dequantised"]

DISCRETE = (
    likelihoods.Bernoulli,
    likelihoods.Binomial,
    likelihoods.Categorical,
    likelihoods.OneHotCategorical,
    likelihoods.Poisson,
    likelihoods.Tokens,
)
ON_THE_GRID = 1e-3  # of a level: how far float32 grey values may lie from it


@dataclass(frozen=True)
class Bits:
    """Bits per dimension, less is better; tensors are `(N,)`.

    Attributes:
        value: of every datum.
        se: Monte Carlo standard error of `value`, where the log-likelihoods came with theirs.
        dims: numbers per datum.
        levels: grey levels, or None where nothing was added for them.
    """

    value: Tensor
    se: Tensor | None
    dims: int
    levels: int | None

    def __len__(self) -> int:
        return len(self.value)

    @property
    def mean(self) -> float:
        """Mean over the data."""
        return self.value.mean().item()

    @property
    def mean_se(self) -> float:
        """Standard error of `mean` for the population the data were drawn from."""
        return self.value.std().item() / sqrt(len(self)) if len(self) > 1 else float("nan")

    def summary(self) -> dict[str, Any]:
        """Numbers for a table or JSON."""
        return {
            "bits_per_dim": self.mean,
            "se": self.mean_se,
            "mc_se": None if self.se is None else self.se.square().sum().sqrt().item() / len(self),
            "n": len(self),
            "dims": self.dims,
            "levels": self.levels,
        }

    def __repr__(self) -> str:
        grey = "" if self.levels is None else f", {self.levels} levels"
        return f"{self.mean:.4f} +- {self.mean_se:.4f} bits/dim (N={len(self)}, D={self.dims}{grey})"


def bits_per_dim(
    nats: Evidence | Tensor | float, dims: int | Sequence[int] | Modality, levels: int | None = None
) -> Bits:
    """-log p / (D log 2), plus log2 `levels` for a density of grey values on [0, 1].

    Args:
        nats: log-likelihoods, one per datum; of an `Evidence` those that are `scored`.  For a bound from below these
            bits are a bound from above.
        dims: D, an event shape, or the modality itself, whose likelihood is then checked.
        levels: how many grey levels the data had before `dequantised` spread them over [0, 1); None for probabilities
            (of counts, labels, binary pixels), and for densities in units of their own.

    Raises:
        NoLikelihood: the modality's likelihood is a `PseudoBernoulli`, which is no density.
        ValueError: `levels` for a discrete likelihood, whose values are probabilities already.
    """
    nats = nats.of_scored() if isinstance(nats, Evidence) else nats
    size = dims if isinstance(dims, int) else prod(dims.shape if isinstance(dims, Modality) else dims)
    if size < 1:
        raise ValueError(f"bits per dimension need at least one dimension, got {dims!r}")
    if isinstance(dims, Modality):
        _refuse_pseudo(dims)
        if levels is not None:
            _require_density(dims, "leave out levels=")
    if levels is not None:
        _require_levels(levels)
    unit = size * log(2)
    se = nats.se / unit if isinstance(nats, Evidence) else None
    logp = nats.estimate if isinstance(nats, Evidence) else torch.as_tensor(nats).reshape(-1)
    grey = 0.0 if levels is None else log2(levels)
    return Bits(-logp.double() / unit + grey, se, size, levels)


def dequantised(
    batch: Batch, modality: str | Modality, levels: int = 256, *, counts: bool = False, seed: int | None = None
) -> Batch:
    """The batch with y = (v + u) / `levels` in place of a modality's grey levels v = 0..`levels`-1, u ~ U[0, 1) each.

    For a density p of y, log P(v) >= E log p(y) - D log `levels`: train and score on data from here, and
    `bits_per_dim(..., levels=levels)` is fair to compare with models of the levels themselves.  Equality wants a
    density that is constant over every level's cell.  In training draw new noise for every epoch: a model can learn
    noise that is always the same.

    Args:
        modality: its name, or the modality, whose likelihood is then checked.
        levels: how many there are: 256 for bytes.
        counts: the data are v itself, whole numbers 0..`levels`-1 in any dtype; by default they are grey values
            v / (`levels`-1) from 0 to 1, as the loaders give.
        seed: of the noise; the caller's random state is left alone.

    Raises:
        NoLikelihood: the modality's likelihood is a `PseudoBernoulli`.
        ValueError: naming the modality: it is unknown, its likelihood is discrete, or a present value is no level.
    """
    _require_levels(levels)
    name = modality.name if isinstance(modality, Modality) else modality
    if isinstance(modality, Modality):
        _refuse_pseudo(modality)
        _require_density(modality, "score the data as they are")
    if name not in batch.x:
        raise ValueError(f"unknown modality '{name}'; this batch has {list(batch.x)}")
    x, seen = batch.x[name], batch.mask[name]
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    v = x.double() * (1 if counts else levels - 1)
    whole = v.round()
    rows = seen if seen.dim() == 1 else seen.any(0)
    bad = ((v - whole).abs() > ON_THE_GRID) | (whole < 0) | (whole > levels - 1)
    _refuse(bad & rows.view(-1, *[1] * (x.dim() - 1)), x, name, levels, counts)
    source = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    noise = torch.rand(x.shape, generator=source, dtype=torch.float64, device=x.device)
    below = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))  # rounding may not reach 1
    y = ((whole.clamp(0, levels - 1) + noise) / levels).to(dtype).clamp(max=below.item())
    return Batch._view({**batch.x, name: y}, batch.mask, batch.hidden)


def _refuse(bad: Tensor, x: Tensor, name: str, levels: int, counts: bool) -> None:
    if not bool(bad.any()):
        return
    row = int(bad.reshape(len(x), -1).any(-1).nonzero()[0])
    wanted = f"whole numbers from 0 to {levels - 1}" if counts else f"multiples of 1/{levels - 1} from 0 to 1"
    other = "counts=False is for grey values from 0 to 1" if counts else "counts=True is for whole numbers"
    raise ValueError(
        f"modality '{name}' must hold {wanted}; present row {row} has {x[bad].flatten()[0].item():g} "
        f"({other}; noise must not be added twice)"
    )


def _refuse_pseudo(modality: Modality) -> None:
    if isinstance(modality.likelihood, likelihoods.PseudoBernoulli):
        raise NoLikelihood(f"modality '{modality.name}' has a pseudo-likelihood, no density: bits mean nothing for it")


def _require_density(modality: Modality, instead: str) -> None:
    if isinstance(modality.likelihood, DISCRETE):
        raise ValueError(
            f"modality '{modality.name}' has a {type(modality.likelihood).__name__} likelihood, which gives "
            f"probabilities of the values themselves: there is nothing to dequantise; {instead}"
        )


def _require_levels(levels: int) -> None:
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
