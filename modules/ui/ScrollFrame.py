import tkinter as tk
from tkinter import ttk

from modules.ui.Theme import Theme
from modules.ui.widgets import focused, widget_at


class ScrollFrame(ttk.Frame):
    """A frame with a vertical scrollbar, which shows when it is needed. Put widgets into `inside`.

    The wheel scrolls what is under the pointer, and what gets the focus scrolls into view; `follow` sets that up once
    for a window.

    Args:
        parent: that it is put into.
        theme: for colours.
        place: "window" or "card", in whose colours it is drawn.
        fills: whether `inside` is as high as the frame where it needs less: what is in it can grow. It is packed.
    """

    def __init__(self, parent: tk.Misc, theme: Theme, place: str = "window", fills: bool = False) -> None:
        prefix = "Window." if place == "window" else ""
        super().__init__(parent, style=f"{prefix}TFrame")
        self._theme, self._place, self._fills = theme, place, fills
        self._canvas = tk.Canvas(self, highlightthickness=0, borderwidth=0, background=theme.color(place))
        self._bar = ttk.Scrollbar(self, style=f"{prefix}Vertical.TScrollbar", command=self._canvas.yview)
        self.inside = ttk.Frame(self._canvas, style=f"{prefix}TFrame")
        self._item = self._canvas.create_window(0, 0, window=self.inside, anchor="nw")
        self._canvas.grid(row=0, column=0, sticky="nswe")
        if fills:
            # what stands beside it takes the room that it needs first
            self._canvas.configure(width=1, height=1)
            # stands at the left edge of what is inside, and so gives that its least height
            self._strut = ttk.Frame(self.inside, width=1, style=f"{prefix}TFrame")
            self._strut.pack(side="left")
        else:
            self._bar.grid(row=0, column=1, sticky="ns", padx=(2, 0))
        self.grid_columnconfigure(0, weight=1)
        self.grid_rowconfigure(0, weight=1)
        self._canvas.configure(yscrollcommand=self._scrolled)
        self._canvas.bind("<Configure>", self._fit)
        self.inside.bind("<Configure>", self._fit)
        theme.listen(self, self.recolor)

    def recolor(self) -> None:
        """Takes the theme's colours."""
        self._canvas.configure(background=self._theme.color(self._place))

    def scroll(self, steps: int) -> bool:
        """Scrolls by steps of the wheel. False: there is nothing more to see in this direction."""
        first, last = self._canvas.yview()
        if first <= 0 and last >= 1 or (last >= 1 if steps > 0 else first <= 0):
            return False
        self._canvas.yview_scroll(steps * self._theme.px(40), "units")
        return True

    def see(self, widget: tk.Misc, middle: bool = False) -> None:
        """Scrolls so far that a widget inside can be seen.

        Args:
            middle: whether it comes to the middle, even if it can be seen already.
        """
        top = widget.winfo_rooty() - self.inside.winfo_rooty()
        bottom, total, page = top + widget.winfo_height(), self.inside.winfo_height(), self._canvas.winfo_height()
        first = self._canvas.canvasy(0)
        margin = (page - widget.winfo_height()) / 2 if middle else self._theme.px(12)
        if middle or top < first:
            self._canvas.yview_moveto(max(0, top - margin) / max(1, total))
        elif bottom > first + page:
            self._canvas.yview_moveto((bottom + margin - page) / max(1, total))

    def set_height(self, height: int) -> None:
        """Asks for a height in pixels."""
        self._canvas.configure(height=height)

    def to_top(self) -> None:
        """Scrolls to the beginning."""
        self._canvas.yview_moveto(0)

    def _fit(self, _: tk.Event) -> None:
        high, room = max(self.inside.winfo_reqheight(), 1), self._canvas.winfo_height()
        self._canvas.itemconfigure(self._item, width=self._canvas.winfo_width())
        if self._fills:
            # the width follows from the height alone, so that the bar does not come and go
            if high > room > 1:
                self._bar.grid(row=0, column=1, sticky="ns", padx=(2, 0))
            else:
                self._bar.grid_remove()
            self._strut.configure(height=room)
        self._canvas.configure(scrollregion=(0, 0, self._canvas.winfo_width(), high), yscrollincrement=1)
        if high <= self._canvas.winfo_height():
            self._canvas.yview_moveto(0)

    def _scrolled(self, first: str, last: str) -> None:
        self._bar.set(first, last)
        # taking the bar away would change the width, and with it what fits: it only fades
        if float(first) <= 0 and float(last) >= 1:
            self._bar.state(["disabled"])
        else:
            self._bar.state(["!disabled"])


def follow(window: tk.Misc) -> None:
    """Lets wheel and focus scroll the frames of a window and of the windows it opens."""
    for event, steps in (("<Button-4>", -1), ("<Button-5>", 1)):
        window.bind_all(event, lambda event, steps=steps: _wheel(window, event, steps), add="+")
    window.bind_all("<MouseWheel>", lambda event: _wheel(window, event, -1 if event.delta > 0 else 1), add="+")
    window.bind_all("<FocusIn>", _focused, add="+")


def _around(widget: object) -> list[ScrollFrame]:
    """The frames that scroll a widget, from the innermost outwards."""
    found = []
    while isinstance(widget, tk.Misc):
        if isinstance(widget, ScrollFrame):
            found.append(widget)
        widget = getattr(widget, "master", None)
    return found


def _wheel(window: tk.Misc, event: tk.Event, steps: int) -> None:
    # what has a scrollbar of its own keeps its wheel
    if isinstance(event.widget, (tk.Listbox, tk.Text)):
        return
    for frame in _around(widget_at(window, event.x_root, event.y_root)):
        if frame.scroll(steps):
            return


def _focused(event: tk.Event) -> None:
    # frames between the window and what gets the focus hear of it, too
    widget = event.widget
    if not isinstance(widget, tk.Misc) or focused(widget) is not widget:
        return
    for frame in _around(widget):
        if widget is not frame:
            frame.see(widget)
            # where it is now counts for the frame around this one
            frame.update_idletasks()
