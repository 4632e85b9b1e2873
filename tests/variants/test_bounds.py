"""Which objectives are bounds on log p(X), and of those that are none one case each in which they exceed it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from pyro_mm import likelihoods, variants
from pyro_mm.batch import Batch
from pyro_mm.modality import Modality
from pyro_mm.networks import Linear
from pyro_mm.recipe import Recipe
from pyro_mm.variants.m2vae import nested_bound
from pyro_mm.variants.sum_pooling import masked_bound
from tests.helpers.oracle import LG, z_scores
from tests.variants.exact_rows import made


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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("codevae", {"steps": 50, "confidence": 3.0}),
        ("mmjsd", {"sizes": {"a": 3}, "noise": 2.0, "dim": 1}),
    ],
)
def test_what_is_no_bound_exceeds_the_log_likelihood(name: str, options: dict[str, Any]) -> None:
    """Its guide trained to maximise the objective of a fixed model; mmJSD's where the one expert is near the prior."""
    value, exact = fitted(name, **options)
    assert value > exact + 0.05


def two(name: str, weight: list[float], **options: Any) -> Recipe:
    """Of modalities a and b, x_m ~ N(weight . latents, 1)."""
    torch.manual_seed(0)
    modalities = [Modality(m, (1,), likelihoods.Normal(1.0), Linear()) for m in ("a", "b")]
    recipe: Recipe = getattr(variants, name)(modalities, 1, **options)
    for decoder in recipe.model.decoders.values():
        put(decoder, weight, [0.0])
    return recipe


def put(network: nn.Module, weight: list[float], bias: list[float]) -> None:
    (layer,) = [part for part in network.modules() if isinstance(part, nn.Linear)]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight).expand_as(layer.weight))
        layer.bias.copy_(torch.tensor(bias))


def softplus_inverse(scale: float) -> float:
    return math.log(math.expm1(scale))


def mean_of(recipe: Recipe, batch: Batch) -> tuple[float, float]:
    """What the objective maximises, with its standard error."""
    with torch.no_grad():
        found = -torch.stack([recipe.objective(batch) for _ in range(50)])
    return found.mean().item(), found.std().item() / 50**0.5


CRMVAE = {"a": (3.15, 1.85), "b": (-3.15, 1.85)}
MVTCAE = {"a": (4.375, 0.5), "b": (4.375, 0.5)}


@pytest.mark.parametrize(
    ("name", "row", "experts", "factor", "value", "exact"),
    [
        ("crmvae", (5.0, -5.0), CRMVAE, 3.0, -21.8, -27.39),
        ("mvtcae", (5.0, 5.0), MVTCAE, 2 / (2 - 5 / 6), -5.4, -10.72),
    ],
)
def test_beyond_their_scale_too(
    name: str, row: tuple[float, float], experts: Any, factor: float, value: float, exact: float
) -> None:
    """One latent, x_m ~ N(z, 1): M + 1 times CRMVAE's objective where modalities disagree, since each expert has its
    own to reconstruct; MVTCAE's over (M - alpha)/M where they agree, far from the prior.  Experts (loc, scale) are the
    best there are.
    """
    recipe = two(name, [1.0])
    for m, (loc, scale) in experts.items():
        put(recipe.guide.encoders[m], [0.0], [loc, softplus_inverse(scale)])
    x = torch.tensor(row)
    assert MultivariateNormal(torch.zeros(2), torch.eye(2) + 1).log_prob(x).item() == pytest.approx(exact, abs=0.01)
    found, se = mean_of(recipe, Batch({"a": x[:1].expand(2000, 1), "b": x[1:].expand(2000, 1)}))
    assert factor * found == pytest.approx(value, abs=0.1 + 4 * factor * se)
    assert factor * (found - 4 * se) > exact + 4


@pytest.mark.parametrize(("name", "k"), [("mmvaeplus", 1), ("mmvaeplus", 5), ("cmvae", 1)])
def test_auxiliary_priors_are_no_priors_of_the_model(name: str, k: int) -> None:
    """x_m ~ N(10 w_m, 1), w_m ~ Laplace(0, 1), z in none of it: log p(X) = sum_m log p(x_m), by quadrature.

    At x = 0 a narrow r_n is where x_n is likely, and E_{r_n} log p(x_n|w~_n) exceeds log p(x_n).  With r_n = p(w_n) the
    objective stays below.
    """
    recipe = two(name, [0.0, 10.0, 0.0], private=2, k=k)
    unit = softplus_inverse(1.0)
    for m in ("a", "b"):
        put(recipe.guide.shared.encoders[m], [0.0], [0.0, 0.0 if name == "mmvaeplus" else unit])  # q(z|x_m) = p(z)
        put(recipe.guide.private[m], [0.0], [0.0, 0.0, -1.5, 1.5])  # scales 0.1 and 1.9
    if name == "cmvae":
        torch.nn.init.zeros_(recipe.model.prior.loc)
    batch = Batch({m: torch.zeros(2000, 1) for m in ("a", "b")})
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    log_joint = dist.Laplace(0.0, 1.0).log_prob(grid) + dist.Normal(0.0, 1.0).log_prob(10 * grid)
    exact = 2 * (torch.logsumexp(log_joint, 0) + (grid[1] - grid[0]).log()).item()
    below, _ = mean_of(recipe, batch)  # r_n starts as p(w_n)
    for program in recipe.objective.terms[0].models.values():
        for r in program.priors.values():
            with torch.no_grad():
                r.raw.copy_(torch.tensor([-2.5, 2.5]))
    found, se = mean_of(recipe, batch)
    assert below < exact < found - 4 * se - 1


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


@pytest.mark.parametrize("k", [1, 3])
def test_random_masks_give_the_mean_over_all_of_them(k: int) -> None:
    """Sum pooling by k subsets at a step: its mean is the objective, with rows that lack something."""
    torch.manual_seed(0)
    modalities = [Modality(m, (2,), likelihoods.Normal(), Linear()) for m in "abcd"]
    recipe = variants.sum_pooling(modalities, dim=2, width=8)
    sampled = masked_bound(recipe.model, recipe.guide, tuple("abcd"), 0.7, {"a": 2.0}, k)
    every = masked_bound(recipe.model, recipe.guide, tuple("abcd"), 0.7, {"a": 2.0})
    gaps = {m: torch.rand(40) < 0.7 for m in "abcd"}
    batch = Batch({m: 2 * torch.randn(40, 2) for m in "abcd"}, gaps)
    with torch.no_grad():
        few, many = torch.stack([sampled(batch) for _ in range(1500)]), torch.stack([every(batch) for _ in range(300)])
    error = (few.var() / len(few) + many.var() / len(many)).sqrt()
    assert (few.mean() - many.mean()).abs() < 4 * error < 0.02 * many.mean().abs()
    assert few.std() > 2 * many.std()  # which subsets are drawn does matter here
