"""Objectives of the aggregated-inference pages against the published formulas, row by row and in closed form.

On a linear-Gaussian model E_q log p(x | z) of a Gaussian q is known exactly, so that means of sampled losses and
gradients are compared with their expectations, in standard errors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import NoLikelihood, generate, log_marginal
from pyro_mm.recipe import Recipe
from pyro_mm.variants.m2vae import nested_bound
from pyro_mm.variants.sum_pooling import masked_bound
from tests.helpers.oracle import LG, flat_gradient, z_scores

BETA, LAMBDA = 0.7, {"a": 2.0}
Moments = tuple[Tensor, Tensor]
NAMES = ("a", "b", "c")
COUNT = len(NAMES)
STANDARD = (torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))


class Row:
    """One row's experts and likelihoods, and what can be computed from them exactly."""

    def __init__(self, recipe: Recipe, batch: Batch, i: int) -> None:
        self.recipe, self.x = recipe, {m: batch.x[m][i] for m in NAMES}
        self.seen = tuple(m for m in NAMES if bool(batch.mask[m][i]))
        self.batch = batch[i : i + 1]
        encoders = getattr(recipe.guide, "encoders", {})
        q = {m: encoders[m](self.x[m]).base_dist for m in encoders}
        self.expert = {m: (q[m].loc, q[m].scale) for m in q}

    def likelihood(self, q: Moments, *names: str) -> Tensor:
        """E_q sum_m lambda_m log p(x_m | z), what is missing left out."""
        total = torch.zeros((), dtype=torch.float64)
        for m in set(names) & set(self.seen):
            decoder = self.recipe.model.decoders[m]
            w, s = decoder.net[0].weight, decoder.modality.likelihood.scale
            at_mean = decoder(q[0]).log_prob(self.x[m])
            total = total + LAMBDA.get(m, 1.0) * (at_mean - 0.5 * ((w * q[1]) ** 2).sum() / s**2)
        return total

    def posterior(self, names: tuple[str, ...]) -> Moments:
        """The guide's own posterior of a subset, the prior for the empty one."""
        if not set(names) & set(self.seen):
            return torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        q = self.recipe.guide.posterior(self.batch.only(*names)).base_dist
        return q.loc[0], q.scale[0]

    def product(self) -> Moments:
        """Of the experts, without the prior."""
        t = sum(s**-2 for _, s in self.present())
        return sum(mu * s**-2 for mu, s in self.present()) / t, t**-0.5

    def present(self) -> list[Moments]:
        return [self.expert[m] for m in self.seen]


def kl(q: Moments, p: Moments = STANDARD) -> Tensor:
    return kl_divergence(Normal(*q), Normal(*p)).sum()


def elbo(row: Row, q: Moments) -> Tensor:
    return row.likelihood(q, *NAMES) - BETA * kl(q)


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
    f.__name__: f for f in (gpoe, wbvae, mwbvae, mmjsd, mvtcae, crmvae, codevae, m2vae, sum_pooling, mmvm_pairwise)
}
OPTIONS: dict[str, dict[str, Any]] = {
    "codevae": {"confidence": 3.0},
    "m2vae": {"width": 8},
    "sum_pooling": {"width": 8},
}


def made(
    name: str,
    missing: bool,
    dim: int = 2,
    sizes: dict[str, int] | None = None,
    noise: float | None = None,
    **options: Any,
) -> tuple[Recipe, Batch, LG]:
    """A recipe whose model is exact and whose other parameters are drawn, in float64."""
    torch.manual_seed(0)
    lg = LG(sizes or {"a": 3, "b": 2, "c": 2}, latent=dim)
    lg.s = lg.s if noise is None else dict.fromkeys(lg.s, noise)
    recipe = getattr(variants, name)(lg.modalities(), dim, **(OPTIONS.get(name, {}) | options))
    for module in (*recipe.modules.values(), recipe.objective):
        module.double()
    for m, decoder in lg.model().decoders.items():
        recipe.model.decoders[m].load_state_dict(decoder.state_dict())
    if name in ("gpoe", "codevae"):
        rule = recipe.guide.fuse
        own = rule.logits if name == "gpoe" else rule.shares.logits
        with torch.no_grad():
            own.add_(0.5 * torch.randn_like(own))
    return recipe, lg.data(10, missing=missing), lg


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


