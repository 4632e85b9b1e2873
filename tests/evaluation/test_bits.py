"""Bits per dimension of distributions whose entropy is known, and the bound that dequantisation gives."""

from __future__ import annotations

import json
from math import log, log2

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mm import likelihoods
from pyro_mm.batch import Batch
from pyro_mm.evaluation import Evidence, NoLikelihood
from pyro_mm.evaluation.bits import bits_per_dim, dequantised
from pyro_mm.modality import Modality

P = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)  # 1.75 bits
FAIR = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])  # its levels in their exact proportions


def test_probabilities_give_the_entropy() -> None:
    found = bits_per_dim(P[FAIR].log(), 1)
    assert found.mean == pytest.approx(1.75, abs=1e-12)
    torch.testing.assert_close(found.value, -P[FAIR].log2())
    pairs = bits_per_dim(P[FAIR].log() + P[FAIR.flip(0)].log(), (2, 1))
    assert pairs.mean == pytest.approx(1.75, abs=1e-12) and pairs.dims == 2


def test_a_uniform_density_costs_all_bits_of_its_levels() -> None:
    assert bits_per_dim(0.0, 784, levels=256).mean == 8.0
    assert bits_per_dim(torch.zeros(5), 784, levels=17).mean == pytest.approx(log2(17))
    # Twice as dense everywhere: half as wide, one bit less in each of 784 dimensions.
    assert bits_per_dim(784 * log(2), 784, levels=256).mean == pytest.approx(7.0)


def piecewise(y: Tensor) -> Tensor:
    """log-density on [0, 1) that is constant in every cell and holds the probability P there."""
    return (4 * P[(y * 4).floor().long()]).log()


