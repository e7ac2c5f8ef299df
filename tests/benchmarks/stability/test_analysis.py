import math

from benchmarks.stability.analysis import BETTER, SAME, WORSE, compare, rates_within
from benchmarks.stability.factored_second import octaves, width_verdict
from benchmarks.stability.Results import Results
from benchmarks.stability.scaled_eps import DEFAULT, EPSILONS, recommendation
from benchmarks.stability.signs import fluctuation
from benchmarks.stability.Trial import Measured, Trial
from modules.util.UserError import UserError

import pytest


def runs(*losses: float) -> dict[int, Measured]:
    """One run for each seed, untrained loss 1."""
    return {seed: Measured(loss, 1.0, {}) for seed, loss in enumerate(losses)}


def test_a_difference_counts_if_it_is_large_and_every_seed_agrees():
    base = runs(0.5, 0.5, 0.5)
    better = compare(runs(0.49, 0.48, 0.47), base)
    assert better.word == BETTER and better.mean == pytest.approx(0.04) and better.seeds == 3
    assert (better.low, better.high) == pytest.approx((0.02, 0.06))
    assert "**better** by 4.0 % of what that learns (+2.0 to +6.0 % over 3 seeds)" in better.told("a", "b")
    assert compare(runs(0.51, 0.52, 0.53), base).word == WORSE
    assert compare(runs(0.4, 0.4, 0.501), base).word == SAME, "one seed disagrees"
    assert compare(runs(0.4991, 0.4991, 0.4991), base).word == SAME, "below the threshold"
    assert "spread is not known" in compare(runs(0.4), runs(0.5)).told("a", "b")
    lost = compare(runs(math.inf, math.inf), runs(0.5, 0.5))
    assert lost.word == WORSE and "diverged" in lost.told("a", "b")


def test_nothing_is_said_without_a_baseline():
    assert compare(runs(0.5), {}) is None
    assert compare(runs(0.5), runs(1.2)) is None, "the baseline learned nothing"
    assert compare(runs(0.5), runs(math.inf)) is None


def test_range_of_rates():
    losses = {rate: (math.log2(rate / 0.08)) ** 2 for rate in (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)} | {0.64: math.inf}
    # between 1 and 4 octaves² the loss is drawn as a line: 2.5 lies half-way from the first rate to the second
    low, high, is_open = rates_within(losses, 2.5)
    assert (low, high) == pytest.approx((0.04 / 2**0.5, 0.16 * 2**0.5)) and not is_open
    assert rates_within(losses, 5.0) == pytest.approx((0.02 / 2**0.2, 0.32, False)), "a diverged neighbour ends it"
    assert rates_within(losses, 50.0) == (0.01, 0.32, True)
    assert rates_within(losses, -1.0) is None
    assert octaves((0.01, 0.04, False)) == 2 and octaves(None) == 0


@pytest.mark.parametrize(
    ("ratio", "word"),
    [((8, 8), "no difference"), ((16, 16), "wider"), ((2, 4), "narrower"), ((4, 16), "no difference")],
)
def test_a_wider_range_is_wider_at_every_seed(ratio, word):
    own = {seed: (None, (1.0, float(r), False)) for seed, r in enumerate(ratio)}
    full = dict.fromkeys(range(2), (None, (1.0, 8.0, False)))
    assert f"**{word}**" in width_verdict(own, full)


def test_fluctuation_takes_the_trend_out():
    assert fluctuation([(step, 1 - 0.1 * step) for step in range(8)]) == pytest.approx(0, abs=1e-12)
    zigzag = [(step, 0.3 * step + (-1) ** step) for step in range(200)]
    assert fluctuation(zigzag) == pytest.approx(1, rel=1e-3)
    assert fluctuation([(0, 1.0), (1, 5.0)]) == 0


def test_the_recommended_epsilon_is_worse_at_no_rank():
    def against(*losses: float):
        return {rank: compare(runs(loss), runs(0.5)) for rank, loss in zip((4, 16, 64), losses, strict=True)}

    same = {own: against(0.5, 0.5, 0.5) for own in EPSILONS}
    assert "the default" in recommendation(same)
    best, other = EPSILONS[4], EPSILONS[5]
    found = recommendation(same | {best: against(0.48, 0.48, 0.48)})
    assert f"scaled_eps on, eps {best.eps:g}" in found and "4.0 % more" in found
    # far better at two ranks, worse at one
    assert f"eps {best.eps:g}" in recommendation(
        same | {best: against(0.48, 0.48, 0.48), other: against(0.3, 0.3, 0.6)}
    )
    assert DEFAULT not in (best, other)
    assert "No recommendation" in recommendation(same | {other: {16: same[other][16]}})
    assert "No recommendation" in recommendation({DEFAULT: same[DEFAULT], best: same[best]})


def test_results_go_on_and_are_checked(tmp_path):
    path = tmp_path / "rows.jsonl"
    results = Results(path, head={"script": "test"})
    results.add(Trial("a", "case", 0.008, 0, 40), Measured(0.5, 1.0, {"flips": 0.25}))
    results.add(Trial("a", "case", 0.004, 0, 40), Measured(math.inf, 1.0, {}))
    read = Results(path)
    assert read.losses("a", "case", 0) == {0.004: math.inf, 0.008: 0.5} and read.seeds("a", "case") == [0]
    assert read.rows("a", "case", 0)[0.008].figures == {"flips": 0.25}
    with pytest.raises(UserError, match="no file of this measurement"):
        Results(path, quick=True)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"question": ')
    with pytest.raises(UserError, match="cut off"):
        Results(path)
