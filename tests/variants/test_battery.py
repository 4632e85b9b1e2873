"""The battery: every published variant against exact answers, with two to four modalities and rows missing any of them.

A variant's model is set to a linear-Gaussian one whose likelihoods are known in closed form (by quadrature for the
Laplace prior of MMVAE's experiments); its guide is trained by its own objective; its likelihoods must then be right.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation import NoLikelihood, log_conditional, log_marginal, sandwich
from pyro_mm.models import Conditional
from pyro_mm.objectives import elbo, iwae
from pyro_mm.recipe import Recipe
from tests.helpers.layered import LAYERED

DIMS = {"a": 6, "b": 5, "c": 4, "d": 3}
K = 3000
OPTIONS: dict[str, dict[str, Any]] = {
    "cvae": {"width": 16},
    "jmvae": {"width": 16},
    "jmvae_zero": {"width": 16},
    "jmvae_kl": {"width": 16},
    "telbo": {"width": 16},
    "vaevae": {"width": 16},
    "jnf": {"width": 16, "hidden": (8,)},
    "set_attention": {"width": 8, "heads": 1, "layers": 1},
    "smvae": {"width": 16, "heads": 2, "layers": 1},
    "global_workspace": {"width": 16, "heads": 2, "slots": 2},
    "scan": {"vision_beta": 1},
    "mmvae_iwae": {"k": 3},
    "mmvae_dreg": {"k": 3},
    "m2vae": {"width": 16},
    "sum_pooling": {"width": 48},
}
# What separates the trained guide's ELBO from log p, in nats: a mixture of unimodal experts cannot come closer, nor can
# a guide that sees one modality, or one whose posteriors are drawn towards each other.
LARGEST_GAP = {"mmvae": 4.0, "mmvae_iwae": 6.0, "mopoe": 2.5, "mopoe_density": 2.0}
LARGEST_GAP |= {"mmvae_dreg": 12.0}  # scales of mean 1 over dimensions: here there is one
LARGEST_GAP |= {"mmjsd": 2.5}
LARGEST_GAP |= {"jmvae_zero": 2.0}  # which has never seen the zeros that stand for what is missing
LARGEST_GAP |= {"mcvae": 2.0, "bivcca": 2.0, "vcca": 5.0, "avae": 1.5, "avae_staged": 1.5}
LAPLACE = {"mmvae_dreg"}


@dataclass
class Case:
    """A trained variant, test data with missing rows, and the exact values."""

    recipe: Recipe
    oracle: LinearGaussian
    data: Batch

    def exact(self, batch: Batch) -> Tensor:
        if self.recipe.name in LAPLACE:
            return laplace_quadrature(self.oracle, batch)
        return self.oracle.log_marginal(batch)


def laplace_quadrature(oracle: LinearGaussian, batch: Batch) -> Tensor:
    """log p(x_S) under a Laplace(0, 1) prior on one latent, by the trapezoid rule on a fine grid."""
    z = torch.linspace(-25, 25, 20_001, dtype=torch.float64)
    total = (-z.abs() - torch.tensor(2.0).log()).expand(len(batch), -1).clone()
    for m, w in oracle.weights.items():
        x = batch.x[m] - oracle.offsets[m]
        s2 = oracle.scales[m] ** 2
        # log N(x; w z, s2) summed over elements, as a quadratic in z.
        quadratic = (w[:, 0] ** 2).sum() / s2
        linear = (x @ w[:, 0]) / s2
        constant = -0.5 * (x.square().sum(-1) / s2 + len(w) * torch.log(2 * torch.pi * torch.as_tensor(s2)))
        log_p = constant.unsqueeze(-1) + linear.unsqueeze(-1) * z - 0.5 * quadratic * z**2
        total = total + torch.where(batch.mask[m].unsqueeze(-1), log_p, 0.0)
    value = torch.logsumexp(total, -1) + (z[1] - z[0]).log()
    return torch.where(batch.present(), value, 0.0)


def hide(batch: Batch, share: float, seed: int) -> Batch:
    """Each modality missing at random in this share of rows; some rows lose everything."""
    noise = torch.Generator().manual_seed(seed)
    masks = {m: torch.rand(len(batch), generator=noise) >= share for m in batch.mask}
    return Batch(batch.x, masks)


def names_without(*left_out: str) -> list[str]:
    """The flat variants; the others have test_layered_battery.py."""
    return [n for n in variants.__all__ if n not in left_out and n not in LAYERED]


@cache
def case(name: str, count: int) -> Case:
    """Train the guide of a variant on a fixed exact model; done once per worker."""
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    latent = 1 if name in LAPLACE else 2
    dims = dict(list(DIMS.items())[:count])
    oracle = LinearGaussian.random(dims, latent, seed=count)
    recipe = getattr(variants, name)(oracle.modalities, latent, **OPTIONS.get(name, {}))
    for module in recipe.modules.values():
        module.double()
    if isinstance(recipe.model, Conditional):
        recipe.model.requires_grad_(False)
    else:
        exact = oracle.model()
        for m, decoder in recipe.model.decoders.items():
            decoder.load_state_dict(exact.decoders[m].state_dict())
        recipe.model.requires_grad_(False)
    trainable = [p for p in recipe.objective.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trainable, lr=2e-2)
    steps = 300
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-2, steps)
    train = oracle.sample(4000, seed=1)
    train = hide(train, 0.2, seed=2)
    rows = torch.Generator().manual_seed(3)
    for _ in range(steps):
        optimiser.zero_grad()
        recipe.objective(train[torch.randint(len(train), (128,), generator=rows)]).backward()
        optimiser.step()
        schedule.step()
    test = oracle.sample(200, seed=4)
    return Case(recipe, oracle, hide(test, 0.3, seed=5))


def judge(estimate: Tensor, se: Tensor, truth: Tensor, least: float = 0.8) -> None:
    """Mean error below 0.02 nat, standardised errors of rms 0.8 to 1.2, at least 99 % under 4."""
    moves = se > 1e-9
    error = estimate - truth
    assert error[~moves].abs().max().item() < 1e-6 if bool((~moves).any()) else True
    assert abs(error.mean().item()) < 0.02, f"mean error {error.mean().item():.4f}"
    z = error[moves] / se[moves]
    rms = z.square().mean().sqrt().item()
    assert least <= rms <= 1.2, f"rms of standardised errors {rms:.3f}"
    assert (z.abs() < 4).double().mean().item() >= 0.99, f"largest {z.abs().max().item():.2f}"


# With three modalities every variant, with two and four one of every kind of guide.
KINDS = {"jmvae_kl", "mmvae", "mopoe", "mvae", "set_attention"}
SIZES = [(n, m) for n in names_without("vae", "cvae") for m in (2, 3, 4) if m == 3 or n in KINDS]


@pytest.mark.parametrize("name", names_without("vae", "cvae"))
def test_default_draws_err_on_the_safe_side(name: str) -> None:
    """Components in fixed proportions: the error is smaller than the (i.i.d.) standard error says, never larger."""
    c = case(name, 3)
    pair, given = (c.recipe.model, c.recipe.guide), list(DIMS)[1:3]
    joint = log_marginal(*pair, c.data, K, seed=6)
    judge(joint.estimate, joint.se, c.exact(c.data), least=0.6)
    conditional = log_conditional(*pair, c.data, "a", given, K, seed=7)
    judge(conditional.estimate, conditional.se, c.exact(c.data) - c.exact(c.data.only(*given)), least=0.6)


@pytest.mark.parametrize(("name", "count"), SIZES)
def test_log_marginal_is_exact(name: str, count: int) -> None:
    c = case(name, count)
    ev = log_marginal(c.recipe.model, c.recipe.guide, c.data, K, independent=True, seed=6)
    judge(ev.estimate, ev.se, c.exact(c.data))
    empty = ~c.data.present()
    assert bool(empty.any()), "the test data should have rows with nothing present"
    assert torch.equal(ev.estimate[empty], torch.zeros_like(ev.estimate[empty]))


@pytest.mark.parametrize(("name", "count"), SIZES)
def test_log_conditional_is_exact(name: str, count: int) -> None:
    c = case(name, count)
    given = list(DIMS)[1:count]
    ev = log_conditional(c.recipe.model, c.recipe.guide, c.data, "a", given, K, independent=True, seed=7)
    judge(ev.estimate, ev.se, c.exact(c.data) - c.exact(c.data.only(*given)))


@pytest.mark.parametrize("count", [2, 4])
def test_vae_has_the_marginal_of_its_modality(count: int) -> None:
    c = case("vae", count)
    ev = log_marginal(c.recipe.model, c.recipe.guide, c.data, K, independent=True, seed=6)
    judge(ev.estimate, ev.se, c.oracle.log_marginal(c.data.only("a")))
    assert ev.quantity == "log p(a)"


@pytest.mark.parametrize("count", [2, 3])
def test_cvae_has_the_conditional_and_nothing_else(count: int) -> None:
    c = case("cvae", count)
    model, guide = c.recipe.model, c.recipe.guide
    given = list(DIMS)[1:count]
    ev = log_conditional(model, guide, c.data, "a", given, K, independent=True, seed=7)
    judge(ev.estimate, ev.se, conditional_of_cvae(model, c.data, given))
    with pytest.raises(NoLikelihood, match="given"):
        log_marginal(model, guide, c.data, 10)


def conditional_of_cvae(model: Conditional, batch: Batch, given: list[str]) -> Tensor:
    """log N(x; offset(y), W_z W_z' + s^2 I) from the affine decoder; 0 where x or a condition is missing."""
    layer = model.decoder.net[0]
    latent = model.prior.loc.shape[0]
    wz = layer.weight[:, :latent]
    y = torch.cat([model.condition[m](batch.x[m], batch.mask[m]) for m in given], -1)
    mean = layer.bias + y @ layer.weight[:, latent:].T
    scale = model.decoder.modality.likelihood.scale
    cov = wz @ wz.T + scale**2 * torch.eye(len(wz), dtype=wz.dtype)
    value = torch.distributions.MultivariateNormal(mean, cov).log_prob(batch.x["a"])
    seen = torch.stack([batch.mask[m] for m in ("a", *given)]).all(0)
    return torch.where(seen, value, 0.0).detach()


@pytest.mark.parametrize("name", names_without("vae", "cvae"))
def test_bounds_are_ordered_and_the_gap_is_as_stated(name: str) -> None:
    """E[ELBO] <= E[IWAE_10] <= E[IWAE_200] <= log p, and the guide was trained to the stated gap."""
    c = case(name, 3)
    exact = c.exact(c.data).mean().item()
    with torch.no_grad():
        pair = c.recipe.model, c.recipe.guide
        repeats = 20
        loose = [-elbo(*pair, particles=50)(c.data).item() for _ in range(repeats)]
        middle = [-iwae(*pair, 10)(c.data).item() for _ in range(5 * repeats)]
        tight = [-iwae(*pair, 200)(c.data).item() for _ in range(repeats)]
    means = [torch.tensor(v).mean().item() for v in (loose, middle, tight)]
    errors = [torch.tensor(v).std().item() / len(v) ** 0.5 for v in (loose, middle, tight)]
    assert means[0] <= means[1] + 3 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    assert means[1] <= means[2] + 3 * (errors[1] ** 2 + errors[2] ** 2) ** 0.5
    assert means[2] <= exact + 3 * errors[2]
    assert exact - means[0] < LARGEST_GAP.get(name, 1.0), f"gap {exact - means[0]:.3f} nats"


@pytest.mark.parametrize("name", names_without("vae", "cvae"))
def test_sandwich_encloses(name: str) -> None:
    c = case(name, 3)
    ends = sandwich(c.recipe.model, c.recipe.guide, c.data, 1000, seed=8)
    truth = c.exact(ends.data)
    n = len(truth) ** 0.5
    assert (ends.lower - truth).mean() <= 2 * (ends.lower - truth).std() / n
    assert (ends.upper - truth).mean() >= -2 * (ends.upper - truth).std() / n
    assert ends.gap < 0.5


@pytest.mark.parametrize(
    ("model_name", "guide_name"),
    [
        (m, g)
        for g in names_without("vae", "cvae", "mmvae_dreg")
        for m in (sorted(KINDS)[:4] if g in KINDS else ["mvae"])
    ],
)
def test_any_guide_goes_on_any_model(model_name: str, guide_name: str) -> None:
    """One line puts a guide on another page's model; the likelihood stays that of the model."""
    model, c = case(model_name, 3).recipe.model, case(guide_name, 3)
    ev = log_marginal(model, c.recipe.guide, c.data, 2000, seed=9)
    z = (ev.estimate - c.oracle.log_marginal(c.data))[ev.se > 0] / ev.se[ev.se > 0]
    assert z.abs().median() < 1.2
    assert (z.abs() < 4).double().mean() >= 0.97
    loss = elbo(model, c.recipe.guide)(c.data)
    gradients = torch.autograd.grad(loss, [p for p in c.recipe.guide.parameters()], allow_unused=True)
    assert all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)
