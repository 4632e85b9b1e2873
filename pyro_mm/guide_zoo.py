"""One trained model, many guides: what each makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.coherence import device_of
from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.marginal import about, log_marginal
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import Program, frozen
from pyro_mm.objectives import elbo
from pyro_mm.tables import aligned
from pyro_mm.training import fit
from pyro_mm.weights import log_weights

__all__ = ["Kept", "Zoo", "guide_zoo"]

DRAWS, ROWS = 200, 64  # for an ELBO, and at once


@dataclass(frozen=True)
class Kept:
    """One guide, trained on the model as it is.

    Attributes:
        elbo: E_q log w of every row, `(N,)` nats.
        iwae: the guide alone as proposal, K draws: E log 1/K sum_k w_k is IWAE's bound.
        seconds: of training.
    """

    elbo: Tensor
    iwae: Evidence
    seconds: float


@dataclass(frozen=True)
class Zoo:
    """Guides of one model, the tightest bound first.

    Attributes:
        guides: by name.
        truth: log p(X) of the same rows, by a proposal refined for each from the tightest guide.
    """

    guides: dict[str, Kept]
    truth: Evidence

    def gap(self, name: str) -> Tensor:
        """log p(X) - ELBO of every row, `(N,)`: KL(q(z|X) || p(z|X)), but for Monte Carlo error."""
        return self.truth.estimate - self.guides[name].elbo

    def summary(self) -> list[dict[str, Any]]:
        """Numbers of every guide, in order: means over rows and their standard errors; nats."""
        n = len(self.truth) ** 0.5
        return [
            {
                "guide": name,
                "elbo": kept.elbo.mean().item(),
                "elbo_se": kept.elbo.std().item() / n,
                "iwae": kept.iwae.mean,
                "k": kept.iwae.k,
                "gap": self.gap(name).mean().item(),
                "gap_se": self.gap(name).std().item() / n,
                "unreliable": kept.iwae.unreliable_share,
                "median_ess": kept.iwae.median_ess,
                "seconds": kept.seconds,
            }
            for name, kept in self.guides.items()
        ]

    def __repr__(self) -> str:
        k = next(iter(self.guides.values())).iwae.k
        rows = [["guide", "ELBO", f"IWAE, K = {k:,}", "log p - ELBO", "median ESS", "k-hat bad", "s"]]
        for s in self.summary():
            gap = f"{s['gap']:.2f} +- {s['gap_se']:.2f}"
            shown = [f"{s['elbo']:.2f}", f"{s['iwae']:.2f}", gap, f"{s['median_ess']:.0f}"]
            rows.append([s["guide"], *shown, f"{100 * s['unreliable']:.1f} %", f"{s['seconds']:.0f}"])
        return "\n".join([*aligned(rows), "", repr(self.truth)])


def guide_zoo(
    model: Program,
    guides: Mapping[str, Program],
    train: Any,
    test: Batch,
    *,
    k: int = 1000,
    seed: int = 0,
    tell: Callable[[str], object] = lambda text: None,
    **training: Any,
) -> Zoo:
    """Train every guide on the same model, which stays as it is, and measure them on the same rows.

    Each maximises E_{q(z|X)} log p(X, z) - log q(z|X), the model's own bound without any weights.  What separates it
    from log p(X) is the guide's doing alone, so that families and encoders compare.

    Args:
        guides: with the model's latent sites, from anywhere: other variants' (`variants.mopoe(...).guide`), yours.
        train: data for `fit`, `training` its other arguments: `epochs`, `lr`, `validation`, `batch_size`, ...
        k: draws per row of IWAE and of the refined estimate.

    Raises:
        ValueError: no guide, or one whose sites are not the model's.
    """
    if not guides:
        raise ValueError("no guide is given")
    test = test[about(model, test)]  # log p of nothing is 0 under every guide
    found: dict[str, Kept] = {}
    for name, guide in guides.items():
        tell(f"{name}: training")
        try:
            history = fit(elbo(frozen(model), guide), train, seed=seed, **training)
        except ValueError as error:
            raise ValueError(f"guide '{name}': {error}") from error
        test = test.to(device_of(model, guide))  # where training has taken them
        tell(f"{name}: bounds")
        with evaluating(model, guide, seed=seed):
            bound = torch.cat([log_weights(model, guide, rows, DRAWS).mean(0) for rows in test.blocks(ROWS)])
        iwae = log_marginal(model, guide, test, k, refine=False, defensive=0.0, independent=True, seed=seed)
        found[name] = Kept(bound, iwae, sum(row["seconds"] for row in history))
    order = dict(sorted(found.items(), key=lambda item: -item[1].elbo.mean().item()))
    tell("log p(X)")
    best = guides[next(iter(order))]
    return Zoo(order, log_marginal(model, best, test, k, refine=True, seed=seed))
