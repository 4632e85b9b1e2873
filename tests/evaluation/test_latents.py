"""Latents of any support as one vector of real numbers: round trips, Jacobians, labels."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from pyro_mm.batch import Batch
from pyro_mm.evaluation.latents import Coordinates
from pyro_mm.handlers import particles
from pyro_mm.weights import Sites, run
from tests.helpers.pairs import GuideOfNested, GuideOfPrivate, data, pair

D = torch.float64
N = 5


def of(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=D)


FAMILIES: dict[str, dist.TorchDistribution] = {
    "real": dist.Normal(of(0.3, -1.0), of(1.0, 2.0)).to_event(1),
    "log-normal": dist.LogNormal(of(0.3, -1.0), of(1.0, 0.5)).to_event(1),
    "gamma": dist.Gamma(of(2.0, 3.0), of(1.0, 0.5)).to_event(1),
    "beta": dist.Beta(of(2.0, 1.5), of(3.0, 2.0)).to_event(1),
    "uniform": dist.Uniform(of(-1.0, 0.0), of(2.0, 0.5)).to_event(1),
    "simplex": dist.Dirichlet(of(2.0, 1.5, 3.0)),
}


def program(fn: dist.TorchDistribution) -> Callable[[Batch], None]:
    def guide(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", fn)

    return guide


def sites_of(guide: Callable[[Batch], None], k: int = 1, batch: Batch | None = None) -> Sites:
    return run(particles(guide, k), data(N) if batch is None else batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_packing_is_the_inverse_of_unpacking(family: str) -> None:
    fn = FAMILIES[family]
    sites = sites_of(program(fn), 7)
    where = Coordinates.of(sites, N)
    assert where.dim == 2, "a simplex of 3 has 2 free coordinates"
    u = torch.randn(4, N, 2, dtype=D)
    torch.testing.assert_close(where.pack(where.unpack(u)[0]), u)
    values, _ = where.unpack(where.pack({"z": sites["z"].value}))
    torch.testing.assert_close(values["z"], sites["z"].value)
    assert bool(fn.support.check(where.unpack(4 * u)[0]["z"]).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_jacobian_is_that_of_automatic_differentiation(family: str) -> None:
    """Of all but the last entry of a simplex, which the others determine."""
    where = Coordinates.of(sites_of(program(FAMILIES[family])), N)
    u = torch.randn(3, N, 2, dtype=D)

    def moved(point: Tensor) -> Tensor:
        return where.unpack(point.expand(1, N, 2))[0]["z"][0, 0, 0, :2]

    expected = torch.linalg.slogdet(vmap(jacrev(moved))(u.reshape(-1, 2))).logabsdet.reshape(3, N)
    torch.testing.assert_close(where.unpack(u)[1], expected)


CLOSED: dict[str, Callable[[Tensor], Tensor]] = {
    "real": torch.zeros_like,
    "log-normal": lambda u: u,
    "gamma": lambda u: u,
    "beta": lambda u: torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u),
    "uniform": lambda u: torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u) + of(3.0, 0.5).log(),
}


@pytest.mark.parametrize("family", CLOSED)
def test_the_jacobian_in_closed_form(family: str) -> None:
    where = Coordinates.of(sites_of(program(FAMILIES[family])), N)
    u = torch.randn(3, N, 2, dtype=D)
    torch.testing.assert_close(where.unpack(u)[1], CLOSED[family](u).sum(-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_density_of_u_integrates_to_one(family: str) -> None:
    """p(z(u)) |dz/du| over a grid of the plane."""
    fn = FAMILIES[family]
    where = Coordinates.of(sites_of(program(fn)), N)
    line = torch.linspace(-25, 25, 501, dtype=D)
    u = torch.cartesian_prod(line, line).view(-1, 1, 2).expand(-1, N, 2)
    values, slope = where.unpack(u)
    z = values["z"].clamp(1e-300, 1 - 1e-16) if family == "beta" else values["z"]
    with pyro.validation_enabled(False):
        log_p = fn.expand((N,)).log_prob(z).squeeze(1)
    total = torch.logsumexp((log_p + slope).nan_to_num(nan=-torch.inf), 0) + 2 * torch.log(line[1] - line[0])
    torch.testing.assert_close(total.exp(), torch.ones(N, dtype=D), atol=2e-4, rtol=0)


def mixed(dim: int) -> Callable[[Batch], None]:
    """A positive scalar, a matrix of reals in a plate of 3 at `dim`, and a simplex."""

    def guide(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("s", dist.LogNormal(of(0.0).squeeze(), 1.0))
            with pyro.plate("elements", 3, dim=dim):
                pyro.sample("y", dist.Normal(torch.zeros(2, 2, dtype=D), 1.0).to_event(2))
            pyro.sample("p", FAMILIES["simplex"])

    return guide


@pytest.mark.parametrize("dim", [-2, -4, -5])
@pytest.mark.parametrize("k", [1, 4])
def test_every_entry_moves_the_value_that_its_label_names(dim: int, k: int) -> None:
    """Of its own particle and row only; wherever the nested plate stands."""
    sites = sites_of(mixed(dim), k)
    where = Coordinates.of(sites, N)
    assert where.names == ("s", "y", "p") and where.dim == 1 + 12 + 2
    assert where.labels() == ["s", *(f"y[{i}]" for i in range(12)), "p[0]", "p[1]"]
    u = where.pack({n: s.value for n, s in sites.items()})
    assert u.shape == (k, N, 15)
    values, _ = where.unpack(u)
    for n, s in sites.items():
        torch.testing.assert_close(values[n], s.value)
    for i, label in enumerate(where.labels()):
        pushed = u.clone()
        pushed[k - 1, 3, i] += 1.0
        changed = {n: (v - values[n]).abs() > 1e-12 for n, v in where.unpack(pushed)[0].items()}
        name, _, entry = label.partition("[")
        assert {n for n, c in changed.items() if bool(c.any())} == {name}
        spot = changed[name].nonzero()
        event = sites[name].fn.event_dim
        assert bool((spot[:, -1 - event] == 3).all()) and bool((spot[:, -3 - event] == k - 1).all())
        if name == "y":
            assert len(spot) == 1, "one number of 12"
            element, row, column = divmod(int(entry[:-1]), 4)[0], *divmod(int(entry[:-1]) % 4, 2)
            assert spot[0, -2:].tolist() == [row, column]
            assert spot[0, dim - event] == element


@pytest.mark.parametrize("dim", [-2, -4])
def test_the_jacobian_of_a_nested_plate_is_the_sum_over_it(dim: int) -> None:
    def guide(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("s", dist.LogNormal(of(0.0).squeeze(), 1.0))
            with pyro.plate("elements", 3, dim=dim):
                pyro.sample("y", dist.LogNormal(torch.zeros(2, dtype=D), 1.0).to_event(1))

    where = Coordinates.of(sites_of(guide), N)
    u = torch.randn(6, N, 7, dtype=D)
    torch.testing.assert_close(where.unpack(u)[1], u.sum(-1))


def test_a_library_pair_with_a_nested_plate() -> None:
    """z log-normal in 2 dimensions, y in a plate of 3: the Jacobian is z's alone."""
    sites = sites_of(pair(guide=GuideOfNested)[1], 3)
    where = Coordinates.of(sites, N)
    u = where.pack({n: s.value for n, s in sites.items()})
    torch.testing.assert_close(where.unpack(u)[1], sites["z"].value.log().sum(-1).squeeze(1))
    torch.testing.assert_close(u[..., 2:], sites["y"].value.transpose(-1, -2))


