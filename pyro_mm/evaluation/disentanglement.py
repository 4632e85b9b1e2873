"""Does every coordinate of a latent code stand for one factor of variation, and every factor for one coordinate?

Three scores between 0 and 1 for codes `(N, D)` and known factors (class labels):

* DCI (Eastwood & Williams 2018): from how much each coordinate helps random forests predict each factor, R_df >= 0:
  disentanglement 1 - H_F(R_d.) and completeness 1 - H_D(R_.f), entropies to base F and D, means weighted by R;
  informativeness is the forests' accuracy on held-out rows.
* MIG (Chen et al. 2018): the gap between the two largest mutual informations I(z_d; f), over H(f), mean over factors;
  coordinates in 20 bins of equal width.
* SAP (Kumar et al. 2018): the gap between the two best coordinates' accuracies as linear classifiers of a factor alone.

They describe a code on these rows, and are no likelihoods: a good model may have any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, nan

import numpy as np
import torch
from torch import Tensor

__all__ = ["Disentanglement", "disentanglement"]

BINS, TREES, LEAF = 20, 100, 5


@dataclass(frozen=True)
class Disentanglement:
    """Scores, and what they come from.

    Attributes:
        disentanglement, completeness: DCI's, of all factors together.
        informativeness: accuracy on held-out rows, by factor.
        mig, sap: by factor.
        importance: R `(D, F)`, in the order of `factors`; columns of sum 1.
        information: I(z_d; f) in nats, `(D, F)`.
        chance: the share of the largest class among held-out rows, by factor: what accuracy must beat.
    """

    factors: tuple[str, ...]
    disentanglement: float
    completeness: float
    informativeness: dict[str, float]
    mig: dict[str, float]
    sap: dict[str, float]
    importance: Tensor
    information: Tensor
    chance: dict[str, float]

    def __str__(self) -> str:
        head = f"disentanglement {self.disentanglement:.3f}, completeness {self.completeness:.3f}"
        lines = [
            f"{f}: accuracy {self.informativeness[f]:.3f} (chance {self.chance[f]:.3f}), MIG {self.mig[f]:.3f}, "
            f"SAP {self.sap[f]:.3f}"
            for f in self.factors
        ]
        return "\n".join([head, *lines])


def disentanglement(codes: Tensor, factors: Mapping[str, Tensor], *, seed: int = 0) -> Disentanglement:
    """Score codes `(N, D)`, such as posterior means (`encode`), against factors of class labels `(N,)`.

    Half of the rows, chosen within a factor's classes, train its forest and classifiers; the other half is held out.
    With one factor `disentanglement` is NaN: there is nothing that coordinates could mix.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: fewer than two coordinates or 20 rows, codes that are not finite or all the same, no factor, or a
            factor of other length, of one class only, or with a class of fewer than two rows.
    """
    x, y = _checked(codes, factors)
    importance, informative, sap, chance = [], {}, {}, {}
    for name, f in y.items():
        train, test = _halves(f, seed)
        weights, informative[name] = _forest(x, f, train, test, seed)
        importance.append(weights)
        sap[name] = _separated(x, f, train, test)
        chance[name] = float(np.unique(f[test], return_counts=True)[1].max() / len(test))
    r = np.stack(importance, 1)
    information = np.stack([_information(x, f) for f in y.values()], 1)
    mig = {name: _gap(information[:, j] / _entropy(f)) for j, (name, f) in enumerate(y.items())}
    one, other = (_one_each(r, axis) for axis in (1, 0))
    found = torch.from_numpy(r), torch.from_numpy(information)
    return Disentanglement(tuple(y), one, other, informative, mig, sap, *found, chance)


def _checked(codes: Tensor, factors: Mapping[str, Tensor]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    if codes.dim() != 2 or codes.shape[0] < 20 or codes.shape[1] < 2:
        raise ValueError(f"codes must be (N, D) with N >= 20 and D >= 2, got shape {tuple(codes.shape)}")
    if not bool(torch.isfinite(codes).all()):
        raise ValueError("codes hold NaN or infinite values")
    if bool((codes == codes[:1]).all()):
        raise ValueError("the codes are the same in every row: nothing can be told from them")
    if not factors:
        raise ValueError("at least one factor is needed")
    out = {}
    for name, f in factors.items():
        if tuple(f.shape) != (len(codes),) or f.is_floating_point():
            raise ValueError(f"factor '{name}' must be class labels ({len(codes)},), got {tuple(f.shape)} of {f.dtype}")
        counts = f.unique(return_counts=True)[1]
        if len(counts) < 2 or int(counts.min()) < 2:
            raise ValueError(
                f"factor '{name}' needs two classes of at least two rows each; its counts are {counts.tolist()}"
            )
        out[name] = f.detach().cpu().numpy()
    return codes.detach().cpu().double().numpy(), out


def _halves(f: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(np.arange(len(f)), test_size=0.5, random_state=seed, stratify=f)
    return train, test


def _forest(x: np.ndarray, f: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """How much each coordinate helps, of sum 1, and the accuracy on held-out rows."""
    from sklearn.ensemble import RandomForestClassifier

    # Every split sees all coordinates: of a few drawn at random it would have to take a useless one at times.
    forest = RandomForestClassifier(TREES, min_samples_leaf=LEAF, max_features=None, random_state=seed)
    forest.fit(x[train], f[train])
    return np.asarray(forest.feature_importances_), float(forest.score(x[test], f[test]))


def _separated(x: np.ndarray, f: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit(x[train]).transform(x)
    scores = [
        LogisticRegression().fit(scaled[train, d : d + 1], f[train]).score(scaled[test, d : d + 1], f[test])
        for d in range(x.shape[1])
    ]
    return _gap(np.array(scores))


def _information(x: np.ndarray, f: np.ndarray) -> np.ndarray:
    """I(z_d; f) in nats of every coordinate, in bins of equal width."""
    from sklearn.metrics import mutual_info_score

    inner = np.linspace(x.min(0), x.max(0), BINS + 1)[1:-1]
    return np.array([mutual_info_score(f, np.digitize(x[:, d], inner[:, d])) for d in range(x.shape[1])])


def _entropy(f: np.ndarray) -> float:
    p = np.unique(f, return_counts=True)[1] / len(f)
    return float(-(p * np.log(p)).sum())


def _gap(values: np.ndarray) -> float:
    best, second = np.sort(values)[::-1][:2]
    return float(best - second)


def _one_each(r: np.ndarray, axis: int) -> float:
    """1 - the entropy along `axis` to the base of its length, weighted by the rest's share of R; NaN for one alone."""
    if r.shape[axis] == 1:
        return nan
    total = r.sum(axis, keepdims=True)
    p = r / np.where(total > 0, total, 1)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(axis) / log(r.shape[axis])
    return float(((1 - entropy) * total.squeeze(axis)).sum() / r.sum())
