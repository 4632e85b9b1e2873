"""Disentanglement scores: known values for codes that are the factors, mixtures of them, or nothing of them."""

from math import log

import numpy as np
import pytest
import torch

from pyro_mm.evaluation import disentanglement

N = 3000


@pytest.fixture(scope="module")
def factors():
    g = torch.Generator().manual_seed(0)
    return {"digit": torch.randint(0, 4, (N,), generator=g), "speaker": torch.randint(0, 3, (N,), generator=g)}


def codes(factors, mixed=False):
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(N, 3, generator=g)
    x = torch.stack([factors["digit"] + 0.01 * noise[:, 0], factors["speaker"] + 0.01 * noise[:, 1], noise[:, 2]], 1)
    if mixed:
        x[:, :2] = x[:, :2] @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) * 0.5**0.5
    return x


def test_a_coordinate_for_each_factor_is_nearly_perfect(factors):
    found = disentanglement(codes(factors), factors)
    assert found.disentanglement > 0.95 and found.completeness > 0.95
    assert found.importance.argmax(0).tolist() == [0, 1]
    assert found.informativeness == {"digit": 1.0, "speaker": 1.0}
    for name, classes in (("digit", 4), ("speaker", 3)):
        assert found.mig[name] > 0.95  # the second best coordinate knows nothing
        assert found.information[:, ["digit", "speaker"].index(name)].max() == pytest.approx(log(classes), abs=0.01)
        assert abs(found.chance[name] - 1 / classes) < 0.05
    assert "MIG 0.9" in str(found)


def test_a_rotation_informs_as_well_and_disentangles_nothing(factors):
    plain, mixed = disentanglement(codes(factors), factors), disentanglement(codes(factors, True), factors)
    assert min(mixed.informativeness.values()) > 0.95
    assert mixed.disentanglement < 0.6 < plain.disentanglement
    assert max(mixed.mig.values()) < 0.3 and max(mixed.mig.values()) < min(plain.mig.values()) - 0.5


def test_noise_is_at_chance(factors):
    noise = torch.randn(N, 4, generator=torch.Generator().manual_seed(2))
    found = disentanglement(noise, factors)
    for name in factors:
        assert abs(found.informativeness[name] - found.chance[name]) < 0.06
        assert abs(found.mig[name]) < 0.02 and abs(found.sap[name]) < 0.04


def test_sap_is_the_gap_of_the_two_best_single_coordinates():
    """One coordinate decides the class, a second one agrees with it in 80 % of rows: .2 apart."""
    source = np.random.RandomState(0)
    y = source.randint(0, 2, N)
    other = np.where(source.rand(N) < 0.8, y, 1 - y)
    x = np.stack([y, other, source.randn(N)], 1) + 0.01 * source.randn(N, 3)
    found = disentanglement(torch.from_numpy(x), {"y": torch.from_numpy(y)})
    assert found.sap["y"] == pytest.approx(0.2, abs=0.03)
    agreement = 0.8 * log(0.8 / 0.5) + 0.2 * log(0.2 / 0.5)
    assert found.mig["y"] == pytest.approx(1 - agreement / log(2), abs=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, f: (x[:10], f), r"N >= 20 and D >= 2, got shape \(10, 3\)"),
        (lambda x, f: (x * float("nan"), f), "NaN or infinite"),
        (lambda x, f: (x, {}), "at least one factor"),
        (lambda x, f: (x, {"digit": f["digit"][:5]}), r"factor 'digit' must be class labels \(3000,\)"),
        (lambda x, f: (x, {"digit": f["digit"] * 0}), "factor 'digit' needs two classes"),
    ],
)
def test_mistakes_are_named(factors, change, message):
    with pytest.raises(ValueError, match=message):
        disentanglement(*change(codes(factors), factors))
