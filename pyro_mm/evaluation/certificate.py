"""Two-sided ends of a log-likelihood on data simulated from the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.evidence import over
from pyro_mm.evaluation.psis import threshold

__all__ = ["Certificate", "MEANING"]

MEANING = """\
What it says: on data drawn from this very model, with the same modalities missing, the estimator's error is at most the
gap, in the mean over data: lower and upper end enclose the mean of the true values in expectation.
What it does not say: that real data are as easy (compare ESS and k-hat there with those here; where they are worse, use
more draws or a refined proposal), that every single datum is enclosed, or that the model is any good."""


@dataclass(frozen=True)
class Certificate:
    """Ends `(N,)` in nats that enclose a log-likelihood in expectation, on data simulated from the model.

    Attributes:
        lower, upper: E[lower] <= E[truth] <= E[upper]; for means over data, not for every datum.
        data: the simulated data.
        k: draws, or chains, per datum.
        method: `sandwich` or `BDMC`.
        quantity: what is enclosed.
        ess, khat: of the weights behind the lower end (for a conditional, the worse of both parts), `(N,)`.
        settings: what else is needed to repeat it, and acceptance rates.
        scored: bool `(N,)`, the rows that have something of it, over which means are; None for all.
    """

    lower: Tensor
    upper: Tensor
    data: Batch
    k: int
    method: str = "sandwich"
    quantity: str = "log p(x)"
    ess: Tensor | None = None
    khat: Tensor | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    scored: Tensor | None = None

    @property
    def n(self) -> int:
        """How many rows it is about."""
        return len(over(self.scored, self.lower))

    @property
    def mean_lower(self) -> float:
        """Mean of `lower`."""
        return over(self.scored, self.lower).mean().item()

    @property
    def mean_upper(self) -> float:
        """Mean of `upper`."""
        return over(self.scored, self.upper).mean().item()

    @property
    def gap(self) -> float:
        """Mean of upper - lower."""
        return over(self.scored, self.upper - self.lower).mean().item()

    @property
    def gap_se(self) -> float:
        """Its standard error over the simulated data."""
        gaps = over(self.scored, self.upper - self.lower)
        return gaps.std().item() / sqrt(len(gaps)) if len(gaps) > 1 else float("nan")

    @property
    def mc_se(self) -> float | None:
        """Monte Carlo standard error of the mean lower end; what both ends share of it does not show in the gap."""
        if self.ess is None:
            return None
        ess = over(self.scored, self.ess)
        return (1 / ess - 1 / self.k).clamp(min=0.0).sum().sqrt().item() / len(ess)

    @property
    def median_ess(self) -> float | None:
        """Median of `ess`."""
        return None if self.ess is None else over(self.scored, self.ess).median().item()

    @property
    def unreliable_share(self) -> float | None:
        """Share of data whose k-hat is above the threshold."""
        return None if self.khat is None else over(self.scored, self.khat >= threshold(self.k)).double().mean().item()

    def summary(self) -> dict[str, Any]:
        """Numbers for a table or JSON."""
        return {
            "quantity": self.quantity,
            "method": self.method,
            "lower": self.mean_lower,
            "upper": self.mean_upper,
            "gap": self.gap,
            "gap_se": self.gap_se,
            "n": self.n,
            "k": self.k,
            **({} if self.ess is None else {"median_ess": self.median_ess, "mc_se": self.mc_se}),
            **self.settings,
        }

    def __repr__(self) -> str:
        more = "".join(f", {name.replace('_', ' ')} {value}" for name, value in self.settings.items())
        return (
            f"{self.method} of {self.quantity} on {self.n} simulated data, K={self.k}{more}: "
            f"{self.mean_lower:.3f} to {self.mean_upper:.3f} nats, "
            f"gap {self.gap:.4f} +- {self.gap_se:.4f}"
            + ("" if self.mc_se is None else f" (MC of the ends {self.mc_se:.4f})")
        )
