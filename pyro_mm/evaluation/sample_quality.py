"""Do generated rows look like real ones, and are they as varied?  Both in features of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Measure = Callable[[Tensor, Tensor], float]
BLOCK = 1024  # rows whose distances to all others are held at once

__all__ = ["PrecisionRecall", "jackknife", "kernel_distance", "precision_recall"]


def kernel_distance(
    features_real: Tensor, features_made: Tensor, block: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The squared maximum mean discrepancy of features `(N, F)` and `(M, F)`, and its standard error.

    Kernel (a.b / F + 1)^3, the "kernel inception distance" (Binkowski et al. 2018) in features of one's own: unlike
    the Frechet distance its expectation is 0 for equal distributions, whatever N is.  The mean of the unbiased estimate
    over random blocks of rows, and its standard error over these (nan for a single block).

    Raises:
        ValueError: fewer than two rows, or different numbers of features.
    """
    real, made = _features(features_real, features_made)
    n = min(len(real), len(made), block)
    source = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(f), generator=source).to(f.device) for f in (real, made)]
    count = min(len(real), len(made)) // n
    values = torch.stack(
        [_discrepancy(real[orders[0][i * n : (i + 1) * n]], made[orders[1][i * n : (i + 1) * n]]) for i in range(count)]
    )
    error = (values.std() / count**0.5).item() if count > 1 else float("nan")
    return values.mean().item(), error


def jackknife(measure: Measure, features_real: Tensor, features_made: Tensor, groups: int = 20) -> float:
    """The standard error of a measure of two samples of equal size: each twentieth of both left out once.

    sqrt((G - 1) / G sum_g (m_-g - mean)^2): rows of both samples are taken as independent.  For smooth measures; of
    shares by nearest neighbours it is a guide only.
    """
    n = min(len(features_real), len(features_made))
    part = torch.arange(n) % groups
    values = torch.tensor(
        [measure(features_real[:n][part != g], features_made[:n][part != g]) for g in range(groups)],
        dtype=torch.float64,
    )
    return float(((groups - 1) * values.var(correction=0)).sqrt())


def _discrepancy(a: Tensor, b: Tensor) -> Tensor:
    from sklearn.metrics.pairwise import polynomial_kernel

    n = len(a)
    first, second = a.cpu().numpy(), b.cpu().numpy()
    within, other, between = (polynomial_kernel(x, y) for x, y in ((first, first), (second, second), (first, second)))
    same = (within.sum() - within.trace() + other.sum() - other.trace()) / (n * (n - 1))
    return torch.tensor(same - 2 * between.mean())


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares, of `n` rows each.

    Attributes:
        precision: of the made rows, those that lie among real ones: do they look real?
        recall: of the real rows, those that lie among made ones: is nothing left out?
    """

    precision: float
    recall: float
    n: int


def precision_recall(features_real: Tensor, features_made: Tensor, k: int = 3) -> PrecisionRecall:
    """A row lies among others when it is nearer to one than that one's k-th neighbour (Kynkaanniemi et al. 2019).

    Two halves of one data set score below 1, and the less the fewer rows there are: compare at equal sizes, which rows
    beyond the smaller number are left out for.

    Raises:
        ValueError: not more than k rows, or different numbers of features.
    """
    real, made = _features(features_real, features_made)
    n = min(len(real), len(made))
    if n <= k:
        raise ValueError(f"the {k}-th neighbour needs more than {k} rows, got {n}")
    real, made = real[:n], made[:n]
    return PrecisionRecall(_among(made, real, k), _among(real, made, k), n)


def _among(rows: Tensor, others: Tensor, k: int) -> float:
    # The nearest one is itself.
    radius = torch.cat([torch.cdist(part, others).kthvalue(k + 1).values for part in others.split(BLOCK)])
    inside = torch.cat([(torch.cdist(part, others) <= radius).any(1) for part in rows.split(BLOCK)])
    return inside.double().mean().item()


def _features(real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    shapes = tuple(real.shape), tuple(made.shape)
    if any(len(s) != 2 or s[0] < 2 for s in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"two rows or more of equal features are needed; got {shapes[0]} and {shapes[1]}")
    return real.double(), made.double()