@pytest.mark.parametrize("counts", [False, True])
def test_a_density_that_is_constant_in_the_cells_has_the_bits_of_the_probabilities(counts: bool) -> None:
    v = FAIR.repeat(50).unsqueeze(-1)
    x = v.float() if counts else v.double() / 3
    y = dequantised(Batch({"grey": x}), "grey", 4, counts=counts).x["grey"]
    found = bits_per_dim(piecewise(y).sum(-1), 1, levels=4)
    assert found.mean == pytest.approx(1.75, abs=1e-12)
    torch.testing.assert_close(found.value, -P[v.squeeze(-1)].log2(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [4, 16, 256])
def test_other_densities_have_more(levels: int) -> None:
    """Of y ~ N(0.4, 0.2^2) a level's probability is a difference of two cdfs; the mean of log p(y) stays below it."""
    q = dist.Normal(torch.tensor(0.4).double(), 0.2)
    edges = q.cdf(torch.linspace(0, 1, levels + 1).double())
    exact = -(edges[1:] - edges[:-1]).log2()
    v = torch.arange(levels).repeat(4000, 1)
    y = dequantised(Batch({"x": v}), "x", levels, counts=True, seed=1).x["x"].double()
    bits = bits_per_dim(q.log_prob(y).flatten(), 1, levels=levels).value.view(4000, levels)
    # log p is quadratic, so that the mean of it over a cell of width h at c is log p(c) - h^2 / (24 * 0.2^2).
    c, h = (torch.arange(levels).double() + 0.5) / levels, 1 / levels
    jensen = -(q.log_prob(c) - h**2 / (24 * 0.04)) / log(2) + log2(levels)
    error = bits.std(0) / 4000**0.5
    assert ((bits.mean(0) - jensen).abs() < 4.5 * error + 1e-9).all()
    assert (jensen > exact).all()
    # Hoeffding's lemma: the gap is at most an eighth of the squared range of log p in a cell; its slope is at most 15.
    assert (jensen - exact).max() < (15 * h) ** 2 / 8 / log(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_noise_fills_the_cell_of_its_level_and_no_other(levels: int, dtype: torch.dtype) -> None:
    v = torch.randint(0, levels, (400, 9))
    for x, counts in ((v.to(dtype) / (levels - 1), False), (v.to(dtype), True)):
        y = dequantised(Batch({"x": x}), "x", levels, counts=counts).x["x"]
        assert y.dtype == dtype and y.min() >= 0 and y.max() < 1
        cell = y.double() * levels - v
        assert cell.min() > -1e-4 and cell.max() < 1 + 1e-4  # float32 may round up at a cell's end
        spread = sorted(cell.flatten().tolist())
        uniform = (torch.arange(3600) + 0.5) / 3600
        assert (torch.tensor(spread) - uniform).abs().max() < 1.95 / 60, "Kolmogorov-Smirnov, 1 in 1000"


def test_the_rest_of_the_batch_is_as_it_was() -> None:
    grey = torch.tensor([[0.0], [1.0], [torch.nan], [1 / 3]])
    masks = {"grey": torch.tensor([True, True, False, True])}
    batch = Batch({"grey": grey, "label": torch.arange(4)}, masks)
    before = batch.x["grey"].clone()
    made = dequantised(batch.only("grey"), "grey", 4)
    assert torch.equal(batch.x["grey"], before)
    assert made.x["label"] is batch.x["label"] and made.hidden == {"label"}
    assert torch.equal(made.mask["grey"], masks["grey"]) and torch.isfinite(made.x["grey"]).all()
    assert ((made.x["grey"] * 4).floor()[masks["grey"]] == torch.tensor([[0.0], [3.0], [1.0]])).all()


def test_a_seed_gives_the_same_noise_and_leaves_the_stream_alone() -> None:
    batch, state = Batch({"x": torch.zeros(5, 3)}), torch.get_rng_state()
    first, second = (dequantised(batch, "x", seed=4).x["x"] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, dequantised(batch, "x", seed=5).x["x"])
    assert not torch.equal(dequantised(batch, "x").x["x"], dequantised(batch, "x").x["x"])


def test_evidence_brings_its_error_bars() -> None:
    n = torch.linspace(-90, -60, 7).double()
    ev = Evidence("log p(image)", n, torch.full((7,), 0.3).double(), n, n, n, 100, "guide")
    image = Modality("image", (4, 5), likelihoods.Normal())
    found = bits_per_dim(ev, image, levels=256)
    torch.testing.assert_close(found.value, -n / (20 * log(2)) + 8)
    assert found.se is not None and found.se.tolist() == pytest.approx([0.3 / (20 * log(2))] * 7)
    made = json.loads(json.dumps(found.summary()))
    assert made["bits_per_dim"] == pytest.approx(75 / (20 * log(2)) + 8)
    assert made["se"] == pytest.approx(n.std().item() / 7**0.5 / (20 * log(2)))
    assert made["mc_se"] == pytest.approx(0.3 / 7**0.5 / (20 * log(2)))
    assert repr(found) == f"{found.mean:.4f} +- {found.mean_se:.4f} bits/dim (N=7, D=20, 256 levels)"


@pytest.mark.parametrize(
    "likelihood",
    [likelihoods.Bernoulli(), likelihoods.Binomial(16), likelihoods.Categorical(4), likelihoods.NegativeBinomial()],
)
def test_probabilities_need_no_noise(likelihood: likelihoods.Likelihood) -> None:
    m = Modality("x", (3,), likelihood)
    with pytest.raises(ValueError, match=rf"'x' has a {type(likelihood).__name__} likelihood.*score the data as they"):
        dequantised(Batch({"x": torch.zeros(2, 3)}), m)
    with pytest.raises(ValueError, match="leave out levels="):
        bits_per_dim(-3.0, m, levels=256)
    assert bits_per_dim(-3 * log(2), m).mean == pytest.approx(1.0)


def test_what_has_no_bits_is_refused() -> None:
    pseudo = Modality("x", (3,), likelihoods.PseudoBernoulli())
    batch = Batch({"x": torch.tensor([[0.0, 1.0, 0.5]])})
    with pytest.raises(NoLikelihood, match="'x' has a pseudo-likelihood"):
        bits_per_dim(-3.0, pseudo)
    with pytest.raises(NoLikelihood, match="'x' has a pseudo-likelihood"):
        dequantised(batch, pseudo)
    with pytest.raises(ValueError, match="at least one dimension"):
        bits_per_dim(-3.0, 0)
    with pytest.raises(ValueError, match="levels must be at least 2"):
        dequantised(batch, "x", 1)
    with pytest.raises(ValueError, match="unknown modality 'y'"):
        dequantised(batch, "y")


def test_data_that_are_no_levels_are_refused() -> None:
    x = torch.tensor([[0.0], [7.0], [16.0]])
    with pytest.raises(ValueError, match=r"'x' must hold multiples of 1/16 from 0 to 1; present row 1 has 7 \(counts="):
        dequantised(Batch({"x": x}), "x", 17)
    with pytest.raises(ValueError, match="whole numbers from 0 to 15; present row 2 has 16"):
        dequantised(Batch({"x": x}), "x", 16, counts=True)
    once = dequantised(Batch({"x": x}), "x", 17, counts=True, seed=0)
    with pytest.raises(ValueError, match="noise must not be added twice"):
        dequantised(once, "x", 17)
    missing = dequantised(Batch({"x": x}, {"x": torch.tensor([True, True, False])}), "x", 16, counts=True)
    assert (missing.x["x"][:2] * 16).floor().tolist() == [[0.0], [7.0]]
