import tkinter as tk
from collections.abc import Callable

from modules.ui.screen_area import place_beside, screen_area
from modules.ui.Theme import Theme, screen_position
from modules.ui.Timer import Timer

DELAY_MS, WIDTH = 500, 420


class Tooltip:
    """Help beside the pointer: one small window for all widgets, filled when it is needed. F1 shows it at once.

    Args:
        root: the window.
        theme: for colours and fonts.
    """

    def __init__(self, root: tk.Misc, theme: Theme) -> None:
        self._root, self._theme = root, theme
        self._window: tk.Toplevel | None = None
        self._label: tk.Label | None = None
        self._timer: Timer | None = None

    def attach(self, widget: tk.Misc, text: Callable[[], str], beside: tk.Misc | None = None) -> None:
        """Shows `text()` for a widget, after a moment under the pointer, or with F1 when it has the focus.

        Args:
            widget: that is pointed at.
            text: what is said of it.
            beside: what else must not be covered, as the field of a label; None: nothing.
        """
        widget.bind("<Enter>", lambda _: self._wait(widget, text, beside), add="+")
        for event in ("<Leave>", "<ButtonPress>", "<Destroy>", "<FocusOut>"):
            widget.bind(event, lambda _: self.hide(), add="+")
        widget.bind("<F1>", lambda _: self.show(widget, text(), beside), add="+")

    def show(self, widget: tk.Misc, text: str, beside: tk.Misc | None = None) -> None:
        """Shows a text below a widget, or where there is room: above it, or beside it; never over it."""
        self.hide()
        if not text:
            return
        if self._window is None or not self._window.winfo_exists():
            self._window = tk.Toplevel(self._root)
            self._window.overrideredirect(True)
            self._window.attributes("-topmost", True)
            self._label = tk.Label(self._window, justify="left", font=self._theme.font("small"), padx=8, pady=6)
            self._label.pack()
        assert self._label is not None
        area = screen_area(widget)
        self._label.configure(
            text=text, background=self._theme.color("tooltip"), foreground=self._theme.color("on_tooltip"),
            wraplength=min(self._theme.px(WIDTH), area[2] - area[0] - 24),
        )  # fmt: skip
        self._window.update_idletasks()
        size = self._window.winfo_reqwidth(), self._window.winfo_reqheight()
        anchor = screen_position(widget)
        if beside is not None:
            other = screen_position(beside)
            anchor = (*map(min, anchor[:2], other[:2]), *map(max, anchor[2:], other[2:]))
        left, top = place_beside(anchor, area, size)
        self._window.geometry(f"+{left}+{top}")
        self._window.deiconify()
        self._window.lift()

    @property
    def text(self) -> str:
        """What is shown now, empty if nothing is."""
        visible = self._window is not None and self._window.winfo_exists() and self._window.state() == "normal"
        return str(self._label.cget("text")) if visible and self._label is not None else ""

    def hide(self) -> None:
        """Takes it away."""
        if self._timer is not None:
            self._timer.stop()
        if self._window is not None and self._window.winfo_exists():
            self._window.withdraw()

    def _wait(self, widget: tk.Misc, text: Callable[[], str], beside: tk.Misc | None) -> None:
        self.hide()
        self._timer = Timer(widget, lambda: self.show(widget, text(), beside))
        self._timer.start(DELAY_MS)
