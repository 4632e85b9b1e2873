"""What is missing or hidden is never looked at, and a row with nothing is the prior."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.check.pair import Failure, Pair, Skip, Values, copy_of, difference, first_line, with_values
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.weights import Run, replay, run, total_log_weight

__all__ = ["masked_gradients", "masked_values", "nothing_present", "substitutes"]


def masked_values(pair: Pair) -> str:
    """Other rows' values, extremes and NaN under False masks change no bit of the log-weights and of the draws."""
    tried = 0
    for label, view in _partial(pair):
        values = pair.latents(view)
        before, draws = pair.score(view, values), _draws(pair, view)
        for kind, x in substitutes(view):
            try:
                with pyro.validation_enabled(False):
                    other = with_values(view, x)
                    after, drawn = pair.score(other, values), _draws(pair, other)
            except Exception as error:
                raise Failure(f"{kind} under the masks, with {label}: {first_line(error)}") from error
            _same(before, after, f"the log-weights, with {label}", kind)
            for name, draw in draws.items():
                _same(draw, drawn[name], f"the guide's draws of '{name}', with {label}", kind)
            tried += 1
    if not tried:
        raise Skip("nothing is ever missing in this batch")
    return f"bit-equal in {tried} trials (other rows' values, extremes, NaN)"


def _partial(pair: Pair) -> Iterator[tuple[str, Batch]]:
    """Views in which something is hidden, by a mask or by `only`."""
    yield "missing rows", pair.holed
    for m in pair.holed.names:
        yield f"only {{{m}}} shown", pair.holed.only(m)


def substitutes(view: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The batch's tensors with other numbers where the mask is False."""
    yield "other rows' values", _under(view, {m: v.roll(1, 0).flip(0) for m, v in view.x.items()})
    for name, number in (("the smallest values", -1e6), ("the largest values", 1e6)):
        extreme = {m: _extreme(v, number) for m, v in view.x.items()}
        yield name, _under(view, extreme)
    floats = {m: torch.full_like(v, torch.nan) for m, v in view.x.items() if v.is_floating_point()}
    if floats:
        yield "NaN", _under(view, {m: floats.get(m, v) for m, v in view.x.items()})


def _extreme(v: Tensor, number: float) -> Tensor:
    """Numbers far outside; of whole numbers (labels) the least or largest that occurs, since more need not exist."""
    if v.is_floating_point():
        return torch.full_like(v, number)
    return (v.amin() if number < 0 else v.amax()).expand_as(v)


def _under(view: Batch, other: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for m, v in view.x.items():
        mask = view.mask[m].reshape(-1, *[1] * (v.dim() - 1))
        out[m] = torch.where(mask, v, other[m])
    return out


def _draws(pair: Pair, view: Batch) -> dict[str, Tensor]:
    """The guide's draws with a fixed seed, where its sites are not masked."""
    with evaluating(pair.guide, seed=pair.seed):
        sites = run(pair.guide, copy_of(view))
    out = {}
    for name, s in sites.items():
        mask = s.mask if isinstance(s.mask, Tensor) else torch.tensor(s.mask is not False, device=s.value.device)
        out[name] = torch.where(mask.reshape(mask.shape + (1,) * s.fn.event_dim), s.value, torch.zeros_like(s.value))
    return out


def _same(a: Tensor, b: Tensor, what: str, kind: str) -> None:
    """Equal bit for bit."""
    gap = difference(a, b)
    if gap > 0:
        size = "to NaN or infinity" if gap == torch.inf else f"by up to {gap:.3g}"
        raise Failure(f"{kind} under the masks change {what}, {size}")


def masked_gradients(pair: Pair) -> str:
    """The gradient of the log-weights to values under False masks is exactly 0, and no gradient is NaN."""
    checked = 0
    for label, view in _partial(pair):
        x = {m: v.clone() for m, v in next(substitutes(view))[1].items()}
        leaves = {m: v.requires_grad_() for m, v in x.items() if v.is_floating_point()}
        if not leaves:
            raise Skip("no modality holds real numbers")
        with evaluating(pair.model, pair.guide, seed=pair.seed), torch.enable_grad():
            batch = with_values(view, x)
            guide = run(pair.guide, batch)
            model = replay(pair.model, batch, {n: s.value for n, s in guide.items()})
            total = total_log_weight(Run(model, guide)).sum()
        if not total.requires_grad:
            continue
        for m, grad in zip(leaves, torch.autograd.grad(total, list(leaves.values()), allow_unused=True), strict=True):
            hidden = None if grad is None else grad[~view.mask[m]]
            if hidden is not None and bool((hidden != 0).any()):
                size = hidden.abs().max().item()
                raise Failure(f"modality '{m}' has a gradient of {size:.3g} under its mask, with {label}")
            checked += 0 if hidden is None else hidden.numel()
    return f"exactly 0 for {checked} masked numbers"


def nothing_present(pair: Pair) -> str:
    """Without data the guide is the prior: every log-weight is 0."""
    worst = 0.0
    empty = Batch(pair.batch.x, {m: torch.zeros_like(v) for m, v in pair.batch.mask.items()})
    for label, view in (("every mask False", empty), ("everything hidden by only()", pair.batch.only())):
        values: Values = pair.latents(view)
        log_w = pair.score(view, values)
        size = difference(log_w, torch.zeros_like(log_w))
        if size > 10 * pair.tolerance(log_w) * max(1.0, _scale(pair, view, values)):
            raise Failure(f"with {label} the log-weights go up to {size:.3g} nats instead of 0")
        worst = max(worst, size)
    return f"largest log-weight {worst:.1g}"


def _scale(pair: Pair, view: Batch, values: Values) -> float:
    """The size of log p(z), whose rounding is what remains."""
    with evaluating(pair.model, pair.guide, seed=pair.seed):
        sites = pair.sites(view, values).guide
    return max((s.log_prob(False).abs().max().item() for s in sites.values()), default=1.0)
