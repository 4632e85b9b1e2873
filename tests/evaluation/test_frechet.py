"""The Frechet distance against closed forms, and ranks against distances computed by hand."""

from __future__ import annotations

from math import isnan, sqrt

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.evaluation.frechet import frechet, frechet_distance, rank, split_half

F = 6


def gaussian(seed: int, rank: int = F) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(F, rank, generator=g, dtype=torch.float64)
    return torch.randn(F, generator=g, dtype=torch.float64), root @ root.T / rank


def rotation(seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(F, F, generator=g, dtype=torch.float64))[0]


@pytest.mark.parametrize("rank", [F, 2])
def test_equal_gaussians_are_at_distance_0_and_shifted_ones_at_the_shift_squared(rank: int) -> None:
    mean, cov = gaussian(0, rank)
    assert frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(mean, cov, mean + 3, cov) == pytest.approx(9 * F, rel=1e-7)


def test_commuting_covariances_have_the_closed_form() -> None:
    """|m1 - m2|^2 + sum (sqrt l1 - sqrt l2)^2, in any common basis."""
    turn, (m1, _), (m2, _) = rotation(1), gaussian(1), gaussian(2)
    l1, l2 = torch.arange(F).double(), torch.arange(F).double().flip(0) ** 2
    exact = (m1 - m2).square().sum() + (l1.sqrt() - l2.sqrt()).square().sum()
    found = frechet_distance(m1, turn @ l1.diag() @ turn.T, m2, turn @ l2.diag() @ turn.T)
    assert found == pytest.approx(exact.item(), rel=1e-7)  # a zero eigenvalue costs half the digits


def test_it_agrees_with_a_general_matrix_root_and_is_symmetric() -> None:
    for seed in range(5):
        (m1, s1), (m2, s2) = gaussian(seed), gaussian(seed + 50)
        root = torch.as_tensor(sqrtm((s1 @ s2).numpy()).real)
        exact = (m1 - m2).square().sum() + (s1 + s2 - 2 * root).trace()
        assert frechet_distance(m1, s1, m2, s2) == pytest.approx(exact.item(), rel=1e-8)
        assert frechet_distance(m2, s2, m1, s1) == pytest.approx(exact.item(), rel=1e-8)


def test_a_rotation_changes_nothing_and_a_scale_counts_squared() -> None:
    (m1, s1), (m2, s2), turn = gaussian(3), gaussian(4, 3), rotation(5)
    plain = frechet_distance(m1, s1, m2, s2)
    assert frechet_distance(turn @ m1, turn @ s1 @ turn.T, turn @ m2, turn @ s2 @ turn.T) == pytest.approx(plain)
    assert frechet_distance(3 * m1, 9 * s1, 3 * m2, 9 * s2) == pytest.approx(9 * plain)


def test_singular_covariances_do_no_harm() -> None:
    """Orthogonal supports: the cross term is 0."""
    s1, s2 = torch.diag(torch.tensor([1.0, 2, 0, 0])), torch.diag(torch.tensor([0.0, 0, 5, 0]))
    zero = torch.zeros(4)
    assert frechet_distance(zero, s1, zero, s2) == pytest.approx(8, abs=1e-9)
    assert frechet_distance(zero, s1 * 0, zero, s2) == pytest.approx(5, abs=1e-9)


def test_of_features_it_is_that_of_their_sample_moments() -> None:
    x, y = torch.randn(40, F), 2 * torch.randn(25, F) + 1
    exact = frechet_distance(x.double().mean(0), x.double().T.cov(), y.double().mean(0), y.double().T.cov())
    assert frechet(x, y) == pytest.approx(exact, rel=1e-9)
    one = frechet(x[:, :1], y[:, :1])  # in one dimension: difference of means, and of standard deviations, squared
    (a, b) = (v[:, 0].double() for v in (x, y))
    assert one == pytest.approx(((a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2).item(), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(300, 300), (300, 1200)])
def test_the_bias_is_the_one_that_is_stated(n: int, m: int) -> None:
    """Of the means exactly, of the covariances to first order in 1/N; the distance of the laws is 0."""
    found = torch.tensor([frechet(2 * torch.randn(n, F), 2 * torch.randn(m, F)) for _ in range(100)])
    stated = 4 * (1 / n + 1 / m) * (F + F * (F + 1) / 4)
    assert found.mean().item() == pytest.approx(stated, abs=4 * found.std().item() / sqrt(100) + 0.02 * stated)


