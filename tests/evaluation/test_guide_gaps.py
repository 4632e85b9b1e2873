"""One-particle bounds from both sides, against closed forms."""

from __future__ import annotations

from math import e, pi

import pyro.distributions as dist
import pytest
import torch

from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation.calibration import symmetric_divergence
from tests.helpers.calibration import ALL, BIG, DATA, EVERY, LINE, SMALL, ExactPrivate
from tests.helpers.estimates import Stretched, hidden
from tests.helpers.oracle import LG as Plain
from tests.helpers.programs import Private


def closed_form(lg: LinearGaussian, s: tuple[str, ...], factor: float, shift: float) -> tuple[float, float, float]:
    """E log p(x_S), KL(p || q) and KL(q || p) for q = `Stretched`: both are the same for every x."""
    w = torch.cat([lg.weights[m] for m in s])
    noise = torch.cat([torch.full((len(lg.weights[m]),), lg.scales[m] ** 2).double() for m in s])
    covariance = torch.inverse(torch.eye(lg.latent).double() + w.T @ (w / noise.unsqueeze(-1)))
    sd = covariance.inverse().diagonal() ** -0.5
    p = dist.MultivariateNormal(torch.zeros(lg.latent).double(), covariance)
    q = dist.MultivariateNormal(shift * sd, (factor * sd).square().diag())
    entropy = 0.5 * torch.logdet(2 * pi * e * (w @ w.T + noise.diag()))
    both = (dist.kl.kl_divergence(p, q).item(), dist.kl.kl_divergence(q, p).item())
    return -entropy.item(), *both


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 0.0), (0.7, 0.0), (1.3, 0.5)])
def test_bounds_equal_their_closed_forms(factor: float, shift: float) -> None:
    d = symmetric_divergence(BIG.model(), Stretched(BIG, factor, shift), BIG.sample(3000, seed=1), 5, seed=0)
    assert list(d.elbo) == list(d.eubo) == EVERY
    for s in EVERY:
        level, forward, reverse = closed_form(BIG, s, factor, shift)
        numbers = d.summary()["subsets"][", ".join(s)]
        for end, exact in (("elbo", level - reverse), ("eubo", level + forward), ("gap", forward + reverse)):
            found, se = numbers[end]
            assert found == pytest.approx(exact, abs=4 * se), (s, end)
        assert d.gap(*s) == numbers["gap"] and numbers["gap"][1] < 0.15 * (forward + reverse)


def test_reference_figures_of_the_gap() -> None:
    """Mean-field given all: .215; standard deviations x .7: 1.501."""
    assert sum(closed_form(BIG, ALL, 1.0, 0.0)[1:]) == pytest.approx(0.215, abs=0.003)
    assert sum(closed_form(BIG, ALL, 0.7, 0.0)[1:]) == pytest.approx(1.501, abs=0.003)


def test_an_exact_guide_has_no_gap_in_any_row() -> None:
    batch = hidden(SMALL.sample(300, seed=1))
    d = symmetric_divergence(SMALL.model(), SMALL.exact_guide(), batch, 3, seed=0, chunk=40)
    for s in EVERY:
        torch.testing.assert_close(d.elbo[s], d.eubo[s], rtol=0, atol=1e-9)
        assert len(d.elbo[s]) == int(batch.present(s).sum())
    lg = Plain()
    model = Private(lg)
    d = symmetric_divergence(model, ExactPrivate(model), lg.data(100, missing=True), 3, seed=0)
    assert max(abs(d.gap(*s)[0]) for s in d.elbo) < 1e-9


def test_more_particles_make_the_lower_bound_less_noisy_and_no_higher() -> None:
    """The mean over draws, not the log of a mean."""
    q, batch = Stretched(LINE, 1.5), LINE.sample(2000, seed=1)
    few, many = (symmetric_divergence(LINE.model(), q, batch, k, subsets=[ALL], seed=0) for k in (1, 50))
    _, _, reverse = closed_form(LINE, ALL, 1.5, 0.0)
    noise = [(d.eubo[ALL] - d.elbo[ALL]).var().item() for d in (few, many)]
    assert noise[1] < noise[0]
    exact = closed_form(LINE, ALL, 1.5, 0.0)[0] - reverse
    assert many.elbo[ALL].mean().item() == pytest.approx(exact, abs=4 * many.summary()["subsets"]["a, b, c"]["elbo"][1])


def test_guides_of_one_seed_meet_the_same_data() -> None:
    """Their EUBOs differ by log q only, so that a difference has a far smaller error than either."""
    one, other = (symmetric_divergence(BIG.model(), Stretched(BIG, f), DATA, subsets=[ALL], seed=4) for f in (1.0, 1.1))
    apart = other.eubo[ALL] - one.eubo[ALL]
    exact = closed_form(BIG, ALL, 1.1, 0.0)[1] - closed_form(BIG, ALL, 1.0, 0.0)[1]
    assert apart.mean().item() == pytest.approx(exact, abs=4 * apart.std().item() / 1000**0.5)
    assert apart.std() < 0.2 * one.eubo[ALL].std()
