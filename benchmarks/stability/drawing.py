"""Panels that several questions draw."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.figures import plain_axes, show_rates, write_figure
from benchmarks.stability.analysis import mean_curve
from benchmarks.stability.Results import Results

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#888888", "#4878a8", "#ee854a", "#6acc64", "#956cb4", "#d65f5f")
# how much worse than the best a picture still shows, as a share of what the best brings
SHOWN_SHARE = 0.6


def panels(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    """A figure and its axes by row."""
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(4.2 * columns, 3.2 * rows), layout="constrained", squeeze=False
    )
    return figure, [list(line) for line in grid]


def draw_rates(axes: Axes, results: Results, question: str, labels: Mapping[str, str], title: str) -> None:
    """Loss over learning rate: a line for each case with the range of its seeds.

    Args:
        labels: case -> its name in the legend.
    """
    lows, untrained = [], 0.0
    for color, (case, label) in zip(COLORS, labels.items(), strict=False):
        curve = mean_curve(results, question, case)
        if not curve:
            continue
        rates, means, low, high = zip(*curve, strict=True)
        axes.plot(rates, means, "o-", color=color, markersize=3, linewidth=1.2, label=label)
        axes.fill_between(rates, low, high, color=color, alpha=0.15, linewidth=0)
        lows.append(min(means))
        seed = results.seeds(question, case)[0]
        untrained = max(row.untrained for row in results.rows(question, case, seed).values())
    if lows:
        span = max(untrained - min(lows), 1e-6)
        # rates that lead astray would flatten everything else
        axes.set_ylim(min(lows) - 0.05 * span, max(max(lows) + 0.1 * span, min(lows) + SHOWN_SHARE * span))
        axes.legend(fontsize=7, frameon=False)
    else:
        axes.set_axis_off()
    axes.set(title=title, xlabel="learning rate", ylabel="loss")
    show_rates(axes)


def draw_bars(axes: Axes, groups: Mapping[str, Sequence[float]], title: str) -> None:
    """A bar for each name, as high as the mean, with a dot for each seed."""
    for place, values in enumerate(groups.values()):
        if not values:
            continue
        color = COLORS[place % len(COLORS)]
        axes.bar(place, sum(values) / len(values), color=color, alpha=0.5, width=0.6)
        axes.plot([place] * len(values), values, "o", color=color, markersize=4)
    axes.set_xticks(range(len(groups)), list(groups), rotation=30, ha="right", fontsize=8)
    axes.set_title(title)


def save(figure: Figure, path: Path) -> None:
    """Writes the PNG and closes the figure."""
    plain_axes(figure.axes, 10, 8)
    write_figure(figure, path, 90)
