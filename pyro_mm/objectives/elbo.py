"""The evidence lower bound between any two programs, and divergences between guides, which are the same thing."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_mm.batch import Batch
from pyro_mm.distributions import Mixture
from pyro_mm.handlers import Given, Program, Scale, frozen, masked, particles, rows_of
from pyro_mm.objectives.algebra import Objective, Term
from pyro_mm.objectives.components import component_kl
from pyro_mm.objectives.formula import (
    beta_of,
    divergences,
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
from pyro_mm.weights import Run, Site, replay, run_pair

__all__ = ["componentwise_elbo", "componentwise_kl", "elbo", "kl", "nll"]


def elbo(
    model: Program,
    guide: Program,
    *,
    beta: float | Schedule = 1.0,
    weights: Weights | None = None,
    particles: int = 1,
    analytic_kl: bool = False,
    stl: bool = False,
    estimator: Any = None,
) -> Objective:
    """E_{q(z|x)} [sum_m lambda_m log p(x_m|z)] - beta KL(q(z|x) || p(z)), a mean over rows in nats, as a loss.

    With beta = lambda_m = 1 it is a lower bound of log p(x) (Kingma & Welling 2014, eq. 2).  By default the KL
    is sampled.

    Args:
        beta: weight of every latent's log p and log q (in both programs).
        weights: lambda_m by modality; 1 where not named.
        particles: draws of z per row.
        analytic_kl: KL in closed form at every site where torch has one and where it is valid.
        stl: score log q with constant parameters (sticking the landing, Roeder et al. 2017): same expected gradient,
            less variance near the optimum.
        estimator: a Pyro ELBO object (`TraceEnum_ELBO(...)`) to use in place of ours, for enumerated or
            non-reparameterised latents.

    Raises:
        ValueError: `weights` names what the model does not generate; and when called, for a site that makes the bound
            wrong (guide-only sites, no reparameterisation, an analytic KL that is not valid for this pair); the message
            names the site.
    """
    if estimator is not None:
        if not hasattr(estimator, "differentiable_loss"):
            raise TypeError(f"{type(estimator).__name__} has no differentiable_loss: use iwae() or dreg()")
        if particles > 1 or analytic_kl or stl:
            raise ValueError("an estimator brings its own particles and KL: pass num_particles=... to it instead")
    kind = "analytic" if analytic_kl else "sampled"
    return Objective([(1.0, Elbo(model, guide, beta, weights, particles, kind, stl, estimator))])


def componentwise_elbo(
    model: Program,
    guide: Program,
    *,
    beta: float | Schedule = 1.0,
    weights: Weights | None = None,
    particles: int = 1,
) -> Objective:
    """E_q [log p(x|z)] - beta sum_j w_j KL(q_j || p), q = sum_j w_j q_j a `Mixture` (MoPoE, Sutter et al. 2021, eq. 5).

    The KL of a mixture is at most the mean KL of its components, so this is a lower bound of `elbo`.
    """
    return Objective([(1.0, Elbo(model, guide, beta, weights, particles, "components", False, None))])


def kl(q: Program, p: Program, *, particles: int = 1, analytic: bool = True) -> Objective:
    """KL(q || p) between two guides, a mean over rows: minus the ELBO whose model is the other guide.

    In closed form where torch has one; sampled for mixtures.
    """
    return Objective([(1.0, Divergence(p, q, 1.0, {}, particles, "analytic" if analytic else "sampled", False, None))])


def componentwise_kl(q: Program, p: Program) -> Objective:
    """sum_j w_j KL(q_j || p) or sum_j w_j KL(q || p_j), whichever guide draws from a `Mixture`; a mean over rows.

    In closed form, and at least KL(q || p).  With q = sum_j w_j q_j and p = prod_j q_j^w_j, normalised, it is the
    Jensen-Shannon divergence with a geometric mean of mmJSD (Sutter et al. 2020).
    """
    return Objective([(1.0, Divergence(p, q, 1.0, {}, 1, "components", False, None))])


def nll(model: Program, guide: Program, *, weights: Weights | None = None, particles: int = 1) -> Objective:
    """-E_{q(z|x)} [sum_m lambda_m log p(x_m|z)], the reconstruction term alone."""
    return Objective([(1.0, Reconstruction(model, guide, 0.0, weights, particles, "none", False, None))])


class Elbo(Term):
    """See `elbo`."""

    label = "elbo"

    def __init__(
        self,
        model: Program,
        guide: Program,
        beta: float | Schedule,
        weights: Weights | None,
        count: int,
        kl_kind: str,
        stl: bool,
        estimator: Any,
    ) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"particles must be at least 1, got {count}")
        self.model, self.guide, self.beta = model, guide, beta
        self.likelihood_weights = known_weights(weights, model)
        self.count, self.kl_kind, self.stl = count, kl_kind, stl
        self.estimator, self.checked = estimator, False
        self.schedules = torch.nn.ModuleList(
            [w for w in (beta, *self.likelihood_weights.values()) if isinstance(w, Schedule)]
        )
        self.rows = rows_of(model, guide)

    def forward(self, batch: Batch) -> Tensor:
        rows = self.rows(batch)
        model, guide = self._weighted(self.model, rows), self._weighted(self.guide, rows)
        if self.estimator is not None:
            self._check_once(model, guide, batch)
            grad = torch.is_grad_enabled()
            with torch.enable_grad():  # some estimators refuse to give a loss without a graph
                loss = self.estimator.differentiable_loss(model, guide, batch) / len(batch)
            loss = loss if grad else loss.detach()
            self.report = {"": -loss.detach()}
            return loss
        if self.count > 1:
            model, guide = particles(model, self.count), particles(guide, self.count)
        pair = run_pair(model, guide, batch)
        if pair.model.keys() != pair.guide.keys() or len(pair.guide) > 1:  # something depends on what was drawn
            require_reparameterised(*pair.guide.values())
        scored = replay(frozen_weighted(self, rows), batch, _values(pair)) if self.stl else pair.guide
        return self._total(pair, scored, self.count * len(batch))

    def _check_once(self, model: Program, guide: Program, batch: Batch) -> None:
        """A Pyro estimator only warns of a guide-only site, which over-states the bound: `run_pair` raises."""
        if not self.checked:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                run_pair(model, guide, batch)
            self.checked = True

    def _weighted(self, program: Program, rows: Tensor | None) -> Program:
        observed = {m: value_of(w) for m, w in self.likelihood_weights.items()}
        return Scale(value_of(self.beta), observed)(masked(program, rows))

    def _total(self, pair: Run, scored: dict[str, Site], rows: int) -> Tensor:
        report: dict[str, Tensor] = {}
        loss: Any = 0.0
        kl_total: Any = 0.0
        skip = set(pair.prior_sites)
        if isinstance(self.model, Given):
            skip |= {n for n, s in pair.model.items() if s.observed and n not in self.model.shown}
        for name, site in pair.model.items():
            if name in skip:
                continue
            if site.observed:
                term = site.log_prob().sum() / rows
                report[name] = term.detach()
                loss = loss - term
            elif self.kl_kind != "none":
                kl_total = kl_total + self._site_kl(pair, scored[name], site) / rows
        if isinstance(kl_total, Tensor):
            loss = loss + kl_total
            report["kl"] = kl_total.detach()
        if not isinstance(loss, Tensor):
            raise ValueError(f"{self.formula()} has no terms: the model has no site that the guide or the data know")
        self.report = {"": -loss.detach(), **report}
        return loss

    def _site_kl(self, pair: Run, q: Site, p: Site) -> Tensor:
        """The contribution of one latent, summed over everything."""
        if self.kl_kind in ("analytic", "components"):
            # The live distribution, not `scored`: frozen, the closed form would have no gradient for the guide.
            fn = pair.guide[p.name].fn
            mixed = isinstance(fn, Mixture) or isinstance(p.fn, Mixture)
            by_parts = self.kl_kind == "components" and mixed
            value = component_kl(fn, p.fn) if by_parts else closed_kl(fn, p.fn)
            if value is not None:
                require_valid_analytic_kl(pair, p.name)
                return scale_and_mask(value, p.scale, p.mask).sum()
        require_reparameterised(q)
        return (q.log_prob() - p.log_prob()).sum()

    def formula(self) -> str:
        q, p = q_of(self.guide), prior_of(self.model, self.guide)
        likelihood = likelihood_of(self.model, self.guide, self.likelihood_weights)
        if not sites_of(self.model):  # a model of labels, without latents
            return likelihood if " + " not in likelihood else f"({likelihood})"
        plain = self.beta == 1.0 and not self.likelihood_weights and p.startswith("p(")
        if plain and self.kl_kind != "components":
            body = f"ELBO({targets_of(self.model, self.guide)}; {q})"
        else:
            divergence = f"mean_j KL({q}_j || {p})" if self.kl_kind == "components" else f"KL({q} || {p})"
            body = f"({expected(q)}[{likelihood}] - {beta_of(self.beta)}{divergence})"
        return over_subsets(body, self.guide, self.model, self.likelihood_weights)

    def latex(self) -> str:
        return tex(self.formula())


class Divergence(Elbo):
    """See `kl`."""

    label, sign = "kl", 1

    def formula(self) -> str:
        return divergences(self.guide, self.model, self.kl_kind == "components")

    def _total(self, pair: Run, scored: dict[str, Site], rows: int) -> Tensor:
        loss = super()._total(pair, scored, rows)
        self.report = {"": loss.detach()}
        return loss


class Reconstruction(Elbo):
    """See `nll`."""

    label, sign = "reconstruction", -1

    def formula(self) -> str:
        likelihood = likelihood_of(self.model, self.guide, self.likelihood_weights)
        body = f"{expected(q_of(self.guide))}[{likelihood}]"
        return over_subsets(body, self.guide, self.model, self.likelihood_weights)


def frozen_weighted(term: Elbo, rows: Tensor | None) -> Program:
    """The term's guide with constant parameters, under the same handlers, for scoring only."""
    program = term._weighted(frozen(term.guide), rows)
    return particles(program, term.count) if term.count > 1 else program


