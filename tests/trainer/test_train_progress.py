"""Where a run stands, and when a periodic action is due."""

import json

from modules.trainer.TrainProgress import Interval, TrainProgress, limit_passed
from modules.util.enum.TimeUnit import TimeUnit

import pytest


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that stands at clock[0]."""
    now = [1000.0]
    monkeypatch.setattr("modules.trainer.TrainProgress.time.monotonic", lambda: now[0])
    return now


def test_round_trip_through_json():
    progress = TrainProgress(
        step=5, epoch=1, losses=[0.1, 0.30000000000000004], validation=[(0, 0.5), (5, 0.25)], seconds=1.5,
        samples=[{"step": 0, "grid": "a.png", "files": ["b.png"]}], last={"backup": 3},
    )  # fmt: skip
    assert TrainProgress.from_dict(json.loads(json.dumps(progress.to_dict()))) == progress


def due_steps(interval: Interval, steps: int = 12) -> list[int]:
    return [step for step in range(1, steps + 1) if interval.due(step, step // 4, step % 4 == 0)]


def test_steps():
    assert due_steps(Interval(3, TimeUnit.STEP)) == [3, 6, 9, 12]
    assert due_steps(Interval(3, TimeUnit.STEP, skip_first=6)) == [9, 12]


def test_epochs_are_due_once_at_their_end():
    assert due_steps(Interval(1, TimeUnit.EPOCH)) == [4, 8, 12]
    assert due_steps(Interval(2, TimeUnit.EPOCH)) == [8]
    assert due_steps(Interval(1, TimeUnit.EPOCH, skip_first=1)) == [8, 12]


def test_always_and_never():
    assert due_steps(Interval(0, TimeUnit.ALWAYS)) == list(range(1, 13))
    assert due_steps(Interval(0, TimeUnit.ALWAYS, skip_first=10)) == [11, 12]
    assert due_steps(Interval(1, TimeUnit.NEVER)) == []
    assert not Interval(1, TimeUnit.NEVER).active and Interval(0, TimeUnit.ALWAYS).active


@pytest.mark.parametrize("unit", [TimeUnit.STEP, TimeUnit.EPOCH, TimeUnit.SECOND, TimeUnit.MINUTE, TimeUnit.HOUR])
def test_zero_switches_off(unit):
    assert not Interval(0, unit).active and due_steps(Interval(0, unit)) == []


@pytest.mark.parametrize(("unit", "seconds"), [(TimeUnit.SECOND, 1), (TimeUnit.MINUTE, 60), (TimeUnit.HOUR, 3600)])
def test_times_count_from_the_last_one(clock, unit, seconds):
    interval = Interval(2, unit)
    assert not interval.due(1, 0, False)
    clock[0] += 2 * seconds - 0.5
    assert not interval.due(2, 0, False)
    clock[0] += 0.5
    assert interval.due(3, 0, False) and not interval.due(4, 0, False)
    clock[0] += 2 * seconds
    assert interval.due(5, 0, False)


def test_times_skip_the_first_while(clock):
    interval = Interval(1, TimeUnit.MINUTE, skip_first=3)
    clock[0] += 120
    assert not interval.due(1, 0, False)
    clock[0] += 60
    assert interval.due(2, 0, False)


@pytest.mark.parametrize(
    ("unit", "before", "after"),
    [
        (TimeUnit.STEP, TrainProgress(step=4), TrainProgress(step=5)),
        (TimeUnit.EPOCH, TrainProgress(epoch=4), TrainProgress(epoch=5)),
        (TimeUnit.SECOND, TrainProgress(seconds=4.9), TrainProgress(seconds=5)),
        (TimeUnit.MINUTE, TrainProgress(seconds=299), TrainProgress(seconds=300)),
        (TimeUnit.HOUR, TrainProgress(seconds=17999), TrainProgress(seconds=18000)),
    ],
)
def test_limits(unit, before, after):
    assert not limit_passed(5, unit, before) and limit_passed(5, unit, after)
    assert not limit_passed(None, unit, after) and not limit_passed(0, unit, after)


@pytest.mark.parametrize("unit", [TimeUnit.NEVER, TimeUnit.ALWAYS])
def test_no_limit(unit):
    assert not limit_passed(5, unit, TrainProgress(step=100, epoch=100, seconds=1e9))
