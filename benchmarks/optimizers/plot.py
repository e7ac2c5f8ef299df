"""A picture of the benchmark's ratios."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

ROW_INCHES = 0.26
BLUE, RED = "#4878a8", "#c44e52"
# the ends of names that say how much of a rule is switched on -> what the picture says instead
ENDS = {" plain": "", ", all on": ", every feature on", " all on": ", every feature on"}


def draw(result: Mapping[str, Any], path: Path, every_case: bool = False) -> None:
    """Writes a PNG with two panels: how much faster a step is than adv_optm's, and how long beside torch's fused AdamW.

    Bars without a peer stay empty. Dashed lines are the goals.

    Args:
        result: of `scripts/benchmark_optimizers.py`.
        path: of the picture.
        every_case: draws each case; otherwise each rule plain and with every feature on, if there are such cases.
    """
    goals, rows = result["goals"], result["cases"]
    if not rows:
        raise ValueError("found no cases, expected at least one")
    few = [row for row in rows if row["name"].endswith(tuple(ENDS))]
    rows = rows if every_case or not few else few
    kind = "cpu" if result["device"] == "cpu" else "cuda"
    panels = (
        ("adv_optm/ours", goals[kind], "A step is so many times as fast as adv_optm's\n(longer is better)"),
        (
            "ours/torch_fused",
            goals["plain"],
            "A step takes so many times as long as torch's fused AdamW\n(shorter is better)",
        ),
    )
    figure, axes = pyplot.subplots(1, 2, sharey=True, figsize=(12, 1.6 + ROW_INCHES * len(rows)), layout="constrained")
    places = range(len(rows))
    for axis, (name, goal, title) in zip(axes, panels, strict=True):
        values = [_median(row["ratios"][name]) for row in rows]
        axis.barh(places, [value or 0 for value in values], color=BLUE, height=0.7)
        line = axis.axvline(goal, color=RED, linestyle="--", linewidth=1, zorder=0)
        axis.legend([line], [f"goal: {goal:g}"], loc="lower right", fontsize=8, frameon=False)
        for place, value in zip(places, values, strict=True):
            axis.text(value or 0, place, f" {value:.1f}" if value else " adv_optm has none", va="center", fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.12, y=0.01)
        axis.tick_params(labelsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(places, [_label(row["name"]) for row in rows])
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})
    pyplot.close(figure)


def _label(name: str) -> str:
    for end, words in ENDS.items():
        if name.endswith(end):
            return f"{name.removesuffix(end)}{words}"
    return name


def _median(ratio: Mapping[str, float] | float | None) -> float | None:
    return ratio["median"] if isinstance(ratio, Mapping) else ratio
