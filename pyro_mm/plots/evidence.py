"""How far an estimate is to be trusted, and what a model does with its latents and its modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pyro_mm.evaluation.balance import ExpertShares, Gradients
from pyro_mm.evaluation.collapse import Latent
from pyro_mm.evaluation.curves import KCurve
from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.psis import threshold
from pyro_mm.evaluation.report import Report
from pyro_mm.plots.curves import CEILING, FLOOR, by_quantity
from pyro_mm.plots.style import GREY, INK, PALE, PALETTE, Place, colours, drawing, finish, tint

__all__ = ["k_curve", "khat_over_data", "report"]

FINE, UNRELIABLE = PALETTE[0], PALETTE[1]
LABELLED = 16  # dimensions that have room for their numbers


def k_curve(
    curves: KCurve | Mapping[str, KCurve], truth: float | Tensor | None = None, *, path: Place = None
) -> tuple[Any, dict[str, Any]]:
    """The K-sample bound against K: from the ELBO, over IWAE bounds, to log p.

    Error bars are 2 Monte Carlo standard errors of the mean over these data, so that they say nothing about other data.

    Args:
        curves: one, or several by name, of the same data.
        truth: log p where it is known, one number or one per datum: a dashed line at its mean.

    Returns:
        The figure, and its axes as "bound".

    Raises:
        ValueError: there is no curve.
    """
    named = {"": curves} if isinstance(curves, KCurve) else dict(curves)
    if not named:
        raise ValueError("there is no curve to draw")
    with drawing() as plt:
        figure, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
        for name, colour in colours(named).items():
            _bound(ax, named[name], name or "bound", colour)
        if truth is not None:
            value = truth.double().mean().item() if isinstance(truth, Tensor) else float(truth)
            ax.axhline(value, color=INK, linewidth=1.0, linestyle="--", label="truth")
        sizes = sorted({k for c in named.values() for k in c.ks})
        ax.set_xscale("log")
        ax.set_xticks(sizes, [f"{k}" for k in sizes])
        ax.minorticks_off()
        ax.set_xlabel("K, draws inside the logarithm")
        ax.set_ylabel("nats")
        ax.margins(y=0.12)
        ax.grid(axis="y")
        first = next(iter(named.values()))
        quantities = dict.fromkeys(c.evidence.quantity for c in named.values())
        ax.set_title("; ".join(quantities), loc="left", fontweight="bold")
        proposal = f"{first.evidence.proposal}, " if len(named) == 1 else ""
        ax.set_title(f"{proposal}N={first.estimate.shape[-1]}", loc="right", fontsize=8.5, color=GREY)
        if len(named) > 1 or truth is not None:
            ax.legend(loc="lower right")
    finish(figure, path)
    return figure, {"bound": ax}


def _bound(ax: Any, curve: KCurve, name: str, colour: str) -> None:
    bar = 2 * curve.mean_se_mc.cpu().numpy()
    style = {"color": colour, "marker": "o", "markersize": 4, "capsize": 2.5, "linewidth": 1.5}
    ax.errorbar(curve.ks, curve.mean.cpu().numpy(), bar, label=name, **style)
    if curve.ks[0] == 1 and curve.evidence.proposal == "guide":  # with prior draws L_1 is another bound
        at = {"xytext": (7, -3), "textcoords": "offset points", "va": "top"}
        ax.annotate("ELBO", (1, curve.mean[0].item()), color=colour, fontsize=8, **at)


def khat_over_data(
    evidences: Evidence | Sequence[Evidence] | Mapping[str, Evidence], *, index: bool = False, path: Place = None
) -> tuple[Any, dict[str, Any]]:
    """Pareto k-hat of every datum against its estimate: which data cannot be trusted, and are they the unlikely ones?

    Data above the dashed threshold are coloured.  k-hats above 3 (infinite ones too) and below -1 are drawn there, as
    triangles.

    Args:
        evidences: one or several, a panel each.
        index: against the datum's place in the batch instead.

    Returns:
        The figure, and its axes by quantity.

    Raises:
        ValueError: there is nothing to draw.
    """
    named = by_quantity(evidences)
    with drawing() as plt:
        size = (5.6, 2.3 * len(named) + 0.4)
        figure, grid = plt.subplots(len(named), 1, figsize=size, squeeze=False, layout="constrained")
        axes = dict(zip(named, grid[:, 0], strict=True))
        for name, ax in axes.items():
            _scatter(ax, named[name], index)
            ax.set_title(name, loc="left", fontweight="bold")
        grid[-1, 0].set_xlabel("place in the batch" if index else "estimate, nats")
    finish(figure, path)
    return figure, axes


def _scatter(ax: Any, evidence: Evidence, index: bool) -> None:
    limit = threshold(evidence.k)
    khat = np.nan_to_num(evidence.khat.detach().double().cpu().numpy(), nan=np.inf)
    x = np.arange(len(khat)) if index else evidence.estimate.detach().double().cpu().numpy()
    y = np.clip(khat, FLOOR, CEILING)
    reliable = evidence.reliable.cpu().numpy()
    size = float(np.clip(2500 / max(len(khat), 1), 5, 22))
    for rows, colour, label in ((reliable, FINE, "reliable"), (~reliable, UNRELIABLE, "unreliable")):
        for shape, some in (("o", khat == y), ("^", khat > y), ("v", khat < y)):
            if (rows & some).any():
                style = {"s": size, "color": colour, "marker": shape, "alpha": 0.75, "linewidths": 0}
                ax.scatter(x[rows & some], y[rows & some], label=label, **style)
    ax.axhline(limit, color=INK, linewidth=1.0, linestyle="--")
    share = f"{evidence.unreliable_share:.1%} above {limit:.2f}  (K={evidence.k})"
    ax.set_title(share, loc="right", fontsize=8.5, color=GREY)
    ax.set_ylabel("Pareto k-hat")
    ax.grid(True)
    ax.set_axisbelow(True)


def report(found: Report, *, path: Place = None) -> tuple[Any, dict[str, Any]]:
    """A `Report` on one sheet: KL of every dimension, the ELBO's terms, their gradients, and experts' shares.

    Dimensions are sorted by KL; active ones are solid, the others hatched.

    Returns:
        The figure, and its axes: "kl/z/image" for site z given the image, "terms", "gradients", "cosines", and
        "experts/z" where the guide is a product; those that have nothing to show are left out.
    """
    names = [m for group in found.views for m in group]
    paint = colours([*names, *found.everything.terms])
    sites = list(dict.fromkeys(s for v in found.views.values() for s in v.latents))
    below = ["terms", *(["gradients"] if found.gradients else [])]
    below += ["cosines"] if found.gradients and found.gradients.cosine else []
    shares = {} if isinstance(found.experts, str) else {f"experts/{s}": e for s, e in found.experts.items()}
    below += list(shares)
    with drawing() as plt:
        wide = max(2.3 * len(found.views), 2.7 * len(below))
        tall = 2.1 * len(sites)
        figure = plt.figure(figsize=(wide, tall + 2.6), layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=(tall, 2.6))
        axes = _panels(upper, found, sites, paint)
        row = lower.subplots(1, len(below), squeeze=False)[0]
        axes |= dict(zip(below, row, strict=True))
        _terms(axes["terms"], found, paint)
        if found.gradients:
            _gradients(axes["gradients"], found.gradients, paint)
            if "cosines" in axes:
                _cosines(axes["cosines"], found.gradients, paint)
        for key, e in shares.items():
            _experts(axes[key], key.removeprefix("experts/"), e, paint)
    finish(figure, path)
    return figure, axes


def _panels(figure: Any, found: Report, sites: Sequence[str], paint: Mapping[str, str]) -> dict[str, Any]:
    """KL per dimension: a line per site, a column per view."""
    axes = {}
    grid = figure.subplots(len(sites), len(found.views), sharey="row", squeeze=False)
    for line, site in enumerate(sites):
        for column, (group, v) in enumerate(found.views.items()):
            ax = grid[line, column]
            if site not in v.latents:
                ax.remove()
                continue
            axes[f"kl/{site}/{', '.join(group)}"] = ax
            _latent(ax, v.latents[site], paint[group[0]] if len(group) == 1 else GREY)
            ax.set_title(f"{site} given {', '.join(group)}", loc="left", fontsize=9, fontweight="bold")
            if column == 0:
                ax.set_ylabel("KL, nats")
    return axes


def _latent(ax: Any, s: Latent, colour: str) -> None:
    """Sorted bars, active units solid."""
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    note = {"transform": ax.transAxes, "ha": "right", "va": "top", "fontsize": 8, "color": GREY}
    kind = " (bars: marginals)" if s.method.startswith("marginals") else ""
    ax.text(0.99, 0.98, f"{int(s.active.sum())}/{len(s.active)} active\n{s.total:.2f} nats{kind}", **note)
    if s.kl is None:
        ax.bar([0], [s.total], color=tint(colour, 0.75))
        ax.set_xticks([0], ["all together"])
        ax.set_xlim(-1.5, 2.5)
        return
    order = s.kl.argsort(descending=True, stable=True)
    kl, active = s.kl[order].cpu().numpy(), s.active[order].cpu().numpy()
    for rows, style in (
        (active, {"color": tint(colour, 0.85)}),
        (~active, {"color": tint(colour, 0.15), "hatch": "////"}),
    ):
        ax.bar(np.arange(len(kl))[rows], kl[rows], width=0.85, **style)
    few = len(kl) <= LABELLED
    ax.set_xticks(range(len(kl)) if few else [], [str(int(d)) for d in order] if few else [])
    ax.set_xlim(-0.7, len(kl) - 0.3)
    ax.set_xlabel("dimension" if active.all() else "dimension (hatched: not active)")
    ax.margins(y=0.3)


def _terms(ax: Any, found: Report, paint: Mapping[str, str]) -> None:
    """Means and standard errors, and the KL as it enters the ELBO."""
    v = found.everything
    bars = {m: (t.nats, t.se, paint[m], f"{t.share:.0%}") for m, t in v.terms.items()}
    bars["−KL"] = (-v.kl, 0.0, GREY, "")
    for place, (value, se, colour, share) in enumerate(bars.values()):
        ax.barh(place, value, xerr=se or None, color=tint(colour, 0.75), error_kw={"ecolor": INK, "capsize": 2})
        at = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8, "color": GREY}
        ax.annotate(share, (max(value, 0.0), place), **at)
    _names(ax, bars, paint)
    ax.set_title("E log p(x | z)", loc="left", fontsize=9, fontweight="bold")
    ax.set_xlabel("nats a row")
    ax.margins(x=0.12)


def _gradients(ax: Any, g: Gradients, paint: Mapping[str, str]) -> None:
    bars = {**g.norm, "KL": g.kl}
    ax.barh(range(len(bars)), list(bars.values()), color=[tint(paint.get(m, GREY), 0.75) for m in bars])
    _names(ax, bars, paint)
    ax.set_title(f"gradients at {', '.join(g.over)}", loc="left", fontsize=9, fontweight="bold")
    ax.set_xlabel("rms norm, nats a unit")


def _names(ax: Any, bars: Mapping[str, Any], paint: Mapping[str, str]) -> None:
    """The bars' names at the left, from the top, in their colours."""
    ax.set_yticks(range(len(bars)), list(bars))
    for label, name in zip(ax.get_yticklabels(), bars, strict=True):
        label.set_color(paint.get(name, GREY))
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=5)
    ax.grid(axis="x")
    ax.set_axisbelow(True)


