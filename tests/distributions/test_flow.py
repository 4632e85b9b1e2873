"""Flows and mixtures of any kinds: densities integrate to 1 and are those of their draws."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.func import jacrev

from pyro_mm.distributions import Flowed, MaskedFlow, Mixture, MixtureOf, independent_components

D = torch.float64


def flow(dim: int, blocks: int = 2, widths: tuple[int, ...] = (8,)) -> MaskedFlow:
    torch.manual_seed(0)
    return MaskedFlow(dim, blocks, widths).to(D)


def normal(*shape: int) -> dist.TorchDistribution:
    torch.manual_seed(1)
    return dist.Normal(torch.randn(shape, dtype=D), 0.3 + torch.rand(shape, dtype=D)).to_event(1)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_map_turns_back_and_its_volume_is_that_of_the_jacobian(dim: int) -> None:
    f = flow(dim)
    z = 2 * torch.randn(3, 4, dim, dtype=D)
    u, volume = f(z)
    torch.testing.assert_close(f.inverse(u), z)
    assert (u - z).abs().max().item() > 0.1
    for i in range(3):
        jacobian = jacrev(lambda x: f(x)[0])(z[i, 0])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], volume[i, 0])


def test_derivatives_of_draws_are_those_of_the_inverse() -> None:
    f = flow(3)
    u = torch.randn(3, dtype=D)
    backward = jacrev(lambda x: f(x)[0])(f.inverse(u).detach())
    torch.testing.assert_close(jacrev(f.inverse)(u), backward.inverse())


def grid(n: int = 401, end: float = 9.0) -> tuple[Tensor, float]:
    line = torch.linspace(-end, end, n, dtype=D)
    return torch.cartesian_prod(line, line), (2 * end / (n - 1)) ** 2


def parts() -> list[dist.TorchDistribution]:
    return [Flowed(normal(2), flow(2)), normal(2), Mixture(*normal_pair(), torch.tensor([True, True]))]


def normal_pair() -> tuple[Tensor, Tensor]:
    return torch.tensor([[1.0, -1.0], [-2.0, 0.5]], dtype=D), torch.full((2, 2), 0.7, dtype=D)


def test_densities_integrate_to_one_and_are_those_of_their_draws() -> None:
    points, area = grid()
    single = parts()
    whole = MixtureOf(single, torch.tensor([0.5, 0.25, 1.0], dtype=D))
    for q in (single[0], whole):
        density = q.log_prob(points).exp() * area
        assert abs(density.sum().item() - 1) < 1e-5
        torch.manual_seed(2)
        draws = q.expand((20_000,)).rsample()
        mean = (density.unsqueeze(-1) * points).sum(0)
        variance = (density.unsqueeze(-1) * (points - mean) ** 2).sum(0)
        assert bool(((draws.mean(0) - mean).abs() < 4 * (variance / 20_000).sqrt()).all())
        torch.testing.assert_close(draws.var(0), variance, rtol=0.06, atol=0)
    by_hand = torch.stack([p.log_prob(points) + torch.tensor(w).log() for p, w in zip(single, (2, 1, 4), strict=True)])
    torch.testing.assert_close(whole.log_prob(points), (by_hand - torch.tensor(7.0).log()).logsumexp(0))


def test_every_row_has_parts_of_its_own_in_exact_proportions() -> None:
    weights = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 1, 0]], dtype=torch.bool)
    far = [dist.Normal(torch.full((3, 2), 100.0 * j, dtype=D), 1.0).to_event(1) for j in range(3)]
    q = MixtureOf(far, weights)
    drawn = (q.expand((10, 1, 3)).rsample()[:, 0, :, 0] / 100).round()
    assert drawn[:, 1:].unique(dim=0).tolist() == [[2.0, 1.0]]
    assert sorted(drawn[:, 0].tolist()) == [0.0] * 5 + [1.0] * 5
    with independent_components():
        torch.manual_seed(0)
        counts = torch.stack([(q.expand((10, 1, 3)).rsample()[:, 0, 0, 0] < 50).sum() for _ in range(200)])
    assert 2.0 < counts.double().var().item() < 3.2  # binomial: 2.5
    value = torch.randn(3, 2, dtype=D)
    torch.testing.assert_close(
        q.log_prob(value)[1:], torch.stack([far[2].log_prob(value)[1], far[1].log_prob(value)[2]])
    )


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="2 parts with 3 weights"):
        MixtureOf([normal(2), normal(2)], torch.ones(3))
    with pytest.raises(ValueError, match="carry a gradient"):
        MixtureOf([normal(2)], torch.ones(1, requires_grad=True))
    with pytest.raises(ValueError, match="at least 1 dimension and 1 block"):
        MaskedFlow(0)
