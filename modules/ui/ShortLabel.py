import tkinter as tk
from tkinter import font as tk_font
from tkinter import ttk

from modules.viewModel.text_lines import shortened


class ShortLabel(ttk.Label):
    """A line that takes the room it is given and ends in … where that is too small for it.

    Args:
        parent: that it is put into.
        text: the whole line.
        style: of ttk.

    Attributes:
        full: the whole line.
    """

    def __init__(self, parent: tk.Misc, text: str, style: str = "TLabel") -> None:
        super().__init__(parent, text=text, style=style, width=1)
        self.full = text
        self._font = tk_font.nametofont(str(ttk.Style(self).lookup(style, "font")), self)
        self.bind("<Configure>", lambda event: self.configure(text=shortened(text, event.width, self._font.measure)))