def _cosines(ax: Any, g: Gradients, paint: Mapping[str, str]) -> None:
    """A matrix, red where two modalities are in conflict."""
    names = list(g.norm)
    matrix = np.full((len(names), len(names)), np.nan)
    for (a, b), value in g.cosine.items():
        i, j = names.index(a), names.index(b)
        matrix[i, j] = matrix[j, i] = value
        for x, y in ((i, j), (j, i)):
            ax.text(x, y, f"{value:+.2f}", ha="center", va="center", fontsize=8)
    ax.imshow(matrix, cmap="RdBu", vmin=-1.6, vmax=1.6)
    ax.set_xticks(range(len(names)), names)
    ax.set_yticks(range(len(names)), names)
    for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        label.set_color(paint.get(label.get_text(), GREY))
    ax.set_title("cosines of gradients", loc="left", fontsize=9, fontweight="bold")


def _experts(ax: Any, site: str, e: ExpertShares, paint: Mapping[str, str]) -> None:
    """Stacked to 1 in every dimension."""
    x, base = np.arange(e.stacked.shape[-1]), np.zeros(e.stacked.shape[-1])
    for name, part in zip(e.names, e.stacked.cpu().numpy(), strict=True):
        colour = PALE if name == "prior" else tint(paint.get(name, GREY), 0.75)
        ax.bar(x, part, bottom=base, width=0.9, color=colour, label=name)
        base = base + part
    ax.set_ylim(0, 1)
    ax.set_xticks(x if len(x) <= LABELLED else [])
    ax.set_xlabel("dimension")
    ax.set_title(f"share of the precision of {site}", loc="left", fontsize=9, fontweight="bold")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=len(e.names), fontsize=7, handlelength=1)
