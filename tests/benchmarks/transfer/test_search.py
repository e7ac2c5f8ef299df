import math

from benchmarks.transfer.search import BASE, MOST_COARSE, best_of, next_rates, number_of, rate_of

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st


def searched(loss, expected: float) -> dict[int, float]:
    found: dict[int, float] = {}
    while wanted := next_rates(found, expected):
        assert not any(k in found for k in wanted), "nothing is trained twice"
        found |= {k: loss(rate_of(k)) for k in wanted}
    return found


@given(st.floats(-9, 3), st.floats(-2, 2))
def test_the_lowest_point_of_a_parabola_is_found(exponent, off):
    """Loss is a parabola in log(rate). The fit is exact up to rates of four digits; begun within a factor of 4."""
    best = BASE * 2**exponent
    found = searched(lambda rate: 1 + 0.01 * math.log2(rate / best) ** 2, best * 2**off)
    own = best_of(found)
    assert own.rate == pytest.approx(best, rel=2e-3) and not own.edge
    k = min(found, key=found.__getitem__)
    assert all(k + step in found for step in (-2, -1, 1, 2)) and len(found) <= 9


@given(st.integers(0, 2**31 - 1))
def test_chance_is_evened_out(seed):
    """Five points of a parabola whose losses are off by a tenth of what √2 costs: three points would be off by more.
    Tolerance: 5 standard deviations of the fit's slope over its bend."""
    noise = np.random.default_rng(seed).normal(0, 0.001, 5)
    found = {k: 1 + 0.01 * (k / 2) ** 2 + noise[k + 2] for k in range(-2, 3)}
    best = min(found, key=found.__getitem__)
    found |= {k: 1 + 0.01 * (k / 2) ** 2 for k in (best - 2, best + 2) if k not in found}
    # slope's deviation 0.001/√10, bend 0.0025: 0.063 of a half octave, and best_of's points may lie to one side
    assert abs(math.log2(best_of(found).rate / BASE)) < 5 * 0.063 / 2 + 0.1


def test_a_search_goes_on_past_rates_that_diverge():
    def loss(rate):
        return math.inf if rate > 0.01 else 1 + math.log(rate / 0.004) ** 2

    own = best_of(searched(loss, 0.1))
    # a factor of 2 off costs 0.48, which counts as 0.05 on both sides alike
    assert own.rate == pytest.approx(0.004, rel=0.02) and not own.edge


def test_a_neighbour_that_diverges_pushes_the_best_rate_away():
    losses = {number_of(0.004): 1.01, number_of(rate_of(5)): 1.0, number_of(0.008): math.inf}
    own = best_of(losses)
    assert rate_of(4) < own.rate < rate_of(5)


def test_a_search_that_never_ends_is_told():
    falling = searched(lambda rate: -math.log(rate), 0.01)
    assert best_of(falling).edge and sum(k % 2 == 0 for k in falling) == MOST_COARSE
    lost = searched(lambda rate: math.inf, 0.01)
    assert best_of(lost) is None and len(lost) == MOST_COARSE


def test_numbers_and_rates_belong_together():
    assert all(number_of(rate_of(k)) == k for k in range(-30, 30))
    assert number_of(0.0123) is None and rate_of(0) == BASE and rate_of(2) == 2 * BASE


def test_of_rates_far_apart_the_best_is_told_as_it_is():
    found = best_of({2: 0.279, 10: 0.238, 18: 1.5})
    assert found.rate == rate_of(10) and found.loss == 0.238 and not found.edge
