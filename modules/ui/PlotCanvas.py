import tkinter as tk
from collections.abc import Sequence
from dataclasses import dataclass
from tkinter import font as tk_font

from modules.ui.Theme import Theme
from modules.util.texts import tr
from modules.viewModel.curves import Point, bounds, decimate, tick_text, tick_texts, ticks

LEFT, RIGHT, TOP, BOTTOM, LABEL = 58, 10, 24, 22, 14
# below which nothing can be read from it, in pixels at 100 %
LEAST = (150, 80)
SERIES_COLORS = {
    # name: (light, dark)
    "faint": ("#9fb6d0", "#5d7590"),
    "blue": ("#2f7fc1", "#5aa9e6"),
    "orange": ("#c8641b", "#f2a65a"),
    "green": ("#2e8b57", "#66c18c"),
    "purple": ("#7d52a8", "#b794e0"),
    "red": ("#b3261e", "#ff8a80"),
}


@dataclass(frozen=True)
class Series:
    """A line of a plot: its name in the legend, its colour's name in `SERIES_COLORS`, and (x, y) by growing x."""

    name: str
    color: str
    points: Sequence[Point]
    dots: bool = False


class PlotCanvas(tk.Canvas):
    """Lines over steps, drawn at once: matplotlib alone takes longer to load than this window to open.

    Args:
        parent: that it is put into.
        theme: for colours and fonts.
        title: stands above it.
        from_zero: whether the y axis begins at 0.
        x_label: stands below the x axis; empty: steps, which need no word.
        whole: whether x are whole numbers.
    """

    def __init__(
        self, parent: tk.Misc, theme: Theme, title: str, from_zero: bool = False, x_label: str = "", whole: bool = True
    ) -> None:
        super().__init__(parent, highlightthickness=0, borderwidth=0, width=10, height=10)
        self._theme, self._title, self._from_zero = theme, title, from_zero
        self._x_label, self._whole = x_label, whole
        self._series: list[Series] = []
        self.least_size = theme.px(LEAST[0]), theme.px(LEAST[1])
        self._font = tk_font.nametofont(theme.font("small"), self)
        self.bind("<Configure>", lambda _: self.draw())
        theme.listen(self, self.draw)

    def show(self, series: Sequence[Series]) -> None:
        """Draws other lines."""
        self._series = list(series)
        self.draw()

    def draw(self) -> None:
        """Draws what is known, in the size and the colours of now."""
        if not self.winfo_exists():
            return
        color, px = self._theme.color, self._theme.px
        self.configure(background=color("card"))
        self.delete("all")
        wide, high = self.winfo_width(), self.winfo_height()
        self.create_text(px(8), px(4), text=self._title, anchor="nw", fill=color("text"), font=self._theme.font("bold"))
        label = px(LABEL) if self._x_label else 0
        box = (px(LEFT), px(TOP), wide - px(RIGHT), high - px(BOTTOM) - label)
        if label:
            self.create_text(
                box[2], high - px(3), text=self._x_label, anchor="se", fill=color("muted"),
                font=self._theme.font("small"),
            )  # fmt: skip
        shown = [series for series in self._series if series.points]
        if box[2] - box[0] < px(60) or box[3] - box[1] < px(20):
            return
        if not shown:
            middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            self.create_text(*middle, text=tr("nothing yet"), fill=color("faint"), font=self._theme.font("small"))
            return
        self._draw_lines(shown, box)
        self._draw_legend(shown, wide)

    def _draw_lines(self, shown: list[Series], box: tuple[int, int, int, int]) -> None:
        color = self._theme.color
        left, top, right, bottom = box
        first, last = min(series.points[0][0] for series in shown), max(series.points[-1][0] for series in shown)
        last = max(last, first + 1)
        low, top_value = bounds([series.points for series in shown], spikes=bool(self._x_label))
        low = 0.0 if self._from_zero and low < top_value and top_value > 0 else low

        def x(value: float) -> float:
            return left + (value - first) / (last - first) * (right - left)

        def y(value: float) -> float:
            return max(top, min(bottom, bottom - (value - low) / (top_value - low) * (bottom - top)))

        small = self._theme.font("small")
        rows = max(2, (bottom - top) // self._theme.px(28))
        marks = ticks(low, top_value, rows)
        for value, text in zip(marks, tick_texts(marks), strict=True):
            self.create_line(left, y(value), right, y(value), fill=color("line"))
            self.create_text(left - 6, y(value), text=text, anchor="e", fill=color("muted"), font=small)
        columns = max(2, (right - left) // self._theme.px(90))
        for value in ticks(first, last, columns):
            if value == int(value) or not self._whole:
                anchor = "ne" if x(value) > right - self._theme.px(16) else "n"
                self.create_text(
                    x(value), bottom + 4, text=f"{value:g}", anchor=anchor, fill=color("muted"), font=small
                )
        for series in shown:
            points = decimate([point for point in series.points if point[1] == point[1]], 2 * (right - left))
            places = [place for point in points for place in (x(point[0]), y(point[1]))]
            ink = SERIES_COLORS[series.color][self._theme.dark]
            if len(points) > 1:
                self.create_line(*places, fill=ink, width=1 if series.color == "faint" else self._theme.px(2))
            if series.dots or len(points) == 1:
                size = self._theme.px(3)
                for place in range(0, len(places), 2):
                    at = places[place : place + 2]
                    self.create_oval(at[0] - size, at[1] - size, at[0] + size, at[1] + size, fill=ink, outline="")

    def _draw_legend(self, shown: list[Series], wide: int) -> None:
        """From right to left beside the title, each name with its last value."""
        px, right = self._theme.px, wide - self._theme.px(RIGHT)
        bold = tk_font.nametofont(self._theme.font("bold"), self)
        for series in [series for series in reversed(shown) if series.name]:
            text = f"{series.name} {tick_text(float(f'{series.points[-1][1]:.3g}'))}"
            right -= self._font.measure(text)
            # the last one counts most; the title must stay readable
            if right - px(18) < px(16) + bold.measure(self._title):
                return
            self.create_text(right, px(5), text=text, anchor="nw", fill=self._theme.color("muted"),
                             font=self._theme.font("small"))  # fmt: skip
            ink = SERIES_COLORS[series.color][self._theme.dark]
            self.create_line(right - px(18), px(13), right - px(5), px(13), fill=ink, width=px(2))
            right -= px(30)
