"""The Frechet distance between real and generated data in features of a network: the "rank" of NEXUS, the F of FID."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.coherence import CHUNK, Judge, Sources, _roles, generated
from pyro_mm.handlers import Program

__all__ = ["Rank", "fidelity", "frechet", "frechet_distance", "rank", "split_half"]


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2): the squared 2-Wasserstein distance of two Gaussians.

    In float64.  S1^1/2 S2 S1^1/2 is symmetric and has the eigenvalues of S1 S2, so that eigenvalues of symmetric
    matrices suffice; unlike a general root of S1 S2, they do no harm where covariances are singular.

    Args:
        mean1, mean2: `(F,)`.
        cov1, cov2: `(F, F)`, symmetric and positive semi-definite.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    m1, s1, m2, s2 = (t.double() for t in (mean1, cov1, mean2, cov2))
    f = len(m1)
    if m1.shape != (f,) or m2.shape != (f,) or s1.shape != (f, f) or s2.shape != (f, f):
        shapes = ", ".join(str(tuple(t.shape)) for t in (mean1, cov1, mean2, cov2))
        raise ValueError(f"means (F,) and covariances (F, F) of one F are needed; got {shapes}")
    return ((m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * fidelity(s1, s2)).item()


def fidelity(cov1: Tensor, cov2: Tensor) -> Tensor:
    """tr (S1^1/2 S2 S1^1/2)^1/2 of covariances `(..., F, F)`, `(...)`."""
    root = _root(cov1)
    inner = root @ cov2 @ root
    return torch.linalg.eigvalsh(0.5 * (inner + inner.mT)).clamp(min=0).sqrt().sum(-1)


def frechet(features_real: Tensor, features_made: Tensor) -> float:
    """The distance between features `(N, F)` and `(M, F)`, each taken for a Gaussian with its sample moments.

    It is biased upwards.  Where both come from one Gaussian of covariance s I, and N and M are well above F, its mean
    is not 0 but s (1/N + 1/M) (F + F (F + 1) / 4): of the means, and of the covariances.  Compare it only between equal
    N and M (Chong & Forsyth 2020), and beside `split_half`.

    Raises:
        ValueError: fewer than two rows, or different numbers of features.
    """
    shapes = tuple(features_real.shape), tuple(features_made.shape)
    if any(len(s) != 2 or s[0] < 2 for s in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"a Frechet distance needs two rows or more of equal features; got {shapes[0]} and {shapes[1]}"
        )
    (m1, s1), (m2, s2) = (_moments(f) for f in (features_real, features_made))
    return frechet_distance(m1, s1, m2, s2)


def split_half(features: Tensor, seed: int = 0) -> float:
    """`frechet` between two random halves: what perfect samples would get, for halves of this size.

    Halves are smaller than the whole, so a perfect model may well lie below it: the bias of N rows against N others is
    about half of this.

    Raises:
        ValueError: fewer than four rows.
    """
    if len(features) < 4:
        raise ValueError(f"two halves need four rows or more; got {tuple(features.shape)}")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed)).to(features.device)
    half = len(features) // 2
    return frechet(features[order[:half]], features[order[half : 2 * half]])


@dataclass(frozen=True)
class Rank:
    """Frechet distances of one modality to the real rows.

    Attributes:
        single: given each other modality alone.
        every: given all modalities, its own included.
        prior: of as many draws from the prior; nan for a model that has none without what it is given.
        baseline: between two halves of the real data (`split_half`).
        n: how many rows.
    """

    single: dict[str, float]
    every: float
    prior: float
    baseline: float
    n: int

    @property
    def mean(self) -> float:
        """Over the single conditions; nan where there is none."""
        return fmean(self.single.values()) if self.single else nan

    @property
    def sd(self) -> float:
        """Over the single conditions (with n - 1); nan where there are fewer than two."""
        return stdev(self.single.values()) if len(self.single) > 1 else nan

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; None for what is not a number."""
        found = {m: getattr(self, m) for m in ("mean", "sd", "every", "prior", "baseline")}
        return {"single": self.single, **{m: None if isnan(v) else v for m, v in found.items()}, "n": self.n}


def rank(
    model: Program,
    guide: Program,
    judges: Judge,
    batch: Batch,
    *,
    means: Sequence[str] = (),
    sample: bool = False,
    seed: int = 0,
    chunk: int = CHUNK,
) -> dict[str, Rank]:
    """For every modality but the label, the distance of what is generated, once for every row, to the rows themselves.

    Given each other modality alone (whose mean and standard deviation are the paper's "rank"), given all, and given
    nothing.  Rows that lack anything do not count.  Arguments as in `cross_accuracy`.

    Raises:
        ValueError: fewer than four rows in which everything is present, or nothing to judge.
    """
    sources, targets = _roles(model, batch)
    judged = [m for m in targets if m != judges.label]
    whole = batch[torch.stack([batch.mask[m] for m in (*sources, *targets)]).all(0).nonzero().flatten()]
    if len(whole) < 4 or not judged:
        raise ValueError(
            f"Frechet distances need four rows with all of {list(sources)}, and something generated but the label; "
            f"got {len(whole)} rows and {judged}"
        )
    real = {m: _features(judges, m, whole.x[m].split(chunk)) for m in judged}
    views = list(dict.fromkeys([*((m,) for m in sources), sources]))
    views += [] if getattr(model, "conditioned_on", ()) else [()]
    options: dict[str, Any] = {"means": means, "sample": sample, "seed": seed, "chunk": chunk}
    found: dict[str, dict[Sources, float]] = {m: {} for m in judged}
    for given in views:
        wanted = [m for m in judged if given != (m,) or given == sources]
        made: dict[str, list[Tensor]] = {m: [] for m in wanted}
        for _, values in generated(model, guide, whole.only(*given), wanted, **options):
            for m in wanted:
                made[m].append(judges.features(m, values[m][0]))
        for m, parts in made.items():
            found[m][given] = frechet(real[m], torch.cat(parts))
    return {m: _rank(found[m], m, sources, real[m], seed) for m in judged}


def _rank(found: dict[Sources, float], m: str, sources: Sources, real: Tensor, seed: int) -> Rank:
    single = {s[0]: d for s, d in found.items() if len(s) == 1 and s != (m,)}
    return Rank(single, found[sources], found.get((), nan), split_half(real, seed), len(real))


def _features(judges: Judge, m: str, parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([judges.features(m, part) for part in parts])


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(F,)` and covariance `(F, F)`, float64."""
    f = features.double()
    centred = f - f.mean(0)
    return f.mean(0), centred.mT @ centred / (len(f) - 1)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a covariance."""
    values, vectors = torch.linalg.eigh(0.5 * (covariance + covariance.mT))
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT
