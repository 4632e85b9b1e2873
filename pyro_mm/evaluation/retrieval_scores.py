"""How well do rows of a gallery fit a query?  By their posteriors over the latents that both inform.

A score is a function `(model, guide, queries, gallery, of, given) -> (Q, G)`, larger for what fits better; options are
bound by `functools.partial`.  Here the guide is shown x_B, B = `given`, of a query i and x_A, A = `of`, of a gallery
row j.  Posteriors answer "could both come from one z?", which is not the model's own log p(x_A^j | x_B^i)
(`by_likelihood`): two rows that say little of z have close posteriors whatever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributions
from torch.nn.functional import normalize

from pyro_mm.batch import Batch
from pyro_mm.evaluation.components import log_density
from pyro_mm.evaluation.frechet import fidelity
from pyro_mm.evaluation.gaussians import Gaussian, gaussian, gaussian_posteriors, one_density, shared_latents
from pyro_mm.evaluation.generation import encode
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import Sites, replay, run

__all__ = ["Score", "by_cosine", "by_kl", "by_sampled_kl", "by_wasserstein"]

CHUNK = 512  # rows of which a guide's encoders run at once
ELEMENTS = 1 << 20  # pairs of a query and a gallery row that are compared at once, times latent dimensions

Names = Sequence[str]
Score = Callable[[Program, Program, Batch, Batch, Names, Names], Tensor]
Codes = dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor]  # by what was shown and which latents, `(N, D)`
Pairwise = Callable[[Gaussian, Gaussian], Tensor]


def by_cosine(
    model: Program,
    guide: Program,
    queries: Batch,
    gallery: Batch,
    of: Names,
    given: Names,
    *,
    k: int = 30,
    seed: int = 0,
    chunk: int = CHUNK,
    kept: Codes | None = None,
) -> Tensor:
    """cos(E[z | x_B^i], E[z | x_A^j]) of the guide's posterior means, all shared latents as one vector, `(Q, G)`.

    A mean of 0 has cosine 0 with everything.  The mean is that of `encode`, over `k` draws of latents above; of a
    posterior that does not know its mean (a flow, a diffusion) it is the mean of k draws, whose noise costs ranks.

    Args:
        kept: means of earlier calls by the modalities that were shown, for all directions within one batch, whose
            rows are queries and gallery: `partial(by_cosine, kept={})`.
    """
    shown, sought = queries.only(*given), gallery.only(*of)
    kept = {} if kept is None else kept
    with evaluating(guide, seed=seed):
        names = shared_latents(guide, shown, sought)
    for what, batch in ((tuple(given), shown), (tuple(of), sought)):
        if (what, names) not in kept:
            # A stream for each: a row drawn from the same noise under both views would find itself by that alone.
            with evaluating(guide, seed=seed, stream=f"means given {', '.join(what)}"):
                kept[what, names] = normalize(_means(guide, batch, names, k, chunk), dim=-1)
    return kept[tuple(given), names] @ kept[tuple(of), names].mT


def by_kl(
    model: Program, guide: Program, queries: Batch, gallery: Batch, of: Names, given: Names, *, chunk: int = CHUNK
) -> Tensor:
    """-KL(q(z | x_B^i) || q(z | x_A^j)) in nats, in closed form, summed over the shared latents, `(Q, G)`.

    Raises:
        ValueError: a posterior is no Gaussian given the row alone.
    """
    return -_pairwise(guide, queries.only(*given), gallery.only(*of), distributions.kl_divergence, chunk)


def by_wasserstein(
    model: Program, guide: Program, queries: Batch, gallery: Batch, of: Names, given: Names, *, chunk: int = CHUNK
) -> Tensor:
    """-W_2(q(z | x_B^i), q(z | x_A^j)), in units of z, over all shared latents together, `(Q, G)`.

    W_2^2 = |m_i - m_j|^2 + tr(S_i + S_j - 2 (S_i^1/2 S_j S_i^1/2)^1/2).

    Raises:
        ValueError: a posterior is no Gaussian given the row alone.
    """
    squared = _pairwise(guide, queries.only(*given), gallery.only(*of), _squared_wasserstein, chunk)
    return -squared.clamp(min=0.0).sqrt()


def by_sampled_kl(
    model: Program,
    guide: Program,
    queries: Batch,
    gallery: Batch,
    of: Names,
    given: Names,
    *,
    k: int = 100,
    seed: int = 0,
    chunk: int = CHUNK,
) -> Tensor:
    """-1/K sum_k log q(z_k | x_B^i) / q(z_k | x_A^j), z_k ~ q(z | x_B^i), in nats, `(Q, G)`: for any posterior.

    Every gallery row is scored on the same draws, whose noise a ranking then shares.  The latents that are common to
    both views are compared, all together.

    Raises:
        ValueError: they depend on latents that are not common, so that they have no density of their own.
    """
    one_density(guide)
    shown, sought = queries.only(*given), gallery.only(*of)
    step = max(1, chunk // k)
    out = shown.mask[given[0]].new_zeros(len(shown), len(sought), dtype=torch.float64)
    with evaluating(guide, seed=seed):
        names = shared_latents(guide, shown, sought)
        for start in range(0, len(shown), step):
            block = shown[start : start + step]
            drawn = run(particles(guide, k), block)
            _require_own_density(guide, block, drawn, names)
            own = log_density({n: drawn[n] for n in names}).double()
            # Every draw of every query is a particle, and every gallery row a datum.
            values = {n: _as_particles(drawn[n].value, drawn[n].fn.event_dim) for n in names}
            width = max(1, ELEMENTS // (len(own) * len(block) * sum(v[0].numel() for v in values.values())))
            for at in range(0, len(sought), width):
                other = _log_density_at(guide, sought[at : at + width], values, names)
                difference = other.view(len(own), len(block), -1) - own.unsqueeze(-1)
                out[start : start + step, at : at + width] = difference.mean(0)
    return out


def _log_density_at(guide: Program, batch: Batch, values: dict[str, Tensor], names: Names) -> Tensor:
    """Log-density `(B, N)` of each of B values, `(B, 1, 1, *event)`, for every row."""
    b = len(next(iter(values.values())))
    spread = {n: v.expand(b, 1, len(batch), *v.shape[3:]) for n, v in values.items()}
    sites = replay(particles(guide, b), batch, spread)
    return log_density({n: sites[n] for n in names}).double().expand(b, len(batch))


def _as_particles(value: Tensor, event: int) -> Tensor:
    """`(K, 1, N, *event)` as `(K N, 1, 1, *event)`."""
    if value.dim() - event > 3:
        raise ValueError("latents in a plate nested inside the datum cannot be compared between rows")
    return value.reshape(-1, 1, 1, *value.shape[3:])


def _require_own_density(guide: Program, block: Batch, drawn: Sites, names: Names) -> None:
    """Held fixed, the common latents must keep their density while others are drawn anew."""
    if all(n in names for n in drawn):
        return
    held = {n: drawn[n].value[:1].expand(2, *drawn[n].value.shape[1:]) for n in names}
    sites = replay(particles(guide, 2), block, held)
    first, second = log_density({n: sites[n] for n in names}).expand(2, len(block))
    if not torch.equal(first, second):
        raise ValueError(
            f"latents {list(names)} depend on {[n for n in drawn if n not in names]}, which only one of the two views "
            "draws: they have no density of their own; use by_likelihood"
        )


def _means(guide: Program, batch: Batch, names: Names, k: int, chunk: int) -> Tensor:
    """Posterior means `(N, D)`, float64."""
    means = [encode(guide, rows, k).mean for rows in batch.blocks(chunk)]
    return torch.cat([torch.cat([mean[n].double().reshape(len(mean[n]), -1) for n in names], -1) for mean in means])


def _pairwise(guide: Program, shown: Batch, sought: Batch, distance: Pairwise, chunk: int) -> Tensor:
    """The sum over shared latents of a distance between all pairs of posteriors, `(Q, G)`."""
    with evaluating(guide, seed=0):
        names = shared_latents(guide, shown, sought)
        q, g = (gaussian_posteriors(guide, batch, names, chunk) for batch in (shown, sought))
    total: Tensor | float = 0.0
    for n in names:
        a, b = (q[n], g[n]) if type(q[n]) is type(g[n]) else (_full(q[n]), _full(g[n]))
        width = len(sought) * a.event_shape.numel() ** (2 if isinstance(a, distributions.MultivariateNormal) else 1)
        step = max(1, ELEMENTS // width)
        rows = torch.arange(len(shown)).split(step)
        total = total + torch.cat(
            [distance(_picked(a, slice(int(r[0]), int(r[-1]) + 1), 1), _picked(b, slice(None), 0)) for r in rows]
        )
    assert isinstance(total, Tensor)
    return total


def _picked(q: Gaussian, rows: slice, at: int) -> Gaussian:
    """Some rows as a batch of `(n, 1)` or `(1, n)`."""
    scale = q.scale_tril if isinstance(q, distributions.MultivariateNormal) else q.stddev
    return gaussian(q.mean[rows].unsqueeze(at), scale[rows].unsqueeze(at))


def _full(q: Gaussian) -> Gaussian:
    return q if isinstance(q, distributions.MultivariateNormal) else gaussian(q.mean, q.stddev.diag_embed())


def _squared_wasserstein(a: Gaussian, b: Gaussian) -> Tensor:
    apart = (a.mean - b.mean).square().sum(-1)
    if isinstance(a, distributions.MultivariateNormal) and isinstance(b, distributions.MultivariateNormal):
        traces = a.variance.sum(-1) + b.variance.sum(-1)
        return apart + traces - 2 * fidelity(a.covariance_matrix, b.covariance_matrix)
    return apart + (a.stddev - b.stddev).square().sum(-1)
