import tkinter as tk

from modules.ui.Control import Control
from modules.ui.ShortLabel import ShortButton

# of its face and its arrow, in pixels at 100 %
SELECT_ROOM = 40


class SelectControl(Control):
    """One of a list."""

    def build(self, parent: tk.Misc) -> None:
        """Makes the button that opens the list."""
        self._text, self._label = "", ""
        self.frame = self.focus = self.button = ShortButton(
            parent, "", self.open, "Select.TButton", self.tools.theme.px(SELECT_ROOM), takefocus=True
        )
        for key in ("<Down>", "<Return>"):
            self.button.bind(key, lambda _: self.open())

    def open(self) -> None:
        """Shows what can be chosen."""
        choices = self.hints.choices(self.one.path)
        self.tools.popup.open(self.button, choices, self._text, self.changed)

    def show(self, text: str, invalid: bool) -> None:
        """Shows the chosen one, or what an empty field stands for."""
        self._text, label = text, self.hints.name(self.one.path, text) or self.hints.placeholder(self.one.path)
        if label != self._label:
            self._label = label
            self.button.show(label)

    def shown(self) -> str:
        """The chosen one."""
        return self._text
