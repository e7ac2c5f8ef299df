import time
import tkinter as tk
from pathlib import Path
from tkinter import ttk
from typing import TYPE_CHECKING

from modules.ui.AskWindow import AskWindow
from modules.ui.Panes import SASH, Panes
from modules.ui.PlotCanvas import PlotCanvas, Series
from modules.ui.QueueView import QueueView
from modules.ui.ReasonText import ReasonText
from modules.ui.ResultBar import ResultBar
from modules.ui.SampleViewer import SampleViewer
from modules.ui.TabBar import TabBar
from modules.ui.TextPane import TextPane
from modules.ui.Theme import COLORS
from modules.ui.Timer import Timer
from modules.ui.widgets import enable
from modules.util.config.errors import ConfigError
from modules.util.texts import later, tr
from modules.viewModel.FieldHints import Choice
from modules.viewModel.RunController import backups_of

import customtkinter as ctk

if TYPE_CHECKING:
    from modules.ui.App import App

# a plot that is drawn more often than this costs more than it tells
REDRAW_SECONDS = 1.0
WISHES = (
    ("stop", later("Stop"), later("Finishes the step, writes a backup and the model, and ends the run.")),
    ("sample", later("Sample now"), later("Draws all samples after the step in flight.")),
    (
        "backup", later("Backup now"),
        later("Writes a backup, from which the run can be resumed, after the step in flight."),
    ),
    ("save", later("Save now"), later("Writes the adapter or model as it is after the step in flight.")),
)  # fmt: skip
QUEUE_IT, CANCEL = later("Queue it"), later("Cancel")
# of text that is shown at once: of what is said, and of why a run failed
LOG_LINES, REASON_LINES = 8, 5
# what panes have at least, and the height from which both plots are shown, in pixels at 100 %
LEAST_CURVES, LEAST_LOG, LEAST_WIDTH, BOTH_PLOTS = 230, 96, 220, 260
BAR_GAP = 16
RATE_COLORS = ("purple", "green", "orange", "blue")
MESSAGES, OUTPUT, QUEUE = later("messages"), later("output"), later("queue")


