"""Pen trajectories: arc length, the unit square, and ink that can be computed by hand."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_mm.data.pen import MARGIN, as_points, as_vector, normalised, rendered, resampled

WALK = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), min_size=2, max_size=30)


def test_steps_along_an_angle():
    corner = np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    assert np.allclose(resampled([corner], 8), [[0, 0], [1, 0], [2, 0], [3, 0], [3, 1], [3, 2], [3, 3], [3, 4]])


def test_strokes_are_joined_in_order():
    one, two = np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 2.0], [0.0, 2.0]])
    assert np.allclose(resampled([one, two], 5), [[0, 0], [1, 0], [1, 1], [1, 2], [0, 2]])
    assert np.allclose(resampled([two, one], 5), [[1, 2], [0, 2], [0, 1], [0, 0], [1, 0]])


@given(WALK)
def test_resting_and_halfway_points_change_nothing(walk):
    path = np.array(walk, dtype=float)
    halves = np.concatenate([[(a, (a + b) / 2) for a, b in pairwise(path)]]).reshape(-1, 2)
    finer = np.repeat(np.concatenate([halves, path[-1:]]), 2, axis=0)
    assert np.allclose(resampled(finer), resampled(path), atol=1e-6)


@given(WALK)
def test_first_and_last_points_stay_and_steps_are_equal_along_the_path(walk):
    path = np.array(walk, dtype=float)
    points = resampled(path)
    assert points.shape == (100, 2)
    assert np.allclose(points[[0, -1]], path[[0, -1]])
    length = np.hypot(*np.diff(path, axis=0).T).sum()
    steps = np.hypot(*np.diff(points, axis=0).T)
    assert (steps <= length / 99 + 1e-6).all()  # equal where the path is straight, shorter across a corner
    assert np.allclose(resampled(path[::-1]), points[::-1], atol=1e-6 * max(length, 1))


def test_a_dot_stays_where_it_is():
    dot = np.array([[3.0, 4.0]])
    assert np.array_equal(resampled([dot]), np.repeat(dot, 100, 0))
    assert np.array_equal(normalised([dot, dot])[1], [[0.5, 0.5]])


@given(WALK, st.integers(-50, 50), st.floats(0.01, 100))
def test_normalised_fills_the_square_whatever_place_and_size(walk, shift, scale):
    path = np.array(walk, dtype=float)
    (points,) = normalised(path)
    (other,) = normalised((path + shift) * scale)
    assert np.allclose(points, other, atol=1e-6)
    extent = np.ptp(points, axis=0)
    if np.ptp(path, axis=0).max() > 0:
        assert extent.max() == pytest.approx(1 - 2 * MARGIN)
        assert np.allclose(points.min(0) + points.max(0), 1)
        raw = np.ptp(path, axis=0)
        assert np.allclose(extent * raw[::-1], (extent * raw[::-1])[::-1])  # the aspect is kept


def test_several_strokes_share_one_scale():
    one, two = np.array([[0.0, 0.0], [10.0, 0.0]]), np.array([[0.0, 20.0], [10.0, 20.0]])
    a, b = normalised([one, two], margin=0.0)
    assert np.allclose(a, [[0.25, 0], [0.75, 0]]) and np.allclose(b, [[0.25, 1], [0.75, 1]])


def test_vectors_hold_x_then_y():
    points = np.array([[1, 10], [2, 20], [3, 30]])
    assert as_vector(points).tolist() == [1, 2, 3, 10, 20, 30]
    many = torch.randn(2, 5, 100, 2)
    assert as_vector(many).shape == (2, 5, 200) and torch.equal(as_points(as_vector(many)), many)
    assert np.array_equal(as_points(as_vector(points)), points)
    with pytest.raises(ValueError, match=r"points must be \(..., n, 2\), got shape \(3, 3\)"):
        as_vector(np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"got shape \(7,\)"):
        as_points(np.zeros(7))


def test_a_line_along_a_row_of_pixels_inks_that_row():
    y = 1 - 10.5 / 28  # the middle of row 10 from the top
    picture = rendered(np.array([[0.25, y], [0.75, y]]), width=1.0)
    expected = np.zeros((28, 28))
    expected[10, 7:21] = 1.0
    inner = np.s_[:, 8:20]
    assert np.allclose(picture[inner], expected[inner], atol=1e-5)
    assert picture[:, :6].sum() == picture[:, 22:].sum() == 0


@pytest.mark.parametrize("width", [1.2, 2.0, 3.5])
@pytest.mark.parametrize("angle", [0.0, 0.3, 0.8, 1.4])
def test_ink_is_the_area_of_a_round_pens_line(width, angle):
    half = 0.3 * np.array([np.cos(angle), np.sin(angle)])
    ink = rendered(np.array([0.5 - half, 0.5 + half]), width).sum()
    area = 0.6 * 28 * width + np.pi * width**2 / 4
    assert ink == pytest.approx(area, rel=0.02)


def test_turning_the_strokes_turns_the_picture():
    rng = np.random.default_rng(0)
    (points,) = normalised(rng.normal(size=(12, 2)))
    picture = rendered(points)
    assert np.allclose(rendered(points * [1, -1] + [0, 1]), picture[::-1], atol=1e-4)
    assert np.allclose(rendered(points * [-1, 1] + [1, 0]), picture[:, ::-1], atol=1e-4)
    assert np.allclose(rendered(points[:, ::-1]), picture.T[::-1, ::-1], atol=1e-4)
    assert np.allclose(rendered(points[::-1]), picture, atol=1e-4)


def test_no_ink_between_strokes_and_none_lost():
    one, two = np.array([[0.2, 0.2], [0.2, 0.8]]), np.array([[0.8, 0.2], [0.8, 0.8]])
    both = rendered([one, two])
    assert np.array_equal(both, np.maximum(rendered(one), rendered(two)))
    assert both[:, 10:18].sum() == 0 < rendered(np.concatenate([one, two]))[:, 10:18].sum()
    dot = rendered(np.array([[0.5, 0.5]]), width=4.0)
    assert dot.sum() == pytest.approx(4 * np.pi, rel=0.05)


def test_what_is_no_stroke_is_refused():
    with pytest.raises(ValueError, match=r"\(T, 2\) with T > 0, got shapes \[\(3,\)\]"):
        rendered(np.zeros(3))
    for none in ([], [np.zeros((0, 2))]):
        with pytest.raises(ValueError, match="trajectory: a stroke is an array"):
            resampled(none)
    with pytest.raises(ValueError, match="NaN or infinite"):
        normalised(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        rendered(np.zeros((2, 2)), width=0)
