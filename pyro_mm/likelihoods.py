"""Observation models p(x | z): how a decoder's raw output becomes a distribution, and which data it accepts.

Each is a frozen dataclass, so that it prints, compares and is rebuilt from JSON.  Distributions are built with
validation off; data are checked once, by `check`, when they enter a `Batch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_mm import distributions
from pyro_mm.distributions import TokenSequence
from pyro_mm.tracing import one_hot

__all__ = [
    "Bernoulli",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "Laplace",
    "Likelihood",
    "NegativeBinomial",
    "Normal",
    "OneHotCategorical",
    "Poisson",
    "PseudoBernoulli",
    "Tokens",
]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """Base: real-valued data seen as they are, one raw output per element."""

    def raw_shape(self, shape: Shape) -> Shape:
        """Shape of the decoder's output for one event."""
        return shape

    def learnt(self, shape: Shape) -> dict[str, Tensor]:
        """Initial values of parameters that belong to the likelihood itself (a learnt scale)."""
        return {}

    def __call__(self, raw: Tensor, shape: Shape, **learnt: Tensor) -> dist.TorchDistribution:
        """p(x | z) with event shape `shape` from `raw` `(..., *raw_shape)`."""
        raise NotImplementedError(f"{type(self).__name__} gives no distribution")

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Data in the dtype the distribution wants."""
        return x.to(dtype)

    def check(self, x: Tensor, name: str) -> None:
        """Raise a ValueError naming the modality when a value lies outside the support."""
        refuse(~torch.isfinite(x), x, name, "finite numbers")

    def fill(self, shape: Shape) -> Tensor:
        """A value inside the support, stored where the modality is missing."""
        return torch.zeros(shape)

    def feature_shape(self, shape: Shape) -> Shape:
        """Event shape of `features`."""
        return shape or (1,)

    def features(self, x: Tensor) -> Tensor:
        """What an encoder network sees (roughly unit scale)."""
        return x


def refuse(bad: Tensor, x: Tensor, name: str, wanted: str) -> None:
    """Raise for the first offending value."""
    if bool(bad.any()):
        row = int(bad.reshape(len(x), -1).any(-1).nonzero()[0])
        value = x[bad].flatten()[0].item()
        raise ValueError(f"modality '{name}' must hold {wanted}; present row {row} has {value:g}")


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Binary pixels or flags, 0 or 1."""

    def __call__(self, raw: Tensor, shape: Shape, **learnt: Tensor) -> dist.TorchDistribution:
        return distributions.Bernoulli(logits=raw, validate_args=False).to_event(len(shape))

    def check(self, x: Tensor, name: str) -> None:
        refuse((x != 0) & (x != 1), x, name, "0 or 1 (grey values: ContinuousBernoulli or Binomial)")


@dataclass(frozen=True)
class PseudoBernoulli(Bernoulli):
    """Cross-entropy on grey values in [0, 1]: *not* a density, so its "log-likelihoods" are pseudo-likelihoods.

    Many papers report it; here it exists to reproduce them, under its own name.
    """

    def check(self, x: Tensor, name: str) -> None:
        refuse((x < 0) | (x > 1) | torch.isnan(x), x, name, "values in [0, 1]")


@dataclass(frozen=True)
class ContinuousBernoulli(Likelihood):
    """Grey pixels in [0, 1] (Loaiza-Ganem & Cunningham 2019), a proper density.

    It has no upper bound at pixels that are exactly 0 or 1: where a background is, decoders saturate without end, and
    the least noise is unheard of.  To compare systems train and score `evaluation.dequantised` rows, or use `Binomial`.
    """

    def __call__(self, raw: Tensor, shape: Shape, **learnt: Tensor) -> dist.TorchDistribution:
        return distributions.ContinuousBernoulli(logits=raw, validate_args=False).to_event(len(shape))

    def check(self, x: Tensor, name: str) -> None:
        refuse((x < 0) | (x > 1) | torch.isnan(x), x, name, "values in [0, 1]")


@dataclass(frozen=True)
class Binomial(Likelihood):
    """Counts 0..`total`, such as the 17 grey levels of the 8x8 digits."""

    total: int = 16

    def __call__(self, raw: Tensor, shape: Shape, **learnt: Tensor) -> dist.TorchDistribution:
        return distributions.Binomial(self.total, logits=raw, validate_args=False).to_event(len(shape))

    def check(self, x: Tensor, name: str) -> None:
        refuse((x < 0) | (x > self.total) | (x != x.round()), x, name, f"whole numbers from 0 to {self.total}")

    def features(self, x: Tensor) -> Tensor:
        return x / self.total


@dataclass(frozen=True)
class Normal(Likelihood):
    """Real values; `scale=None` learns one scale for the modality, or one per element with `shared=False`.

    With `bounded` the mean is the sigmoid of the raw output, for data in [0, 1]; a squared error lambda |x - mean|^2
    in a published loss is this density with scale 1 / sqrt(2 lambda), up to a constant.
    """

    scale: float | None = None
    shared: bool = True
    bounded: bool = False

    def __post_init__(self) -> None:
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"the scale must be positive, got {self.scale}")

    def learnt(self, shape: Shape) -> dict[str, Tensor]:
        if self.scale is not None:
            return {}
        return {"log_scale": torch.zeros(() if self.shared else shape)}

    def _mean(self, raw: Tensor) -> Tensor:
        return raw.sigmoid() if self.bounded else raw

    def _scale(self, raw: Tensor, log_scale: Tensor | None) -> Tensor:
        return raw.new_tensor(self.scale) if log_scale is None else log_scale.exp()

    def __call__(self, raw: Tensor, shape: Shape, **learnt: Tensor) -> dist.TorchDistribution:
        scale = self._scale(raw, learnt.get("log_scale"))
        return distributions.Normal(self._mean(raw), scale, validate_args=False).to_event(len(shape))


