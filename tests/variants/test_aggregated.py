"""Objectives against the published formulas, row by row and in closed form, with beta, weights and missing rows.

On a linear-Gaussian model E_q log p(x | z) of a Gaussian q is known exactly, so that means of sampled losses and
gradients are compared with their expectations, in standard errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations

import pytest
import torch
from torch import Tensor

from tests.helpers.oracle import flat_gradient, z_scores
from tests.variants.exact_rows import BETA, COUNT, LAMBDA, NAMES, Row, elbo, kl, made


def subsets(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All but the empty one."""
    for r in range(1, len(names) + 1):
        yield from combinations(names, r)


def mvae(row: Row) -> Tensor:
    """sum over all 7 S of ELBO(x_S), each with the part of S that is there."""
    total = torch.zeros((), dtype=torch.float64)
    for s in subsets(NAMES):
        if set(s) & set(row.seen):
            q = row.product(s, prior=1.0)
            total = total + row.likelihood(q, *s) - BETA * kl(q)
    return total


def jmvae_kl(row: Row, alpha: float = 0.1) -> Tensor:
    q = row.posterior(row.seen)
    return elbo(row, q) - alpha * sum(kl(q, row.posterior((m,))) for m in row.seen)


def mopoe(row: Row) -> Tensor:
    return torch.stack([elbo(row, row.product(s, prior=1.0)) for s in subsets(row.seen)]).mean()


def gpoe(row: Row) -> Tensor:
    w = dict(zip(NAMES, row.recipe.guide.fuse.logits.sigmoid(), strict=True))
    t = sum(w[m] * row.expert[m][1] ** -2 for m in row.seen)
    return elbo(row, (sum(w[m] * row.expert[m][0] * row.expert[m][1] ** -2 for m in row.seen) / t, t**-0.5))


def wbvae(row: Row) -> Tensor:
    mu, s = zip(*row.present(), strict=True)
    return elbo(row, (torch.stack(mu).mean(0), torch.stack(s).mean(0)))


def mwbvae(row: Row) -> Tensor:
    found = []
    for r in range(1, len(row.seen) + 1):
        for names in combinations(row.seen, r):
            mu, s = zip(*(row.expert[m] for m in names), strict=True)
            found.append(elbo(row, (torch.stack(mu).mean(0), torch.stack(s).mean(0))))
    return torch.stack(found).mean()


def mmjsd(row: Row) -> Tensor:
    members = [*row.present(), (torch.zeros(2).double(), torch.ones(2).double())]
    t = sum(s**-2 for _, s in members) / len(members)
    f = sum(mu * s**-2 for mu, s in members) / len(members) / t, t**-0.5
    likelihood = torch.stack([row.likelihood(q, *NAMES) for q in row.present()]).mean()
    return likelihood - BETA * torch.stack([kl(q, f) for q in members]).mean()


def mvtcae(row: Row, alpha: float = 5 / 6) -> Tensor:
    q = row.product()
    towards = sum(kl(q, row.expert[m]) for m in row.seen)
    divergence = (1 - alpha) * kl(q) + alpha / COUNT * towards
    return (COUNT - alpha) / COUNT * row.likelihood(q, *NAMES) - BETA * divergence


def crmvae(row: Row) -> Tensor:
    q = row.product()
    own = sum(row.likelihood(row.expert[m], m) for m in row.seen)
    divergence = kl(q) + sum(kl(q, row.expert[m]) for m in row.seen)
    return (row.likelihood(q, *NAMES) + own) / (2 * (COUNT + 1)) - BETA / (COUNT + 1) * divergence


def codevae(row: Row, rho: float = 0.5) -> Tensor:
    fuse = row.recipe.guide.fuse
    total, shares = torch.zeros((), dtype=torch.float64), []
    groups = [g for r in range(1, COUNT + 1) for g in combinations(NAMES, r)]
    for g, pi in zip(groups, fuse.shares.logits.softmax(-1), strict=True):
        if not set(g) <= set(row.seen):
            continue
        mu, s = (torch.stack(v) for v in zip(*(row.expert[m] for m in g), strict=True))
        r = torch.full((len(g), len(g)), rho, dtype=torch.float64).fill_diagonal_(1.0)
        inverse = torch.linalg.inv(s.T[:, :, None] * r * s.T[:, None, :])
        a = inverse.sum((-2, -1))
        total = total + pi * elbo(row, ((inverse.sum(-1) * mu.T).sum(-1) / a, a**-0.5))
        shares.append(pi)
    p = torch.stack(shares) / sum(shares)
    return total / sum(shares) - 3.0 * (p * p.log()).sum()


def m2vae(row: Row) -> Tensor:
    """log p(x_S) = mean over m of [log p(x_m | the rest) + log p(the rest)], as a recursion."""

    @cache
    def bound(names: tuple[str, ...]) -> Tensor:
        if not names:
            return torch.zeros((), dtype=torch.float64)
        q, found = row.posterior(names), []
        for m in names:
            rest = tuple(n for n in names if n != m)
            found.append(row.likelihood(q, m) - BETA * kl(q, row.posterior(rest)) + bound(rest))
        return torch.stack(found).mean()

    return bound(row.seen)


def sum_pooling(row: Row) -> Tensor:
    whole, sizes = row.posterior(NAMES), []
    for r in range(COUNT + 1):
        found = []
        for s in combinations(NAMES, r):
            q = row.posterior(s)
            first = row.likelihood(q, *s) - BETA * kl(q)
            found.append(first + row.likelihood(whole, *(set(NAMES) - set(s))) - BETA * kl(whole, q))
        sizes.append(torch.stack(found).mean())
    return torch.stack(sizes).mean()


def mmvm_pairwise(row: Row) -> Tensor:
    pairs = sum(kl(q, p) for q in row.present() for p in row.present()) / len(row.seen)
    return sum(row.likelihood(row.expert[m], m) for m in row.seen) - BETA * pairs


FORMULAS: dict[str, Callable[[Row], Tensor]] = {
    f.__name__: f
    for f in (
        mvae,
        jmvae_kl,
        mopoe,
        gpoe,
        wbvae,
        mwbvae,
        mmjsd,
        mvtcae,
        crmvae,
        codevae,
        m2vae,
        sum_pooling,
        mmvm_pairwise,
    )
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient_are_those_of_the_formula(name: str, missing: bool) -> None:
    recipe, batch, _ = made(name, missing, beta=BETA, weights=LAMBDA)
    rows = [Row(recipe, batch, i) for i in range(len(batch))]
    truth = -sum(FORMULAS[name](row) for row in rows if row.seen) / len(batch)
    slope = flat_gradient(truth, recipe.objective)
    values, slopes = [], []
    torch.manual_seed(1)
    for _ in range(40):
        loss = recipe.objective(batch[torch.arange(len(batch)).repeat(30)])
        values.append(loss.detach())
        slopes.append(flat_gradient(loss, recipe.objective))
    assert z_scores(torch.stack(values), truth.detach()).abs() < 4
    assert torch.stack(values).std() / 40**0.5 < 0.03 * truth.abs()
    scores, parts = z_scores(torch.stack(slopes), slope), torch.stack(slopes)
    exact = parts.std(0) < 1e-9  # a parameter that no draw touches
    torch.testing.assert_close(parts.mean(0)[exact], slope[exact], rtol=1e-7, atol=1e-9)
    assert scores[~exact].abs().max() < 5
