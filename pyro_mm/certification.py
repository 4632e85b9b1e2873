"""Certificates of everything a system can be asked, beside the same estimator's diagnostics on real data."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_mm.batch import Batch
from pyro_mm.evaluation.ais import ais
from pyro_mm.evaluation.certificate import MEANING, Certificate
from pyro_mm.evaluation.effort import refinable
from pyro_mm.evaluation.evidence import Evidence, NoLikelihood
from pyro_mm.evaluation.likelihood import log_likelihood
from pyro_mm.evaluation.psis import threshold
from pyro_mm.evaluation.sandwich import sandwich
from pyro_mm.recipe import Recipe
from pyro_mm.results import percent, quantities, quantity, shortened
from pyro_mm.tables import aligned

__all__ = ["Certification", "certify"]

WIDTH = 100


@dataclass(frozen=True)
class Certification:
    """Certificates by quantity, the sandwich first, and what the sandwich's estimator says on real rows.

    Attributes:
        certificates: on data simulated from the model.
        real: `Evidence` of as many real rows by the same estimator.
        unavailable: why the model does not define the other quantities.
    """

    certificates: dict[str, list[Certificate]]
    real: dict[str, Evidence]
    unavailable: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Numbers and text for `certificates.json`; means over data in nats."""
        return {
            "certificates": [c.summary() for found in self.certificates.values() for c in found],
            "real": {q: e.summary() for q, e in self.real.items()},
            "harder": self.harder,
            "unavailable": self.unavailable,
        }

    @property
    def harder(self) -> list[str]:
        """Quantities for which real data look harder than the simulated: ESS under half, or k-hat above its threshold
        for 10 % more of them.
        """
        out = []
        for q, evidence in self.real.items():
            simulated = self.certificates[q][0]
            assert simulated.median_ess is not None and simulated.unreliable_share is not None
            more = evidence.unreliable_share - simulated.unreliable_share
            if evidence.median_ess < 0.5 * simulated.median_ess or more > 0.1:
                out.append(q)
        return out

    def __repr__(self) -> str:
        return "\n".join([*self._rows(), "", *_wrapped(self._verdict()), "", MEANING])

    def _rows(self) -> list[str]:
        first = next(iter(self.certificates.values()), [None])[0]
        limit = "" if first is None else f"k-hat > {threshold(first.k):.2f}"
        rows = [["", "lower", "upper", "gap", "SE", "median ESS", limit, "real: ESS", "k-hat"]]
        for q, found in self.certificates.items():
            for c in found:
                ends = [
                    f"{c.mean_lower:.3f}",
                    f"{c.mean_upper:.3f}",
                    f"{c.gap:.4f}",
                    f"{c.gap_se:.4f}",
                ]
                rows.append([f"{shortened(q)}  {c.method}", *ends, *_trust(c), *_real(self.real.get(q), c)])
        rows += [[q, "not available", *[""] * 7] for q in self.unavailable]
        return aligned(rows)

    def _verdict(self) -> list[str]:
        if not self.certificates:
            return ["The model defines none of these densities."]
        if not self.harder:
            return [
                "Real rows are not much harder than the simulated ones (half their ESS or more, and at most 10 % more "
                "of them with a k-hat above its threshold): what is certified there carries over, roughly."
            ]
        return [
            f"Real rows look harder than the simulated ones for {', '.join(self.harder)}: the gap certified is that of "
            "easier data.  Use more draws, refined proposals or annealing there (log_marginal_ais)."
        ]


def certify(
    recipe: Recipe,
    batch: Batch,
    k: int = 1000,
    *,
    annealed: int = 300,
    every: bool = False,
    refine: bool = True,
    seed: int = 0,
    tell: Callable[[str], object] = lambda quantity: None,
) -> Certification:
    """A sandwich for the joint, every marginal and every conditional, and an annealed certificate (BDMC) of the joint.

    Data are simulated from the model, as many as the batch has rows, with the same modalities missing.

    Args:
        k: draws per datum of the sandwich and of the estimator on real rows.
        annealed: temperatures of BDMC; 0 for none.
        every: BDMC for all quantities, not for the joint alone.
        refine: with refined proposals, where the latents allow them.
        tell: called with the name of each step before it is done.
    """
    model, guide = recipe.model, recipe.guide
    options: dict[str, Any] = {"refine": refine and refinable(model, guide, batch), "seed": seed}
    found: dict[str, list[Certificate]] = {}
    real: dict[str, Evidence] = {}
    unavailable: dict[str, str] = {}
    for of, given in quantities(tuple(m.name for m in recipe.modalities) or batch.names):
        name = quantity(of, given)
        asked: dict[str, Any] = {"of": of, "given": given} if given else {}
        rows = batch.only(*of, *given)
        try:
            tell(name)
            found[name] = [sandwich(model, guide, rows, k, **asked, **options)]
            real[name] = log_likelihood(model, guide, rows, of, given, k, **options)
            if annealed and (every or (not unavailable and len(found) == 1)):
                tell(f"{name}, annealed")
                found[name].append(ais(model, guide, rows, annealed, **asked, **options))
        except NoLikelihood as error:
            unavailable[name] = str(error)
        except ValueError:
            if not found.get(name) or name not in real:
                raise
            # latents that cannot be annealed: the sandwich stands alone
    return Certification(found, real, unavailable)


def _trust(c: Certificate) -> list[str]:
    if c.unreliable_share is None or c.method != "sandwich":
        return ["", ""]
    return [f"{c.median_ess:.0f}", percent(c.unreliable_share)]


def _real(evidence: Evidence | None, c: Certificate) -> list[str]:
    if evidence is None or c.method != "sandwich":
        return ["", ""]
    return [f"{evidence.median_ess:.0f}", percent(evidence.unreliable_share)]


def _wrapped(lines: Sequence[str]) -> list[str]:
    return [textwrap.fill(line, WIDTH) for line in lines]