def _values(pair: Run) -> dict[str, Tensor]:
    return {n: s.value for n, s in pair.guide.items()}


def closed_kl(q: Any, p: Any) -> Tensor | None:
    """KL(q || p) over the batch shape where torch knows it."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def require_reparameterised(*sites: Site) -> None:
    """Without a pathwise gradient at a guide's site, part of the gradient would be missing without a word."""
    for q in sites:
        if not q.fn.has_rsample:
            raise ValueError(
                f"guide site '{q.name}' ({type(q.fn).__name__}) is not reparameterised: use "
                "elbo(..., estimator=TraceEnum_ELBO(...)) or another Pyro ELBO"
            )


def require_valid_analytic_kl(pair: Run, name: str) -> None:
    """A site's closed-form KL is valid when all it depends on in the model came before it in the guide.

    In a bottom-up guide it does not: z is drawn given z_m, while p(z_m | z) needs z first (95.1 for 83.8 nats in one
    experiment, with only a warning from Pyro).
    """
    guide_order = list(pair.guide)
    before = set(guide_order[: guide_order.index(name)])
    for other in pair.model:
        if other == name:
            return
        if other in pair.guide and other not in before:
            raise ValueError(
                f"analytic KL is not valid at site '{name}': the model draws '{other}' before it, the guide after it; "
                "use the sampled KL (analytic_kl=False)"
            )
