import tkinter as tk
from collections.abc import Callable


class Timer:
    """One call, a moment from now, if the widget that it is for still exists then.

    The main window keeps it. A wish that is left with a widget's own `after` stays with Tk when the widget is gone and
    its command with it: Tk then calls whatever has been given the same name since, a button's action for example.

    Args:
        widget: that it is for.
        call: what is called.
    """

    def __init__(self, widget: tk.Misc, call: Callable[[], object]) -> None:
        self._widget, self._call = widget, call
        self._window: tk.Misc = widget.nametowidget(".")
        self._waiting = ""

    @property
    def waits(self) -> bool:
        """Whether the call is still to come."""
        return bool(self._waiting)

    def start(self, ms: int) -> None:
        """Calls in `ms` milliseconds, counted anew if it waits already; with 0 as soon as Tk has done what it is at."""
        self.stop()
        self._waiting = self._window.after(ms, self._fire)

    def stop(self) -> None:
        """Does not call, if it waits."""
        if self._waiting:
            self._window.after_cancel(self._waiting)
            self._waiting = ""

    def _fire(self) -> None:
        self._waiting = ""
        if self._widget.winfo_exists():
            self._call()