def test_a_masked_latent_is_neither_seen_nor_counted() -> None:
    """w_a is positive and exists where a is present."""
    batch = Batch(data(N).x, {"a": torch.tensor([True, False, True, True, False])})

    def guide(b: Batch) -> None:
        with pyro.plate("data", len(b), dim=-1):
            pyro.sample("z", FAMILIES["log-normal"])
            with pyro.poutine.mask(mask=b.mask["a"]):
                pyro.sample("w_a", dist.LogNormal(of(0.0).squeeze(), 1.0))

    where = Coordinates.of(sites_of(guide, 1, batch), N)
    assert torch.equal(where.seen, torch.stack([torch.ones(N).bool()] * 2 + [batch.mask["a"]], -1))
    u = torch.randn(4, N, 3, dtype=D)
    torch.testing.assert_close(where.unpack(u)[1], (u * where.seen).sum(-1))
    some = torch.tensor([4, 0])
    torch.testing.assert_close(where[some].unpack(u[:, some])[1], where.unpack(u)[1][:, some])
    sites = sites_of(pair(guide=GuideOfPrivate)[1], 1, batch)
    assert Coordinates.of(sites, N).seen[:, -1].tolist() == batch.mask["a"].tolist()


def test_what_has_no_density_over_real_numbers_is_named() -> None:
    def discrete(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", FAMILIES["real"])
            pyro.sample("kind", dist.Categorical(torch.ones(3)))

    def fixed(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("spot", dist.Delta(of(1.0).squeeze()))

    with pytest.raises(ValueError, match=r"latent 'kind' \(Categorical\) has no density over real numbers"):
        Coordinates.of(sites_of(discrete), N)
    assert Coordinates.of(sites_of(discrete), N, ["z"]).names == ("z",)
    with pytest.raises(ValueError, match="latent 'spot'"):
        Coordinates.of(sites_of(fixed), N)
