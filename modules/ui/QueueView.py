import tkinter as tk
from collections.abc import Callable
from tkinter import ttk
from typing import TYPE_CHECKING

from modules.ui.AskWindow import AskWindow
from modules.ui.ScrollFrame import ScrollFrame
from modules.ui.ShortLabel import ShortLabel
from modules.ui.widgets import enable
from modules.util.config.errors import ConfigError
from modules.util.texts import later, tr
from modules.viewModel.RunQueue import RUNNING, QueuedRun

if TYPE_CHECKING:
    from modules.ui.App import App

ADD, CANCEL = later("Add"), later("Cancel")
# share of the room and least width in pixels of each column of a row
WIDTHS = ((0, 28), (2, 80), (5, 120), (0, 70), (2, 0), (0, 0), (0, 0), (0, 0))


class QueueView(ttk.Frame):
    """The configs that are trained one after the other, with what became of each.

    Args:
        parent: that it is put into.
        app: the window, whose present config can be added.

    Attributes:
        lines: for each item a row of widgets by name: number, title, about, state, reason, up, down, remove.
    """

    def __init__(self, parent: tk.Misc, app: "App") -> None:
        super().__init__(parent)
        self._app, px = app, app.theme.px
        self._controller = app.runs.controller
        head = ttk.Frame(self)
        head.pack(fill="x", pady=(0, px(4)))
        self.add_button = ttk.Button(head, text=tr("Add this config"), command=self.add)
        self.add_button.pack(side="left")
        self.start_button = ttk.Button(head, text=tr("Start queue"), command=self.toggle)
        self.start_button.pack(side="left", padx=px(6))
        self.clear_button = ttk.Button(head, text=tr("Remove what is done"), command=self.clear)
        self.clear_button.pack(side="left")
        self._note = ShortLabel(head, "", "Muted.TLabel")
        self._note.pack(side="left", padx=px(10), fill="x", expand=True)
        app.tools.tooltip.attach(self._note, lambda: self._controller.queue.trouble or self._note.full)
        self._list = ScrollFrame(self, app.theme, "card")
        self._list.pack(fill="both", expand=True)
        # long names and reasons share the room that there is; whole they stand in the tooltip
        for column, (share, wide) in enumerate(WIDTHS):
            self._list.inside.grid_columnconfigure(
                column, weight=share, minsize=px(wide), uniform="line" if share else ""
            )
        self.lines: list[dict[str, tk.Widget]] = []
        self._shown: list[tuple[str, ...]] | None = None
        self.refresh()

    def add(self) -> None:
        """Puts a copy of the present config at the end, if it could be trained."""
        problems = self._app.form.check()
        if problems:
            self._app.problems.show(problems)
            self._app.say(tr("This config cannot be trained yet; mend it first."))
            return
        text = self._app.session.name
        window = AskWindow(self._app, self._app.tools, tr("Add to the queue"), tr("Name:"), (ADD, CANCEL), text)
        if window.ask() == ADD:
            self.add_as(window.text.strip() or text)

    def add_as(self, name: str) -> None:
        """The same under a name."""
        try:
            self._controller.queue.add(name, self._app.form.config.to_dict(), self._app.steps.text)
        except ConfigError as error:
            self._app.say(str(error))
        self.refresh()

    def toggle(self) -> None:
        """Starts the queue or pauses it."""
        if self._controller.queue.paused:
            self._controller.start_queue()
        else:
            self._controller.pause_queue()
        self.refresh()

    def clear(self) -> None:
        """Takes out what has run."""
        self._controller.queue.clear()
        self.refresh()

    def refresh(self) -> None:
        """Shows the queue as it is."""
        queue = self._controller.queue
        self.start_button.configure(text=tr("Start queue") if queue.paused else tr("Pause queue"))
        enable(self.start_button, queue.can_toggle)
        enable(self.clear_button, bool(queue.done))
        style = "Error.TLabel" if queue.trouble else "Muted.TLabel"
        self._note.show(self._controller.queue_note, style)
        shown = [(item.name, item.state, item.reason, item.config, item.about) for item in queue.items]
        if shown == self._shown:
            return
        self._shown = shown
        for child in self._list.inside.winfo_children():
            child.destroy()
        self.lines = [self._line(place, item) for place, item in enumerate(queue.items)]

    def _line(self, place: int, item: QueuedRun) -> dict[str, tk.Widget]:
        inside, px, queue = self._list.inside, self._app.theme.px, self._controller.queue
        style = "Error.TLabel" if item.state == "failed" else "Muted.TLabel"
        line: dict[str, tk.Widget] = {
            "number": ttk.Label(inside, text=f"{place + 1}", style="Muted.TLabel"),
            "title": ShortLabel(inside, item.name),
            "about": ShortLabel(inside, item.about, "Muted.TLabel"),
            "state": ttk.Label(inside, text=tr(item.state), style=style),
            "reason": ShortLabel(inside, " ".join(item.reason.split()), style),
        }
        whole = "\n".join(filter(None, [item.name, *item.about.split(" · ")]))
        for name, text in (("title", whole), ("about", whole), ("state", item.reason), ("reason", item.reason)):
            self._app.tools.tooltip.attach(line[name], lambda text=text: text)
        for name, text, help, action in (
            ("up", "↑", tr("Runs it earlier"), lambda: queue.move(item, -1)),
            ("down", "↓", tr("Runs it later"), lambda: queue.move(item, 1)),
            ("remove", "✕", tr("Takes it out of the queue"), lambda: queue.remove(item)),
        ):
            button = ttk.Button(
                inside, text=text, width=2, style="Clear.TButton",
                command=lambda name=name, action=action: self._change(item, name, action),
            )  # fmt: skip
            self._app.tools.tooltip.attach(button, lambda help=help: help)
            line[name] = button
        enable(line["up"], queue.can_move(item, -1))
        enable(line["down"], queue.can_move(item, 1))
        enable(line["remove"], item.state != RUNNING)
        for column, (name, widget) in enumerate(line.items()):
            sticky = "we" if name in ("title", "about", "reason") else "w"
            widget.grid(row=place, column=column, sticky=sticky, padx=px(4), pady=px(1))
        return line

    def _change(self, item: QueuedRun, name: str, action: Callable[[], None]) -> None:
        """Does what a button of a line asks for. Its line is made anew: the keyboard stays at the same button."""
        before = self.lines[self._controller.queue.items.index(item)][name]
        focused = self.focus_get() is before
        action()
        self.refresh()
        items = self._controller.queue.items
        if focused and items:
            self.lines[items.index(item) if item in items else -1][name].focus_set()
