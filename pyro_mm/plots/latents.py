"""Where the guide puts the data: posterior means, coloured by class, for every way of conditioning."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.generation import encode
from pyro_mm.plots.sets import Sets, Subset, chosen, subsets_of
from pyro_mm.plots.style import GREY, Place, drawing, finish

__all__ = ["latent_map"]

MOST_CLASSES = 20
COLUMNS = 3


def latent_map(
    guide: Any,
    batch: Batch,
    labels: str | Tensor | Sequence[Any] | None = None,
    sets: Sets | None = None,
    *,
    site: str | None = None,
    k: int = 1,
    seed: int = 0,
    path: Place = None,
) -> tuple[Any, dict[Subset, Any]]:
    """Posterior means of a latent, one point per datum, coloured by class; one panel per conditioning subset.

    Two dimensions are drawn as they are, one against a random height, more on the first two principal components of
    the means in the last panel (usually that given everything), so that all panels show the same plane.

    Args:
        guide: any guide of the library's conventions.
        batch: the rows; in each panel, those that have something of its subset.
        labels: one class per row (numbers, words, or a one-hot matrix), or the name of a modality; None: one colour.
            More than 20 different numbers are drawn on a continuous scale.
        sets: subsets of modalities, each a name or names; default every non-empty one of up to 3 that the guide can
            see, else each alone and all together.
        site: the latent; default `z`, or the guide's first.
        k: draws for means that have no closed form (latents below others).
        seed: of those draws.
        path: save there as well.

    Returns:
        The figure, and its axes by subset; points are in the order of the panel's rows.

    Raises:
        ValueError: unknown names, labels of another length than the batch, no such site, no rows.
    """
    groups = _sets(guide, batch, sets)
    classes, known = _labels(labels, batch)
    means: dict[Subset, Tensor] = {}
    rows: dict[Subset, Tensor] = {}
    for group in groups:
        rows[group] = (batch.present(group) & known).nonzero().flatten()
        if not len(rows[group]):
            raise ValueError(f"no row has any of {list(group)}{' and a label' if labels is not None else ''}")
        name, means[group] = _means(guide, batch[rows[group]].only(*group), site, k, seed)
    plane = _Plane(means[groups[-1]], name)
    with drawing() as plt:
        figure, axes = _panels(plt, groups)
        paint = _Paint(classes)
        points = {group: plane.of(means[group], seed) for group in groups}
        low, high = _limits(list(points.values()))
        for place, group in enumerate(groups):
            ax = axes[group]
            paint.scatter(ax, points[group], rows[group].cpu().numpy())
            ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
            ax.set_title("\n".join(textwrap.wrap(f"given {', '.join(group)}", 34)), fontweight="bold")
            ax.set_xlabel(plane.names[0])
            if place % COLUMNS == 0:
                ax.set_ylabel(plane.names[1])
        paint.legend(figure, list(axes.values()))
    finish(figure, path)
    return figure, axes


class _Plane:
    """Two coordinates for points of any dimension, fitted to one cloud and used for all."""

    def __init__(self, means: Tensor, site: str) -> None:
        self.dim = means.shape[-1]
        self.centre, self.axes = means.new_zeros(self.dim), torch.eye(self.dim, 2).to(means)
        self.names = [f"{site}₁", f"{site}₂"] if self.dim == 2 else [site, ""]
        if self.dim > 2:
            self.centre = means.mean(0)
            _, s, v = torch.linalg.svd(means - self.centre, full_matrices=False)
            share = [*(s**2 / (s**2).sum().clamp(min=1e-30)).tolist(), 0.0, 0.0]
            self.axes = torch.zeros(self.dim, 2).to(means)
            self.axes[:, : len(v[:2])] = (v[:2] * _signs(v[:2])).T
            self.names = [f"PC {i + 1}  ({share[i]:.0%} of variance)" for i in range(2)]

    def of(self, means: Tensor, seed: int) -> np.ndarray:
        """Coordinates `(N, 2)`."""
        points = ((means - self.centre) @ self.axes).cpu().numpy()
        if self.dim == 1:
            points[:, 1] = np.random.default_rng(seed).uniform(-1, 1, len(points))
        return points


def _signs(axes: Tensor) -> Tensor:
    """+-1 per axis, so that its largest entry is positive: the same picture on every machine."""
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(axes)


class _Paint:
    """Colours by class: separate ones for up to 20 classes, a scale for more numbers."""

    def __init__(self, classes: np.ndarray | None) -> None:
        import matplotlib

        self.classes = classes
        self.kinds = [] if classes is None else list(np.unique(classes))
        self.continuous = len(self.kinds) > MOST_CLASSES and classes is not None and classes.dtype.kind in "fiu"
        name = "tab10" if len(self.kinds) <= 10 else "tab20"
        palette: Any = matplotlib.colormaps[name]
        palette = palette.colors
        self.colour = {c: palette[i % len(palette)] for i, c in enumerate(self.kinds)}

    def scatter(self, ax: Any, points: np.ndarray, rows: np.ndarray) -> None:
        """Draw the points of these rows in their order, so that no class lies on top of all others."""
        size = float(np.clip(2500 / max(len(points), 1), 4, 28))
        style = {"s": size, "alpha": 0.8, "linewidths": 0}
        if self.classes is None:
            ax.scatter(*points.T, color=GREY, **style)
        elif self.continuous:
            ends = {"vmin": self.classes.min(), "vmax": self.classes.max()}
            ax.scatter(*points.T, c=self.classes[rows], cmap="viridis", **ends, **style)
        else:
            ax.scatter(*points.T, c=[self.colour[c] for c in self.classes[rows]], **style)
        ax.grid(True)
        ax.set_axisbelow(True)

    def legend(self, figure: Any, axes: Sequence[Any]) -> None:
        """A key beside the panels."""
        from matplotlib.lines import Line2D

        if self.continuous:
            figure.colorbar(axes[0].collections[0], ax=list(axes), shrink=0.8)
        elif self.kinds:
            style: Any = {"linestyle": "", "marker": "o", "markersize": 6}
            keys = [Line2D([], [], color=self.colour[c], label=_short(c), **style) for c in self.kinds]
            figure.legend(handles=keys, loc="outside right center", handletextpad=0.2)


def _short(c: Any) -> str:
    return f"{c:g}" if isinstance(c, int | float | np.number) else str(c)


def _panels(plt: Any, groups: Sequence[Subset]) -> tuple[Any, dict[Subset, Any]]:
    across = min(COLUMNS, len(groups))
    down = math.ceil(len(groups) / across)
    figure = plt.figure(figsize=(3.2 * across + 0.8, 3.1 * down), layout="constrained")
    axes = {group: figure.add_subplot(down, across, place + 1) for place, group in enumerate(groups)}
    return figure, axes


def _limits(clouds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a box that holds all points, with a margin."""
    points = np.concatenate(clouds)
    low, high = points.min(0), points.max(0)
    margin = 0.05 * np.maximum(high - low, 1e-6)
    return low - margin, high + margin


