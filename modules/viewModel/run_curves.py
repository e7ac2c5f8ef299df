"""The curves of several runs on top of each other."""

from collections.abc import Sequence
from dataclasses import dataclass

from modules.viewModel.curves import Point
from modules.viewModel.run_data import RunData
from modules.viewModel.run_list import ListedRun

LOSS, VALIDATION, RATE = "loss", "validation", "learning rate"
COLORS = ("blue", "orange", "green", "purple", "red", "teal", "brown", "pink")
"""Of runs, in the order in which they are compared."""


@dataclass(frozen=True)
class RunCurve:
    """A line of a plot.

    Attributes:
        name: of the run, and of the trained set where there are several.
        color: one of COLORS.
        points: (steps or minutes, value).
        dots: whether the points themselves are to be seen, as there are few.
    """

    name: str
    color: str
    points: Sequence[Point]
    dots: bool = False


def run_curves(compared: Sequence[tuple[ListedRun, RunData]], kind: str, by_time: bool, smooth: bool) -> list[RunCurve]:
    """A line for each run, and for each of its trained sets where learning rates are compared.

    Args:
        compared: runs with what they have logged.
        kind: LOSS, VALIDATION or RATE.
        by_time: minutes of training across instead of steps; runs of which these are not known are left out.
        smooth: of losses an average over about the last 20 steps.
    """
    found = []
    for name, color, data in zip(
        names_of([run for run, _ in compared]), COLORS, [data for _, data in compared], strict=False
    ):
        if by_time and not data.knows_time:
            continue
        if kind == LOSS:
            found.append(RunCurve(name, color, data.loss.points(by_time, smooth)))
        elif kind == VALIDATION:
            found.append(RunCurve(name, color, data.validation.points(by_time), dots=True))
        else:
            for trained_set, curve in data.rates.items():
                own = f"{name} · {trained_set}" if len(data.rates) > 1 else name
                found.append(RunCurve(own, color, curve.points(by_time)))
    return found


def names_of(runs: Sequence[ListedRun]) -> list[str]:
    """What tells runs apart: their names, with a number for a second one of a name."""
    names: list[str] = []
    for run in runs:
        name, count = run.name, 2
        while name in names:
            name, count = f"{run.name} ({count})", count + 1
        names.append(name)
    return names
