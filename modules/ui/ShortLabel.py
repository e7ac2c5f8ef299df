import tkinter as tk
from collections.abc import Callable
from tkinter import font as tk_font
from tkinter import ttk

from modules.viewModel.text_lines import shortened

# of a button: what its face and its arrow take beside the text, in pixels, where the style does not tell
FACE = 12


class ShortLabel(ttk.Label):
    """A line that takes the room it is given and ends in … where that is too small for it.

    Args:
        parent: that it is put into.
        text: the whole line.
        style: of ttk.
        width: that it asks for, in characters.

    Attributes:
        full: the whole line.
    """

    is_shortened = True

    def __init__(self, parent: tk.Misc, text: str, style: str = "TLabel", width: int = 1, **options: object) -> None:
        super().__init__(parent, text=text, style=style, width=width, **options)
        self.full = text
        self.bind("<Configure>", lambda event: self._fit(event.width))

    def show(self, text: str, style: str | None = None) -> None:
        """Shows another line."""
        if text == self.full and style in (None, str(self.cget("style"))):
            return
        self.full = text
        if style is not None:
            self.configure(style=style)
        self._fit(self.winfo_width())

    def _fit(self, wide: int) -> None:
        font = tk_font.nametofont(str(ttk.Style(self).lookup(str(self.cget("style")), "font")), self)
        # before it has a place, nothing is known of its room
        self.configure(text=shortened(self.full, wide, font.measure) if wide > 1 else self.full)


class ShortButton(ttk.Button):
    """The same as a button.

    Args:
        parent: that it is put into.
        text: the whole line.
        command: what it does.
        style: of ttk.
        room: what its face and its arrow take beside the text, in pixels.
        width: that it asks for, in characters.

    Attributes:
        full: the whole line.
    """

    is_shortened = True

    def __init__(
        self, parent: tk.Misc, text: str, command: Callable[[], object], style: str = "TButton", room: int = FACE,
        width: int = 1, **options: object,
    ) -> None:  # fmt: skip
        super().__init__(parent, text=text, command=command, style=style, width=width, **options)
        self.full, self._room = text, room
        self.bind("<Configure>", lambda event: self._fit(event.width), add="+")

    def show(self, text: str) -> None:
        """Shows another line."""
        if text != self.full:
            self.full = text
            self._fit(self.winfo_width())

    def _fit(self, wide: int) -> None:
        font = tk_font.nametofont(str(ttk.Style(self).lookup(str(self.cget("style")), "font")), self)
        room = wide - self._room
        self.configure(text=shortened(self.full, room, font.measure) if room > 1 else self.full)