class RunView(ttk.Frame):
    """A run: what can be asked of it, how far it is, its curves, its pictures, what it says, and what runs next.

    Args:
        parent: that it is put into.
        app: the window; its `runs` look after the run.

    Attributes:
        buttons: wish -> button, with "resume".
        bars: (label, bar) of what is under way.
        losses, rates: the plots.
        samples: the pictures.
        log: what is said.
        queue: the queue.
        result: what the run has made, and what comes next.
        status, reason: a line on top, and below it why the run failed, as long as there is a reason.
    """

    def __init__(self, parent: tk.Misc, app: "App") -> None:
        super().__init__(parent, style="Window.TFrame")
        self._app, self._controller = app, app.runs.controller
        px = app.theme.px
        self._drawn_at, self._drawing = 0.0, Timer(self, self._draw)
        self._has_asked = False
        self._build_head()
        self._panes = Panes(self, app, "run: curves and messages", "vertical", 0.68, (LEAST_CURVES, LEAST_LOG))
        self._panes.pack(fill="both", expand=True, padx=(0, px(8)))
        upper = Panes(self._panes, app, "run: curves and samples", "horizontal", 0.6, (LEAST_WIDTH, LEAST_WIDTH))
        plots = self._plots = ttk.Frame(upper, style="Card.TFrame", padding=px(6))
        plots.grid_columnconfigure(0, weight=1)
        plots.grid_rowconfigure(0, weight=5, uniform="plots")
        self.losses = PlotCanvas(plots, app.theme, tr("Loss"))
        self.losses.grid(row=0, column=0, sticky="nswe")
        self.rates = PlotCanvas(plots, app.theme, tr("Learning rate"), from_zero=True)
        plots.bind("<Configure>", lambda event: self._fit(event.height))
        self.samples = SampleViewer(upper, app.tools)
        upper.hold(plots, self.samples)
        self._panes.hold(upper, self._build_foot())
        # nothing is drawn while another tab is in front
        self.bind("<Map>", lambda _: self._draw_soon())
        self.news()

    def _build_head(self) -> None:
        px = self._app.theme.px
        row = self._head = ttk.Frame(self, style="Window.TFrame")
        row.pack(fill="x", pady=(0, px(6)), padx=(0, px(8)))
        self.buttons: dict[str, ttk.Button] = {}
        for wish, text, help in WISHES:
            button = ttk.Button(row, text=tr(text), style="Window.TButton", command=lambda wish=wish: self.ask(wish))
            button.pack(side="left", padx=(0, px(6)))
            self._app.tools.tooltip.attach(button, lambda help=help: tr(help))
            self.buttons[wish] = button
        resume = ttk.Button(row, text=tr("Resume from a backup …"), style="Window.TButton", command=self.list_backups)
        resume.pack(side="left")
        self._app.tools.tooltip.attach(
            resume,
            lambda: tr(
                "Continues a backup of {folder} with the config shown here.",
                folder=self._app.form.config.workspace_dir,
            ),
        )
        self.buttons["resume"] = resume
        card = self._card = ttk.Frame(self, style="Card.TFrame", padding=(px(12), px(6)))
        # reasons, bars and buttons come and go
        card.bind("<Configure>", lambda _: self._app.fit_tab() if self._app.tabs.current == "run" else None)
        card.pack(fill="x", pady=(0, px(8)), padx=(0, px(8)))
        self.status = ttk.Label(card, style="Bold.TLabel")
        self.status.pack(fill="x")
        self.reason = ReasonText(card, self._app.theme, REASON_LINES)
        self.result = ResultBar(card, self._app)
        self._bars = ttk.Frame(card)
        self.bars: list[tuple[ttk.Label, ctk.CTkProgressBar]] = []

    def _build_foot(self) -> ttk.Frame:
        px = self._app.theme.px
        lower = ttk.Frame(self._panes, style="Window.TFrame")
        self.tabs = TabBar(lower, self._app.theme, (MESSAGES, OUTPUT, QUEUE), self.show_foot)
        self.tabs.pack(anchor="w", pady=px(4))
        foot = ttk.Frame(lower, style="Card.TFrame", padding=px(6))
        foot.pack(fill="both", expand=True)
        foot.pack_propagate(False)
        self.log = TextPane(foot, self._app.theme, height=LOG_LINES, follows=True)
        self.queue = QueueView(foot, self._app)
        self.show_foot(MESSAGES)
        return lower

    def least_height(self) -> int:
        """What it needs, in pixels: what stands above the panes, and what these have at least."""
        panes = self._app.theme.px(LEAST_CURVES + LEAST_LOG + 2 * SASH)
        return self._head.winfo_reqheight() + self._card.winfo_reqheight() + panes + self._app.theme.px(14)

    def _fit(self, room: int) -> None:
        """Where the plots' pane is low, the loss has all of it."""
        if bool(self.rates.winfo_manager()) == (room >= self._app.theme.px(BOTH_PLOTS)):
            return
        if room >= self._app.theme.px(BOTH_PLOTS):
            self.rates.grid(row=1, column=0, sticky="nswe")
            self._plots.grid_rowconfigure(1, weight=3, uniform="plots")
        else:
            self.rates.grid_remove()
            self._plots.grid_rowconfigure(1, weight=0, uniform="")

    def show_foot(self, name: str) -> None:
        """Shows messages, what the process prints, or the queue."""
        self.tabs.mark(name)
        self.log.pack_forget()
        self.queue.pack_forget()
        (self.queue if name == QUEUE else self.log).pack(fill="both", expand=True)
        self._show_log()

    def shown(self) -> None:
        """Catches up when the tab comes to the front."""
        # what stands there tells how far the run is, which can be seen here
        self._app.say("")
        self.news()

    def start(self, resume: str = "") -> None:
        """Starts a run on exactly the config of the form, if nothing is wrong with it.

        Args:
            resume: folder of the backup to continue; empty: as the config says.
        """
        app = self._app
        problems = app.form.check()
        app.problems.show(problems)
        if problems:
            app.say(tr("Not started: {why}", why=app.form.line(problems[0])))
            return
        if self._controller.running:
            question = tr("A run goes on already. Put this config into the queue, to run when that one has ended?")
            if AskWindow(app, app.tools, tr("A run goes on"), question, (QUEUE_IT, CANCEL)).ask() == QUEUE_IT:
                self.queue.add_as(app.session.name)
                self._controller.start_queue()
                self.show_foot(QUEUE)
                self.queue.refresh()
            return
        try:
            self._controller.start(app.form.config.to_dict(), app.session.secrets, resume)
        except (RuntimeError, OSError, ConfigError) as error:
            app.say(tr("Not started: {why}", why=error))
        else:
            app.say("")
        self.news()

    def ask(self, wish: str) -> None:
        """Asks something of the run."""
        try:
            self._app.say(self._controller.request(wish))
            self._has_asked = True
        except OSError as error:
            self._app.say(tr("The run cannot be asked: {error}", error=error))

    def list_backups(self) -> None:
        """Lists the backups of the workspace, to resume from one."""
        backups = backups_of(Path(self._app.form.config.workspace_dir))
        choices = [Choice(str(path), title) for title, path in backups]
        if not choices:
            where = self._app.form.config.workspace_dir
            none = tr("There are no backups in {folder} yet.", folder=where)
            choices = [Choice("", none, tr("A run writes one when it is stopped."))]
        self._app.tools.popup.open(self.buttons["resume"], choices, choices[0].text, self.start)

    def news(self) -> None:
        """Shows what is new of the run and the queue."""
        model, running = self._controller.model, self._controller.running
        for wish, button in self.buttons.items():
            enable(button, running != (wish == "resume"))
        self.status.configure(text=model.status)
        if self._has_asked and not self._controller.owes_answer:
            self._app.say("")
            self._has_asked = False
        if model.reason:
            self.reason.show(model.reason, "error" if model.failed else "muted")
            self.reason.pack(fill="x", after=self.status)
        else:
            self.reason.pack_forget()
        self.result.refresh()
        self._show_bars()
        self.samples.show(model)
        self.queue.refresh()
        self._draw_soon()

    def _show_bars(self) -> None:
        model, px = self._controller.model, self._app.theme.px
        shown = model.current_bars
        while len(self.bars) < len(shown):
            # gaps are columns of their own: the last bar ends where the card's content does
            place = 2 * len(self.bars)
            label = ttk.Label(self._bars, style="Muted.TLabel")
            label.grid(row=0, column=place, sticky="we")
            bar = ctk.CTkProgressBar(self._bars, height=8, width=60, bg_color=COLORS["card"])
            bar.grid(row=1, column=place, sticky="we", pady=px(2))
            self._bars.grid_columnconfigure(place, weight=1, uniform="bar")
            self._bars.grid_columnconfigure(max(0, place - 1), minsize=px(BAR_GAP) if place else 0)
            self.bars.append((label, bar))
        while len(self.bars) > len(shown):
            for widget in self.bars.pop():
                widget.destroy()
            place = 2 * len(self.bars)
            self._bars.grid_columnconfigure(place, weight=0, uniform="")
            self._bars.grid_columnconfigure(max(0, place - 1), minsize=0)
        for (label, bar), one in zip(self.bars, shown, strict=True):
            label.configure(text=one.text if self._controller.running else one.count)
            if abs(bar.get() - one.share) > 1e-3:
                bar.set(one.share)
        if shown:
            self._bars.pack(fill="x", pady=(px(4), 0))
        else:
            self._bars.pack_forget()

    def _draw_soon(self) -> None:
        """Draws the curves and the log now, or as soon as the last time is long enough ago."""
        if self._drawing.waits or not self.winfo_exists():
            return
        wait = max(0.0, self._drawn_at + REDRAW_SECONDS - time.monotonic())
        self._drawing.start(round(wait * 1000))

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        if not self.winfo_ismapped():
            return
        model = self._controller.model
        self.losses.show([
            Series(tr("each step"), "faint", model.losses), Series(tr("smoothed"), "blue", model.smoothed),
            Series(tr("validation"), "orange", model.validation, dots=True),
        ])  # fmt: skip
        self.rates.show(
            [
                Series(name, RATE_COLORS[place % len(RATE_COLORS)], points)
                for place, (name, points) in enumerate(model.rates.items())
            ]
        )
        self._show_log()

    def _show_log(self) -> None:
        model = self._controller.model
        if self.tabs.current == MESSAGES:
            self.log.show(model.log)
        elif self.tabs.current == OUTPUT:
            self.log.show(model.run.log() if model.run is not None else [])
