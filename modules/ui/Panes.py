import tkinter as tk
from collections.abc import Callable
from tkinter import ttk
from typing import TYPE_CHECKING

from modules.ui.Timer import Timer
from modules.viewModel.UiSettings import share_within

if TYPE_CHECKING:
    from modules.ui.App import App

# its width, in pixels at 100 %
SASH = 8


class Panes(ttk.PanedWindow):
    """Two panes with a sash between them, which can be dragged; a double click puts it back. Its place is remembered.

    Args:
        parent: that it is put into.
        app: the window, whose settings remember the place.
        name: under which they do.
        orient: "horizontal" for panes beside each other, "vertical" for one above the other.
        share: of the room that the first pane has at first; or room -> height or width that it has until a person
            moves the sash, in pixels.
        least: of the first and of the second pane, in pixels at 100 %.

    Attributes:
        share: of the room that the first pane has, as a person has left it; None: nobody has moved the sash.
    """

    def __init__(
        self, parent: tk.Misc, app: "App", name: str, orient: str, share: float | Callable[[int], int],
        least: tuple[int, int],
    ) -> None:  # fmt: skip
        super().__init__(parent, orient=orient, style="Window.TPanedwindow")
        self._app, self._name, self._across, self._usual = app, name, orient == "horizontal", share
        self._least = app.theme.px(least[0]), app.theme.px(least[1] + SASH)
        self.share: float | None = app.settings.panes.get(name)
        self._is_held, self._began = False, 0
        self.bind("<Configure>", lambda _: self.place_sash())
        # Tk shares the room anew when panes are shown again
        placing = Timer(self, self.place_sash)
        self.bind("<Map>", lambda _: placing.start(0))
        self.bind("<ButtonPress-1>", lambda event: self._press(event))
        self.bind("<B1-Motion>", self._drag)
        self.bind("<ButtonRelease-1>", lambda _: self._let_go())
        self.bind("<Double-Button-1>", lambda event: self._put_back(event))

    def hold(self, first: tk.Widget, second: tk.Widget) -> None:
        """Takes two widgets, of the same parent or its own children, as its panes."""
        for pane in (first, second):
            self.add(pane, weight=1)
            pane.lift()
        self.place_sash()

    def place_sash(self) -> None:
        """Puts the sash where it was left, as far as both panes keep what they need."""
        room = self._room()
        if room <= 1 or len(self.panes()) < 2:
            return
        if self.share is None and callable(self._usual):
            self._move(self._usual(room))
        else:
            self._move(round((self._usual if self.share is None else self.share) * room))

    def _room(self) -> int:
        return self.winfo_width() if self._across else self.winfo_height()

    def _move(self, place: int) -> None:
        place = round(share_within(place, self._room(), self._least))
        if self.sashpos(0) != place:
            self.sashpos(0, place)

    def _is_sash(self, event: tk.Event) -> bool:
        # tkinter's own `identify` does not say of what
        return str(self.tk.call(str(self), "identify", "sash", event.x, event.y)) != ""

    def _press(self, event: tk.Event) -> None:
        self._is_held = self._is_sash(event)
        self._began = self.sashpos(0) if self._is_held else 0

    def _drag(self, event: tk.Event) -> str | None:
        if not self._is_held:
            return None
        self._move(event.x if self._across else event.y)
        return "break"

    def _let_go(self) -> None:
        was_held, self._is_held = self._is_held, False
        if was_held and self.sashpos(0) != self._began:
            self.share = self._app.settings.panes[self._name] = round(self.sashpos(0) / max(1, self._room()), 4)

    def _put_back(self, event: tk.Event) -> None:
        if self._is_sash(event):
            self._is_held, self.share = False, None
            self._app.settings.panes.pop(self._name, None)
            self.place_sash()
