"""What a likelihood estimate is: a value per datum with error bars and diagnostics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from pyro_mm.evaluation.psis import threshold
from pyro_mm.half import Rounding, together

__all__ = ["Evidence", "NoLikelihood", "those_scored", "told_by", "why_none"]

PER_DATUM = ("estimate", "se", "ess", "khat", "bias")


class NoLikelihood(TypeError):
    """The model does not define the density that was asked for."""


def why_none(model: Any) -> str | None:
    """The reason, if a model or a part of it says that it has no likelihood (`no_likelihood`)."""
    return next(iter(told_by(model, "no_likelihood")), None)


def told_by(model: Any, name: str) -> list[str]:
    """What a model and its parts say of themselves under this attribute, each once."""
    parts = model.modules() if isinstance(model, torch.nn.Module) else ()
    return list(dict.fromkeys(said for part in (model, *parts) if (said := getattr(part, name, None))))


def those_scored(rows: Tensor) -> Tensor | None:
    """Bool `(N,)`, or None where it is all rows, or none."""
    return None if bool(rows.all()) or not bool(rows.any()) else rows


def over(scored: Tensor | None, value: Tensor) -> Tensor:
    """Values of the rows that count, along the last dimension."""
    return value if scored is None else value[..., scored.to(value.device)]


@dataclass(frozen=True)
class Evidence:
    """Estimated log-likelihoods, nats, one per datum; every tensor is `(N,)`.

    Means, shares and medians are over the rows that are `scored`.

    Attributes:
        quantity: what was estimated, e.g. `log p(image | label)`.
        estimate: log of the importance-sampling average; for marginals a lower bound in expectation.
        se: Monte Carlo standard error of `estimate` (i.i.d. form): right for k-hat below about 0.5, small up to the
            threshold (0.7), and not to be believed above it.  Of one datum k-hat is a noisy judge: look at the share of
            data above the threshold.  Where it is large, the others' errors are too small as well.  NaN for one draw.
        ess: effective number of the K draws (for a conditional, the smaller of its two parts').
        khat: Pareto shape of the weights' tail (for a conditional, the larger); -inf where the largest are equal.
        bias: first-order estimate of the estimator's bias; `estimate - bias` is the corrected value.
        k: draws per datum, the most of any where they differ.
        proposal: where they came from.
        prior_sites: model latents that were drawn from the model because the guide lacks them.
        draws: draws of every datum `(N,)` where they differ.
        target_se: the standard error that was asked for.
        scored: bool `(N,)`, rows that have something of what was asked about; None for all.  In the others `estimate`
            is log p of nothing, 0, which would pull a mean towards 0.
        rounding: mean and largest change by layers in bfloat16, and on how many rows; None in full precision.
    """

    quantity: str
    estimate: Tensor
    se: Tensor
    ess: Tensor
    khat: Tensor
    bias: Tensor
    k: int
    proposal: str
    prior_sites: tuple[str, ...] = ()
    draws: Tensor | None = None
    target_se: float | None = None
    scored: Tensor | None = None
    rounding: Rounding | None = None

    def __len__(self) -> int:
        return len(self.estimate)

    @property
    def n(self) -> int:
        """How many rows are scored."""
        return len(self) if self.scored is None else int(self.scored.sum())

    def of_scored(self) -> Evidence:
        """The rows that are scored."""
        return self if self.scored is None else replace(self.rows(self.scored.nonzero().flatten()), scored=None)

    @property
    def mean(self) -> float:
        """Mean over the data."""
        return over(self.scored, self.estimate).mean().item()

    @property
    def mean_se(self) -> float:
        """Standard error of `mean` for the population the data were drawn from; it includes Monte Carlo noise."""
        own = over(self.scored, self.estimate)
        return own.std().item() / sqrt(len(own)) if len(own) > 1 else over(self.scored, self.se).item()

    @property
    def mean_se_mc(self) -> float:
        """Monte Carlo standard error of `mean` for these very data."""
        return over(self.scored, self.se).square().sum().sqrt().item() / self.n

    @property
    def corrected(self) -> Tensor:
        """`estimate - bias`: no bound any more."""
        return self.estimate - self.bias

    @property
    def draws_per_datum(self) -> Tensor:
        """Draws of every datum, `(N,)`."""
        if self.draws is not None:
            return self.draws
        return torch.full((len(self),), self.k, device=self.estimate.device)

    @property
    def threshold(self) -> float:
        """Of k-hat, for `k` draws."""
        return threshold(self.k)

    @property
    def reliable(self) -> Tensor:
        """Bool `(N,)`: k-hat is under the threshold for the datum's K."""
        if self.draws is None:
            return self.khat < threshold(self.k)
        sizes = {k: threshold(k) for k in self.draws.unique().tolist()}
        return self.khat < torch.tensor([sizes[k] for k in self.draws.tolist()]).to(self.khat)

    @property
    def reached(self) -> Tensor:
        """Bool `(N,)`: `se` is at most `target_se`, and k-hat is under its threshold so that `se` can be believed."""
        if self.target_se is None:
            raise ValueError("no target_se was asked for")
        return (self.se <= self.target_se) & (self.reliable | (self.se == 0))

    @property
    def unreliable_share(self) -> float:
        """Share of data that are not `reliable`: k-hat is above the threshold."""
        return over(self.scored, ~self.reliable).double().mean().item()

    @property
    def median_ess(self) -> float:
        """Median of `ess`."""
        return over(self.scored, self.ess).median().item()

    def summary(self) -> dict[str, Any]:
        """Numbers for a table or JSON."""
        return {
            "quantity": self.quantity,
            "mean": self.mean,
            "se": self.mean_se,
            "mc_se": self.mean_se_mc if self.k > 1 else None,
            "n": self.n,
            "k": self.k,
            "proposal": self.proposal,
            "median_ess": self.median_ess,
            "khat_above": self.unreliable_share,
            "khat_threshold": threshold(self.k),
            "mean_bias": over(self.scored, self.bias).mean().item(),
            "prior_sites": list(self.prior_sites),
            **({} if self.draws is None else {"median_draws": over(self.scored, self.draws).double().median().item()}),
            **({} if self.target_se is None else {"target_se": self.target_se, "reached": self._reached_share()}),
            **({} if self.rounding is None else {"rounding": self.rounding}),
        }

    def _reached_share(self) -> float:
        return over(self.scored, self.reached).double().mean().item()

    def __repr__(self) -> str:
        k = f"K={self.k}" if self.draws is None else f"K={int(self.draws.min())} to {self.k}"
        error = f"{self.mean_se_mc:.3f}" if self.k > 1 else "unknown"
        n = f"N={self.n}" if self.scored is None else f"N={self.n} of {len(self)} rows"
        aim = "" if self.target_se is None else f", SE {self.target_se:g} reached by {self._reached_share():.1%}"
        if self.rounding is not None:
            aim += ", bf16 layers: {:+.3f} on average, at most {:.3f} ({} rows)".format(*self.rounding)
        return (
            f"{self.quantity} = {self.mean:.3f} +- {self.mean_se:.3f} nats (MC {error}; {n}, "
            f"{k}, {self.proposal}; median ESS {self.median_ess:.0f}, "
            f"k-hat > {threshold(self.k):.2f}: {self.unreliable_share:.1%}{aim})"
        )

    def rows(self, index: Tensor) -> Evidence:
        """Some rows, in the order of `index`."""
        parts: dict[str, Any] = {f: getattr(self, f)[index] for f in PER_DATUM}
        draws, scored = (None if v is None else v[index] for v in (self.draws, self.scored))
        return replace(self, **parts, draws=draws, scored=scored, k=self.k if draws is None else int(draws.max()))

    @staticmethod
    def join(parts: Sequence[Evidence]) -> Evidence:
        """The rows of several results of one quantity, in order."""
        first = parts[0]
        tensors: dict[str, Any] = {f: torch.cat([getattr(p, f) for p in parts]) for f in PER_DATUM}
        k, draws = max(p.k for p in parts), None
        if any(p.draws is not None or p.k != k for p in parts):
            draws = torch.cat([p.draws_per_datum for p in parts])
        proposal = "; ".join(dict.fromkeys(p.proposal for p in parts))
        scored = None
        if any(p.scored is not None for p in parts):
            every = [torch.ones_like(p.khat, dtype=torch.bool) if p.scored is None else p.scored for p in parts]
            scored = torch.cat(every)
        aim = first.target_se if len({p.target_se for p in parts}) == 1 else None
        own: dict[str, Any] = {"target_se": aim, "scored": scored, "rounding": together([p.rounding for p in parts])}
        return replace(first, **tensors, k=k, proposal=proposal, draws=draws, **own)

    @staticmethod
    def pool(parts: Sequence[Evidence]) -> Evidence:
        """Estimates of the same marginals from independent draws (other seeds, other machines) as one from all of them.

        log (1/K sum_j K_j exp(estimate_j)), K = sum_j K_j; `se`, `ess` and `bias` are those of all K weights together,
        whose sums of squares the parts' `ess` hold.  `khat` is the largest.

        Raises:
            ValueError: other quantities or rows, or a conditional, which is no average of weights: pool log p(x_A, x_B)
                and log p(x_B) and subtract.
        """
        if len({(p.quantity, len(p)) for p in parts}) != 1:
            raise ValueError(f"pool needs one quantity of the same rows, got {[(p.quantity, len(p)) for p in parts]}")
        if "|" in parts[0].quantity:
            raise ValueError(f"{parts[0].quantity} cannot be pooled: pool the joint and the marginal, and subtract")
        counts = torch.stack([p.draws_per_datum for p in parts]).double()
        logs = torch.stack([p.estimate for p in parts]) + counts.log()
        total, k = torch.logsumexp(logs, 0), counts.sum(0)
        concentration = (2 * (logs - total) - torch.stack([p.ess for p in parts]).log()).exp().sum(0)
        variance = (concentration - 1 / k).clamp(min=0.0)
        draws = k.long()
        same = bool((draws == draws.max()).all())
        return replace(
            parts[0],
            estimate=total - k.log(),
            se=variance.sqrt(),
            ess=1 / concentration,
            khat=torch.stack([p.khat for p in parts]).amax(0),
            bias=-variance / 2,
            k=int(draws.max()),
            proposal="; ".join(dict.fromkeys(p.proposal for p in parts)),
            draws=None if same else draws,
            target_se=None,
            rounding=together([p.rounding for p in parts]),
        )
