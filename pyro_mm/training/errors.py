"""What stops a run: numbers that are not finite, and parameters that nobody would train."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.objectives.algebra import Objective, Term
from pyro_mm.training.stages import Alternated
from pyro_mm.weights import run_pair

__all__ = ["NonFiniteLoss", "culprits", "keyed_terms", "refuse_global_parameters", "reports", "require_modalities"]


class NonFiniteLoss(ArithmeticError):
    """The loss, or a gradient, is NaN or infinite.  It is raised before the optimiser could spread it.

    Attributes:
        step, epoch: where it happened, counted from 1; the parameters are those after step `step - 1`.
        culprits: what is not finite: terms and modalities, data, parameters, gradients.
    """

    def __init__(self, what: str, step: int, epoch: int, stage: str, culprits: Sequence[str]) -> None:
        self.step, self.epoch, self.stage, self.culprits = step, epoch, stage, tuple(culprits)
        where = "; ".join(culprits) or "no term reports it"
        super().__init__(f"{what} at step {step} (epoch {epoch} of {stage}); not finite: {where}")


def reports(objective: nn.Module) -> dict[str, Tensor]:
    """The last call's terms as detached tensors: what `Objective.report` fetches, without fetching it."""
    pairs = keyed_terms(objective)
    return {f"{key}/{name}" if name else key: v for key, term in pairs for name, v in term.report.items()}


def keyed_terms(objective: nn.Module) -> list[tuple[str, Term]]:
    """The terms by their short names; of a loss that is no objective of ours, none."""
    if isinstance(objective, Alternated):
        turns = zip(objective.names, objective.objectives, strict=True)
        return [(f"{name}/{key}", term) for name, each in turns for key, term in keyed_terms(each)]
    if isinstance(objective, Objective):
        return list(zip(objective.keys(), objective, strict=True))
    return [(objective.label, objective)] if isinstance(objective, Term) else []


def culprits(objective: nn.Module, batch: Batch, gradients: Mapping[str, Tensor | None]) -> list[str]:
    """Everything that is not finite, in words."""
    bad = [k for k, v in reports(objective).items() if not math.isfinite(float(v))]
    found = []
    for key in bad:
        term, _, part = key.partition("/")
        if part:
            found.append(f"term '{term}', " + (f"modality '{part}'" if part in batch.names else f"its {part}"))
        elif not any(k.startswith(f"{term}/") for k in bad):
            found.append(f"term '{term}'" + _sites(objective, term, batch))
    for m, x in batch.x.items():
        seen = batch.mask[m].any(0) if batch.mask[m].dim() == 2 else batch.mask[m]
        if not _finite(x[seen]):
            found.append(f"the data of modality '{m}'")
    found += _names("parameter", {n: p.detach() for n, p in objective.named_parameters()})
    return found + _names("the gradient of", gradients)


def _sites(objective: nn.Module, key: str, batch: Batch) -> str:
    """Which sites of a term that reports only its total are not finite, by running its programs once more."""
    terms: dict[str, Any] = dict(keyed_terms(objective))
    try:
        with torch.no_grad():
            pair = run_pair(terms[key].model, terms[key].guide, batch)
        bad = [n for n, s in pair.model.items() if not _finite(s.log_prob())]
    except Exception:  # only a search for a better message: the message without it is still right
        return ""
    named = [f"modality '{n}'" if n in batch.names else f"site '{n}'" for n in bad]
    return f", {', '.join(named)}" if named else ""


def _names(what: str, tensors: Mapping[str, Tensor | None]) -> list[str]:
    bad = [n for n, t in tensors.items() if t is not None and not _finite(t)]
    return [f"{what} {n}" for n in bad[:3]] + ([f"{len(bad) - 3} more"] if len(bad) > 3 else [])


def _finite(values: Tensor) -> bool:
    return not values.is_floating_point() or bool(torch.isfinite(values).all())


def refuse_global_parameters(when: str) -> None:
    """Raise when Pyro's global parameter store holds anything: no optimiser of `fit` would ever move it."""
    names = pyro.get_param_store().keys()
    if names:
        raise ValueError(
            f"Pyro's global parameter store holds {sorted(names)[:5]}{'...' * (len(names) > 5)} {when}: fit moves only "
            "the modules' own parameters, so these would never be trained.  Use nn.Parameter in modules in place of "
            "pyro.param; for a PyroModule or an autoguide call pyro.settings.set(module_local_params=True) first; what "
            "is left over from other work goes away with pyro.clear_param_store()"
        )


def require_modalities(objective: nn.Module, batch: Batch) -> None:
    """Raise when a term's model generates, or is conditioned on, a modality that the data lack."""
    for _, term in keyed_terms(objective):
        model = getattr(term, "model", None)
        wanted = (*getattr(model, "names", ()), *getattr(model, "conditioned_on", ()))
        if lacking := [m for m in wanted if m not in batch.names]:
            raise ValueError(
                f"the model of {term.formula()} needs {list(wanted)}, but the data hold {list(batch.names)}: {lacking} "
                "would never be trained.  If it is missing in every row, say so: Batch.of(data, modalities)"
            )