@dataclass(frozen=True)
class Laplace(Normal):
    """Real values with heavier tails; scale as in `Normal` (0.75 in MMVAE's and MoPoE's papers)."""

    scale: float | None = 0.75

    def __call__(self, raw: Tensor, shape: Shape, **learnt: Tensor) -> dist.TorchDistribution:
        scale = self._scale(raw, learnt.get("log_scale"))
        return dist.Laplace(self._mean(raw), scale, validate_args=False).to_event(len(shape))


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Labels 0..`classes`-1; event shape `()` for one label, or any shape of labels."""

    classes: int = 10

    def raw_shape(self, shape: Shape) -> Shape:
        return (*shape, self.classes)

    def __call__(self, raw: Tensor, shape: Shape, **learnt: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=raw, validate_args=False).to_event(len(shape))

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        # NaN marks a missing row; it is overwritten before it is looked at, but has no integer value.
        x = torch.nan_to_num(x) if x.is_floating_point() else x
        if x.is_floating_point() and bool((x != x.round()).any()):
            return x
        return x.long()

    def check(self, x: Tensor, name: str) -> None:
        bad = (x < 0) | (x >= self.classes) | (x.is_floating_point() and x != x.round())
        refuse(bad, x, name, f"labels 0 to {self.classes - 1}")

    def fill(self, shape: Shape) -> Tensor:
        return torch.zeros(shape, dtype=torch.long)

    def feature_shape(self, shape: Shape) -> Shape:
        return (*shape, self.classes)

    def features(self, x: Tensor) -> Tensor:
        return one_hot(x, self.classes).to(torch.get_default_dtype())


@dataclass(frozen=True)
class OneHotCategorical(Likelihood):
    """One-hot vectors of event shape `(classes,)`."""

    def raw_shape(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise ValueError(f"OneHotCategorical needs event shape (classes,); got {shape}")
        return shape

    def __call__(self, raw: Tensor, shape: Shape, **learnt: Tensor) -> dist.TorchDistribution:
        return dist.OneHotCategorical(logits=raw, validate_args=False)

    def check(self, x: Tensor, name: str) -> None:
        bad = ((x != 0) & (x != 1)) | (x.sum(-1, keepdim=True) != 1)
        refuse(bad, x, name, "one-hot vectors")

    def fill(self, shape: Shape) -> Tensor:
        return one_hot(torch.tensor(0), shape[0]).to(torch.get_default_dtype())


@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts 0, 1, 2, ... with rate softplus(raw)."""

    def __call__(self, raw: Tensor, shape: Shape, **learnt: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(softplus(raw) + 1e-6, validate_args=False).to_event(len(shape))

    def check(self, x: Tensor, name: str) -> None:
        refuse((x < 0) | (x != x.round()) | torch.isinf(x), x, name, "whole numbers from 0 up")

    def features(self, x: Tensor) -> Tensor:
        return x.log1p()


@dataclass(frozen=True)
class NegativeBinomial(Poisson):
    """Over-dispersed counts: mean softplus(raw), variance mean + mean^2 / r with one learnt r per element."""

    def learnt(self, shape: Shape) -> dict[str, Tensor]:
        return {"log_r": torch.full(shape, log(10.0))}

    def __call__(self, raw: Tensor, shape: Shape, **learnt: Tensor) -> dist.TorchDistribution:
        log_r = learnt["log_r"]
        logits = (softplus(raw) + 1e-6).log() - log_r
        return dist.NegativeBinomial(log_r.exp(), logits=logits, validate_args=False).to_event(len(shape))


@dataclass(frozen=True)
class Tokens(Likelihood):
    """Sequences of up to T tokens 0..`vocabulary`-1 (event shape `(T,)`), ended and padded by the token `pad`.

    Only tokens up to and including the first `pad` are scored, so that probabilities of all valid sequences sum to 1.
    """

    vocabulary: int = 32
    pad: int = 0

    def raw_shape(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise ValueError(f"Tokens needs event shape (length,); got {shape}")
        return (*shape, self.vocabulary)

    def __call__(self, raw: Tensor, shape: Shape, **learnt: Tensor) -> dist.TorchDistribution:
        return TokenSequence(raw, self.pad)

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return Categorical(self.vocabulary).cast(x, dtype)

    def check(self, x: Tensor, name: str) -> None:
        Categorical(self.vocabulary).check(x, name)
        ended = (x == self.pad).cummax(-1).values if len(x) else x.bool()
        refuse(ended & (x != self.pad), x, name, f"only padding ({self.pad}) after the first padding token")

    def fill(self, shape: Shape) -> Tensor:
        return torch.full(shape, self.pad)

    def feature_shape(self, shape: Shape) -> Shape:
        return (*shape, self.vocabulary)

    def features(self, x: Tensor) -> Tensor:
        hot: Any = one_hot(x, self.vocabulary).to(torch.get_default_dtype())
        return hot * (x != self.pad).unsqueeze(-1)
