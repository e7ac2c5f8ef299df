import tkinter as tk
from collections.abc import Callable, Mapping
from tkinter import ttk

from modules.ui.ChoiceButton import ChoiceButton
from modules.ui.Flow import Flow
from modules.ui.Timer import Timer
from modules.ui.WindowTools import WindowTools
from modules.util.texts import tr
from modules.viewModel.caption_edits import Within
from modules.viewModel.edit_names import within_name
from modules.viewModel.FieldHints import Choice
from modules.viewModel.PictureSet import Show, name_of

SEARCH_MS = 200


class FilterBar(ttk.Frame):
    """Which pictures are shown: by a text in the caption, and by a mark. In a narrow window it has more rows.

    Args:
        parent: that it is put into.
        tools: the window's own.
        changed: gets text, what it is looked for as, and the mark.

    Attributes:
        row: the parent of what is put behind the choices by `add`.
        search: the field of the text.
        within, show: the other choices.
    """

    def __init__(self, parent: tk.Misc, tools: WindowTools, changed: Callable[[str, Within, Show], None]) -> None:
        super().__init__(parent, style="Window.TFrame")
        px, self._changed = tools.theme.px, changed
        self._waiting = Timer(self, self._tell)
        self.row = Flow(self, px(6), "Window.TFrame")
        self.row.pack(fill="x")
        field = ttk.Frame(self.row, style="Window.TFrame")
        ttk.Label(field, text=tr("Search"), style="Window.TLabel").pack(side="left", padx=(0, px(6)))
        self._text = tk.StringVar(self)
        self.search = ttk.Entry(field, textvariable=self._text, width=20, style="Window.TEntry")
        self.search.pack(side="left")
        self._text.trace_add("write", lambda *_: self._waiting.start(SEARCH_MS))
        self.clear = ttk.Button(field, text="✕", width=2, style="Window.Clear.TButton", command=self._clear)
        self.clear.pack(side="left")
        tools.tooltip.attach(self.clear, lambda: tr("Shows all pictures again."))
        withins = [Choice(one, within_name(one)) for one in Within]
        self.within = ChoiceButton(self.row, tools, withins, self._tell, "Window.")
        self.within.configure(width=14)
        self.show = ChoiceButton(self.row, tools, [Choice(Show.ALL, name_of(Show.ALL))], self._tell, "Window.")
        self.show.configure(width=20)
        self._parts = [field, self.within, self.show]
        self.row.show(self._parts)

    def add(self, *widgets: tk.Widget) -> None:
        """Puts children of `row` behind the choices."""
        self._parts += widgets
        self.row.show(self._parts)

    def look_for(self, text: str, within: Within, show: Show | None = None) -> None:
        """Looks for something else, as if a person had typed it.

        Args:
            show: mark of the pictures; None: as it is.
        """
        self.within.choose(within)
        if show is not None:
            self.show.choose(show)
        self._text.set(text)
        self._tell()

    def count(self, counts: Mapping[Show, int]) -> None:
        """Shows how many pictures have each mark."""
        self.show.offer([Choice(one, f"{name_of(one)} ({counts[one]})") for one in Show])

    def _clear(self) -> None:
        self.look_for("", Within.ANYWHERE, Show.ALL)

    def _tell(self) -> None:
        self._waiting.stop()
        self._changed(self._text.get(), Within(self.within.chosen), Show(self.show.chosen))
