import tkinter as tk

from modules.ui.ScrollFrame import ScrollFrame
from modules.ui.Theme import Theme


class CardScrollFrame(ScrollFrame):
    """A `ScrollFrame` that stands inside a card, in its colours."""

    def __init__(self, parent: tk.Misc, theme: Theme) -> None:
        super().__init__(parent, theme)
        self.configure(style="TFrame")
        self.inside.configure(style="TFrame")
        self._bar.configure(style="Vertical.TScrollbar")
        self.recolor()

    def recolor(self) -> None:
        """Takes the theme's colours."""
        self._canvas.configure(background=self._theme.color("card"))
