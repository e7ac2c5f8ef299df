"""Small orders and questions to Tk's widgets.

An answer may be a widget of Tk's own, as in its file dialogs, which tkinter cannot name.
"""

import tkinter as tk
from tkinter import ttk


def enable(button: ttk.Widget, is_enabled: bool) -> None:
    """Lets a button be pressed, or not."""
    button.state(["!disabled" if is_enabled else "disabled"])


def focused(widget: tk.Misc) -> tk.Misc | None:
    """What has the focus in this program, None if nothing of ours has it."""
    try:
        return widget.focus_get()
    except KeyError:
        return None


def widget_at(window: tk.Misc, x: int, y: int) -> tk.Misc | None:
    """What is at a place of the screen, None if nothing of ours is."""
    try:
        return window.winfo_containing(x, y)
    except KeyError:
        return None
