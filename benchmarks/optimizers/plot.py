"""A picture of the benchmark's ratios."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

ROW_INCHES = 0.21


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG with three panels: times as fast as adv_optm, time over torch's fused AdamW, bytes over adv_optm's.

    Bars without a peer stay empty. Dashed lines are the goals.

    Args:
        result: of `scripts/benchmark_optimizers.py`.
    """
    rows, goals = result["cases"], result["goals"]
    if not rows:
        raise ValueError("found no cases, expected at least one")
    kind = "cpu" if result["device"] == "cpu" else "cuda"
    medians = [
        [_median(row["ratios"][name]) for row in rows] for name in ("adv_optm/ours", "ours/torch_fused", "state_bytes")
    ]
    figure, axes = pyplot.subplots(
        1, 3, sharey=True, figsize=(12, 1.4 + ROW_INCHES * len(rows)), width_ratios=(2, 2, 1), layout="constrained"
    )
    places = range(len(rows))
    titles = ("times as fast as adv_optm", "time / torch's fused AdamW", "state bytes / adv_optm's")
    for axis, values, title, goal in zip(
        axes, medians, titles, (goals[kind], goals["plain"], goals["bytes"]), strict=True
    ):
        axis.barh(places, [value or 0 for value in values], color="#4878a8", height=0.7)
        axis.axvline(goal, color="#c44e52", linestyle="--", linewidth=1, zorder=0)
        for place, value in zip(places, values, strict=True):
            axis.text(value or 0, place, f" {value:.2f}" if value else " no equal", va="center", fontsize=7)
        axis.set_title(title, fontsize=9)
        axis.margins(x=0.12, y=0.005)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(places, [row["name"] for row in rows])
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})
    pyplot.close(figure)


def _median(ratio: Mapping[str, float] | float | None) -> float | None:
    return ratio["median"] if isinstance(ratio, Mapping) else ratio
