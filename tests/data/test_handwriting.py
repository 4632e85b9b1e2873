"""Drawn digits: the lognormal pen against its formulas, and digits that differ but can be told."""

from math import erf, sqrt

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pyro_mm.data import handwriting
from pyro_mm.data.handwriting import FORMS, drawn_digits, progress, strokes_to, trace
from pyro_mm.data.pen import MARGIN

TEN = np.arange(10)


@pytest.fixture
def strokes():
    """Five digits of four strokes, with targets and turns of every kind, straight ones too."""
    random = np.random.RandomState(0)
    target, turn = random.standard_normal((5, 4, 2)), random.uniform(-3, 3, (5, 4))
    turn[:, 1] = 0
    times = random.uniform(0.1, 0.4, (5, 4)).cumsum(1), np.log(random.uniform(0.2, 0.6, (5, 4)))
    return target, strokes_to(target, turn, *times, random.uniform(0.15, 0.45, (5, 4)))


def alone(m, j):
    return handwriting.Movement(*(getattr(m, f)[:, j : j + 1] for f in m.__dataclass_fields__))


def long_after(n):
    return np.full((n, 1), 1e6)


def test_speed_is_lognormal_and_integrates_to_the_length(strokes):
    _, every = strokes
    t = np.linspace(0, 12, 120_001)
    for j in range(4):
        stroke = alone(every, j)
        place = trace(stroke, np.tile(t, (5, 1)))
        moved = np.hypot(*np.moveaxis(np.diff(place, axis=1), -1, 0))
        assert np.allclose(moved.sum(1), stroke.length[:, 0], rtol=1e-6)
        middle = (t[:-1] + t[1:]) / 2 - stroke.onset
        x = np.maximum(middle, 1e-9)
        density = np.exp(-((np.log(x) - stroke.mu) ** 2) / 2 / stroke.sigma**2) / (
            np.sqrt(2 * np.pi) * stroke.sigma * x
        )
        expected = np.where(middle > 0, stroke.length * density, 0)
        assert np.allclose(moved / np.diff(t), expected, atol=2e-4 * expected.max())


def test_a_stroke_alone_ends_at_its_target_along_an_arc(strokes):
    target, every = strokes
    for j in range(4):
        stroke = alone(every, j)
        assert np.allclose(trace(stroke, long_after(5))[:, 0], target[:, j], atol=1e-12)
        t = stroke.onset + np.linspace(0, 3, 50)
        z = trace(stroke, t) @ [1, 1j]
        w, turn = progress(stroke, t)[..., 0], stroke.turn
        if j == 1:  # straight, at every time on the line to the target
            assert np.allclose(z, w * (target[:, j] @ [1, 1j])[:, None])
        else:  # on a circle: its centre is to the left of the start, at the signed radius length / turn
            radius = stroke.length / turn
            centre = 1j * radius * np.exp(1j * stroke.start)
            assert np.allclose(np.abs(z - centre), np.abs(radius))
            assert np.allclose((z - centre) / -centre, np.exp(1j * turn * w))


def test_overlapping_strokes_add(strokes):
    target, every = strokes
    t = np.tile(np.linspace(0, 3, 40), (5, 1))
    assert np.allclose(trace(every, t), sum(trace(alone(every, j), t) for j in range(4)))
    assert np.allclose(trace(every, long_after(5))[:, 0], target.sum(1))
    w = progress(every, t)
    assert ((w > 0.05) & (w < 0.95)).sum(-1).max() >= 2  # they do overlap


@pytest.mark.parametrize("digit", TEN)
def test_without_jitter_the_pen_reaches_the_last_target(digit, monkeypatch):
    jittered = handwriting._jittered(list(FORMS[digit]) * 200, np.random.RandomState(3))
    for name in ("AMPLITUDE", "ANGLE", "CURVATURE", "TIMES"):
        monkeypatch.setattr(handwriting, name, 0.0)
    forms = list(FORMS[digit])
    plain = handwriting._jittered(forms, np.random.RandomState(3))
    ends = [np.array([f.split(",")[i].split()[:2] for f in forms], float) / 100 for i in (0, -1)]
    assert np.allclose(trace(plain, long_after(len(forms)))[:, 0], ends[1] - ends[0])
    # Jitter comes near its bounds and keeps them: of the turn, and of each stroke's vector from begin to end.
    vectors = []
    for m in (jittered, plain):
        half = m.turn / 2
        vectors.append(m.length * np.sinc(half / np.pi) * np.exp(1j * (m.start + half)))
    real = vectors[0] != 0
    ratio = vectors[0][real] / np.tile(vectors[1], (200, 1))[real]
    assert 0.15 < np.abs(np.abs(ratio) - 1).max() <= 0.2 + 1e-12
    assert 15 < np.rad2deg(np.abs(np.angle(ratio))).max() <= 20 + 1e-9
    turn = np.tile(plain.turn, (200, 1))
    if (turn != 0).any():
        share = np.abs(jittered.turn[turn != 0] / turn[turn != 0] - 1)
        assert 0.09 < share.max() <= 0.1 + 1e-12


def test_digits_fill_the_square_and_follow_their_seed():
    labels = np.tile(TEN, 5)
    points = drawn_digits(labels, 7)
    assert points.shape == (50, 100, 2)
    low, high = points.min(1), points.max(1)
    assert np.allclose((low + high) / 2, 0.5) and np.allclose((high - low).max(1), 1 - 2 * MARGIN)
    assert np.array_equal(points, drawn_digits(labels, 7))
    assert np.abs(points - drawn_digits(labels, 8)).mean((1, 2)).min() > 0.005
    assert drawn_digits(labels[:0], 0).shape == (0, 100, 2)


def test_points_are_equal_steps_of_the_movement(monkeypatch):
    # A straight 1: along the line, steps follow the lognormal's differences between its 0.5 % and 99.5 % points.
    monkeypatch.setattr(handwriting, "FORMS", {1: ("0 100, 0 0",)})
    monkeypatch.setattr(handwriting, "TIMES", 0.0)
    points = drawn_digits(np.array([1]), 0)[0]
    done = np.linalg.norm(points - points[0], axis=-1)
    quantile = 2.5758293035489004  # of the normal at 99.5 %
    t = np.linspace(np.exp(-0.3 * quantile), np.exp(0.3 * quantile), 100)
    share = np.array([0.5 * (1 + erf(x / 0.3 / sqrt(2))) for x in np.log(t)])
    assert np.allclose(done / done[-1], (share - 0.005) / 0.99, atol=1e-9)


def test_classes_can_be_told_and_vary():
    label = np.tile(TEN, 100)
    train, test = (drawn_digits(label, seed).reshape(1000, -1) for seed in (0, 1))
    judge = LogisticRegression(max_iter=300).fit(train, label)
    assert judge.score(test, label) > 0.95  # 0.998 here
    within = np.mean([test[label == c].var(0).sum() for c in TEN]) / test.var(0).sum()
    assert 0.15 < within < 0.6  # 0.28 here
    for c in TEN:
        rows = test[label == c]
        apart = np.sqrt(((rows[:, None] - rows[None]) ** 2).mean(-1))[np.triu_indices(100, 1)]
        assert apart.min() > 1e-4 and np.median(apart) > 0.03


@pytest.mark.parametrize("labels", [np.array([10]), np.array([-1]), np.array([[1]]), np.array([1.0])])
def test_labels_are_digits(labels):
    with pytest.raises(ValueError, match=r"trajectory: labels must be \(N,\) integers 0..9, got"):
        drawn_digits(labels, 0)
