"""The picture of the README: with plain steps each size needs a rate of its own, with scaled steps one serves all."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import show_rates, write_figure
from benchmarks.transfer.draw import mean_curve
from benchmarks.transfer.questions import BLOCK_AXIS, RANK_AXIS, axis_settings, reference
from benchmarks.transfer.Results import Results
from benchmarks.transfer.Setting import DORA, FULL, LORA, OFT, Setting
from benchmarks.transfer.summary import best_rate

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

# of the improvement that a setting's best rate brings; less is not shown
LEAST_SHARE = 0.55
# rates against that of LoRA 16
LOWEST, HIGHEST = 0.11, 14
COLORS = {LORA: "#2b3a67", DORA: "#a3439b", OFT: "#2e8b7d", FULL: "#e0862b"}
TITLES = {False: "Plain steps: each size needs its own rate", True: "Scaled steps: one rate for all of them"}


def overview_settings(results: Results, task: str, rule: str, scaled: bool) -> list[Setting]:
    """LoRA ranks, DoRA, OFT blocks and full fine-tuning, as far as their best rates are known."""
    first = reference(task, rule, scaled)
    ranks = axis_settings(RANK_AXIS, task, rule, scaled)
    blocks = axis_settings(BLOCK_AXIS, task, rule, scaled)
    sizes = {DORA: first.size, FULL: 0}
    others = [Setting(task, first.width, rule, scaled, method, size) for method, size in sizes.items()]
    return [setting for setting in (*ranks, *others, *blocks) if best_rate(results, setting) is not None]


def draw_overview(results: Results, path: Path, task: str, rule: str) -> bool:
    """Writes a PNG of two fields, plain steps beside scaled ones; False, and nothing, where either is not measured.

    Each line is one setting: the share of its own best improvement that each learning rate brings.
    """
    kinds = {scaled: overview_settings(results, task, rule, scaled) for scaled in (False, True)}
    if not all(reference(task, rule, scaled) in settings for scaled, settings in kinds.items()):
        return False
    figure, fields = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
    for axes, (scaled, settings) in zip(fields, kinds.items(), strict=True):
        _draw_field(axes, results, reference(task, rule, scaled), settings)
        axes.set_title(TITLES[scaled], fontsize=11)
    fields[0].set_ylabel("share of the best improvement", fontsize=9)
    write_figure(figure, path, 100)
    return True


def _draw_field(axes: Axes, results: Results, first: Setting, settings: Sequence[Setting]) -> None:
    usual = best_rate(results, first).median
    axes.axvline(1, color="#999999", linewidth=1, linestyle=":")
    named: set[str] = set()
    for setting in settings:
        untrained, losses = results.untrained[setting.task, setting.width], mean_curve(results, setting)
        gain = untrained - min(loss for _, loss in losses)
        curve = [(rate / usual, (untrained - loss) / gain) for rate, loss in losses]
        top = max(curve, key=lambda point: point[1])
        sizes = [own.size for own in settings if own.method == setting.method]
        label = setting.method if setting.method == FULL else f"{setting.method} {_range(sizes)}"
        axes.plot(
            *zip(*curve, strict=True), "-", color=COLORS[setting.method], linewidth=1.3, alpha=0.8,
            label=None if label in named else label,
        )  # fmt: skip
        axes.plot(*top, "o", color=COLORS[setting.method], markersize=5)
        named.add(label)
    show_rates(axes, "×")
    axes.set_xlim(LOWEST, HIGHEST)
    axes.set_ylim(LEAST_SHARE, 1.02)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
    axes.set_xlabel("learning rate, against the best one of LoRA 16", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _range(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f"{min(sizes)}–{max(sizes)}"
