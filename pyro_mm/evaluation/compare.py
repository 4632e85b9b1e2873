"""Which of several models gives held-out rows the higher likelihood: paired differences with their error bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import copysign, erfc, inf, isfinite, nan, sqrt
from typing import Any

import torch
from torch import Tensor

from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.tables import aligned

__all__ = ["Comparison", "Difference", "compare"]

MANY = 0.25  # a share of unreliable rows beyond which their order says little, whatever the others say
SIGNIFICANT = 1.96  # standard errors: a two-sided 5 % test


@dataclass(frozen=True)
class Difference:
    """Mean over N rows of d_n = l_n(a) - l_n(b), two models' log-likelihoods of the same row; nats per row.

    Attributes:
        a, b: the models; `mean` > 0 where `a` is better.
        mean: of d_n.
        se: sd_n(d_n) / sqrt(N), for the population the rows were drawn from; it includes the Monte Carlo noise.  The
            rows' common difficulty cancels, so that it is far below the errors of the two means.
        mc_se: the Monte Carlo part alone, sqrt(sum_n se_n(a)^2 + se_n(b)^2) / N, for draws that the two did not share.
        bias: first-order bias of `mean`: that of `a` minus that of `b`.
        n: rows.
        unreliable_share: share of rows in which either k-hat is above its threshold.
        reliable_mean, reliable_se: `mean` and `se` over all other rows; NaN where there are none.
    """

    a: str
    b: str
    mean: float
    se: float
    mc_se: float
    bias: float
    n: int
    unreliable_share: float
    reliable_mean: float
    reliable_se: float

    @property
    def z(self) -> float:
        """mean / se."""
        return _ratio(self.mean, self.se)

    @property
    def p(self) -> float:
        """Probability of so large a |z| where the models are equally good: normal, two-sided."""
        return erfc(abs(self.z) / sqrt(2))

    @property
    def decided_by_unreliable(self) -> bool:
        """Do the rows with unreliable estimates decide who is better?

        They do where the other rows alone, if there are any, have the other sign or are not significant at 5 % while
        all rows together are.
        """
        if not self.unreliable_share or not self.mean:
            return False
        rest = _ratio(self.reliable_mean, self.reliable_se)
        return not rest * self.mean > 0 or abs(rest) < SIGNIFICANT <= abs(self.z)

    def __repr__(self) -> str:
        return (
            f"{self.a} - {self.b} = {self.mean:+.3f} +- {self.se:.3f} nats per row (MC {self.mc_se:.3f}; N={self.n}, "
            f"z={self.z:+.1f}, p={self.p:.2g}; unreliable {self.unreliable_share:.1%})"
        )

    def summary(self) -> dict[str, Any]:
        """Numbers for a table or JSON; None for what is not finite."""
        found = {f: getattr(self, f) for f in (*self.__dataclass_fields__, "z", "p", "decided_by_unreliable")}
        return {f: None if isinstance(v, float) and not isfinite(v) else v for f, v in found.items()}


@dataclass(frozen=True)
class Comparison:
    """Models ranked by their mean log-likelihood of the same rows.

    Attributes:
        results: by model, the best first.
    """

    results: dict[str, Evidence]

    @property
    def names(self) -> tuple[str, ...]:
        """The models, the best first."""
        return tuple(self.results)

    @property
    def best(self) -> str:
        """The model with the highest mean."""
        return self.names[0]

    @property
    def quantity(self) -> str:
        """What was estimated, e.g. `log p(image, label)`."""
        return self.results[self.best].quantity

    @property
    def differences(self) -> dict[str, Difference]:
        """Every other model minus the best, so all means are at most 0."""
        return {name: self.difference(name, self.best) for name in self.names[1:]}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Pairs of models (with the best, or next to each other) whose order rests on unreliable estimates.

        It does where those decide, and where they are many: a poor proposal biases the other rows as well.
        """
        pairs = [(self.best, n) for n in self.names[1:]] + list(zip(self.names[1:], self.names[2:], strict=False))
        found = [self.difference(a, b) for a, b in pairs]
        return tuple(_warning(d) for d in found if d.decided_by_unreliable or d.unreliable_share > MANY)

    def difference(self, a: str, b: str) -> Difference:
        """Model `a` minus model `b`, row by row.

        Raises:
            ValueError: a name is unknown.
        """
        for name in (a, b):
            if name not in self.results:
                raise ValueError(f"there is no model '{name}' in this comparison; it has {list(self.names)}")
        one, other = self._rows_of_both(self.results[a], self.results[b])
        d = (one.estimate.double() - other.estimate.double()).cpu()
        mc = (one.se.double().square() + other.se.double().square()).cpu()
        fine = (one.reliable & other.reliable).cpu()
        (mean, se), (kept, kept_se) = _paired(d, mc), _paired(d[fine], mc[fine])
        bias = one.bias.double().mean().item() - other.bias.double().mean().item()
        share = (~fine).double().mean().item()
        return Difference(a, b, mean, se, mc.sum().sqrt().item() / len(d), bias, len(d), share, kept, kept_se)

    @staticmethod
    def _rows_of_both(one: Evidence, other: Evidence) -> tuple[Evidence, Evidence]:
        """Those that both have something to say of."""
        if one.scored is None and other.scored is None:
            return one, other
        every = torch.ones(len(one), dtype=torch.bool)
        kept = [every if e.scored is None else e.scored.cpu() for e in (one, other)]
        rows = (kept[0] & kept[1]).nonzero().flatten()
        first, second = (e.rows(rows.to(e.estimate.device)) for e in (one, other))
        return first, second

    def summary(self) -> dict[str, Any]:
        """Numbers for a table or JSON; models are in order of rank."""
        models = {
            name: {"mean": e.mean, "se": e.mean_se, "mc_se": e.mean_se_mc, "unreliable_share": e.unreliable_share}
            for name, e in self.results.items()
        }
        return {
            "quantity": self.quantity,
            "n": self.results[self.best].n,
            "models": models,
            "differences": {name: d.summary() for name, d in self.differences.items()},
            "warnings": list(self.warnings),
        }

    def __repr__(self) -> str:
        head = f"{self.quantity}: {self.results[self.best].n:,} rows, nats per row; differences are to the best"
        rows = [["", "mean", "se", "MC se", "unreliable", "difference", "se", "MC se", "z", "p"]]
        differences = self.differences
        for name, e in self.results.items():
            row = [name, f"{e.mean:.3f}", f"{e.mean_se:.3f}", f"{e.mean_se_mc:.4f}", f"{e.unreliable_share:.1%}"]
            if (d := differences.get(name)) is not None:
                row += [f"{d.mean:+.3f}", f"{d.se:.3f}", f"{d.mc_se:.4f}", f"{d.z:+.1f}", f"{d.p:.2g}"]
            rows.append(row + [""] * (len(rows[0]) - len(row)))
        return "\n".join([head, "", *aligned(rows), *(f"warning: {w}" for w in self.warnings)])


