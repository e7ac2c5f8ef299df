"""How pictures of measurements look and are written."""

from collections.abc import Iterable
from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

RATE_TICKS = (1, 2, 5)  # of each decade


def plain_axes(axes: Iterable[Axes], title: float, labels: float | None = None) -> None:
    """Takes the upper and right line of each panel away.

    Args:
        title: size of the titles, in points.
        labels: size of the labels at the ticks; None leaves it.
    """
    for one in axes:
        one.title.set_fontsize(title)
        if labels is not None:
            one.tick_params(labelsize=labels)
        one.spines[["top", "right"]].set_visible(False)


def write_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Writes a PNG, in a folder that need not be there, and closes the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, pil_kwargs={"optimize": True})
    pyplot.close(figure)


def show_rates(axes: Axes, unit: str = "") -> None:
    """Learning rates along the x-axis, and no frame; `unit` follows each number."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=RATE_TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}{unit}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
