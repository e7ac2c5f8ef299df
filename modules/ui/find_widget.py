"""Questions to Tk whose answer may be a widget of Tk's own, as in its file dialogs, which tkinter cannot name."""

import tkinter as tk


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
