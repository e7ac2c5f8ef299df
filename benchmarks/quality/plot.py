"""Pictures of the comparison."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import plain_axes, write_figure
from benchmarks.quality.contest import TUNING_SEED, summary

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#888888", "#4878a8", "#ee854a", "#d65f5f", "#6acc64", "#956cb4", "#8c613c")
# share of the least tuning loss that is shown above it at least; what is far above leaves the picture
MARGIN = 0.1
# the least that a log scale shows, over the largest
SHOWN_SHARE = 1e-5

Row = Mapping[str, Any]


def draw_quality(rows: Sequence[Row], path: Path, accuracy_name: str = "accuracy, %") -> None:
    """Writes a PNG: tuning loss over the learning rate, validation loss and accuracy of each seed, effective rank of B
    over the run at the best rate.

    Raises:
        ValueError: no optimizer has a finished run at its best rate.
    """
    found = _checked(rows)
    classified = all(own["accuracy"] is not None for own in found.values())
    figure, axes = pyplot.subplots(1, 4 if classified else 3, figsize=(16 if classified else 12, 3.6),
                                   layout="constrained")  # fmt: skip
    _tuning(axes[0], rows, found)
    _dots(axes[1], rows, found, "validation", 1.0, "validation loss, each seed")
    if classified:
        _dots(axes[2], rows, found, "accuracy", 100.0, accuracy_name)
    for color, name in _colored(found):
        trace = [point for point in _trace(rows, name, found[name]["rate"]) if point["up_rank"]]
        axes[-1].plot([point["step"] for point in trace], [point["up_rank"] for point in trace], color=color)
    axes[-1].set(title="effective rank of B, mean of the layers", xlabel="step", ylim=(0, None))
    _save(figure, axes, path)


def draw_balance(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG, one column an optimizer, one scale a row: the root mean square of the steps of A (down) and B (up),
    and how far each of them moves B·A.

    Raises:
        ValueError: no optimizer has a finished run at its best rate, or none of them moves anything.
    """
    found = _checked(rows)
    moving = {name: _trace(rows, name, own["rate"]) for name, own in found.items()}
    moving = {name: trace for name, trace in moving.items() if any(point["up"] or point["down"] for point in trace)}
    if not moving:
        raise ValueError("found no optimizer that moves anything, expected at least one")
    figure, axes = pyplot.subplots(
        2, len(moving), sharex=True, sharey="row", figsize=(3.4 * len(moving), 5.6), layout="constrained", squeeze=False
    )
    trace_points = [point for trace in moving.values() for point in trace]
    for column, (name, trace) in zip(axes.T, moving.items(), strict=True):
        for axis, ending in zip(column, ("", "_change"), strict=True):
            for side, label, color in (("down", "A (down)", "#4878a8"), ("up", "B (up)", "#ee854a")):
                # a log scale has no place for zero, which one factor's first step is
                shown = [(point["step"], size) for point in trace if (size := point[side + ending]) > 0]
                axis.plot([step for step, _ in shown], [size for _, size in shown], color=color, label=label)
            axis.set_yscale("log")
            # where one factor can't move, its steps are rounding, far below everything else
            largest = max(own[side + ending] for own in trace_points for side in ("down", "up"))
            axis.set_ylim(largest * SHOWN_SHARE, largest * 2)
        column[0].set_title(f"{name}, rate {found[name]['rate']:g}")
        column[1].set_xlabel("step")
    axes[0][0].set_ylabel("root mean square of a step")
    axes[1][0].set_ylabel("norm of B·ΔA, of ΔB·A")
    axes[0][0].legend(fontsize=8)
    _save(figure, list(axes.flat), path)


def _tuning(axis: Axes, rows: Sequence[Row], found: Mapping[str, Any]) -> None:
    best = [min(own["tried"].values()) for own in found.values()]
    for color, name in _colored(found):
        own = sorted((row["rate"], row["tuning"]) for row in rows if row["optimizer"] == name
                     and row["seed"] == TUNING_SEED)  # fmt: skip
        own = [(rate, loss) for rate, loss in own if math.isfinite(loss)]
        if len(own) == 1:
            axis.axhline(own[0][1], color=color, linestyle="--", linewidth=1, label=name)
        else:
            axis.plot(*zip(*own, strict=True), "o-", color=color, markersize=3, linewidth=1.2, label=name)
    span = max(max(best) - min(best), MARGIN * abs(min(best)))
    # rates that lead astray would flatten everything else
    axis.set_ylim(min(best) - 0.1 * span, max(best) + span)
    axis.set(title="tuning loss", xlabel="learning rate", xscale="log")
    axis.legend(fontsize=8)


def _dots(axis: Axes, rows: Sequence[Row], found: Mapping[str, Any], field: str, times: float, title: str) -> None:
    for place, (color, name) in enumerate(_colored(found)):
        own = [row[field] for row in rows if row["optimizer"] == name and row["rate"] == found[name]["rate"]
               and row["seed"] != TUNING_SEED and math.isfinite(row[field])]  # fmt: skip
        axis.plot([place] * len(own), [times * value for value in own], "o", color=color, markersize=4, alpha=0.7)
        if own:
            axis.hlines(times * sum(own) / len(own), place - 0.3, place + 0.3, color=color)
    axis.set_xticks(range(len(found)), list(found), rotation=30, ha="right", fontsize=8)
    axis.set_title(title)


def _trace(rows: Sequence[Row], name: str, rate: float) -> list[dict[str, Any]]:
    """Of the first seed that counts."""
    own = [row for row in rows if (row["optimizer"], row["rate"]) == (name, rate) and row["seed"] != TUNING_SEED]
    return min(own, key=lambda row: row["seed"])["trace"]


def _colored(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(COLORS[place % len(COLORS)], name) for place, name in enumerate(found)]


def _checked(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    found = summary(rows)
    if not found:
        raise ValueError("found no optimizer with a finished run at its best rate, expected at least one")
    return found


def _save(figure: Figure, axes: Sequence[Axes], path: Path) -> None:
    plain_axes(axes, 10)
    write_figure(figure, path, 90)
