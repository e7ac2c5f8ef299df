import tkinter as tk
from collections.abc import Iterable
from tkinter import ttk


class Flow(ttk.Frame):
    """Widgets in a row, and in more rows where one is too narrow for them.

    Args:
        parent: that it is put into; by `fill="x"` or `expand`, so that it hears how much room there is.
        gap: between two widgets, in pixels.
        style: of its frames.
    """

    def __init__(self, parent: tk.Misc, gap: int, style: str = "TFrame") -> None:
        super().__init__(parent, style=style)
        self._gap, self._style = gap, style
        self._widgets: list[tk.Widget] = []
        self._rows: list[ttk.Frame] = []
        self._broken: list[list[tk.Widget]] | None = None
        self.bind("<Configure>", lambda event: self._arrange(event.width))

    def show(self, widgets: Iterable[tk.Widget]) -> None:
        """Shows these of its children, from left to right."""
        for widget in self._widgets:
            widget.pack_forget()
        self._widgets, self._broken = list(widgets), None
        self._arrange(self.winfo_width() if self.winfo_ismapped() else 0)

    def _arrange(self, width: int) -> None:
        """Puts as many into each row as there is room for; 0: all into one."""
        rows: list[list[tk.Widget]] = [[]]
        left = width
        for widget in self._widgets:
            needed = widget.winfo_reqwidth() + self._gap
            # behind the last one, no gap is needed
            if width > 1 and rows[-1] and needed - self._gap > left:
                rows.append([])
                left = width
            rows[-1].append(widget)
            left -= needed
        if rows == self._broken:
            return
        self._broken = rows
        old, self._rows = self._rows, [ttk.Frame(self, style=self._style) for _ in rows]
        for place, (row, widgets) in enumerate(zip(self._rows, rows, strict=True)):
            row.pack(anchor="w", pady=(self._gap // 2 if place else 0, 0))
            for widget in widgets:
                widget.pack(in_=row, side="left", padx=(0, self._gap))
                widget.lift()
        for row in old:
            row.destroy()
