"""One trained system, many priors fitted to it afterwards: what each does to its likelihood and its draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.evaluation.coherence import Judge, Proportion, device_of, joint_coherence
from pyro_mm.evaluation.compare import Comparison, Difference
from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.marginal import about, log_marginal
from pyro_mm.guides import Experts
from pyro_mm.models import FlowPrior, GaussianMixture, VampPrior
from pyro_mm.post_hoc import with_prior
from pyro_mm.recipe import Recipe
from pyro_mm.tables import aligned
from pyro_mm.training import fit

__all__ = ["OWN", "PRIORS", "Fitted", "PriorZoo", "prior_zoo"]

OWN = "as trained"
PARTS = 100


def _vamp(recipe: Recipe, dim: int, rows: Batch) -> nn.Module:
    guide = recipe.guide
    if not isinstance(guide, Experts):
        raise ValueError(
            f"'vamp' is made from the encoders and the fusion of Experts; {recipe.name} has a {type(guide).__name__}"
        )
    encoders: Any = dict(guide.encoders.items())
    return VampPrior(encoders, guide.fuse, PARTS).start_at(rows)


PRIORS: dict[str, Callable[[Recipe, int, Batch], nn.Module]] = {
    "mixture": lambda recipe, dim, rows: GaussianMixture(dim),
    "flow": lambda recipe, dim, rows: FlowPrior(dim),
    "vamp": _vamp,
}
"""Name -> `(recipe, dim, rows) -> prior`, to start at some training rows where it can."""


@dataclass(frozen=True)
class Fitted:
    """A prior and what the system is with it.

    Attributes:
        recipe: the system with this prior.
        evidence: log p(X) of the test rows under it.
        coherence: of draws from it, or None without judges.
        seconds: of its fit.
    """

    recipe: Recipe
    evidence: Evidence
    coherence: Proportion | None
    seconds: float


@dataclass(frozen=True)
class PriorZoo:
    """Priors of one system, by name; the first is its own, `as trained`."""

    priors: dict[str, Fitted]

    def gain(self, name: str) -> Difference:
        """log p(X) under this prior less that under the system's own, paired by row."""
        return Comparison({n: fitted.evidence for n, fitted in self.priors.items()}).difference(name, OWN)

    def summary(self) -> list[dict[str, Any]]:
        """Numbers of every prior, in order: means over rows and standard errors; nats."""
        found = []
        for name, fitted in self.priors.items():
            ev, gain, joint = fitted.evidence, self.gain(name), fitted.coherence
            found.append(
                {
                    "prior": name,
                    "log_p": ev.mean,
                    "se": ev.mean_se,
                    "gain": gain.mean,
                    "gain_se": gain.se,
                    "unreliable": ev.unreliable_share,
                    "k": ev.k,
                    "coherence": None if joint is None else joint.value,
                    "coherence_se": None if joint is None else joint.se,
                    "seconds": fitted.seconds,
                }
            )
        return found

    def __repr__(self) -> str:
        rows = [["prior", "log p(X)", "gain", "joint coherence", "k-hat bad", "s"]]
        for s in self.summary():
            gain = "" if s["prior"] == OWN else f"{s['gain']:+.2f} +- {s['gain_se']:.2f}"
            joint = "-" if s["coherence"] is None else f"{100 * s['coherence']:.1f} +- {100 * s['coherence_se']:.1f} %"
            log_p = f"{s['log_p']:.2f} +- {s['se']:.2f}"
            rows.append([s["prior"], log_p, gain, joint, f"{100 * s['unreliable']:.1f} %", f"{s['seconds']:.0f}"])
        return "\n".join(aligned(rows))


def prior_zoo(
    recipe: Recipe,
    priors: Mapping[str, nn.Module],
    train: Any,
    test: Batch,
    *,
    judges: Judge | None = None,
    draws: int = 1000,
    k: int = 1000,
    refine: bool = True,
    seed: int = 0,
    tell: Callable[[str], object] = lambda text: None,
    **training: Any,
) -> PriorZoo:
    """Fit every prior to the trained system (`with_prior`), which stays as it is, and measure all on the same rows.

    Decoders and guide are the same throughout: what separates the likelihoods is the prior's doing alone, and the
    differences are paired by row.  Test rows choose nothing: they see no prior before it is measured.

    Args:
        priors: by name: `GaussianMixture`, `FlowPrior`, `VampPrior`, yours; `PRIORS` makes the first three.
        train: data for `fit`, `training` its other arguments: `epochs`, `lr`, `validation`, `batch_size`, ...
        judges: classifiers (`train_judges`) for the joint coherence of `draws` from every prior.
        k, refine: draws per row of the likelihoods, and whether a proposal is fitted to every row.

    Raises:
        ValueError: no prior, one called `as trained`, or one that cannot be fitted, by its name.
        TypeError: the model has no module `prior`.
        NoLikelihood: the model defines no density.
    """
    if not priors or OWN in priors:
        raise ValueError("no prior is given" if not priors else f"'{OWN}' is the name of the system's own prior")
    device = device_of(recipe.model, recipe.guide)
    training.setdefault("accelerator", device.type)  # a prior's fit would leave the decoders where they are
    test = test[about(recipe.model, test)].to(device)  # log p of nothing is 0 under every prior

    def measured(changed: Recipe, name: str, seconds: float) -> Fitted:
        tell(f"{name}: log p(X)")
        pair = changed.model, changed.guide
        joint = None
        if judges is not None:
            joint = joint_coherence(*pair, judges, recipe.modalities, draws, means=recipe.means, seed=seed)
        return Fitted(changed, log_marginal(*pair, test, k, refine=refine, seed=seed), joint, seconds)

    found = {OWN: measured(recipe, OWN, 0.0)}
    for name, prior in priors.items():
        tell(f"{name}: fitting")
        try:
            changed = with_prior(recipe, prior.to(device))
            history = fit(changed, train, seed=seed, **training)
        except ValueError as error:
            raise ValueError(f"prior '{name}': {error}") from error
        found[name] = measured(changed, name, sum(row["seconds"] for row in history))
    return PriorZoo(found)