def compare(results: Mapping[str, Evidence]) -> Comparison:
    """Rank models by the likelihood they give to the same held-out rows, with paired standard errors.

    For models a and b on N rows:  mean_n (l_n(a) - l_n(b)) +- sd_n(l_n(a) - l_n(b)) / sqrt(N).  The rows must be the
    same and in the same order, which an Evidence cannot tell.  Estimates of marginals are lower bounds, whose distance
    from the truth differs between models; `Difference.bias` is its first order.

    Args:
        results: by model, `log_marginal` or `log_conditional` of one quantity.

    Raises:
        ValueError: naming the models, when there are fewer than two, numbers of rows or quantities differ, or an
            estimate is not finite.
        TypeError: a result is no Evidence.
    """
    if len(results) < 2:
        raise ValueError(f"a comparison needs at least two models, got {list(results)}")
    for name, e in results.items():
        if not isinstance(e, Evidence):
            raise TypeError(f"the result of model '{name}' is a {type(e).__name__}, not an Evidence")
        if bool((bad := ~torch.isfinite(e.estimate)).any()):
            first = int(bad.nonzero()[0])
            raise ValueError(
                f"model '{name}' has an estimate that is not finite in {int(bad.sum())} of {len(e)} rows, "
                f"the first being row {first} ({e.estimate[first].item():g})"
            )
    for what, value in (("numbers of rows", len), ("quantities", lambda e: e.quantity)):
        found = {name: value(e) for name, e in results.items()}
        if len(set(found.values())) > 1:
            raise ValueError(f"models are compared by different {what}: {found}")
    return Comparison(dict(sorted(results.items(), key=lambda item: item[1].mean, reverse=True)))


def _paired(d: Tensor, mc: Tensor) -> tuple[float, float]:
    """Mean of differences, and its standard error; of a single row the Monte Carlo error, of none NaN."""
    if len(d) < 2:
        return (d.item(), mc.sqrt().item()) if len(d) else (nan, nan)
    return d.mean().item(), d.std().item() / sqrt(len(d))


def _ratio(mean: float, se: float) -> float:
    """mean / se; infinite for a difference without error."""
    return mean / se if se else (copysign(inf, mean) if mean else 0.0)


def _warning(d: Difference) -> str:
    rest = "there are no others" if d.reliable_se != d.reliable_se else f"{d.reliable_mean:+.3f} +- {d.reliable_se:.3f}"
    return (
        f"'{d.a}' over '{d.b}' rests on the {d.unreliable_share:.1%} of rows with an unreliable k-hat "
        f"(all: {d.mean:+.3f} +- {d.se:.3f}; others: {rest}); use more draws or a better guide"
    )
