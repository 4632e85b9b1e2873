"""Kernel distance against an exact value and torchmetrics' estimate; precision and recall where answers are known."""

from __future__ import annotations

import pytest
import torch

from pyro_mm.evaluation.frechet import frechet
from pyro_mm.evaluation.sample_quality import jackknife, kernel_distance, precision_recall


def normal(n: int, f: int = 4, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_the_kernel_distance_is_unbiased_and_exact_between_gaussians() -> None:
    """E (s + 1)^3 = 1 + 3 E s + 3 E s^2 + E s^3 of s = a.b/F, a and b from Gaussians N(m, I)."""

    def expected(m1: float, m2: float, f: int = 4) -> float:
        # s = sum a_i b_i / f over independent coordinates with E ab = p, E (ab)^2 = q, E (ab)^3 = r
        p, q = m1 * m2, (m1**2 + 1) * (m2**2 + 1)
        r = (m1**3 + 3 * m1) * (m2**3 + 3 * m2)
        first = f * p
        second = f * q + f * (f - 1) * p**2
        third = f * r + 3 * f * (f - 1) * q * p + f * (f - 1) * (f - 2) * p**3
        return 1 + 3 * first / f + 3 * second / f**2 + third / f**3

    for shift in (0.0, 0.5):
        exact = expected(0, 0) + expected(shift, shift) - 2 * expected(0, shift)
        found, error = kernel_distance(normal(20_000), normal(20_000, shift=shift, seed=1), block=500)
        assert abs(found - exact) < 4 * error and error < 0.04


def test_it_is_torchmetrics_estimate() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = normal(50), normal(50, shift=0.3, seed=1)
    found, _ = kernel_distance(a, b)
    assert found == pytest.approx(kid.poly_mmd(a, b).item(), rel=1e-6)


def test_precision_and_recall_tell_quality_from_variety() -> None:
    corners = torch.tensor([[0.0, 0], [0, 10], [10, 0], [10, 10]], dtype=torch.float64)
    real = corners.repeat_interleave(100, 0) + 0.3 * normal(400, 2)
    one_corner = 0.3 * normal(400, 2, seed=1)
    found = precision_recall(real, one_corner)
    assert found.precision > 0.9 and abs(found.recall - 0.25) < 0.03
    half_junk = torch.cat([real[::2] + 0.05, real[::2] + 50])
    found = precision_recall(real, half_junk)
    assert abs(found.precision - 0.5) < 0.03 and found.recall > 0.9
    again = corners.repeat_interleave(100, 0) + 0.3 * normal(400, 2, seed=5)
    found = precision_recall(real, again)
    assert found.precision > 0.9 and found.recall > 0.9 and found.n == 400


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(ValueError, match=r"equal features are needed; got \(5, 4\) and \(5, 3\)"):
        kernel_distance(normal(5), normal(5, 3))
    with pytest.raises(ValueError, match="needs more than 3 rows, got 3"):
        precision_recall(normal(3), normal(9))


def test_the_jackknife_tells_the_spread_over_repetitions() -> None:
    """Of the kernel distance and the Frechet distance between unlike samples, drawn anew 50 times."""
    noise = torch.Generator().manual_seed(0)
    for measure in (frechet, lambda a, b: kernel_distance(a, b)[0]):
        values, errors = [], []
        for _ in range(50):
            real, made = torch.randn(150, 4, generator=noise), 0.5 + 1.5 * torch.randn(150, 4, generator=noise)
            values.append(measure(real, made))
            errors.append(jackknife(measure, real, made))
        spread = torch.tensor(values).std()
        assert 0.75 < torch.tensor(errors).square().mean().sqrt() / spread < 1.35
