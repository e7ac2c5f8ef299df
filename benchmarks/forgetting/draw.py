"""Pictures of forgetting: kept skill over concept score, the storage modes, and best strengths over sizes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.figures import plain_axes, write_figure
from benchmarks.forgetting.kinds import CENTERED, FISHER, FISHER_CENTERED, KINDS, NONE, RATE, SCALED, STANDARD
from benchmarks.forgetting.plan import MODE_STRENGTHS
from benchmarks.forgetting.report import anchor_figures, kind_of, known_modes
from benchmarks.forgetting.Results import Results
from benchmarks.forgetting.Setting import Setting
from benchmarks.forgetting.sizes import FORMS, best_of_size, held_out_losses, size_axis, size_label
from benchmarks.forgetting.trade_off import Point, mean_point, strengths_of

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

COLORS: Mapping[str, str] = {
    RATE: "#999999", STANDARD: "#c44e52", CENTERED: "#2b6ca3", FISHER: "#e0a93b", FISHER_CENTERED: "#4c9b6e",
    SCALED: "#8172b3",
}  # fmt: skip
SIZE_COLORS = ("#2b3a67", "#4c9bb8", "#e0a93b")
LINES: Mapping[str, str] = {RATE: "o:"}
# points that learn less than this share of what no decay does are not shown
SHOWN_SHARE = 0.4
# of a strength's label, as shares of a panel
LABEL_WIDTH, LABEL_HEIGHT = 0.08, 0.035
KEPT_FIGURES = (
    ("kept", "kept of what captions tell the base, %"),
    ("loss", "base's loss on ordinary scenes over the model's, %"),
)
MODE_FIGURES = (
    ("drift", "drift ‖W − W₀‖/‖W₀‖, %", 100.0), ("bytes_per_value", "bytes a value", 1.0),
    ("decode_error", "error of p₀, %", 100.0), ("pull_error", "error of the pull, %", 100.0),
)  # fmt: skip


def mean_line(results: Results, kind: Setting) -> list[Point]:
    """Means over seeds, from no decay to the strongest."""
    found = (mean_point(results, setting) for setting in strengths_of(results, kind))
    return [point for point in found if point is not None]


def draw_trade_off(results: Results, path: Path, methods: Sequence[str], quick: bool) -> None:
    """Writes a PNG: a panel for each method, in it a line for each kind of decay with its strengths as points."""
    shown = [method for method in methods if mean_point(results, kind_of(method, NONE, quick))]
    if not shown:
        return
    figure, grid = pyplot.subplots(
        len(KEPT_FIGURES), len(shown), figsize=(4.6 * len(shown), 4 * len(KEPT_FIGURES)), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for row, (name, title) in zip(grid, KEPT_FIGURES, strict=True):
        for axes, method in zip(row, shown, strict=True):
            _trade_off(axes, results, method, name, quick)
        row[0].set_ylabel(title, fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("concept: loss removed on held-out pictures, %", fontsize=9)
    _save(figure, list(grid.flat), path)


def _trade_off(axes: Axes, results: Results, method: str, name: str, quick: bool) -> None:
    """One panel; `name` of `KEPT_FIGURES` upwards, concept score to the right."""
    without = mean_point(results, kind_of(method, NONE, quick))
    left, heights = 100 * SHOWN_SHARE * without.score, [100 * getattr(without, name)]
    strengths: list[tuple[float, float, str, str]] = []
    for kind in KINDS:
        points = mean_line(results, kind_of(method, kind, quick))
        if kind == NONE or len(points) < 2:
            continue
        # of what lies outside, the part of the line that is inside is shown
        x, y = [100 * p.score for p in points], [100 * getattr(p, name) for p in points]
        axes.plot(x, y, LINES.get(kind, "o-"), color=COLORS[kind], markersize=4, linewidth=1.3, label=kind)
        strengths += [
            (*place, f"{p.strength:g}", COLORS[kind]) for p, *place in list(zip(points, x, y, strict=True))[1:]
        ]
        heights += [height for height, score in zip(y, x, strict=True) if score > left]
    axes.plot(100 * without.score, heights[0], "s", color="black", markersize=6, label="no decay", zorder=5)
    axes.axhline(100, color="#bbbbbb", linewidth=0.8, linestyle="--", zorder=0)
    low, high = min(heights), max(heights)
    axes.set_xlim(left=left)
    margin = max(0.05 * (high - low), 0.1)
    axes.set_ylim(low - margin, high + margin)
    _label(axes, strengths, (100 * without.score, heights[0]))
    axes.set_title(method)
    axes.legend(fontsize=7, frameon=False)


def _label(axes: Axes, strengths: Sequence[tuple[float, float, str, str]], taken: tuple[float, float]) -> None:
    """Writes strengths beside their points (x, y, text, color) where no other label, or the point `taken`, is near."""
    places = [axes.transAxes.inverted().transform(axes.transData.transform(taken))]
    for x, y, text, color in strengths:
        place = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        if all(abs(place[0] - own[0]) > LABEL_WIDTH or abs(place[1] - own[1]) > LABEL_HEIGHT for own in places):
            places.append(place)
            axes.annotate(text, (x, y), fontsize=6, color=color, textcoords="offset points", xytext=(3, 3),
                          annotation_clip=True)  # fmt: skip


def draw_modes(results: Results, path: Path, methods: Sequence[str], quick: bool) -> None:
    """Writes a PNG: a row for each method with stored starts, with drift, memory and errors of each storage mode."""
    found = {m: modes for m in methods if m in MODE_STRENGTHS and len(modes := known_modes(results, m, quick)) > 1}
    if not found:
        return
    figure, grid = pyplot.subplots(
        len(found), len(MODE_FIGURES), figsize=(12, 2.5 * len(found)), layout="constrained", squeeze=False
    )
    for row, (method, modes) in zip(grid, found.items(), strict=True):
        figures = {mode: own for mode, setting in modes.items() if (own := anchor_figures(results, setting))}
        for axes, (name, title, times) in zip(row, MODE_FIGURES, strict=True):
            own = [figures[mode][name] for mode in figures]
            means = [times * one.mean for one in own]
            # the mean of equal figures is off by a rounding
            sides = ([one.mean - one.low for one in own], [one.high - one.mean for one in own])
            errors = [[times * max(0.0, apart) for apart in side] for side in sides]
            axes.barh(list(figures), means, xerr=errors, color=COLORS[CENTERED], height=0.65, ecolor="#444444")
            for place, mean in enumerate(means):
                axes.text(mean, place, f"  {mean:.3g}", va="center", fontsize=7)
            axes.margins(x=0.2)
            axes.invert_yaxis()
            axes.set_title(title)
        row[0].set_ylabel(f"{method}, {MODE_STRENGTHS[method]:g} a step", fontsize=9)
    _save(figure, list(grid.flat), path)


def draw_sizes(results: Results, path: Path, methods: Sequence[str], quick: bool) -> None:
    """Writes a PNG: a row for each method, a column for each form, in it held-out loss over strength for each size."""
    found = {
        method: [
            form for form in FORMS[method] if any(best_of_size(results, s, form) for s in size_axis(method, quick))
        ]
        for method in methods
    }
    found = {method: forms for method, forms in found.items() if forms}
    if not found:
        return
    columns = max(map(len, found.values()))
    figure, grid = pyplot.subplots(
        len(found), columns, figsize=(3.4 * columns, 2.7 * len(found)), layout="constrained", squeeze=False,
    )  # fmt: skip
    for row, (method, forms) in zip(grid, found.items(), strict=True):
        for axes in row[len(forms) :]:
            axes.set_axis_off()
        for axes, form in zip(row, forms, strict=False):
            _sizes(axes, results, method, form, quick)
        row[0].set_ylabel(f"{method}\nloss over that without decay", fontsize=9)
    _save(figure, list(grid.flat), path)


def _sizes(axes: Axes, results: Results, method: str, form: str, quick: bool) -> None:
    for color, plain in zip(SIZE_COLORS, size_axis(method, quick), strict=False):
        ratios: dict[float, list[float]] = {}
        for seed in results.measures(plain):
            losses = held_out_losses(results, plain, form, seed)
            without = losses.pop(0.0)
            for strength, loss in losses.items():
                ratios.setdefault(strength, []).append(loss / without)
        means = [(strength, sum(own) / len(own)) for strength, own in sorted(ratios.items())]
        means = [point for point in means if math.isfinite(point[1])]
        if means:
            x, y = zip(*means, strict=True)
            axes.plot(x, y, "o-", color=color, markersize=3, linewidth=1.3, label=size_label(plain))
    axes.axhline(1, color="#bbbbbb", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_xscale("log")
    # within a decade labels would cover each other
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(form)
    axes.set_xlabel("decay a step", fontsize=9)
    axes.legend(fontsize=7, frameon=False)


def _save(figure: Figure, axes: Sequence[Axes], path: Path) -> None:
    plain_axes(axes, 9, 8)
    write_figure(figure, path, 100)