def test_two_halves_are_disjoint_and_random() -> None:
    """Rows in order of class would make halves of different classes."""
    ordered = torch.cat([torch.randn(200, F), torch.randn(200, F) + 10])
    assert frechet(ordered[:200], ordered[200:]) > 400
    assert split_half(ordered) < 20
    assert split_half(ordered, 1) == split_half(ordered, 1) != split_half(ordered, 2)
    assert split_half(torch.arange(4.0).unsqueeze(1).expand(4, 2)) > 0  # four rows, no two equal: no row in both halves


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"two rows or more of equal features; got \(1, 6\) and \(9, 6\)"):
        frechet(torch.zeros(1, F), torch.zeros(9, F))
    with pytest.raises(ValueError, match=r"got \(9, 5\) and \(9, 6\)"):
        frechet(torch.zeros(9, 5), torch.zeros(9, F))
    with pytest.raises(ValueError, match=r"of one F are needed; got \(2,\), \(2, 2\), \(3,\), \(3, 3\)"):
        frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3))
    with pytest.raises(ValueError, match=r"four rows or more; got \(3, 6\)"):
        split_half(torch.zeros(3, F))


class Shifts(nn.Module):
    """z is deterministic given what is seen; every modality is generated as z exactly."""

    names = ("a", "b", "label")

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1e-9).to_event(1))
            for m in ("a", "b"):
                pyro.sample(m, dist.Normal(z, 1.0).to_event(1))
            pyro.sample("label", dist.Categorical(torch.ones(3)))


class Sees(nn.Module):
    """z = b + 1 if b is seen, else a if a is seen, else (3, 3): the prior of a bad guide."""

    def forward(self, batch: Batch) -> None:
        z = torch.where(batch.mask["a"].unsqueeze(-1), batch.x["a"], torch.full((2,), 3.0).double())
        z = torch.where(batch.mask["b"].unsqueeze(-1), batch.x["b"] + 1, z)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Delta(z, event_dim=1))


class Twice:
    """Features are 2 x."""

    label = "label"

    def classify(self, name: str, x: Tensor) -> Tensor:
        raise AssertionError("a rank needs no classifier")

    def features(self, name: str, x: Tensor) -> Tensor:
        return 2 * x


def data(n: int = 300) -> Batch:
    x = {"a": torch.randn(n, 2).double(), "b": 2 * torch.randn(n, 2).double() - 1, "label": torch.arange(n) % 3}
    return Batch(x, {"a": torch.ones(n).bool(), "b": torch.arange(n) >= 50, "label": torch.arange(n) < n - 10})


def test_ranks_are_the_distances_of_what_is_generated() -> None:
    batch = data()
    found = rank(Shifts(), Sees(), Twice(), batch)
    assert list(found) == ["a", "b"]
    a, b = (2 * batch.x[m][50:290] for m in ("a", "b"))  # complete rows only
    nothing = torch.full((240, 2), 6.0).double()
    for m, real, single in (("a", a, {"b": b + 2, "label": nothing}), ("b", b, {"a": a, "label": nothing})):
        r = found[m]
        assert r.n == 240
        assert r.single == pytest.approx({s: frechet(real, made) for s, made in single.items()})
        values = torch.tensor(list(r.single.values()))
        assert (r.mean, r.sd) == pytest.approx((values.mean().item(), values.std().item()), rel=1e-6)
        assert r.every == pytest.approx(frechet(real, b + 2))
        assert r.prior == pytest.approx(frechet(real, nothing))
        assert r.baseline == pytest.approx(split_half(real))
    assert found["b"].every == pytest.approx(2 * 2.0**2)  # b + 1 in every row: the same covariance, a shift


def test_chunks_and_the_order_of_rows_change_nothing() -> None:
    batch = data()
    whole, small = (rank(Shifts(), Sees(), Twice(), batch, chunk=c) for c in (999, 7))
    turned = rank(Shifts(), Sees(), Twice(), batch[torch.randperm(300)])
    for m in ("a", "b"):
        assert small[m].single == pytest.approx(whole[m].single)
        assert turned[m].single == pytest.approx(whole[m].single)
        assert small[m].every == pytest.approx(whole[m].every) == pytest.approx(turned[m].every)


def test_what_is_undefined_is_none_in_json() -> None:
    class Alone(Shifts):
        names = ("a",)

    found = rank(Alone(), Sees(), Twice(), data())["a"]
    assert found.single == {} and isnan(found.mean) and isnan(found.sd)
    plain = found.to_json()
    assert (plain["mean"], plain["sd"], plain["n"]) == (None, None, 300)
    assert plain["every"] == pytest.approx(0, abs=1e-6)  # its own reconstruction, exact


def test_too_few_complete_rows_are_counted() -> None:
    with pytest.raises(ValueError, match=r"four rows with all of \['a', 'b', 'label'\].*got 2 rows"):
        rank(Shifts(), Sees(), Twice(), data()[48:52])
