"""A report's divergences and active dimensions against closed forms."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation.report import report
from pyro_mm.guides import Experts, product_of_posteriors
from tests.helpers.estimates import guide, hidden, truth
from tests.helpers.reports import LG, TEST, Scaled, kl_to_standard

GROUPS = [("a", "b", "c"), ("a",), ("b",), ("c",)]


def given_rows(group: tuple[str, ...]) -> Batch:
    """The rows that have any of the group, all else hidden."""
    return TEST[TEST.present(group)].only(*group)


@pytest.mark.parametrize("kind", ["mean-field", "poe", "posteriors", "surrogate"])
def test_kl_per_dimension_is_the_closed_form(kind: str) -> None:
    q = guide(kind, LG)
    found = report(LG.model(), q, TEST, 3, seed=0)
    assert list(found.views) == GROUPS
    for group, view in found.views.items():
        rows = given_rows(group)
        p = q.posterior(rows).base_dist
        each = kl_to_standard(p.loc, p.scale).detach()
        z = view.latents["z"]
        assert z.method == "closed form" and z.rows == view.rows == len(rows)
        torch.testing.assert_close(z.kl, each.mean(0))
        torch.testing.assert_close(z.activity, p.loc.detach().var(0))
        assert z.total == view.kl == pytest.approx(each.sum(-1).mean().item())
        assert z.total_se == pytest.approx(each.sum(-1).std().item() / len(rows) ** 0.5)
        assert z.active.all() and not z.collapsed.any()
    assert found.collapsed == ()


def test_a_full_gaussian_has_its_marginals_and_its_own_kl() -> None:
    found = report(LG.model(), LG.exact_guide(), TEST, 400, seed=0)
    for group, view in found.views.items():
        mean, cov = LG.posterior(given_rows(group))
        z, scale = view.latents["z"], cov.diagonal(dim1=-2, dim2=-1).sqrt()
        assert z.method == "marginals, closed form"
        torch.testing.assert_close(z.kl, kl_to_standard(mean, scale).mean(0))
        total = 0.5 * (scale.square().sum(-1) + mean.square().sum(-1) - 2 - cov.logdet())
        assert abs(z.total - total.mean().item()) < 0.004
    dependent = found.views["c",].latents["z"]
    assert dependent.total > dependent.kl.sum() + 0.05, "dimensions that depend on each other cost more than alone"


@pytest.mark.parametrize("kind", ["moe", "mopoe"])
def test_kl_of_a_mixtures_marginals_is_the_integral(kind: str) -> None:
    data, q = TEST[:12], guide(kind, LG)
    found = report(LG.model(), q, data, 8000, subsets=[("a", "b")], seed=0)
    z = found.views["a", "b"].latents["z"]
    assert z.method == "marginals, sampled"
    mixture = q.posterior(data[data.present(("a", "b"))].only("a", "b"))
    grid = torch.linspace(-14, 14, 8001).double().view(-1, 1, 1, 1)
    each = mixture.family(mixture.loc, mixture.scale).log_prob(grid).exp()  # (grid, N, J, D)
    density = (mixture.log_weights.exp().unsqueeze(-1) * each).sum(-2).detach()
    ratio = density.log() - dist.Normal(0.0, 1.0).log_prob(grid.squeeze(-1))
    exact = (torch.where(density > 0, density * ratio, 0.0).sum(0) * 28 / 8000).mean(0)
    torch.testing.assert_close(z.kl, exact, rtol=0, atol=0.02)
    torch.testing.assert_close(z.activity, mixture.mean.detach().var(0))
    assert z.total > z.kl.max()


def unused(*dims: int, latent: int = 4) -> LinearGaussian:
    """The model with latents that no modality reads: their posterior is the prior."""
    full = truth((6, 5, 4), latent)
    keep = torch.ones(latent).double()
    keep[list(dims)] = 0.0
    return LinearGaussian({m: w * keep for m, w in full.weights.items()}, full.offsets, full.scales)


@pytest.mark.parametrize("kind", ["exact", "mean-field", "poe", "moe"])
def test_a_dimension_that_is_not_used_is_inactive_and_the_rest_are_active(kind: str) -> None:
    lg = unused(1, 3)
    data = hidden(lg.sample(200, seed=3))
    encoders: Any = {m: Scaled(e, 1.0) for m, e in lg.unimodal_posteriors().items()}
    q = Experts(encoders, product_of_posteriors) if kind == "poe" else guide(kind, lg)
    found = report(lg.model(), q, data, 60, seed=0)
    for view in found.views.values():
        z = view.latents["z"]
        assert z.active.tolist() == [True, False, True, False]
        assert z.collapsed.tolist() == [False, True, False, True]
        assert z.kl[[1, 3]].abs().max() < 1e-9 and z.activity[[1, 3]].max() < 1e-9
    assert found.collapsed == () and "COLLAPSE" not in repr(found)
    strict = report(lg.model(), q, data, 60, threshold=1e3, seed=0)
    assert not strict.everything.latents["z"].active.any() and strict.threshold == 1e3


def test_posterior_collapse_is_said_aloud() -> None:
    lg = unused(0, 1, 2, 3)
    found = report(lg.model(), guide("mean-field", lg), lg.sample(50), 5, seed=0)
    assert found.collapsed == ("z",)
    assert "POSTERIOR COLLAPSE: given everything, the prior in every dimension of z" in repr(found)


class Shifted(nn.Module):
    """z ~ N(0, 1) pushed through the identity: a distribution that does not know its mean."""

    def forward(self, batch: Batch) -> None:
        base = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.AffineTransform(0.0, 1.0)]))


def test_noise_of_the_means_makes_no_unit_active() -> None:
    """The average of 20 draws has variance 1/20, five times the threshold, where the posterior mean has none."""
    found = report(LG.model(), Shifted(), LG.sample(2000), 20, seed=0).everything.latents["z"]
    assert found.method == "total only, sampled" and found.kl is None
    assert found.activity.max() < 0.01 and not found.active.any()
    assert abs(found.total) < 1e-12 and found.collapsed.all()
