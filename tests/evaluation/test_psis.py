"""The batched Pareto fit against ArviZ, which does one datum at a time, and against a known tail."""

from __future__ import annotations

import arviz
import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_mm.evaluation.psis import khat, psis, psis_estimate, tail_size, threshold


def noise(k: int, n: int = 200, seed: int = 0) -> Tensor:
    return torch.randn(k, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ours(log_w: Tensor) -> Tensor:
    return khat(log_w.topk(min(tail_size(len(log_w)) + 1, len(log_w)), 0).values)


ONE_X = not hasattr(arviz, "psislw")  # ArviZ 1.x
SAME_TAIL = (40, 100, 10_000)  # numbers of draws for which ArviZ 1.x, which rounds down, has as large a tail


def theirs(log_w: Tensor) -> np.ndarray:
    return smoothed_by_arviz(log_w)[1]


def smoothed_by_arviz(log_w: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Normalised log-weights `(K, N)` and k-hat `(N,)`, one datum at a time."""
    if not ONE_X:
        weights, shape = arviz.psislw(log_w.T.numpy().copy())
        return weights.T, shape
    from arviz_stats.base import array_stats

    # Its argument are log-likelihoods, minus the log-weights, and it normalises nothing.
    found = [array_stats.psislw(-column.numpy()) for column in log_w.T]
    weights = torch.from_numpy(np.stack([w for w, _ in found], 1)).log_softmax(0)
    return weights.numpy(), np.array([k for _, k in found])


def skip_what_arviz_lacks(shape: str, k: int) -> None:
    if ONE_X and (k not in SAME_TAIL or shape in UNLIKE):
        pytest.skip("ArviZ 1.x has a smaller tail, and treats ties and weights of 0 in it differently")


SHAPES = {
    "narrow proposal": lambda z: 0.375 * z**2,
    "log-normal": lambda z: 3 * z,
    "tied": lambda z: (2 * z).round(),
    "underflowing": lambda z: 2000 * z,  # a prior proposal on images: most weights are 0 beside the largest
    "flat-topped": lambda z: -800 * z.abs(),
}
UNLIKE = ("tied", "underflowing", "flat-topped", "three values", "half of them 0", "nearly all of them 0")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [10, 21, 25, 100, 1000, 10_000])
def test_equals_arviz_datum_by_datum(shape: str, k: int) -> None:
    skip_what_arviz_lacks(shape, k)
    log_w = SHAPES[shape](noise(k))
    same = ours(log_w).where(ours(log_w) > -torch.inf, torch.inf)  # flat tops: see below
    np.testing.assert_allclose(same.numpy(), theirs(log_w), rtol=0, atol=1e-6)
    assert shape == "tied" or bool((ours(log_w) > -torch.inf).all())


def test_no_datum_depends_on_its_neighbours() -> None:
    """Data whose tails have different sizes are fitted in groups."""
    log_w = torch.cat([SHAPES[s](noise(1000, 20)) for s in SHAPES], 1)
    single = torch.cat([ours(log_w[:, i : i + 1]) for i in range(log_w.shape[1])])
    torch.testing.assert_close(ours(log_w), single, rtol=0, atol=1e-12)
    shuffled = log_w.topk(96, 0).values[torch.randperm(96)]
    torch.testing.assert_close(khat(shuffled), ours(log_w), rtol=0, atol=1e-12)


def test_infinite_without_a_tail() -> None:
    assert all(torch.isinf(ours(noise(k))).all() for k in (1, 2, 5, 20)), "at most 4 draws in the tail"
    assert torch.isfinite(ours(noise(21))).all(), "5 draws in the tail"
    rows = torch.zeros(1000, 3, dtype=torch.float64)
    rows[:, 0] = -torch.inf  # every weight is 0
    rows[5, 1] = torch.nan
    rows[5, 2] = 1000.0  # one weight is everything
    assert ours(rows).tolist() == [torch.inf] * 3


def test_a_flat_top_is_no_heavy_tail() -> None:
    """ArviZ says inf of equal weights, and so calls a perfect proposal unreliable."""
    rows = torch.zeros(1000, 3, dtype=torch.float64)
    rows[:, 1] = 1e-14 * noise(1000, 1)[:, 0]  # rounding
    rows[:700, 2] = -3 * noise(700, 1)[:, 0].abs()  # bounded weights, many at the bound
    assert ours(rows).tolist() == [-torch.inf] * 3
    assert ONE_X or theirs(rows)[[0, 2]].tolist() == [np.inf] * 2  # an error in ArviZ 1.x


def test_threshold_depends_on_the_number_of_draws() -> None:
    figures = {5: 0.0, 10: 0.0, 200: 0.57, 1000: 0.667, 2200: 0.70, 100_000: 0.70}
    for k, figure in figures.items():
        assert threshold(k) == pytest.approx(figure, abs=0.005)


@pytest.mark.parametrize("s", [0.5, 0.7, 0.9])
def test_known_tail(s: float) -> None:
    """Target N(0, 1), proposal N(0, s^2): the weights' tail has shape 1 - s^2."""
    z = s * noise(10_000, 40, seed=1)
    log_w = -0.5 * z**2 + 0.5 * (z / s) ** 2
    assert ours(log_w).mean().item() == pytest.approx(1 - s**2, abs=0.15)


MORE = SHAPES | {
    "three values": lambda z: z.sign() * (z.abs() > 1),
    "half of them 0": lambda z: torch.where(z > 0, 2 * z, -torch.inf),
    "nearly all of them 0": lambda z: torch.where(z > 1.2, 2 * z, -torch.inf),
    "far below 0": lambda z: 3 * z - 5000,
    "bounded": lambda z: -(z**2),
    "one outlier": lambda z: torch.where(z == z.amax(0), 40.0, z),
}


@pytest.mark.parametrize("shape", MORE)
@pytest.mark.parametrize("k", [5, 10, 21, 25, 40, 100, 1000, 10_000])
def test_smoothing_equals_arviz_datum_by_datum(shape: str, k: int) -> None:
    skip_what_arviz_lacks(shape, k)
    log_w = MORE[shape](noise(k))
    log_w[0] = log_w[0].clamp(min=-1e4)  # a datum has at least one weight
    weights, shapes = psis(log_w)
    expected, their_shapes = smoothed_by_arviz(log_w)
    np.testing.assert_allclose(shapes.where(shapes > -torch.inf, torch.inf).numpy(), their_shapes, rtol=0, atol=1e-6)
    if shape in ("tied", "three values"):  # which of equal weights gets the larger quantile is anyone's choice
        weights, expected = weights.sort(0).values, np.sort(expected, 0)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.logsumexp(weights, 0), torch.zeros(200).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(shapes, ours(log_w), rtol=0, atol=1e-12)


def test_smoothing_keeps_the_order_of_the_weights_and_the_body() -> None:
    log_w = 3 * noise(1000)
    before = log_w.clone()
    weights, _ = psis(log_w)
    assert torch.equal(log_w, before), "the caller's weights are left alone"
    rank = log_w.argsort(0)
    assert bool((weights.gather(0, rank).diff(dim=0) >= -1e-12).all())
    body = rank[: -tail_size(1000)]
    shift = weights.gather(0, body) - log_w.gather(0, body)
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=0, atol=1e-10)


def test_no_smoothing_without_a_tail() -> None:
    few, flat = noise(20, 3), torch.full((1000, 3), -7.0, dtype=torch.float64)
    for log_w in (few, flat):
        torch.testing.assert_close(psis(log_w)[0], log_w.log_softmax(0), rtol=0, atol=1e-12)
        torch.testing.assert_close(psis_estimate(log_w), torch.logsumexp(log_w, 0) - np.log(len(log_w)))
    rows = noise(100, 3)
    rows[:, 0] = -torch.inf
    rows[3, 1] = torch.nan
    weights, shape = psis(rows)
    assert bool((weights[:, 0] == -torch.inf).all()), "no weight at all"
    assert bool(weights[:, 1].isnan().all()) and bool(weights[:, 2].isfinite().all())
    assert shape[:2].tolist() == [torch.inf] * 2
    assert psis_estimate(rows)[0].item() == -torch.inf and bool(psis_estimate(rows)[1].isnan())
    assert psis(noise(50).float())[0].dtype is torch.float32


@pytest.mark.parametrize("s", [0.9, 0.7, 0.6])
def test_smoothing_takes_noise_from_heavy_tails(s: float) -> None:
    """Target N(0, 1), proposal N(0, s^2), log of the mean weight 0 in truth."""
    z = s * noise(1000, 2000, seed=3)
    log_w = -0.5 * z**2 + 0.5 * (z / s) ** 2 + np.log(s)
    plain = torch.logsumexp(log_w, 0) - np.log(1000)
    smooth = psis_estimate(log_w)
    rms = lambda e: e.square().mean().sqrt().item()
    assert rms(smooth) < rms(plain) * {0.9: 1.02, 0.7: 0.75, 0.6: 0.65}[s]
    assert abs(smooth.mean().item()) < 0.03
