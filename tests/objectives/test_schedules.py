"""Weights that change while training runs."""

from __future__ import annotations

import copy

import pytest
import torch

from pyro_mm.objectives import Schedule, Warmup
from pyro_mm.objectives.schedules import symbol_of, value_of


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (Warmup(4), {0: 0.0, 1: 0.25, 2.5: 0.625, 4: 1.0, 100: 1.0}),
        (Warmup(10, 0.5, 2.0), {0: 0.5, 5: 1.25, 10: 2.0}),
        (Warmup(2, 1.0, 0.0), {0: 1.0, 0.5: 0.75, 2: 0.0, 3: 0.0}),
        (Warmup(0, 0.2, 0.7), {0: 0.7, 1: 0.7}),
        (Warmup(16, 0.0, 8.0, after=6), {0: 0.0, 6: 0.0, 10: 2.0, 22: 8.0, 30: 8.0}),
        (Warmup(0, 0.2, 0.7, after=3), {2.9: 0.2, 3: 0.7}),
    ],
)
def test_a_warm_up_is_linear_and_then_stays(schedule, points):
    for epochs, value in points.items():
        schedule.at(epochs)
        assert value_of(schedule).item() == pytest.approx(value)


def test_without_training_a_schedule_stands_at_its_end():
    """So that an objective evaluated by itself is the one the paper ends with."""
    assert Warmup(50, 0.0, 0.3).value.item() == pytest.approx(0.3)
    assert Schedule(2.5).value.item() == 2.5


def test_a_schedule_is_seen_to_change_by_whoever_holds_its_value():
    schedule = Warmup(2)
    held = value_of(schedule)
    schedule.at(1)
    assert held.item() == 0.5


def test_nothing_of_a_schedule_is_saved_or_trained():
    schedule = Warmup(3)
    assert schedule.state_dict() == {}
    assert list(schedule.parameters()) == []
    other = copy.deepcopy(schedule)
    other.at(0)
    assert schedule.value.item() == 1.0


def test_moving_to_another_precision_keeps_the_value():
    schedule = Warmup(4, 0.0, 0.5).double()
    schedule.at(2)
    assert schedule.value.dtype is torch.float64
    assert schedule.value.item() == 0.25


def test_negative_warm_ups_are_refused():
    with pytest.raises(ValueError, match="0 or more epochs, after 0 or more; got -1 after 0"):
        Warmup(-1)
    with pytest.raises(ValueError, match="got 1 after -2"):
        Warmup(1, after=-2)


def test_how_weights_are_printed():
    assert symbol_of(0.5, "beta") == "0.5"
    assert symbol_of(Warmup(3), "beta") == "beta(t)"
    assert repr(Warmup(3, 0.1, 2)) == "Warmup(0.1 to 2 over 3 epochs)"
    assert repr(Warmup(3, after=2)) == "Warmup(0 to 1 over 3 epochs after 2)"
    assert value_of(0.25) == 0.25
