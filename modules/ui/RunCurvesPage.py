import tkinter as tk
from collections.abc import Sequence
from tkinter import ttk

from modules.ui.PlotCanvas import PlotCanvas, Series
from modules.ui.TabBar import TabBar
from modules.ui.WindowTools import WindowTools
from modules.util.texts import tr
from modules.viewModel.run_curves import LOSS, RATE, VALIDATION, run_curves
from modules.viewModel.run_data import RunData
from modules.viewModel.run_list import ListedRun

STEPS, TIME = "steps", "time"


class RunCurvesPage(ttk.Frame):
    """The curves of some runs on top of each other.

    Args:
        parent: that it is put into.
        tools: the window's own.

    Attributes:
        kinds, across: which curves, and what stands across.
        smooth: whether losses are smoothed.
        plot: of them.
    """

    def __init__(self, parent: tk.Misc, tools: WindowTools) -> None:
        super().__init__(parent)
        px = tools.theme.px
        self._compared: Sequence[tuple[ListedRun, RunData]] = ()
        head = ttk.Frame(self)
        head.pack(fill="x", pady=(0, px(4)))
        names = {LOSS: tr("loss"), VALIDATION: tr("validation"), RATE: tr("learning rate")}
        places = {STEPS: tr("by steps"), TIME: tr("by time")}
        self._keys = {text: key for key, text in {**names, **places}.items()}
        self.kinds, self.across = self._choice(head, tools, names), self._choice(head, tools, places)
        self.smooth = tk.BooleanVar(self, True)
        switch = ttk.Checkbutton(
            head, text=tr("smoothed"), variable=self.smooth, style="Switch.TCheckbutton", command=self.draw
        )
        switch.pack(side="left", padx=px(8))
        tools.tooltip.attach(switch, lambda: tr("Losses as an average over about the last 20 steps."))
        tools.tooltip.attach(
            self.across, lambda: tr("Time is that of the steps alone, without loading, samples and pauses.")
        )
        self.plot = PlotCanvas(self, tools.theme, tr("Loss"))
        self.plot.pack(fill="both", expand=True)

    def _choice(self, parent: ttk.Frame, tools: WindowTools, names: dict[str, str]) -> TabBar:
        bar = TabBar(parent, tools.theme, list(names.values()), lambda text: self.draw(), "card")
        bar.mark(next(iter(names.values())))
        bar.pack(side="left", padx=(0, tools.theme.px(16)))
        return bar

    def show(self, compared: Sequence[tuple[ListedRun, RunData]]) -> None:
        """Shows these runs."""
        self._compared = compared
        self.draw()

    def draw(self) -> None:
        """Draws what was chosen."""
        kind, by_time = self._keys[self.kinds.current], self._keys[self.across.current] == TIME
        curves = run_curves(self._compared, kind, by_time, self.smooth.get())
        series = [Series(curve.name, curve.color, curve.points, curve.dots) for curve in curves]
        title = {LOSS: tr("Loss"), VALIDATION: tr("Validation loss"), RATE: tr("Learning rate")}[kind]
        self.plot.show(series, title, tr("minutes") if by_time else tr("steps"), whole=not by_time)
