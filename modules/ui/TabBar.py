import tkinter as tk
from collections.abc import Callable, Sequence
from tkinter import ttk

from modules.ui.Theme import Theme


class TabBar(ttk.Frame):
    """A row of names, of which one is chosen; more rows where one is too narrow. Arrow keys move between them.

    Args:
        parent: that it is put into; by `fill="x"`, if there may be more rows.
        theme: for sizes.
        names: from left to right.
        chosen: gets the name that a person chose.
        place: "window" or "card", on which it stands.
    """

    def __init__(
        self, parent: tk.Misc, theme: Theme, names: Sequence[str], chosen: Callable[[str], None], place: str = "window"
    ) -> None:
        self._style = "Window.TFrame" if place == "window" else "TFrame"
        super().__init__(parent, style=self._style)
        self._names, self._chosen = list(names), chosen
        self._variable = tk.StringVar(self, "")
        prefix = "" if place == "window" else "Card."
        self.buttons: dict[str, ttk.Radiobutton] = {}
        for name in names:
            button = ttk.Radiobutton(
                self, text=name, value=name, variable=self._variable, style=f"{prefix}Tab.TRadiobutton",
                command=lambda name=name: chosen(name),
            )  # fmt: skip
            for key, step in (("<Left>", -1), ("<Right>", 1)):
                button.bind(key, lambda _, name=name, step=step: self._move(name, step))
            self.buttons[name] = button
        self._gap, self._rows, self._broken = theme.px(2), [], None
        self._arrange(0)
        self.bind("<Configure>", lambda event: self._arrange(event.width))

    def _arrange(self, width: int) -> None:
        """Puts as many into each row as there is room for; 0: all into one."""
        rows: list[list[str]] = [[]]
        left = width
        for name, button in self.buttons.items():
            needed = button.winfo_reqwidth() + self._gap
            if width > 1 and rows[-1] and needed > left:
                rows.append([])
                left = width
            rows[-1].append(name)
            left -= needed
        if rows == self._broken:
            return
        self._broken = rows
        for row in self._rows:
            row.destroy()
        self._rows = [ttk.Frame(self, style=self._style) for _ in rows]
        for row, names in zip(self._rows, rows, strict=True):
            row.pack(anchor="w")
            for name in names:
                self.buttons[name].pack(in_=row, side="left", padx=(0, self._gap))
                self.buttons[name].lift()

    @property
    def current(self) -> str:
        """The chosen one."""
        return self._variable.get()

    def mark(self, name: str) -> None:
        """Shows which one is chosen, without telling anybody."""
        self._variable.set(name)

    def _move(self, name: str, step: int) -> str:
        after = self._names[(self._names.index(name) + step) % len(self._names)]
        self.buttons[after].focus_set()
        self.buttons[after].invoke()
        return "break"
