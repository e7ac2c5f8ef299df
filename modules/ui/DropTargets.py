import tkinter as tk
from collections.abc import Callable, Sequence
from pathlib import Path

from modules.ui.widgets import widget_at

from tkinterdnd2 import COPY, DND_FILES, REFUSE_DROP, TkinterDnD

Action = Callable[[list[Path]], None]


class DropTargets:
    """Files and folders that are dropped onto a window from a file manager, handed to the widget under the pointer.

    Args:
        window: that they are dropped onto; a `DnDWrapper`, too.

    Attributes:
        works: False where Tk's extension for it is not made for this platform; then nothing can be dropped.
    """

    def __init__(self, window: tk.Tk) -> None:
        self._window = window
        self._actions: dict[tk.Misc, Action] = {}
        try:
            TkinterDnD.require(window)
            window.drop_target_register(DND_FILES)
        except (RuntimeError, tk.TclError):
            self.works = False
            return
        self.works = True
        window.dnd_bind("<<DropPosition>>", self._moved)
        window.dnd_bind("<<Drop>>", self._dropped)

    def accept(self, widget: tk.Misc, action: Action) -> None:
        """Calls `action` with the paths that are dropped onto a widget or anything inside it."""
        self._actions[widget] = action

    def drop(self, widget: tk.Misc | None, paths: Sequence[Path]) -> bool:
        """Does what a drop onto a widget does. False: nothing takes files there."""
        self._actions = {one: action for one, action in self._actions.items() if one.winfo_exists()}
        action = self._action(widget)
        if action is None or not paths:
            return False
        action(list(paths))
        return True

    def _action(self, widget: tk.Misc | None) -> Action | None:
        while widget is not None:
            if widget in self._actions:
                return self._actions[widget]
            widget = widget.master
        return None

    def _under(self, event: TkinterDnD.DnDEvent) -> tk.Misc | None:
        return widget_at(self._window, event.x_root, event.y_root)

    def _moved(self, event: TkinterDnD.DnDEvent) -> str:
        return REFUSE_DROP if self._action(self._under(event)) is None else COPY

    def _dropped(self, event: TkinterDnD.DnDEvent) -> str:
        paths = [Path(path) for path in self._window.tk.splitlist(event.data)]
        # the program that the files come from waits for the answer: nothing that asks a person may run before it
        self._window.after_idle(self.drop, self._under(event), paths)
        return COPY
