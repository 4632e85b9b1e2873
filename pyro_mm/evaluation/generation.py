"""Posterior means and draws, cross-generation, and data simulated from a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
from pyro import poutine
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.distributions.lazy import made
from pyro_mm.evaluation.discrete import draw_enumerated, left_to_model
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import AtMean, Impute, Program, particles
from pyro_mm.weights import Site, Sites, run

__all__ = ["Posterior", "encode", "generate", "simulate"]


@dataclass(frozen=True)
class Posterior:
    """Per latent site: the posterior mean `(N, *event)` and draws `(K, N, *event)`."""

    mean: dict[str, Tensor]
    draws: dict[str, Tensor]


def encode(guide: Program, batch: Batch, k: int = 1, *, seed: int | None = None) -> Posterior:
    """The guide's posterior of every latent given what is present.

    The mean is that of the site's distribution, averaged over K draws of the latents above it: exact for a guide with
    one latent, mixtures included.  Where a distribution does not know its mean (a flow) it is the mean of the K draws.
    """
    with evaluating(guide, seed=seed):
        sites = run(particles(guide, k), batch)
    means = {n: _mean(s).squeeze(0) for n, s in sites.items()}
    return Posterior(means, {n: s.value.squeeze(1) for n, s in sites.items()})


def _mean(site: Site) -> Tensor:
    """`(1, N, *event)`."""
    try:
        return site.fn.mean.expand(site.value.shape).mean(0)
    except NotImplementedError:
        return site.value.mean(0)


def generate(
    model: Program,
    guide: Program,
    batch: Batch,
    k: int = 1,
    *,
    means: Sequence[str] = (),
    seed: int | None = None,
) -> dict[str, dist.TorchDistribution]:
    """p(x_m | z_k), z_k ~ q(z | what is present), for every modality of the model: batch shape `(k, N)`.

    Latents of hidden modalities are drawn from the model, so nothing leaks from what is hidden; those that the model
    enumerates and the guide lacks from p(c | z_k, what is present).  For samples of the prior pass a batch with nothing
    present (`Batch.missing`).

    Args:
        means: latents that take the mean of the model's conditional, rather than a draw of it, where their modality is
            hidden: how some hierarchies are published (`Recipe.means`).
    """
    with evaluating(model, guide, seed=seed):
        seen = run(particles(guide, k), batch)
        # Pyro finishes a site from the outside inwards: what the guide saw replaces the mean.
        values = {n: (s.value, s.mask) for n, s in seen.items()}
        with AtMean(means), Impute(values):
            sites = run(poutine.uncondition(particles(model, k)), batch)
        if classes := left_to_model(sites, seen):
            values |= {n: (v, None) for n, v in draw_enumerated(model, batch, seen, k, classes).items()}
            with AtMean(means), Impute(values):
                sites = run(poutine.uncondition(particles(model, k)), batch)
        names = getattr(model, "names", None) or [n for n in sites if n in batch.mask]
        return {m: _without_subset_dim(made(sites[m].fn), k, len(batch)) for m in names}


def simulate(model: Program, batch: Batch, *, seed: int | None = None) -> tuple[Batch, dict[str, Tensor]]:
    """Data drawn from the model with the batch's size and missingness, and the latents they came from `(N, *event)`.

    The latents are exact draws from the posterior given any subset of the data.
    """
    data, latents = simulated(model, batch, seed=seed)
    return data, {n: s.value for n, s in latents.items()}


def simulated(model: Program, batch: Batch, *, seed: int | None = None) -> tuple[Batch, Sites]:
    """`simulate`, with the latents' sites."""
    with evaluating(model, seed=seed, stream="data"):
        sites = run(poutine.uncondition(model), batch)
    x = {m: sites[m].value if m in sites else v for m, v in batch.x.items()}
    return Batch(x, batch.mask), {n: s for n, s in sites.items() if n not in batch.x}


def _without_subset_dim(fn: dist.TorchDistribution, k: int, n: int) -> dist.TorchDistribution:
    """A distribution of batch shape `(k, 1, n)` as one of `(k, n)`."""
    return _Squeezed(fn, k, n)


class _Squeezed(dist.TorchDistribution):
    """View of a distribution with batch shape `(k, 1, n)` as `(k, n)`."""

    arg_constraints: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, fn: dist.TorchDistribution, k: int, n: int) -> None:
        self.fn = fn.expand((k, 1, n))
        super().__init__((k, n), fn.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return self.fn.has_rsample

    @property
    def support(self) -> object:
        return self.fn.support

    def sample(self, sample_shape: object = ()) -> Tensor:
        return self._squeeze(self.fn.sample(sample_shape))

    def rsample(self, sample_shape: object = ()) -> Tensor:
        return self._squeeze(self.fn.rsample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.fn.log_prob(value.unsqueeze(-2 - self.event_dim)).squeeze(-2)

    @property
    def mean(self) -> Tensor:
        return self._squeeze(self.fn.mean)

    @property
    def mode(self) -> Tensor:
        return self._squeeze(self.fn.mode)

    @property
    def base(self) -> dist.TorchDistribution:
        """The distribution underneath, batch shape `(k, 1, n)`."""
        return self.fn

    @property
    def variance(self) -> Tensor:
        return self._squeeze(self.fn.variance)

    @property
    def probs(self) -> Tensor:
        """Of a categorical or Bernoulli observation."""
        return self._parameter("probs")

    @property
    def logits(self) -> Tensor:
        """Of a categorical or Bernoulli observation."""
        return self._parameter("logits")

    def _parameter(self, name: str) -> Tensor:
        value: Tensor = getattr(getattr(self.fn, "base_dist", self.fn), name)
        return value.squeeze(1) if value.dim() > 2 else value  # (k, 1, n, ...)

    def _squeeze(self, value: Tensor) -> Tensor:
        return value.squeeze(-2 - self.event_dim)
