"""Importance-weighted bounds over K draws, and their doubly reparameterised gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import log
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.distributions import independent_components
from pyro_mm.handlers import Program, frozen, given, masked, particles, rows_of
from pyro_mm.objectives.algebra import Objective, Term
from pyro_mm.objectives.elbo import require_reparameterised
from pyro_mm.objectives.formula import (
    beta_of,
    expected,
    likelihood_of,
    over_subsets,
    prior_of,
    q_of,
    sites_of,
    targets_of,
    tex,
)
from pyro_mm.objectives.scaling import Weights, known_weights
from pyro_mm.objectives.schedules import Schedule, value_of
from pyro_mm.weights import (
    Run,
    Site,
    check_sites,
    replay_where_seen,
    require_densities,
    run,
    run_pair,
    total_log_weight,
)

__all__ = ["dreg", "iwae", "looser"]


def iwae(
    model: Program, guide: Program, k: int, *, beta: float | Schedule = 1.0, weights: Weights | None = None
) -> Objective:
    """E log 1/K sum_k p(x, z_k) / q(z_k | x), z_k ~ q (Burda et al. 2016, eq. 8), a mean over rows in nats, as a loss.

    Mixture components are drawn systematically over the K draws, so that every expert is visited equally often
    (MMVAE's stratified bound, Shi et al. 2019, with K = M k).  `beta` and `weights` scale as in `elbo`; with them it
    is no bound.
    """
    return Objective([(1.0, Iwae(model, guide, k, beta, weights))])


def dreg(
    model: Program, guide: Program, k: int, *, beta: float | Schedule = 1.0, weights: Weights | None = None
) -> Objective:
    """The `iwae` bound with doubly reparameterised gradients (Tucker et al. 2019, eq. 8): the value is the same.

    Guide parameters see squared normalised weights, model parameters plain ones.  Mixture components are drawn
    independently: with systematic draws the gradient is biased by about 4 %.  The guide runs twice per step, so it must
    not contain drop-out or batch normalisation in training mode.
    """
    return Objective([(1.0, Dreg(model, guide, k, beta, weights))])


def looser(
    model: Program,
    guide: Program,
    k: int,
    names: Sequence[str] | None = None,
    *,
    models: Mapping[str, Program] | None = None,
    doubly: bool = False,
    beta: float | Schedule = 1.0,
    weights: Weights | None = None,
) -> Objective:
    """1/|S| sum_{m in S} E_{z_k ~ q_m} log 1/K sum_k p(x, z_k) / q(z_k | x), MMVAE's looser bound (Shi et al. 2019,
    appendix A).

    Every expert q_m = `given(guide, m)` has K draws of its own, scored by the whole guide's density; S are the
    modalities present in a row.  `doubly` takes DReG gradients, as the paper does: less noise, but the identity behind
    them asks for draws from the density that scores them, so with several experts and K > 1 they are not this bound's
    gradients (in one experiment 10 % too long at K=10, twice too long at K=30).

    Private latents of the other modalities are hidden from expert m, so they are drawn from the model; `models` may
    give another model for every expert, in which they have other (auxiliary) priors (MMVAE+, Palumbo et al. 2023).
    """
    return Objective([(1.0, Looser(model, guide, k, beta, weights, names, doubly, models))])


class Iwae(Term):
    """See `iwae`."""

    label = "iwae"
    doubly = False

    def __init__(self, model: Program, guide: Program, k: int, beta: float | Schedule, weights: Weights | None) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.model, self.guide, self.k, self.beta = model, guide, k, beta
        self.likelihood_weights = known_weights(weights, model)
        self.schedules = torch.nn.ModuleList(
            [w for w in (beta, *self.likelihood_weights.values()) if isinstance(w, Schedule)]
        )
        self.rows = rows_of(model, guide)

    def _wrapped(self, program: Program, rows: Tensor | None) -> Program:
        from pyro_mm.handlers import Scale

        observed = {m: value_of(w) for m, w in self.likelihood_weights.items()}
        return particles(Scale(value_of(self.beta), observed)(masked(program, rows)), self.k)

    def forward(self, batch: Batch) -> Tensor:
        rows = self.rows(batch)
        pair = run_pair(self._wrapped(self.model, rows), self._wrapped(self.guide, rows), batch)
        return self._loss(log_mean_exp(weighed(pair, pair.guide.values())), batch)

    def _loss(self, bound: Tensor, batch: Batch) -> Tensor:
        """From the bound per datum, `(N,)` or `(S, N)`."""
        value = bound.sum() / len(batch)
        self.report = {"": value.detach()}
        return -value

    def formula(self) -> str:
        q, p = q_of(self.guide), prior_of(self.model, self.guide)
        if self._plain:
            body = f"IWAE_{self.k}({targets_of(self.model, self.guide)}; {q})"
        else:
            body = f"{expected(q)} {self._mean_of_weights(f'{q} / {p}')}"
        return over_subsets(body, self.guide, self.model, self.likelihood_weights)

    @property
    def _plain(self) -> bool:
        """Is it the bound of the model as it stands?"""
        standing = prior_of(self.model, self.guide).startswith("p(")
        return self.beta == 1.0 and not self.likelihood_weights and standing

    def _mean_of_weights(self, ratio: str) -> str:
        """log 1/K sum_k of the scaled weights, `ratio` being q(z | x) / p(z)."""
        likelihood = likelihood_of(self.model, self.guide, self.likelihood_weights)
        return f"log mean_{self.k} exp[{likelihood} - {beta_of(self.beta)}log({ratio})]"

    def latex(self) -> str:
        return tex(self.formula())


class Dreg(Iwae):
    """See `dreg`."""

    label = "dreg"

    def forward(self, batch: Batch) -> Tensor:
        rows = self.rows(batch)
        model = self._wrapped(self.model, rows)
        guide, score = self._wrapped(self.guide, rows), self._wrapped(frozen(self.guide), rows)
        with independent_components():
            bound = doubly_reparameterised(model, guide, score, batch, value_of(self.beta))
        return self._loss(bound, batch)

    def formula(self) -> str:
        return f"{super().formula()} [DReG]"


class Looser(Iwae):
    """See `looser`."""

    label = "looser"

    def __init__(
        self,
        model: Program,
        guide: Program,
        k: int,
        beta: float | Schedule,
        weights: Weights | None,
        names: Sequence[str] | None,
        doubly: bool,
        models: Mapping[str, Program] | None = None,
    ) -> None:
        super().__init__(model, guide, k, beta, weights)
        self.names: tuple[str, ...] = tuple(names or getattr(guide, "names", None) or ())
        if not self.names:
            raise ValueError("looser() needs the names of the guide's experts")
        self.doubly = doubly
        self.models = dict(models or {})
        self.inside = torch.nn.ModuleList([p for p in self.models.values() if isinstance(p, torch.nn.Module)])

    def forward(self, batch: Batch) -> Tensor:
        names = [m for m in self.names if m in batch.mask]
        count = torch.stack([batch.mask[m] for m in names]).sum(0).clamp(min=1)
        scored = self.rows(batch)
        total: Any = 0.0
        for m in names:
            rows = batch.mask[m] if scored is None else batch.mask[m] & scored
            model = self._wrapped(self.models.get(m, self.model), rows)
            expert = self._wrapped(given(self.guide, m), rows)
            if self.doubly:
                with independent_components():
                    score = self._wrapped(frozen(self.guide), rows)
                    bound = doubly_reparameterised(model, expert, score, batch, value_of(self.beta))
                total = total + bound / count
                continue
            drawn = run(expert, batch)
            scored_by = self._wrapped(self.guide, rows)
            pair = Run(replay_where_seen(model, batch, drawn), replay_where_seen(scored_by, batch, drawn))
            check_sites(pair.model, pair.guide)
            total = total + log_mean_exp(weighed(pair, drawn.values())) / count
        return self._loss(total, batch)

    def formula(self) -> str:
        q, p = q_of(self.guide), prior_of(self.model, self.guide)
        _, *private = sites_of(self.guide)
        w = private[0].partition("_")[0] + "_" if private else ""
        if self._plain:
            body = f"looser IWAE_{self.k}({targets_of(self.model)}; {q})"
        elif private:  # z by the whole guide's density, w_m by that of the expert that drew it
            seen = ", ".join(getattr(self.guide, "names", ()))
            ratio = f"q(z | {seen}) q({w}m | x_m) / p(z, {w}m)"
            body = f"mean_m E_q(z, {w}m | x_m) {self._mean_of_weights(ratio)}"
        else:
            body = f"mean_m E_q(z | x_m) {self._mean_of_weights(f'{q} / {p}')}"
        others = f", {w}n ~ {'r_n' if self.models else 'p'}({w}n), n != m" if private else ""
        return body + others + " [DReG]" * self.doubly


def doubly_reparameterised(
    model: Program, guide: Program, score: Program, batch: Batch, beta: float | Tensor = 1.0
) -> Tensor:
    """log-mean-exp of the weights per datum, whose gradient is DReG's.

    `score` has the guide's density with constant parameters.  The particles pass through a gate on their way to
    log p and log q: forward it is the identity, backward it multiplies by the normalised weights w, once per path
    however deep the guide's hierarchy is.  With log q weighted by beta the factor is 1 - beta + beta w.
    """
    gate = _Weights()
    drawn = run(guide, batch)
    values = {
        n: _Gate.apply(s.value, gate, s.fn.event_dim) if s.value.requires_grad else s.value for n, s in drawn.items()
    }
    gated = {n: replace(s, value=values[n]) for n, s in drawn.items()}
    pair = Run(replay_where_seen(model, batch, gated), replay_where_seen(score, batch, gated))
    check_sites(pair.model, pair.guide)
    log_w = weighed(pair, drawn.values())
    normalised = log_w.detach().softmax(0)
    gate.factor = 1 - beta + beta * normalised
    bound = log_mean_exp(log_w.detach())
    surrogate = (normalised * log_w).sum(0)
    return surrogate - surrogate.detach() + bound


class _Weights:
    """Set after the forward pass, read in the backward pass."""

    factor: Tensor


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gate: _Weights, event_dim: int) -> Tensor:
        ctx.gate, ctx.event_dim = gate, event_dim
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        w = ctx.gate.factor
        w = w.unsqueeze(1) if w.dim() == 2 else w
        return grad * w.reshape(*w.shape, *[1] * ctx.event_dim), None, None


def weighed(pair: Run, drawn: Iterable[Site]) -> Tensor:
    """Scaled log-weights `(K, N)` of sites that were `drawn` with gradients, and whose densities are densities."""
    require_reparameterised(*drawn)
    log_w = total_log_weight(pair, scaled=True)
    require_densities(pair, len(log_w))
    return log_w


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log 1/K sum_k exp(log_w_k) over the first dimension."""
    return torch.logsumexp(log_w, 0) - log(len(log_w))
