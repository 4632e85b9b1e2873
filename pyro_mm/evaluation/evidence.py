"""What a likelihood estimate is: a value per datum with error bars and diagnostics."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from pyro_mm.evaluation.psis import threshold

__all__ = ["Evidence", "NoLikelihood"]


class NoLikelihood(TypeError):
    """The model does not define the density that was asked for."""


@dataclass(frozen=True)
class Evidence:
    """Estimated log-likelihoods, nats, one per datum; every tensor is `(N,)`.

    Attributes:
        quantity: what was estimated, e.g. `log p(image | label)`.
        estimate: log of the importance-sampling average; for marginals a lower bound in expectation.
        se: Monte Carlo standard error of `estimate` (i.i.d. form), to be believed where `khat` is under its threshold.
        ess: effective number of the K draws (for a conditional, the smaller of its two parts').
        khat: Pareto shape of the weights' tail (for a conditional, the larger); -inf where the largest are equal.
        bias: first-order estimate of the estimator's bias; `estimate - bias` is the corrected value.
        k: draws per datum.
        proposal: where they came from.
        prior_sites: model latents that were drawn from the model because the guide lacks them.
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

    def __len__(self) -> int:
        return len(self.estimate)

    @property
    def mean(self) -> float:
        """Mean over the data."""
        return self.estimate.mean().item()

    @property
    def mean_se(self) -> float:
        """Standard error of `mean` for the population the data were drawn from; it includes Monte Carlo noise."""
        n = len(self)
        return self.estimate.std().item() / sqrt(n) if n > 1 else self.se.item()

    @property
    def mean_se_mc(self) -> float:
        """Monte Carlo standard error of `mean` for these very data."""
        return self.se.square().sum().sqrt().item() / len(self)

    @property
    def corrected(self) -> Tensor:
        """`estimate - bias`: no bound any more."""
        return self.estimate - self.bias

    @property
    def reliable(self) -> Tensor:
        """Bool `(N,)`: k-hat is under the threshold for this K."""
        return self.khat < threshold(self.k)

    @property
    def unreliable_share(self) -> float:
        """Share of data that are not `reliable`: k-hat is above the threshold."""
        return (~self.reliable).double().mean().item()

    def summary(self) -> dict[str, Any]:
        """Numbers for a table or JSON."""
        return {
            "quantity": self.quantity,
            "mean": self.mean,
            "se": self.mean_se,
            "mc_se": self.mean_se_mc,
            "n": len(self),
            "k": self.k,
            "proposal": self.proposal,
            "median_ess": self.ess.median().item(),
            "khat_above": self.unreliable_share,
            "khat_threshold": threshold(self.k),
            "mean_bias": self.bias.mean().item(),
            "prior_sites": list(self.prior_sites),
        }

    def __repr__(self) -> str:
        return (
            f"{self.quantity} = {self.mean:.3f} +- {self.mean_se:.3f} nats (MC {self.mean_se_mc:.3f}; N={len(self)}, "
            f"K={self.k}, {self.proposal}; median ESS {self.ess.median().item():.0f}, "
            f"k-hat > {threshold(self.k):.2f}: {self.unreliable_share:.1%})"
        )

    @staticmethod
    def join(parts: list[Evidence]) -> Evidence:
        """The rows of several results of one quantity, in order."""
        first = parts[0]
        tensors = {f: torch.cat([getattr(p, f) for p in parts]) for f in ("estimate", "se", "ess", "khat", "bias")}
        return Evidence(first.quantity, **tensors, k=first.k, proposal=first.proposal, prior_sites=first.prior_sites)
