"""Which learning rate suits an adapter, for each of its sizes (block size, rank) and each of several ways to train it.

A way is called a form; what all of them are is one function per question, such as `oft_sweep.forms`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import write_figure
from benchmarks.training.sweep import Outcome, Sweep, best_rate, spread_of

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

COLORS = ("#4878a8", "#ee854a", "#6acc64", "#d65f5f", "#956cb4")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class SweepForm:
    """One way to train an adapter.

    Attributes:
        name: in tables.
        options: size -> options of the config, by their names.
        rates: learning rates, the same for every size, increasing.
    """

    name: str
    options: Callable[[int], dict[str, Any]]
    rates: tuple[float, ...]


def rates_around(middle: float, count: int) -> tuple[float, ...]:
    """`count` learning rates, each twice the one before."""
    return tuple(middle * 2.0 ** (k - (count - 1) / 2) for k in range(count))


def measure(
    sweep: Sweep,
    forms: Sequence[SweepForm],
    sizes: Sequence[int],
    known: Sequence[Row],
    found: Callable[[dict[str, Any]], None],
) -> None:
    """Trains every form, size and learning rate that is not among the known rows; hands over each row."""
    have = {(row["form"], row["size"], round(math.log2(row["rate"]), 3)) for row in known}
    for form in forms:
        for size in sizes:
            for rate in form.rates:
                if (form.name, size, round(math.log2(rate), 3)) in have:
                    continue
                outcome: Outcome = sweep.run(form.options(size), rate)
                found({
                    "form": form.name, "size": size, "rate": rate, "training": outcome.training,
                    "validation": outcome.validation, "seconds": outcome.seconds, "trained": outcome.trained,
                })  # fmt: skip


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """form -> the best learning rate of each size, by loss over the training images, and how far they spread."""
    result: dict[str, Any] = {}
    for form in dict.fromkeys(row["form"] for row in rows):
        own = [row for row in rows if row["form"] == form]
        best = {}
        for size in sorted({row["size"] for row in own}):
            tried = sorted((row["rate"], row["training"]) for row in own if row["size"] == size)
            best[size] = best_rate([rate for rate, _ in tried], [loss for _, loss in tried])
        result[form] = {"best": best, "spread": spread_of(list(best.values()))}
    return result


def table(rows: Sequence[Row], size_name: str, more: Mapping[str, Callable[[str, int, float], str]]) -> str:
    """A markdown table: the best learning rate of each size and the least loss.

    Args:
        rows: of `measure`.
        size_name: what the size is.
        more: further columns, title -> form, size and best rate -> cell.
    """
    titles = ["form", size_name, "best rate", *more, "least loss"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for form, found in summary(rows).items():
        for size, rate in found["best"].items():
            least = min(row["training"] for row in rows if (row["form"], row["size"]) == (form, size))
            cells = [form, str(size), f"{rate:.2g}", *(cell(form, size, rate) for cell in more.values())]
            lines.append(f"| {' | '.join(cells)} | {least:.4f} |")
        lines.append(f"| **{form}** | **all** | **spread {found['spread']:.2f}** |" + " |" * (len(more) + 1))
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path, size_name: str, meanings: Mapping[str, str]) -> None:
    """Writes a PNG: loss over learning rate for every size, one panel for each form.

    Args:
        rows: of `measure`.
        path: of the picture.
        size_name: what the size is.
        meanings: form -> what it is, in the title of its panel.
    """
    best = summary(rows)
    figure, axes = pyplot.subplots(
        1, len(best), sharey=True, figsize=(4 * len(best), 3.6), layout="constrained", squeeze=False
    )
    for axis, form in zip(axes[0], best, strict=True):
        own = [row for row in rows if row["form"] == form]
        for color, size in zip(COLORS, sorted({row["size"] for row in own}), strict=False):
            tried = sorted((row["rate"], row["training"]) for row in own if row["size"] == size)
            finite = [(rate, loss) for rate, loss in tried if math.isfinite(loss)]
            axis.plot(*zip(*finite, strict=True), "o-", color=color, markersize=3, linewidth=1.2, label=f"{size}")
            axis.axvline(best[form]["best"][size], color=color, linestyle=":", linewidth=1)
        axis.set_xscale("log")
        spread = f"best rates (dotted) within a factor {best[form]['spread']:.1f}"
        axis.set_title(f"{meanings.get(form, form)}\n{spread}", fontsize=10)
        axis.set_xlabel("learning rate")
        axis.spines[["top", "right"]].set_visible(False)
    first = axes[0][0]
    first.set_ylabel("loss over the training images")
    figure.legend(*first.get_legend_handles_labels(), title=size_name, loc="outside right upper", fontsize=8,
                  title_fontsize=8)  # fmt: skip
    losses = sorted(row["training"] for row in rows if math.isfinite(row["training"]))
    # runs that went astray would flatten everything else
    first.set_ylim(losses[0] * 0.97, losses[0] + 2.5 * (losses[len(losses) // 2] - losses[0]))
    write_figure(figure, path, 90)
