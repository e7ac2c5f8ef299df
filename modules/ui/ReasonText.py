import tkinter as tk
from tkinter import ttk

from modules.ui.Theme import Theme


class ReasonText(ttk.Frame):
    """Why something failed: as high as its text, up to a number of lines; more can be scrolled. It can be copied.

    Args:
        parent: a card that it is put into.
        theme: for colours and fonts.
        most: lines that are shown at once.
    """

    def __init__(self, parent: tk.Misc, theme: Theme, most: int) -> None:
        super().__init__(parent)
        self._theme, self._most, self._color = theme, most, "error"
        self.box = tk.Text(
            self, wrap="word", height=1, width=20, borderwidth=0, highlightthickness=0, padx=0, pady=0,
            font=theme.font("small"), state="disabled",
        )  # fmt: skip
        self._bar = ttk.Scrollbar(self, command=self.box.yview)
        self.box.configure(yscrollcommand=self._bar.set)
        self.box.pack(side="left", fill="both", expand=True)
        self.box.bind("<Configure>", lambda _: self._fit())
        theme.listen(self, self._recolor)
        self._recolor()

    @property
    def text(self) -> str:
        """What stands in it."""
        return self.box.get("1.0", "end-1c")

    def show(self, text: str, color: str) -> None:
        """Shows a text in a colour of the theme."""
        if (text, color) == (self.text, self._color):
            return
        self._color = color
        self.box.configure(state="normal")
        self.box.delete("1.0", "end")
        self.box.insert("end", text)
        self.box.configure(state="disabled")
        self._recolor()
        self._fit()

    def _fit(self) -> None:
        """Lines as they are wrapped in the width of now."""
        lines = self.box.count("1.0", "end", "update", "displaylines")
        count = lines[0] if isinstance(lines, tuple) else lines or 1
        self.box.configure(height=min(self._most, max(1, count)))
        if count > self._most:
            self._bar.pack(side="right", fill="y", before=self.box)
        else:
            self._bar.pack_forget()

    def _recolor(self) -> None:
        self._theme.paint(self.box, "card", self._color)
