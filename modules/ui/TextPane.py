import tkinter as tk
from collections.abc import Sequence
from tkinter import font as tk_font
from tkinter import ttk

from modules.ui.Theme import Theme
from modules.viewModel.text_lines import lines_gone

# above and below the lines, in pixels
PADDING = 4


class TextPane(ttk.Frame):
    """Lines that can be read and copied, with a scrollbar.

    Args:
        parent: that it is put into.
        theme: for colours and fonts.
        wrap: "word" or "none", which has a horizontal scrollbar, too.
        height: in lines; it grows with its frame.
        follows: whether it stays at its end, once it is there, as a log; otherwise what is new is read from its top.

    Attributes:
        box: the text widget.
    """

    def __init__(
        self, parent: tk.Misc, theme: Theme, wrap: str = "word", height: int = 4, follows: bool = False
    ) -> None:
        super().__init__(parent)
        self._theme, self._follows = theme, follows
        self._lines: list[str] = []
        self._end = 1.0
        self.box = tk.Text(
            self, wrap=wrap, height=height, width=20, borderwidth=0, highlightthickness=0, padx=6, pady=PADDING,
            font=theme.font("mono"), state="disabled",
        )  # fmt: skip
        self._bar = ttk.Scrollbar(self, command=self.box.yview)
        self.box.configure(yscrollcommand=self._scrolled)
        # told before Tk has laid it out in its new size: `_end` is still that of the old one
        self.box.bind("<Configure>", lambda _: self._keep_end(self._end))
        self.box.grid(row=0, column=0, sticky="nswe")
        self._bar.grid(row=0, column=1, sticky="ns", padx=(2, 0))
        if wrap == "none":
            across = ttk.Scrollbar(self, orient="horizontal", command=self.box.xview)
            self.box.configure(xscrollcommand=across.set)
            across.grid(row=1, column=0, sticky="we")
        self.grid_columnconfigure(0, weight=1)
        self.grid_rowconfigure(0, weight=1)
        if follows:
            self.bind("<Configure>", lambda event: self._show_whole_lines(event.height))
        theme.listen(self, self._recolor)
        self._recolor()

    @property
    def text(self) -> str:
        """What stands in it."""
        return self.box.get("1.0", "end-1c")

    def show(self, lines: Sequence[str]) -> None:
        """Shows these lines; where they go on from those before, what is being read stays in its place."""
        if list(lines) == self._lines:
            return
        old, self._lines = self._lines, list(lines)
        end = self.box.yview()[1]
        gone = lines_gone(old, self._lines)
        self.box.configure(state="normal")
        if gone == len(old):
            self.box.delete("1.0", "end")
            self.box.insert("end", "\n".join(self._lines))
            end = 1.0
        else:
            first = 1 + sum(1 + line.count("\n") for line in old[:gone])
            self.box.delete("1.0", f"{first}.0")
            self.box.insert("end", "".join(f"\n{line}" for line in self._lines[len(old) - gone :]))
        self.box.configure(state="disabled")
        if self._follows:
            self._keep_end(end)
        else:
            self.box.yview_moveto(0)

    def _show_whole_lines(self, high: int) -> None:
        """What is left over below the last line stays empty: at its end, the first line would be cut."""
        line = tk_font.nametofont(self._theme.font("mono"), self).metrics("linespace")
        self.box.grid_configure(pady=(0, max(0, high - 2 * PADDING) % line if high > line else 0))

    def _scrolled(self, first: str, last: str) -> None:
        self._bar.set(first, last)
        self._end = float(last)

    def _keep_end(self, end: float) -> None:
        if self._follows and end >= 0.999:
            self.box.see("end")

    def _recolor(self) -> None:
        if self.box.winfo_exists():
            self._theme.paint(self.box, "field")
