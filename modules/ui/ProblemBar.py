import tkinter as tk
from collections.abc import Callable, Sequence
from tkinter import ttk

from modules.ui.enable import enable
from modules.ui.ScrollFrame import ScrollFrame
from modules.ui.WindowTools import WindowTools
from modules.util.config.errors import Problem
from modules.viewModel.text_lines import things_to_mend

HEIGHT = 150


class ProblemBar(ttk.Frame):
    """The foot of the window: what is wrong, a line for news, and the button that starts.

    Args:
        parent: that it is put into.
        tools: the window's own.
        line: problem -> what is shown of it.
        go_to: gets the path of a problem that was clicked.
        start: what the button does.

    Attributes:
        start: the button, disabled while something is wrong.
        lines: the buttons of the problems, while the list is open.
    """

    def __init__(
        self, parent: tk.Misc, tools: WindowTools, line: Callable[[Problem], str], go_to: Callable[[str], None],
        start: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(parent, style="Window.TFrame")
        self._tools, self._line, self._go_to = tools, line, go_to
        self._problems: list[Problem] = []
        px = tools.theme.px
        self._list = ScrollFrame(self, tools.theme)
        self.lines: list[ttk.Button] = []
        row = ttk.Frame(self, style="Window.TFrame")
        row.pack(side="bottom", fill="x")
        self.start = ttk.Button(row, text="Start training", style="Window.Accent.TButton", command=start)
        self.start.pack(side="right")
        self.toggle = ttk.Button(row, style="Window.TButton", command=self._toggle)
        self._news = ttk.Label(row, style="Muted.Window.TLabel", anchor="w")
        self._news.pack(side="left", fill="x", expand=True, padx=(px(4), px(8)))
        self.show([])

    @property
    def is_open(self) -> bool:
        """Whether the list is shown."""
        return bool(self._list.winfo_manager())

    @property
    def news(self) -> str:
        """The line for news."""
        return str(self._news.cget("text"))

    def say(self, text: str) -> None:
        """Shows a line."""
        self._news.configure(text=" ".join(text.split()))

    def show(self, problems: Sequence[Problem]) -> None:
        """Shows what is wrong; nothing can be started until nothing is."""
        enable(self.start, not problems)
        if list(problems) == self._problems and self.toggle.winfo_manager():
            return
        self._problems = list(problems)
        if problems:
            self._mark()
            self.toggle.pack(side="left", before=self._news)
        else:
            self.toggle.pack_forget()
            self._list.pack_forget()
        if self.is_open:
            self._fill()

    def _toggle(self) -> None:
        if self.is_open:
            self._list.pack_forget()
        else:
            self._list.pack(side="top", fill="x", pady=(0, self._tools.theme.px(6)))
            self._fill()
        self._mark()

    def _mark(self) -> None:
        self.toggle.configure(text=f"{'▾' if self.is_open else '▸'} {things_to_mend(len(self._problems))}")

    def _fill(self) -> None:
        for line in self.lines:
            line.destroy()
        self.lines = []
        for problem in self._problems:
            line = ttk.Button(
                self._list.inside, text=self._line(problem), style="Window.Line.TButton",
                command=lambda path=problem.path: self._go_to(path),
            )  # fmt: skip
            line.pack(fill="x")
            self.lines.append(line)
        self.update_idletasks()
        self._list.set_height(min(self._tools.theme.px(HEIGHT), self._list.inside.winfo_reqheight()))
