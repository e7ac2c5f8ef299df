import tkinter as tk
from collections.abc import Sequence
from tkinter import ttk

from modules.ui.Theme import Theme


class TextPane(ttk.Frame):
    """Lines that can be read and copied, with a scrollbar. At the end it follows what is added.

    Args:
        parent: that it is put into.
        theme: for colours and fonts.
        wrap: "word" or "none", which has a horizontal scrollbar, too.
        height: in lines; it grows with its frame.

    Attributes:
        box: the text widget.
    """

    def __init__(self, parent: tk.Misc, theme: Theme, wrap: str = "word", height: int = 4) -> None:
        super().__init__(parent)
        self._theme, self._lines = theme, []
        self.box = tk.Text(
            self, wrap=wrap, height=height, width=20, borderwidth=0, highlightthickness=0, padx=6, pady=4,
            font=theme.font("mono"), state="disabled",
        )  # fmt: skip
        bar = ttk.Scrollbar(self, command=self.box.yview)
        self.box.configure(yscrollcommand=bar.set)
        self.box.grid(row=0, column=0, sticky="nswe")
        bar.grid(row=0, column=1, sticky="ns", padx=(2, 0))
        if wrap == "none":
            across = ttk.Scrollbar(self, orient="horizontal", command=self.box.xview)
            self.box.configure(xscrollcommand=across.set)
            across.grid(row=1, column=0, sticky="we")
        self.grid_columnconfigure(0, weight=1)
        self.grid_rowconfigure(0, weight=1)
        theme.listen(self._recolor)
        self._recolor()

    @property
    def text(self) -> str:
        """What stands in it."""
        return self.box.get("1.0", "end").rstrip("\n")

    def show(self, lines: Sequence[str]) -> None:
        """Shows these lines, and stays at the end if it was there."""
        if list(lines) == self._lines:
            return
        old, self._lines = self._lines, list(lines)
        at_end = self.box.yview()[1] >= 0.999
        self.box.configure(state="normal")
        if old and self._lines[: len(old)] == old:
            self.box.insert("end", "".join(f"{line}\n" for line in self._lines[len(old) :]))
        else:
            self.box.delete("1.0", "end")
            self.box.insert("end", "".join(f"{line}\n" for line in self._lines))
        self.box.configure(state="disabled")
        if self.box.cget("wrap") == "none":
            # a table is read from its top
            self.box.yview_moveto(0)
        elif at_end:
            self.box.see("end")

    def _recolor(self) -> None:
        if self.box.winfo_exists():
            color = self._theme.color
            self.box.configure(
                background=color("field"), foreground=color("text"), selectbackground=color("accent"),
                selectforeground=color("on_accent"), inactiveselectbackground=color("accent"),
            )  # fmt: skip
