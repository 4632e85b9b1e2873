"""What one cell of a figure shows: a datum, or what a decoder says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mm import likelihoods as lik
from pyro_mm.modality import Modality

__all__ = ["Content", "classes_of", "of_data", "of_distribution"]

SAMPLES = 100  # for the mean of a distribution that does not know its own


@dataclass(frozen=True)
class Content:
    """What one cell shows.

    Attributes:
        value: of event shape: the datum, a distribution's mean, or its most probable value where a mean means nothing.
        probabilities: of a label's classes, `(C,)`; 0 and 1 for a datum.
        spread: standard deviation, of event shape, where known.
    """

    value: Tensor
    probabilities: Tensor | None = None
    spread: Tensor | None = None


def classes_of(modality: Modality) -> int | None:
    """How many classes a label has; None for what is no label."""
    shape, likelihood = modality.shape, modality.likelihood
    if isinstance(likelihood, lik.Categorical) and shape == ():
        return likelihood.classes
    if isinstance(likelihood, lik.OneHotCategorical):
        return shape[0]
    return 2 if isinstance(likelihood, lik.Bernoulli) and shape == () else None


def of_data(modality: Modality, x: Tensor) -> list[Content]:
    """One cell for every row of `x` `(N, *event)`."""
    x = _host(x)
    if (classes := classes_of(modality)) is None:
        return [Content(row) for row in x]
    hot = x.double() if x.dim() == 2 else torch.nn.functional.one_hot(x.long(), classes).double()
    return [Content(row, p) for row, p in zip(x, hot, strict=True)]


def of_distribution(modality: Modality, fn: Any, device: torch.device | str = "cpu") -> list[Content]:
    """One cell for every row of a distribution of batch shape `(k, N)`, averaged over k.

    Tokens have no average: they are the most probable ones at the first draw.  `device` is where its parameters are.
    """
    classes = classes_of(modality)
    if classes is not None:
        p = _host(_probabilities(modality, fn, classes, device))
        values = p.argmax(-1)
        if modality.shape:
            values = torch.nn.functional.one_hot(values, classes)
        return [Content(v, row) for v, row in zip(values, p, strict=True)]
    if isinstance(modality.likelihood, lik.Tokens | lik.Categorical):
        return [Content(row) for row in _host(fn.mode[0])]
    mean = _host(_mean(fn))
    spread = _spread(fn, mean)
    spreads: Sequence[Tensor | None] = [None] * mean.shape[1] if spread is None else list(spread)
    return [Content(row, spread=s) for row, s in zip(mean.mean(0), spreads, strict=True)]


def _host(x: Tensor) -> Tensor:
    """Values that numpy can hold: on the CPU, without a graph, in a precision it knows."""
    x = x.detach().cpu()
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _probabilities(modality: Modality, fn: Any, classes: int, device: torch.device | str) -> Tensor:
    """Mean over draws of the classes' probabilities, `(N, C)`: from densities, so that any distribution will do."""
    one_hot = bool(modality.shape)
    labels = torch.eye(classes) if one_hot else torch.arange(classes)
    if isinstance(modality.likelihood, lik.Bernoulli):
        labels = labels.to(torch.get_default_dtype())
    values = labels.reshape(classes, 1, 1, *labels.shape[1:]).to(device)
    return fn.log_prob(values).double().softmax(0).mean(1).T


def _mean(fn: Any) -> Tensor:
    """`(k, N, *event)`."""
    try:
        return fn.mean
    except NotImplementedError:
        return fn.sample((SAMPLES,)).mean(0)


def _spread(fn: Any, mean: Tensor) -> Tensor | None:
    """Standard deviation over draws and noise, `(N, *event)`."""
    try:
        noise = _host(fn.base.variance).reshape(mean.shape)
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    between = mean.var(0, correction=0)
    return (noise.mean(0) + between).sqrt()
