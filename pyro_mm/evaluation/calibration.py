"""Is a guide calibrated?  On pairs (z0, x) from the model z0 is an exact draw of p(z | x_S), for every subset S."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import nan, sqrt
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.distributions import independent_components
from pyro_mm.evaluation.chunks import Plan
from pyro_mm.evaluation.generation import simulated
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.evaluation.ranks import Probe, proposal_of, uniformity
from pyro_mm.evaluation.subsets import Sets, Subset, subsets_asked
from pyro_mm.handlers import Program
from pyro_mm.weights import Sites

__all__ = ["Calibration", "Divergence", "sbc", "symmetric_divergence"]


@dataclass(frozen=True)
class Calibration:
    """Ranks of the truth among a guide's draws, for every subset of modalities and every test quantity.

    Attributes:
        ranks: per subset and quantity `(n,)`: rank / (draws + 1) spread evenly over its cell, so that it is exactly
            uniform on (0, 1) when the guide is exact, also where values tie.
        draws: guide draws per datum.
        n: simulated data; a quantity has ranks for those of them in which it exists.
        weighted: were the draws weighted by p(x_S, z) / q(z)?
        coordinates: how many coordinates of the latents were ranked, and of how many.
        prior_sites: model latents that were drawn from the model because the guide lacks them.
    """

    ranks: dict[Subset, dict[str, Tensor]]
    draws: int
    n: int
    weighted: bool = False
    coordinates: tuple[int, int] = (0, 0)
    prior_sites: tuple[str, ...] = ()

    @cached_property
    def p(self) -> dict[Subset, dict[str, float]]:
        """p-value of every quantity: 1 - coverage of the narrowest simultaneous band that the ranks' ECDF leaves.

        The band is the figure's (Säilynoja et al. 2022), so that both agree; beside Kolmogorov's, of one width
        everywhere, it sees too narrow a guide sooner.  Exact for any n, because ranks are spread over their cells.
        """
        return {s: {q: uniformity(u) for q, u in of.items()} for s, of in self.ranks.items()}

    @property
    def tests(self) -> int:
        """How many p-values there are."""
        return sum(map(len, self.ranks.values()))

    @property
    def smallest(self) -> dict[Subset, float]:
        """The smallest p-value of every subset, adjusted for all tests of all subsets (Bonferroni; Holm's first)."""
        return {s: min(1.0, self.tests * min(of.values())) for s, of in self.p.items()}

    def flagged(self, level: float = 0.01) -> dict[Subset, list[str]]:
        """The quantities that fail, worst first: none of an exact guide with probability >= 1 - `level`."""
        worst = {s: sorted(of, key=of.__getitem__) for s, of in self.p.items()}
        return {s: [q for q in names if self.tests * self.p[s][q] <= level] for s, names in worst.items()}

    def ok(self, level: float = 0.01) -> bool:
        """Does nothing fail?  An exact guide does with probability <= `level`, over all subsets together."""
        return min(self.smallest.values()) > level

    def summary(self, level: float = 0.01) -> dict[str, Any]:
        """Numbers for a table or JSON."""
        smallest, flagged = self.smallest, self.flagged(level)
        return {
            "ok": self.ok(level),
            "level": level,
            "n": self.n,
            "draws": self.draws,
            "weighted": self.weighted,
            "tests": self.tests,
            "coordinates": list(self.coordinates),
            "prior_sites": list(self.prior_sites),
            "subsets": {
                ", ".join(s): {"smallest": smallest[s], "flagged": flagged[s], "p": p} for s, p in self.p.items()
            },
        }

    def __repr__(self) -> str:
        ranked, total = self.coordinates
        count = f"{self.draws} {'weighted ' * self.weighted}draws, {self.tests} tests"
        some = f", {ranked} of {total} coordinates" if ranked < total else ""
        lines = [f"calibration on {self.n} simulated data: {count}{some}"]
        width = max(len(", ".join(s)) for s in self.ranks)
        for s, names in self.flagged().items():
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            verdict = f"fails in {', '.join(names[:4])}{more}" if names else "passes"
            lines.append(f"given {', '.join(s):<{width}}  adjusted p {self.smallest[s]:<8.2g}  {verdict}")
        return "\n".join(lines)


def sbc(
    model: Program,
    guide: Program,
    batch: Batch,
    draws: int = 200,
    *,
    weighted: bool = False,
    subsets: Sets | None = None,
    chunk: int | None = None,
    seed: int | None = None,
) -> Calibration:
    """Simulation-based calibration of q(z | x_S) for every subset S (Talts et al. 2018), on data with the batch's mask.

    (z0, x) ~ p(z, x),  z_1..z_L ~ q(z | x_S):  if q is exact, the rank of f(z0, x) among f(z_l, x) is uniform.
    f: coordinates of the guide's latents (none where masked); directions in which a second simulation finds the guide
    narrowest and widest beside the truth, and random ones; log p(x_S, z) and log p(x_m | z) for m in S, without which a
    guide that ignores x passes (Modrak et al. 2023).

    Args:
        draws: L.
        weighted: give the draws the weights p(x_S, z) / q(z | x_S): does importance sampling repair the guide?  The
            truth then counts like one draw of their ESS.
        subsets: names, or groups of them; default every one of up to 4 modalities, else each alone, all but one and
            all.  Rows with nothing of a subset are left out.
        chunk: rows x particles per pass, chosen from the data's size by default.
        seed: draw with this seed and leave the caller's random state alone.

    Raises:
        NoLikelihood: the model defines no density.
        ValueError: fewer than 20 draws, a subset unknown or wholly missing, or a pair that breaks a convention.
    """
    if draws < 20:
        raise ValueError(f"ranks among {draws} draws are too coarse for a test: at least 20 are needed")
    plan = Plan.for_batch(batch, draws, chunk)
    groups, given = subsets_asked(model, batch, subsets)
    ranks: dict[Subset, dict[str, Tensor]] = {}
    probes = []
    with evaluating(model, guide, seed=seed), independent_components():
        data, truth = simulated(model, batch)
        second = simulated(model, batch)
        for group in groups:
            probe = Probe(model, guide, group, _blocks(*second, group, given, plan))
            parts = [probe.ranks(*block, draws, plan, weighted) for block in _blocks(data, truth, group, given, plan)]
            u, seen = (torch.cat(part).T for part in zip(*parts, strict=True))
            ranks[group] = {q: of[rows] for q, of, rows in zip(probe.names, u, seen, strict=True)}
            probes.append(probe)
    widest = max(probes, key=lambda p: p.coordinates[1])
    return Calibration(ranks, draws, len(data), weighted, widest.coordinates, widest.prior_sites)


@dataclass(frozen=True)
class Divergence:
    """ELBO and EUBO of log p(x_S) for every subset S, per simulated datum that has something of it `(n,)`; nats.

    Attributes:
        elbo: mean over k draws z ~ q of log p(x_S, z) - log q(z | x_S): its mean over data is a lower bound.
        eubo: log p(x_S, z0) - log q(z0 | x_S), z0 the latent behind the datum: its mean is an upper bound.
        k: draws per datum of the ELBO.
    """

    elbo: dict[Subset, Tensor]
    eubo: dict[Subset, Tensor]
    k: int

    def gap(self, *subset: str) -> tuple[float, float]:
        """EUBO - ELBO = E[KL(p || q) + KL(q || p)] of a subset, and its standard error over simulated data."""
        return mean_and_error(self.eubo[subset] - self.elbo[subset])

    def summary(self) -> dict[str, Any]:
        """Numbers for a table or JSON: every mean with its standard error."""
        rows = {}
        for s, elbo in self.elbo.items():
            ends = {"elbo": mean_and_error(elbo), "eubo": mean_and_error(self.eubo[s]), "gap": self.gap(*s)}
            rows[", ".join(s)] = {"n": len(elbo), **ends}
        return {"k": self.k, "subsets": rows}

    def __repr__(self) -> str:
        rows = self.summary()["subsets"].items()
        width = max(len(s) for s, _ in rows)
        lines = [f"bounds of log p(x_S) on simulated data, nats: {self.k} draws each"]
        for s, row in rows:
            ends = f"{row['elbo'][0]:9.3f} to {row['eubo'][0]:9.3f}, gap {row['gap'][0]:.4f} +- {row['gap'][1]:.4f}"
            lines.append(f"{s:<{width}}  {ends}  (n={row['n']})")
        return "\n".join(lines)


def symmetric_divergence(
    model: Program,
    guide: Program,
    batch: Batch,
    k: int = 10,
    *,
    subsets: Sets | None = None,
    chunk: int | None = None,
    seed: int | None = None,
) -> Divergence:
    """EUBO - ELBO of q(z | x_S) for every subset S, on data from the model with the batch's mask (Domke 2021).

    EUBO = E[log p(x_S, z0) - log q(z0 | x_S)] >= E[log p(x_S)] >= ELBO = E[log p(x_S, z) - log q(z | x_S)], z ~ q, and
    EUBO - ELBO = E[KL(p(z | x_S) || q) + KL(q || p(z | x_S))]: 0 for an exact guide; it ranks guides of one model.
    With the same seed they meet the same data.  The arguments are those of `sbc`, but for k, the ELBO's draws.
    """
    plan = Plan.for_batch(batch, k, chunk)
    groups, given = subsets_asked(model, batch, subsets)
    elbo, eubo = {}, {}
    with evaluating(model, guide, seed=seed), independent_components():
        data, truth = simulated(model, batch)
        for group in groups:
            lower, upper = [], []
            for block, exact in _blocks(data, truth, group, given, plan):
                proposal = proposal_of(model, guide, block)
                upper.append(proposal.at(block, exact).log_weight()[0])
                drawn = [proposal.draw(block, which).log_weight() for which in plan.slices(proposal.assign(k))]
                lower.append(torch.cat(drawn).mean(0))
            elbo[group], eubo[group] = torch.cat(lower), torch.cat(upper)
    return Divergence(elbo, eubo, k)


def _blocks(
    data: Batch, truth: Sites, group: Subset, given: Subset, plan: Plan
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Rows that have something of the group, the rest hidden, and their latents as one particle `(1, 1, N, *event)`."""
    shown = data.only(*group, *given)
    for rows in shown.present(group).nonzero().flatten().split(plan.rows):
        exact = {}
        for name, site in truth.items():
            event = site.fn.event_dim
            value = site.value.index_select(-1 - event, rows)
            exact[name] = value.reshape(*[1] * (3 + event - value.dim()), *value.shape)
        yield shown[rows], exact


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean over data, and its standard error: unknown (NaN) for one datum."""
    n = len(values)
    return values.mean().item(), values.std().item() / sqrt(n) if n > 1 else nan
