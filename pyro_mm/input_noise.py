"""Noise on what encoders are shown in training, so that inference stands noise: the denoising criterion.

With x~ ~ p(x~ | x) the guide reads x~ and the model scores x (Im, Ahn, Memisevic & Bengio 2017, arXiv:1511.06406):

    E_{p(x~|x)} E_{q(z|x~)} [log p(x, z) - log q(z | x~)]  <=  log p(x),

the mean of the ELBOs of guides that are picked at random, each of them a bound.  It lies below the ELBO of the mixture
of these guides, int q(z | x~) p(x~ | x) dx~, by the mutual information of z and x~ given x.

It is the encoder networks' (`Modality(..., noise=GaussianNoise(0.3))`), like drop-out: any guide has it, in training
mode alone; likelihoods, retrieval and everything else that is measured are those of the guide without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BitFlips", "GaussianNoise", "InputNoise", "noise_like"]


@dataclass(frozen=True)
class InputNoise:
    """What every kind offers: a call with features `(..., N, *event)` and their number of event dimensions."""

    def __call__(self, features: Tensor, event_dim: int) -> Tensor:
        """Features of the same shape, spoilt; every row by its own level."""
        raise NotImplementedError(f"{type(self).__name__} spoils nothing")


@dataclass(frozen=True)
class GaussianNoise(InputNoise):
    """x~ = x + s e,  e ~ N(0, I),  s ~ U(0, sd) for every row; so that both clean and noisy rows are learnt.

    Args:
        sd: the largest standard deviation.
        bounds: what x~ is clamped to: `(0, 1)` for intensities.

    Raises:
        ValueError: `sd` is not positive and finite, or the bounds are no interval.
    """

    sd: float
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sd < float("inf"):
            raise ValueError(f"the noise's standard deviation must be positive, got {self.sd}")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds are a lower and a larger upper one, got {self.bounds}")

    def __call__(self, features: Tensor, event_dim: int) -> Tensor:
        spoilt = features + self.sd * _level(features, event_dim) * torch.randn_like(features)
        return spoilt if self.bounds is None else spoilt.clamp(*self.bounds)


@dataclass(frozen=True)
class BitFlips(InputNoise):
    """Every element of zeros and ones is flipped with probability s^2 share, s ~ U(0, 1) for every row: the root mean
    square of what is changed is as uniform as that of `GaussianNoise`.

    Raises:
        ValueError: `share` outside (0, 1/2]; from a half on nothing is left to see.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.5:
            raise ValueError(f"the share of flipped elements must be above 0 and at most a half, got {self.share}")

    def __call__(self, features: Tensor, event_dim: int) -> Tensor:
        hit = torch.rand_like(features) < self.share * _level(features, event_dim).square()
        return torch.where(hit, 1 - features, features)


def noise_like(features: Tensor, level: float) -> InputNoise:
    """The kind that suits these features `(N, *event)`, its largest root mean square `level` of their standard
    deviations: flips of zeros and ones, else Gaussian, within [0, 1] where the features are.

    Raises:
        ValueError: the level is not positive, or the features are all alike.
    """
    sd = features.double().std(unbiased=False).item()
    if not sd > 0:
        raise ValueError("they are all alike: there is no scale for noise")
    if not level > 0:
        raise ValueError(f"the noise's level must be positive, got {level}")
    if bool(((features == 0) | (features == 1)).all()):
        return BitFlips(min(0.5, (level * sd) ** 2))
    inside = bool(((features >= 0) & (features <= 1)).all())
    return GaussianNoise(level * sd, (0.0, 1.0) if inside else None)


def _level(features: Tensor, event_dim: int) -> Tensor:
    """U(0, 1) `(..., N, 1, ..., 1)`."""
    lead = features.shape[: features.dim() - event_dim]
    return torch.rand(*lead, *[1] * event_dim, dtype=features.dtype, device=features.device)
