import tkinter as tk
from collections.abc import Callable, Sequence
from tkinter import ttk

from modules.ui.Flow import Flow
from modules.ui.Theme import Theme
from modules.util.texts import tr


class TabBar(Flow):
    """A row of names, of which one is chosen; more rows where one is too narrow. Arrow keys move between them.

    Args:
        parent: that it is put into; by `fill="x"`, if there may be more rows.
        theme: for sizes.
        names: from left to right, shown in the language of the window.
        chosen: gets the name that a person chose.
        place: "window" or "card", on which it stands.
    """

    def __init__(
        self, parent: tk.Misc, theme: Theme, names: Sequence[str], chosen: Callable[[str], None], place: str = "window"
    ) -> None:
        super().__init__(parent, theme.px(2), "Window.TFrame" if place == "window" else "TFrame")
        self._names, self._chosen = list(names), chosen
        self._variable = tk.StringVar(self, "")
        prefix = "" if place == "window" else "Card."
        self.buttons: dict[str, ttk.Radiobutton] = {}
        for name in names:
            button = ttk.Radiobutton(
                self, text=tr(name), value=name, variable=self._variable, style=f"{prefix}Tab.TRadiobutton",
                command=lambda name=name: chosen(name),
            )  # fmt: skip
            for key, step in (("<Left>", -1), ("<Right>", 1)):
                button.bind(key, lambda _, name=name, step=step: self._move(name, step))
            self.buttons[name] = button
        self.show(self.buttons.values())

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
