"""Which learning rate suits OFT, for each block size and each way of scaling its weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.benchmark.training.sweep import Outcome, Sweep, best_rate, spread_of
from modules.util.enum.OFTScaleMode import OFTScaleMode
from modules.util.enum.PeftType import PeftType

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

SIZES = (4, 8, 16, 32, 64)
# form -> options, factor f from raw to effective weights for block size b, and the middle of the learning rates
FORMS: Mapping[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "unscaled": ({"oft_scaled": False}, lambda b: 1.0),
    "ELEMENTS": (
        {"oft_scaled": True, "oft_scale_mode": OFTScaleMode.ELEMENTS}, lambda b: 1 / math.sqrt(b * (b - 1) / 2)
    ),
    "ROW": ({"oft_scaled": True, "oft_scale_mode": OFTScaleMode.ROW}, lambda b: 1 / (2 * math.sqrt(b - 1))),
}  # fmt: skip
COLORS = ("#4878a8", "#ee854a", "#6acc64", "#d65f5f", "#956cb4")


def output_variance(form: str, size: int) -> float:
    """What one step of size η in every weight, whatever their signs, adds to the variance of a layer's rotated input
    of variance 1, in units of η².

    Near the identity R ≈ I + 2Q, so each number of a block gets b − 1 others, each times ±2ηf: 4(b − 1)f².
    """
    return 4 * (size - 1) * FORMS[form][1](size) ** 2


def rates_around(middle: float, count: int) -> list[float]:
    """`count` learning rates, each twice the one before."""
    return [middle * 2.0 ** (k - (count - 1) / 2) for k in range(count)]


def measure(
    sweep: Sweep,
    sizes: Sequence[int],
    count: int,
    middle: float,
    known: list[dict[str, Any]],
    found: Callable[[dict[str, Any]], None],
) -> None:
    """Trains every form, size and learning rate that is not among the known rows; hands over each row.

    The learning rates of a form are centred on the one at which a step has the output variance of `middle`² for the
    middle size, so that all forms are searched over an equally wide range around the same place.
    """
    have = {(row["form"], row["size"], round(math.log2(row["rate"]), 3)) for row in known}
    centre = sorted(sizes)[len(sizes) // 2]
    for form, (options, _) in FORMS.items():
        rates = rates_around(middle / math.sqrt(output_variance(form, centre)), count)
        for size in sizes:
            for rate in rates:
                if (form, size, round(math.log2(rate), 3)) in have:
                    continue
                options_here = {"peft_type": PeftType.OFT_2, "oft_block_size": size, **options}
                outcome: Outcome = sweep.run(options_here, rate)
                found({
                    "form": form, "size": size, "rate": rate, "training": outcome.training,
                    "validation": outcome.validation, "seconds": outcome.seconds, "trained": outcome.trained,
                })  # fmt: skip


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """form -> the best learning rate of each size, by loss over the training images, and how far they spread."""
    result: dict[str, Any] = {}
    for form in FORMS:
        own = [row for row in rows if row["form"] == form]
        best = {}
        for size in sorted({row["size"] for row in own}):
            tried = sorted((row["rate"], row["training"]) for row in own if row["size"] == size)
            best[size] = best_rate([rate for rate, _ in tried], [loss for _, loss in tried])
        if best:
            result[form] = {"best": best, "spread": spread_of(list(best.values()))}
    return result


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table: the best learning rate of each size, its output variance, and the least loss."""
    lines = ["| form | block size | best rate | √(output variance) there | least loss |", "|---|---|---|---|---|"]
    for form, found in summary(rows).items():
        for size, rate in found["best"].items():
            least = min(row["training"] for row in rows if (row["form"], row["size"]) == (form, size))
            deviation = rate * math.sqrt(output_variance(form, size))
            lines.append(f"| {form} | {size} | {rate:.2g} | {deviation:.3f} | {least:.4f} |")
        lines.append(f"| **{form}** | **all** | **spread {found['spread']:.2f}** | | |")
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a PNG: loss over learning rate for every block size, one panel for each form."""
    shown = [form for form in FORMS if any(row["form"] == form for row in rows)]
    figure, axes = pyplot.subplots(1, len(shown), sharey=True, figsize=(4 * len(shown), 3.6), layout="constrained")
    best = summary(rows)
    for axis, form in zip([axes] if len(shown) == 1 else axes, shown, strict=True):
        own = [row for row in rows if row["form"] == form]
        for color, size in zip(COLORS, sorted({row["size"] for row in own}), strict=False):
            tried = sorted((row["rate"], row["training"]) for row in own if row["size"] == size)
            finite = [(rate, loss) for rate, loss in tried if math.isfinite(loss)]
            axis.plot(*zip(*finite, strict=True), "o-", color=color, markersize=3, linewidth=1.2, label=f"{size}")
            axis.axvline(best[form]["best"][size], color=color, linestyle=":", linewidth=1)
        axis.set_xscale("log")
        axis.set_title(f"{form}: best rates within a factor {best[form]['spread']:.1f}", fontsize=10)
        axis.set_xlabel("learning rate")
        axis.spines[["top", "right"]].set_visible(False)
    first = axes if len(shown) == 1 else axes[0]
    first.set_ylabel("loss over the training images")
    figure.legend(*first.get_legend_handles_labels(), title="block size", loc="outside right upper", fontsize=8,
                  title_fontsize=8)  # fmt: skip
    losses = sorted(row["training"] for row in rows if math.isfinite(row["training"]))
    # runs that went astray would flatten everything else
    first.set_ylim(losses[0] * 0.97, losses[0] + 2.5 * (losses[len(losses) // 2] - losses[0]))
    figure.savefig(path, dpi=90, pil_kwargs={"optimize": True})
    pyplot.close(figure)
