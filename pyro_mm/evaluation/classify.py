"""p(label | image): a generative model as a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mm.batch import Batch, as_names
from pyro_mm.distributions.lazy import made
from pyro_mm.evaluation.chunks import MEMORY
from pyro_mm.evaluation.effort import Effort, fit_all, proposal_of
from pyro_mm.evaluation.estimation import planned
from pyro_mm.evaluation.evidence import NoLikelihood
from pyro_mm.evaluation.marginal import Marginal, require_likelihood
from pyro_mm.evaluation.proposals import Draws, evaluating, summed
from pyro_mm.evaluation.refine import Refiner
from pyro_mm.handlers import Program

__all__ = ["classify", "classify_plug_in"]


def classify(
    model: Program,
    guide: Program,
    batch: Batch,
    of: str = "label",
    given: str | Sequence[str] = ("image",),
    k: int = 1000,
    *,
    refine: Refiner | bool = False,
    defensive: float = 0.1,
    chunk: int | None = None,
    memory: int = MEMORY,
    seed: int | None = None,
) -> Tensor:
    """p(y = c | x_B) for every class c: the model's own Bayes classifier, `(N, C)`, rows of sum 1.

    p(y | x_B) = sum_k w_k p(y | z_k) / sum_k w_k,  w_k = p(x_B, z_k) / q_mix(z_k),  q_mix = (1-a) q(z|x_B) + a p(z)
    (self-normalised importance sampling, consistent in K).  Everything but x_B is hidden, so `of` may be in the batch,
    or absent from it.  A row in which nothing of x_B is present gets the prior predictive p(y).

    Args:
        of: a modality whose likelihood has finitely many values, such as `Categorical`.
        given: the modalities B that are looked at.
        k, refine, defensive, chunk, memory, seed: as in `log_marginal`.

    Raises:
        NoLikelihood: the model defines no p(x_B, z) or no p(y | z).
        ValueError: unknown modalities, `of` among `given`, or an `of` whose values cannot be listed.
    """
    effort = Effort(k, None, refine, defensive, False, chunk, memory, seed)
    return _classified(model, guide, batch, of, given, effort, True)


def classify_plug_in(
    model: Program,
    guide: Program,
    batch: Batch,
    of: str = "label",
    given: str | Sequence[str] = ("image",),
    k: int = 1000,
    *,
    chunk: int | None = None,
    seed: int | None = None,
) -> Tensor:
    """E_{q(z|x_B)} p(y = c | z): guide and decoder as a classifier, `(N, C)`.  It is *not* p(y | x_B).

    What most papers call the coherence or accuracy of cross-generation; arguments as in `classify`.
    """
    return _classified(model, guide, batch, of, given, Effort(k, defensive=0.0, chunk=chunk, seed=seed), False)


def _classified(
    model: Program,
    guide: Program,
    batch: Batch,
    of: str,
    given: str | Sequence[str],
    effort: Effort,
    weighted: bool,
) -> Tensor:
    names = as_names(given)
    if not names or of in names:
        raise ValueError(f"classify '{of}' from at least one other modality; got given={list(names)}")
    if weighted:
        require_likelihood(model, names, of=(of,))
    known = batch.only(*names)
    quantity = Marginal(model, guide, "", effort)
    rows = []
    with evaluating(model, guide, seed=effort.seed):
        plan = planned(quantity, known, effort)
        for block in plan.blocks(known):
            proposal = proposal_of(quantity, block, effort, fit_all(quantity, block, effort, plan.units))
            total: Tensor | None = None
            for which in plan.slices(proposal.assign(effort.draws)):
                with _Classes(of) as seen:
                    draws = proposal.draw(block, which)
                require_sites(model, names, draws)
                log_p = seen.log_probs()
                # Where latents are enumerated, p(y | z, c) and the weight, or p(c | z, x_B), both depend on c.
                terms = draws.log_terms([m for m in names if m in draws.log_likelihood])
                if not weighted:
                    terms = terms - summed(terms) if terms.dim() > 2 else torch.zeros_like(terms)
                log_p = log_p.reshape(len(log_p), *[1] * (terms.dim() + 1 - log_p.dim()), *log_p.shape[1:]) + terms
                part = torch.logsumexp(log_p, tuple(range(1, log_p.dim() - 1)))
                total = part if total is None else torch.logaddexp(total, part)
            assert total is not None
            rows.append(total.T.softmax(-1))
    return torch.cat(rows)


def require_sites(model: Program, given: tuple[str, ...], draws: Draws) -> None:
    """Raise for what is given to a model that has no use for it: p(y | x_B) would silently be p(y)."""
    known = {*draws.log_likelihood, *getattr(model, "conditioned_on", ())}
    if unknown := [m for m in given if m not in known]:
        raise NoLikelihood(
            f"the model has no site {unknown}, so it defines no density given it; it has {sorted(known)}"
        )


class _Classes(Messenger):
    """Catches p(y | z) where the model reaches it, and draws masked latents from the model.

    A latent that is masked because its modality is hidden must not keep the guide's value: the guide knows nothing
    of it, and p(y | z) may depend on it.
    """

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of = of
        self.fn: Any = None

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        if msg["name"] == self.of:
            self.fn = made(msg["fn"])
        elif not msg["is_observed"] and isinstance(msg["mask"], Tensor) and "_enumerate_dim" not in msg["infer"]:
            seen = msg["mask"].reshape(msg["mask"].shape + (1,) * msg["fn"].event_dim)
            msg["value"] = torch.where(seen, msg["value"], msg["fn"].sample())

    def log_probs(self) -> Tensor:
        """log p(y = c | z_k), normalised over c: `(C, K, N)`, float64."""
        if self.fn is None:
            raise NoLikelihood(f"the model has no site '{self.of}' to classify")
        if not self.fn.has_enumerate_support:
            raise ValueError(f"the values of '{self.of}' ({type(self.fn).__name__}) cannot be listed")
        values = self.fn.enumerate_support(expand=False)
        return self.fn.log_prob(values).double().squeeze(-2).log_softmax(0)
