"""Image, trajectory, sound and label of handwritten digits: the modalities that every MHD-shaped data set shares."""

from __future__ import annotations

from math import sqrt

from torch import nn

from pyro_mm import networks
from pyro_mm.data.mel import BANDS, FRAMES
from pyro_mm.likelihoods import Categorical, Normal
from pyro_mm.modality import Modality

__all__ = ["mhd_modalities"]

IMAGE, TRAJECTORY, SOUND = (1, 28, 28), (200,), (1, FRAMES, BANDS)


def mhd_modalities() -> tuple[Modality, ...]:
    """`image` (1, 28, 28), `trajectory` (200,), `sound` (1, 32, 128), all in [0, 1], and `label` 0..9.

    Networks and variances are those of NEXUS (Vasco, Yin, Melo & Paiva 2022, "Leveraging hierarchy in multimodal
    generative models for effective cross-modality inference").  Its loss weights squared errors of sigmoid outputs by
    lambda 1 (image), 50 (trajectory) and 1 (sound); lambda (x - mean)^2 is, up to a constant, the negative log-density
    of a Normal with variance 1 / (2 lambda).  That variance is part of the model: log-likelihoods depend on it, and
    compare only between models that share it.  The weight 50 of the label has no such reading and is not here.
    """
    return (
        Modality(
            "image",
            IMAGE,
            Normal(scale=_scale(1), bounded=True),
            networks.Conv((32, 64), (128, 128), nn.SiLU, bias=False),
        ),
        Modality("trajectory", TRAJECTORY, Normal(scale=_scale(50), bounded=True), _dense(512)),
        Modality("sound", SOUND, Normal(scale=_scale(1), bounded=True), networks.Spectrogram()),
        Modality("label", (), Categorical(10), _dense(128)),
    )


def _scale(weight: float) -> float:
    """Standard deviation at which a Normal's negative log-density is `weight` times the squared error."""
    return sqrt(1 / (2 * weight))


def _dense(width: int) -> networks.MLP:
    return networks.MLP((width,) * 3, nn.LeakyReLU, norm=nn.BatchNorm1d)
