"""A picture of coordinate checks: how much one step changes, over sizes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.tool.coord_check.methods import CHECKED
from modules.tool.coord_check.report import QUANTITIES, WIDTH
from modules.util.UserError import UserError

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

COLORS = dict(zip(CHECKED, ("#4878a8", "#ee854a", "#6acc64", "#d65f5f", "#956cb4", "#8c613c", "#797979"), strict=True))
STYLES = ("-", "--", ":", "-.")
# of an axis, at least: what is flat should look so
LEAST_RANGE = 10.0
# room above and below what is drawn, as a factor for both together
MARGIN = 1.5
TITLES = {"median": "change of a layer's output, median", "prediction": "change of the prediction"}
Result = Mapping[str, Any]


def draw_check(results: Sequence[Result], path: Path) -> None:
    """Writes a PNG: a row of panels for each result and base model, and one over widths if there are several.

    Args:
        results: as `CheckResult.to_json` has them, at least one.
        path: of the picture; its folder is made.

    Raises:
        UserError: it can't be written.
    """
    panels: list[tuple[str, str, list[Mapping[str, Any]]]] = []
    for result in results:
        bases = list(dict.fromkeys(row["base"] for row in result["rows"]))
        for base in bases:
            title = result["title"] if len(bases) == 1 else f"{result['title']}, {base}"
            panels.append((title, "size", [row for row in result["rows"] if row["base"] == base]))
        if len(bases) > 1:
            panels.append((f"{result['title']}, all bases", WIDTH, list(result["rows"])))
    figure = pyplot.figure(figsize=(9.4, 3.0 * len(panels) + 0.2), layout="constrained")
    shown: dict[str, Any] = {}
    # the same for all results, so that they can be compared
    every = [row for result in results for row in result["rows"]]
    limits = {quantity: axis_limits([row[quantity] for row in every if row[quantity]]) for quantity in QUANTITIES}
    for band, (title, over, rows) in zip(figure.subfigures(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        band.suptitle(title, fontsize=9, fontweight="bold")
        for axis, quantity in zip(band.subplots(1, 2), QUANTITIES, strict=True):
            _draw_panel(axis, rows, over, quantity)
            axis.set_ylim(*limits[quantity])
            axis.set_title(TITLES[quantity], fontsize=8)
            shown |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(shown.values(), shown.keys(), loc="outside right upper", fontsize=8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=90, pil_kwargs={"optimize": True})
    except OSError as error:
        raise UserError(f"--plot: {path} can't be written: {error.strerror or error}. Choose another place.") from error
    finally:
        pyplot.close(figure)


def axis_limits(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis that shows all values, of which there may be none, and `LEAST_RANGE` at least.

    Args:
        values: more than 0.
    """
    low, high = min(values, default=1.0), max(values, default=1.0)
    middle, share = math.sqrt(low * high), math.sqrt(max(high / low * MARGIN, LEAST_RANGE))
    return middle / share, middle * share


def _draw_panel(axis: Any, rows: Sequence[Mapping[str, Any]], over: str, quantity: str) -> None:
    warm_steps = sorted({row["warm_steps"] for row in rows})
    lines: dict[tuple[str, int, Any], list[tuple[float, float]]] = {}
    for row in rows:
        # what diverged, or moved nothing, is on no logarithmic axis
        if not row[quantity]:
            continue
        other = row["size"] if over == WIDTH else None
        place = row["width"] if over == WIDTH else row["size"] or math.nan
        lines.setdefault((row["method"], row["warm_steps"], other), []).append((place, row[quantity]))
    for (method, warm, _), points in lines.items():
        style = STYLES[warm_steps.index(warm) % len(STYLES)]
        look = {"color": COLORS[method], "linestyle": style, "linewidth": 1.3,
                "label": f"{CHECKED[method].title}, step {warm + 1}"}  # fmt: skip
        if math.isnan(points[0][0]):
            axis.axhline(points[0][1], **look)
        else:
            axis.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3.5, **look)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("width of the base model" if over == WIDTH else "rank or block size", fontsize=8)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for side in (axis.xaxis, axis.yaxis):
        side.set_minor_formatter(NullFormatter())
    axis.tick_params(labelsize=8)
    axis.grid(True, which="both", linewidth=0.4, alpha=0.4)
    axis.spines[["top", "right"]].set_visible(False)
