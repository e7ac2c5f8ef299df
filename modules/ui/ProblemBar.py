import tkinter as tk
from collections.abc import Callable, Sequence
from tkinter import ttk

from modules.ui.ScrollFrame import ScrollFrame
from modules.ui.ShortLabel import ShortButton, ShortLabel
from modules.ui.widgets import enable
from modules.ui.WindowTools import WindowTools
from modules.util.config.errors import Problem
from modules.util.texts import tr
from modules.viewModel.text_lines import things_to_mend
from modules.viewModel.TrainForm import TrainForm

# in pixels at 100 %, and of the window's height
HEIGHT, MOST_SHARE = 150, 0.25


class ProblemBar(ttk.Frame):
    """The foot of the window: what is wrong, a line for news, and the button that starts.

    Args:
        parent: that it is put into.
        tools: the window's own.
        form: whose problems these are; its remedies change it.
        go_to: gets the path of a problem that was clicked.
        start: what the button does.

    Attributes:
        start: the button, disabled while something is wrong.
        lines: the buttons of the problems, while the list is open.
        remedies: (option, what it says) -> a button beside a problem that mends it.
    """

    def __init__(
        self, parent: tk.Misc, tools: WindowTools, form: TrainForm, go_to: Callable[[str], None],
        start: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(parent, style="Window.TFrame")
        self._tools, self._form, self._go_to = tools, form, go_to
        self._problems: list[Problem] = []
        px = tools.theme.px
        self._list = ScrollFrame(self, tools.theme)
        self._rows: list[ttk.Frame] = []
        self.lines: list[ttk.Button] = []
        self.remedies: dict[tuple[str, str], ttk.Button] = {}
        row = ttk.Frame(self, style="Window.TFrame")
        row.pack(side="bottom", fill="x")
        self.start = ttk.Button(row, text=tr("Start training"), style="Window.Accent.TButton", command=start)
        self.start.pack(side="right")
        self._size, self._size_detail = ttk.Label(row, style="Muted.Window.TLabel"), ""
        self._size.pack(side="right", padx=(0, px(10)))
        tools.tooltip.attach(self._size, lambda: self._size_detail)
        self.toggle = ttk.Button(row, style="Window.TButton", command=self._toggle)
        self._news = ShortLabel(row, "", "Muted.Window.TLabel", anchor="w")
        self._news.pack(side="left", fill="x", expand=True, padx=(px(4), px(8)))
        tools.tooltip.attach(self._news, lambda: self.news)
        self.show([])

    @property
    def is_open(self) -> bool:
        """Whether the list is shown."""
        return bool(self._list.winfo_manager())

    @property
    def news(self) -> str:
        """The line for news."""
        return self._news.full

    def say(self, text: str) -> None:
        """Shows a line."""
        self._news.show(" ".join(text.split()))

    @property
    def size(self) -> str:
        """How much would be trained."""
        return str(self._size.cget("text"))

    def tell_size(self, text: str, detail: str) -> None:
        """Shows how much would be trained, and, where the mouse rests, why."""
        self._size.configure(text=text)
        self._size_detail = detail

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
        for row in self._rows:
            row.destroy()
        self._rows, self.lines, self.remedies = [], [], {}
        px = self._tools.theme.px
        for problem in self._problems:
            row = ttk.Frame(self._list.inside, style="Window.TFrame")
            row.pack(fill="x")
            self._rows.append(row)
            for text, action in self._ways_out(problem):
                button = ttk.Button(row, text=text, style="Window.TButton", command=action)
                button.pack(side="right", padx=(px(6), px(6)), pady=px(1))
                self.remedies[problem.path, text] = button
            line = ShortButton(
                row, self._form.line(problem), lambda path=problem.path: self._go_to(path), "Window.Line.TButton"
            )
            line.pack(side="left", fill="x", expand=True)
            # where buttons leave it little room
            self._tools.tooltip.attach(line, lambda problem=problem: self._form.line(problem))
            self.lines.append(line)
        self.update_idletasks()
        most = min(self._tools.theme.px(HEIGHT), round(MOST_SHARE * self.winfo_toplevel().winfo_height()))
        self._list.set_height(min(most, self._list.inside.winfo_reqheight()))

    def _ways_out(self, problem: Problem) -> list[tuple[str, Callable[[], None]]]:
        """What each button beside a problem says and does: a remedy, or the way to the option. Shown from the right."""
        found: list[tuple[str, Callable[[], None]]] = [
            (self._form.remedy_text(problem, remedy), lambda remedy=remedy: self._form.apply_remedy(remedy))
            for remedy in problem.remedies
        ]
        return found[::-1] or [(tr("Show"), lambda: self._go_to(problem.path))]
