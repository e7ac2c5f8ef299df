import tkinter as tk
from collections.abc import Callable, Mapping


def bind_keys(window: tk.Tk, is_held: Callable[[], bool], actions: Mapping[str, Callable[[], object]]) -> None:
    """Binds keys, pressed together with Ctrl (on a Mac: Cmd), in all windows of this one.

    Args:
        window: the window.
        is_held: whether one of its windows has to be answered first; then the keys do nothing.
        actions: key -> what it does. With caps lock, letters are large: both count.
    """
    held = "Command" if window.tk.call("tk", "windowingsystem") == "aqua" else "Control"
    for key, action in actions.items():
        start, _, last = key.rpartition("-")
        forms = {last.lower(), last.upper()} if len(last) == 1 else {last}
        for one in forms:
            name = f"{start}-{one}" if start else one
            window.bind_all(f"<{held}-{name}>", lambda _, action=action: is_held() or action())
    # under X11 Tk itself goes to the beginning of the line
    for kind, everything in (("TEntry", "selection range 0 end"), ("Text", "tag add sel 1.0 end")):
        window.tk.eval(f"bind {kind} <{held}-a> {{ %W {everything}; break }}")
