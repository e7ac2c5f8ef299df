"""A picture of effective ranks, layer by layer."""

from collections.abc import Sequence
from pathlib import Path

from modules.modelSaver.effective_rank import FileRanks

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

COLORS = ("#4878a8", "#ee854a", "#6acc64", "#d65f5f", "#956cb4", "#8c613c")
PANELS = (("up", "B"), ("product", "B·A"))


def draw_ranks(files: Sequence[FileRanks], path: Path) -> None:
    """Writes a PNG with two panels, B and B·A: one line a file over the layers, its rank dashed, its mean in words.

    Args:
        files: at least one; layers stand in the order in which they first occur, matched by name.
        path: of the picture; its folder is made.
    """
    names = list(dict.fromkeys(name for file in files for name in file.layers))
    figure, axes = pyplot.subplots(1, 2, sharey=True, figsize=(11, 4), layout="constrained")
    for axis, (field, title) in zip(axes, PANELS, strict=True):
        for number, file in enumerate(files):
            color, mean = COLORS[number % len(COLORS)], file.mean(field)
            shown = {key: [getattr(file.layers.get(name), key, None) for name in names] for key in (field, "rank")}
            gaps = {key: [float("nan") if value is None else value for value in own] for key, own in shown.items()}
            words = "none" if mean is None else f"mean {mean:.2f}"
            axis.plot(
                gaps[field], ".-", color=color, linewidth=1, markersize=4, label=f"{Path(file.path).stem}: {words}"
            )
            axis.plot(gaps["rank"], "--", color=color, linewidth=0.8, alpha=0.7)
        axis.set_title(f"effective rank of {title}", fontsize=10)
        axis.set_xlabel("layer")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("effective rank; dashed: rank")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, pil_kwargs={"optimize": True})
    pyplot.close(figure)
