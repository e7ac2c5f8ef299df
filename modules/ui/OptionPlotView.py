import tkinter as tk
from tkinter import ttk
from typing import TYPE_CHECKING

from modules.ui.PlotCanvas import PlotCanvas, Series
from modules.viewModel.OptionPlot import OptionPlot, PlotKind

if TYPE_CHECKING:
    from modules.ui.App import App

# in pixels at 100 %
HEIGHT = 136


class OptionPlotView(ttk.Frame):
    """A small plot of what the options of a section mean, which follows them as they are typed.

    Args:
        parent: card that it is put into.
        app: the window.
        kind: what is drawn.

    Attributes:
        plot: what is drawn now, and what is said of it.
        canvas: that it is drawn on.
    """

    def __init__(self, parent: tk.Misc, app: "App", kind: PlotKind) -> None:
        super().__init__(parent)
        self._app = app
        self.canvas = PlotCanvas(self, app.theme, kind.title, from_zero=True, spikes=True)
        self.canvas.configure(height=app.theme.px(HEIGHT))
        self.canvas.pack(fill="x")
        self._note = ttk.Label(self, style="Muted.TLabel", justify="left")
        self._note.bind("<Configure>", lambda event: self._note.configure(wraplength=max(1, event.width)))
        self.plot = OptionPlot(kind, app.form, app.worker, self._show)
        self._end = app.form.listen(lambda _: self.refresh())
        self.bind("<Destroy>", self._destroyed)
        # options may have changed while another tab was in front
        self.bind("<Map>", lambda _: self.refresh())

    def refresh(self) -> None:
        """Draws what the form has now; nothing while it is not seen."""
        if self.winfo_ismapped():
            self.plot.refresh(self._app.steps.steps)

    def _show(self) -> None:
        if not self.winfo_exists():
            return
        kind = self.plot.kind
        self.canvas.show([Series("", "blue", self.plot.points)], across=kind.x_label, whole=kind.whole)
        self._note.configure(text=self.plot.note)
        if self.plot.note:
            self._note.pack(fill="x")
        else:
            self._note.pack_forget()

    def _destroyed(self, event: tk.Event) -> None:
        if event.widget is self:
            self._end()
