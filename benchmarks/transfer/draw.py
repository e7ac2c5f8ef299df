"""Pictures of transfer: loss over learning rate, a line for each size, and where each line is lowest."""

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import show_rates, write_figure
from benchmarks.transfer.questions import AXES, Axis, axis_settings
from benchmarks.transfer.Results import Results
from benchmarks.transfer.Setting import FULL, Setting
from benchmarks.transfer.summary import best_rate, spread, transferred_rate

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

# dark to light along a size, so that an order is seen without a legend
SIZE_COLORS = ("#2b3a67", "#37659e", "#4c9bb8", "#7cc2a4", "#e0a93b")
# how much worse than the best the picture still shows, as a share of what the best brings
SHOWN_SHARE = 0.6


def draw_transfer(results: Results, path: Path, task: str, rules: Sequence[str], axes: Sequence[Axis] = AXES) -> None:
    """Writes a PNG: for each rule one row of scaled steps over one of plain steps, for each axis a column.

    Nothing for a task of which nothing can be compared yet.
    """
    rows = [
        (rule, scaled)
        for rule in rules
        for scaled in (True, False)
        if any(spread(results, axis_settings(axis, task, rule, scaled)) for axis in axes)
    ]
    if not rows:
        return
    shown = [axis for axis in axes if any(spread(results, axis_settings(axis, task, *row)) for row in rows)]
    figure, grid = pyplot.subplots(
        len(rows), len(shown), figsize=(3.4 * len(shown), 2.6 * len(rows)), layout="constrained", squeeze=False,
    )  # fmt: skip
    for line, (rule, scaled) in zip(grid, rows, strict=True):
        for axes_of_cell, axis in zip(line, shown, strict=True):
            _draw_cell(axes_of_cell, results, axis, axis_settings(axis, task, rule, scaled))
        line[0].set_ylabel(f"{rule}\n{'scaled' if scaled else 'plain'} steps\nloss", fontsize=9)
    for axes_of_cell in grid[-1]:
        axes_of_cell.set_xlabel("learning rate", fontsize=9)
    write_figure(figure, path, 100)


def _draw_cell(axes: Axes, results: Results, axis: Axis, settings: Sequence[Setting]) -> None:
    found = spread(results, settings)
    if found is None:
        axes.set_axis_off()
        return
    rate = transferred_rate(results, settings[0])
    if rate:
        axes.axvline(rate, color="#999999", linewidth=1, linestyle=":")
    tops, lows = [], []
    for color, setting in zip(SIZE_COLORS, settings, strict=False):
        best = best_rate(results, setting)
        if best is None:
            continue
        curve = mean_curve(results, setting)
        axes.plot(*zip(*curve, strict=True), "-", color=color, linewidth=1.4, label=_label(axis, setting))
        axes.plot(*min(curve, key=lambda point: point[1]), "o", color=color, markersize=5)
        low = min(loss for _, loss in curve)
        lows.append(low)
        tops.append(low + SHOWN_SHARE * best.gain)
    span = max(tops) - min(lows)
    axes.set_ylim(min(lows) - 0.05 * span, max(tops))
    axes.set_title(f"{axis.name}: best rates within {found.median:.2f}×", fontsize=9)
    axes.legend(fontsize=7, frameon=False)
    show_rates(axes)


def _label(axis: Axis, setting: Setting) -> str:
    if axis.name == "width":
        return f"{setting.width}×"
    if axis.name == "method":
        return setting.method if setting.method == FULL else setting.label()
    return str(setting.size)


def mean_curve(results: Results, setting: Setting) -> list[tuple[float, float]]:
    """(rate, mean loss over the seeds that tried it) in increasing order, diverged runs left out."""
    losses: dict[float, list[float]] = {}
    for seed in results.seeds(setting):
        for rate, loss in results.losses(setting, seed).items():
            losses.setdefault(rate, []).append(loss)
    most = max(map(len, losses.values()))
    # a rate that only some seeds tried would put a step into the line
    means = {rate: sum(own) / len(own) for rate, own in losses.items() if len(own) == most}
    return sorted((rate, loss) for rate, loss in means.items() if math.isfinite(loss))
