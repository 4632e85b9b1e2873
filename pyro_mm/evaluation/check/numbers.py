"""Weights in numbers: training scales, support, bounds, and generation."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.distributions import independent_components
from pyro_mm.evaluation.certificate import Certificate
from pyro_mm.evaluation.check.missing import substitutes
from pyro_mm.evaluation.check.pair import Failure, Pair, Skip, copy_of, difference, first_line, with_values
from pyro_mm.evaluation.effort import Effort
from pyro_mm.evaluation.evidence import why_none
from pyro_mm.evaluation.generation import generate, simulated
from pyro_mm.evaluation.marginal import about
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.evaluation.sandwich import ends
from pyro_mm.handlers import particles
from pyro_mm.weights import log_weights, per_datum, replay, run

__all__ = ["bounds", "generation", "scales", "support"]

SIMULATED, NUMBERS = 240, 16_000_000


def scales(pair: Pair) -> str:
    """Weights round the programs, as in training, change no likelihood."""
    values = pair.latents(pair.holed)
    plain = pair.score(pair.holed, values)
    scaled = [poutine.scale(p, scale=2.5) for p in (pair.model, pair.guide)]
    other = Pair(scaled[0], scaled[1], pair.batch, pair.holed, pair.k, pair.seed).score(pair.holed, values)
    if (gap := difference(plain, other)) > pair.tolerance(plain):
        raise Failure(f"poutine.scale(2.5) round both programs moves log-weights by {gap:.3g} nats")
    with evaluating(pair.model, pair.guide, seed=pair.seed):
        sites = pair.sites(pair.holed, values)
    inside = [n for n, s in (*sites.model.items(), *sites.guide.items()) if not _is_one(s.scale)]
    left = f"; scales inside the programs, left out: {', '.join(dict.fromkeys(inside))}" if inside else ""
    return f"poutine.scale(2.5) moves log-weights by {gap:.1g}{left}"


def _is_one(scale: Any) -> bool:
    return bool((torch.as_tensor(scale) == 1.0).all())


def support(pair: Pair) -> str:
    """The guide covers the prior: its density is positive, and the weights are numbers, at prior draws."""
    empty = 0.0
    with evaluating(pair.model, pair.guide, seed=pair.seed):
        for label, view in pair.views():
            prior = run(particles(pair.model, 20), copy_of(view))
            latents = {n: s.value for n, s in prior.items() if not s.observed}
            try:
                guide = replay(particles(pair.guide, 20), copy_of(view), latents)
            except ValueError as error:
                raise Failure(f"the guide cannot score prior draws, with {label}: {first_line(error)}") from error
            for name, site in guide.items():
                if not bool(torch.isfinite(per_datum(site)).all()):
                    bad = (~torch.isfinite(per_datum(site))).double().mean().item()
                    raise Failure(f"log q of '{name}' is not finite at {bad:.0%} of prior draws, with {label}")
            for name, site in prior.items():
                logp = per_datum(site)
                if bool((torch.isnan(logp) | (logp == torch.inf)).any()):
                    raise Failure(f"log p of '{name}' is NaN or +inf at prior draws, with {label}")
                empty = max(empty, (logp == -torch.inf).double().mean().item())
    return (
        "log-weights are finite at prior draws" if not empty else f"log p is -inf at up to {empty:.0%} of prior draws"
    )


def bounds(pair: Pair) -> str:
    """More draws tighten the bound, and the ends of the sandwich do not cross, within 4 standard errors."""
    if reason := why_none(pair.model):
        raise Skip(f"the model has no likelihood: {reason}")
    sizes = (1, 10, min(pair.k, 100))
    rows = min(SIMULATED, max(len(pair.holed), NUMBERS // (sum(sizes) * max(pair.width, 1))))
    many = pair.holed[torch.arange(rows, device=pair.holed.device) % len(pair.holed)]
    with evaluating(pair.model, pair.guide, seed=pair.seed), independent_components():
        log_w = log_weights(pair.model, pair.guide, copy_of(many), sum(sizes)).double()
        certificates = {k: _certified(pair, many, k) for k in (1, sizes[-1])}
    curve = [torch.logsumexp(block, 0) - torch.tensor(float(len(block))).log() for block in log_w.split(sizes)]
    for small, large, a, b in zip(curve, curve[1:], sizes, sizes[1:], strict=False):
        _not_negative(large - small, f"the bound falls from K={a} to K={b}")
    for k, ends_k in certificates.items():
        _not_negative(ends_k.upper - ends_k.lower, f"the ends of the sandwich cross at K={k}")
    steps = ", ".join(f"{c.mean().item():.2f} (K={k})" for c, k in zip(curve, sizes, strict=True))
    gaps = ", ".join(f"{c.gap:.3g} +- {c.gap_se:.1g} (K={k})" for k, c in certificates.items())
    return f"bound {steps}; sandwich gap {gaps} nats"


def _certified(pair: Pair, many: Batch, k: int) -> Certificate:
    """Both ends on data simulated with the missingness of `many`, by the guide alone."""
    data, truth = simulated(pair.model, copy_of(many))
    found = ends(pair.model, pair.guide, data, truth, Effort(k, defensive=0.0, independent=True))
    return found.certificate(data, k, "sandwich", "", about(pair.model, data))


def _not_negative(rise: Tensor, what: str) -> None:
    if bool(torch.isnan(rise).any()):
        raise Failure(f"{what}: it is NaN for {int(torch.isnan(rise).sum())} rows")
    rise = rise[torch.isfinite(rise)]
    if len(rise) < 2:
        return
    mean, se = rise.mean().item(), rise.std().item() / sqrt(len(rise))
    if mean < -4 * se - 1e-4:
        raise Failure(f"{what}, by {-mean:.3g} +- {se:.2g} nats")


def generation(pair: Pair) -> str:
    """Every modality is generated from any view, with the data's shape, and nothing leaks from what is hidden."""
    for label, view in pair.views():
        drawn = _generated(pair, view)
        for m, value in drawn.items():
            wanted = (2, len(view), *view.x[m].shape[1:]) if m in view.x else tuple(value.shape)
            if tuple(value.shape) != wanted:
                raise Failure(f"generated '{m}' has shape {tuple(value.shape)} instead of {wanted}, from {label}")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise Failure(f"generated '{m}' is not finite, from {label}")
        _, x = next(substitutes(view))
        again = _generated(pair, with_values(view, x))
        for m, value in drawn.items():
            if (gap := difference(value.double(), again[m].double())) > 0:
                raise Failure(f"generated '{m}' changes by up to {gap:.3g} with the hidden values, from {label}")
    return f"generates {', '.join(drawn)} from every view"


def _generated(pair: Pair, view: Batch) -> Mapping[str, Tensor]:
    with evaluating(pair.model, pair.guide, seed=pair.seed):
        return {m: fn.sample() for m, fn in generate(pair.model, pair.guide, copy_of(view), 2).items()}