def _sets(guide: Any, batch: Batch, sets: Sets | None) -> list[Subset]:
    if sets is not None:
        return chosen(sets, batch.names)
    seen = getattr(guide, "names", ()) or batch.names
    return subsets_of([m for m in seen if m in batch.names])


def _labels(labels: Any, batch: Batch) -> tuple[np.ndarray | None, Tensor]:
    """One class per row, and which rows have one."""
    known = torch.ones(len(batch), dtype=torch.bool, device=batch.device)
    if labels is None:
        return None, known
    if isinstance(labels, str):
        if labels not in batch.x:
            raise ValueError(f"labels='{labels}' is no modality; the batch has {list(batch.names)}")
        known, labels = batch.mask[labels], batch.x[labels]
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim == 2 and values.shape[1] > 1:
        values = values.argmax(1)
    if values.size != len(batch):
        raise ValueError(f"labels have shape {values.shape}, the batch has {len(batch)} rows")
    return values.reshape(-1), known


def _means(guide: Any, rows: Batch, site: str | None, k: int, seed: int) -> tuple[str, Tensor]:
    """The site, and its posterior means `(N, D)` in double precision."""
    means = encode(guide, rows, k, seed=seed).mean
    name = site if site is not None else "z" if "z" in means else next(iter(means), "z")
    if name not in means:
        raise ValueError(f"the guide has no latent '{name}'; it has {list(means)}")
    return name, means[name].reshape(len(rows), -1).double()