@pytest.mark.parametrize("missing", [False, True])
def test_mmvm_has_the_divergence_to_the_mixture_of_the_posteriors(missing: bool) -> None:
    """KL(q_m || h), h = mean of the present posteriors, by quadrature over one latent each."""
    recipe, batch, _ = made("mmvm", missing, dim=1, beta=BETA, weights=LAMBDA)
    grid = torch.linspace(-25, 25, 20_001, dtype=torch.float64)
    truth = torch.zeros((), dtype=torch.float64)
    for i in range(len(batch)):
        row = Row(recipe, batch, i)
        logs = {m: Normal(*row.expert[m]).log_prob(grid) for m in row.seen}
        for m, q in logs.items():
            h = torch.stack(list(logs.values())).logsumexp(0) - torch.tensor(float(len(logs))).log()
            divergence = (q.exp() * (q - h)).sum() * (grid[1] - grid[0])
            truth = truth - (row.likelihood(row.expert[m], m) - BETA * divergence) / len(batch)
    torch.manual_seed(1)
    values = torch.stack([recipe.objective(batch[torch.arange(len(batch)).repeat(100)]).detach() for _ in range(40)])
    assert z_scores(values, truth.detach()).abs() < 4
    assert values.std() / 40**0.5 < 0.01 * truth.abs()


