"""Long series are thinned without losing what they show; ticks are round."""

import math

from modules.viewModel.curves import bounds, decimate, tick_text, tick_texts, ticks

import pytest


def test_decimation_keeps_ends_and_extremes():
    points = [(x, math.sin(x / 50)) for x in range(10_000)]
    points[4321] = (4321, 9.0)
    thin = decimate(points, 200)
    assert len(thin) <= 200 and thin[0] == points[0] and thin[-1] == points[-1] and (4321, 9.0) in thin
    assert thin == sorted(thin) and min(y for _, y in thin) == min(y for _, y in points)
    assert decimate(points[:5], 200) == points[:5]


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.13, 0.31, [0.15, 0.2, 0.25, 0.3]),
    (0, 1e-4, [0, 2e-5, 4e-5, 6e-5, 8e-5, 1e-4]), (-1, 1, [-1, -0.5, 0, 0.5, 1]),
])  # fmt: skip
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_of_nothing():
    assert ticks(3, 3) == [3] and ticks(math.nan, 1) == []


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (1000, "1000"), (2e-4, "2e-4"), (0, "0"), (250000, "2.5e5")]
)
def test_tick_texts(value, text):
    assert tick_text(value) == text


def test_an_axis_is_written_in_one_way():
    assert tick_texts([0, 5e-4, 1e-3, 1.5e-3]) == ["0", "5e-4", "1e-3", "1.5e-3"]
    assert tick_texts([0, 0.05, 0.1]) == ["0", "0.05", "0.1"]


def test_a_spike_does_not_flatten_the_rest():
    calm = [(x, 0.1 + 0.001 * (x % 7)) for x in range(200)]
    low, high = bounds([[*calm, (200, 50.0)]])
    assert 0 < low < 0.1 and high < 0.2
    assert bounds([]) == (0, 1) and bounds([[(0, 2.0)]]) == (1.8, 2.2)
    # what is measured seldom is shown all of it
    assert bounds([calm, [(0, 0.35), (400, 0.05)]])[1] > 0.35