def fitted(name: str, rows: int = 100, steps: int = 120, **options: Any) -> tuple[float, float]:
    """Mean of an objective, its guide trained by it on an exact model, and mean exact log p(X) of the rows, in nats."""
    recipe, _, lg = made(name, False, **options)
    recipe.model.requires_grad_(False)
    data = lg.data(rows, seed=5)
    optimiser = torch.optim.Adam([p for p in recipe.objective.parameters() if p.requires_grad], 5e-2)
    repeated = data[torch.arange(rows).repeat(max(1, 60 // rows))]
    for _ in range(steps):
        optimiser.zero_grad()
        recipe.objective(repeated).backward()
        optimiser.step()
    with torch.no_grad():
        value = -torch.stack([recipe.objective(repeated) for _ in range(40)]).mean()
    return value.item(), lg.log_marginal(data).mean().item()


@pytest.mark.parametrize(
    ("name", "options"), [("gpoe", {}), ("wbvae", {}), ("mvtcae", {"alpha": 0.0}), ("codevae", {"confidence": 0.0})]
)
def test_a_bound_stays_below_the_log_likelihood(name: str, options: dict[str, Any]) -> None:
    value, exact = fitted(name, **options)
    assert exact - 1.5 < value < exact


ALONE: dict[str, Any] = {"sizes": {"a": 3}, "noise": 2.0, "dim": 1}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mvtcae", {"steps": 50}),
        ("crmvae", {"steps": 50}),
        ("codevae", {"steps": 50, "confidence": 3.0}),
        ("mmjsd", ALONE),
    ],
)
def test_what_is_no_bound_exceeds_the_log_likelihood(name: str, options: dict[str, Any]) -> None:
    """Its guide trained to maximise the objective of a fixed model; mmJSD's where the one expert is near the prior."""
    value, exact = fitted(name, **options)
    assert value > exact + 0.05


class Table(nn.Module):
    """z ~ N(loc_S, scale_S), learnt numbers for every subset S of two modalities, N(0, 1) for none."""

    def __init__(self) -> None:
        super().__init__()
        self.names = ("a", "b")
        self.loc = nn.Parameter(torch.zeros(3, 1, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros(3, 1, dtype=torch.float64))

    def forward(self, batch: Batch) -> None:
        index = batch.mask["a"].long() + 2 * batch.mask["b"].long()
        zero = torch.zeros(1, 1, dtype=torch.float64)
        loc, log_scale = torch.cat([zero, self.loc])[index], torch.cat([zero, self.log_scale])[index]
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", pyro.distributions.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.parametrize("bound", [masked_bound, nested_bound])
def test_nested_divergences_exceed_the_log_likelihood_of_a_row(bound: Callable[..., Any]) -> None:
    """At the exact posteriors they give log p(a, b); with others they give more than that.

    q(z | a) stands for p(z | a) as a prior of b: closer to q(z | a, b) than it, it makes b look likelier than it is.
    """
    lg = LG({"a": 1, "b": 1}, latent=1)
    lg.w = {m: torch.ones(1, 1, dtype=torch.float64) for m in lg.w}
    lg.b = {m: torch.zeros(1, dtype=torch.float64) for m in lg.b}
    model, guide = lg.model().requires_grad_(False), Table()
    row = Batch({"a": torch.full((50, 1), 1.5).double(), "b": torch.full((50, 1), -1.0).double()})
    exact = lg.log_marginal(row[:1]).item()
    with torch.no_grad():
        for i, names in enumerate((["a"], ["b"], ["a", "b"])):
            mean, covariance = lg.posterior(row[:1].only(*names))
            guide.loc[i], guide.log_scale[i] = mean[0], 0.5 * covariance[0, 0].log()
        objective = bound(model, guide, ("a", "b"))
        at_truth = -torch.stack([objective(row) for _ in range(60)])
        assert z_scores(at_truth, exact).abs() < 4 and at_truth.std() / 60**0.5 < 0.05
    optimiser = torch.optim.Adam(guide.parameters(), 3e-2)
    for _ in range(150):
        optimiser.zero_grad()
        objective(row).backward()
        optimiser.step()
    with torch.no_grad():
        assert -torch.stack([objective(row) for _ in range(60)]).mean() > exact + 0.2


def test_mmvm_gives_a_missing_modality_the_latent_of_another_one() -> None:
    """Present: its own posterior.  Missing: the mean of those that are present.  Nothing present: N(0, I)."""
    recipe, batch, _ = made("mmvm", True)
    rows = [Row(recipe, batch, i) for i in range(len(batch))]
    z = torch.randn(len(batch), 2, dtype=torch.float64)
    for m, q in recipe.guide.posteriors(batch).items():
        found = q.log_prob(z)
        for i, row in enumerate(rows):
            experts = [row.expert[m]] if m in row.seen else row.present() or [STANDARD]
            each = torch.stack([Normal(*e).log_prob(z[i]).sum() for e in experts])
            torch.testing.assert_close(found[i], each.logsumexp(0) - torch.tensor(float(len(experts))).log())
    with pytest.raises(NoLikelihood, match="mixture of its own posteriors"):
        log_marginal(recipe.model, recipe.guide, batch, 10)
    # What is generated of c from a alone is decoded from q_a's draws.
    made_of = generate(recipe.model, recipe.guide, batch.only("a"), 4000, seed=0)["c"].mean.mean(0)
    decoder = recipe.model.decoders["c"].net[0]
    for row, found in zip(rows, made_of, strict=True):
        if "a" in row.seen:
            torch.testing.assert_close(found, decoder(row.expert["a"][0]), atol=0.15, rtol=0)


def test_the_pairwise_divergence_of_mmvm_has_no_limit_where_the_papers_does() -> None:
    """KL(q_m || h) is at most log M; posteriors far apart make the mean pairwise KL as large as one likes."""
    found = []
    for name in ("mmvm", "mmvm_pairwise"):
        recipe, batch, _ = made(name, False)
        with torch.no_grad():
            for i, encoder in enumerate(recipe.guide.encoders.values()):
                encoder.net[1].bias[:2] = 30.0 * i
        found.append(recipe.objective.terms[1](batch).item())
    assert found[0] <= COUNT * torch.tensor(float(COUNT)).log() + 0.05
    assert found[1] > 100
