import tkinter as tk
from collections.abc import Sequence
from dataclasses import dataclass
from tkinter import font as tk_font

from modules.ui.Theme import Theme
from modules.util.texts import tr
from modules.viewModel.curves import Point, bounds, decimate, tick_text, tick_texts, ticks
from modules.viewModel.text_lines import shortened

LEFT, RIGHT, TOP, BOTTOM = 58, 10, 24, 22
# of a row of the legend; and which share of the width a name in it takes at most
LEGEND, LONGEST_NAME = 18, 0.3
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
    "teal": ("#12828a", "#4fc3cb"),
    "brown": ("#8a5a2b", "#c79a6b"),
    "pink": ("#b8437f", "#f08bbd"),
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
        spikes: whether a few high values count, too; otherwise they are cut off and do not flatten the rest.
    """

    def __init__(
        self, parent: tk.Misc, theme: Theme, title: str, from_zero: bool = False, spikes: bool = False
    ) -> None:
        super().__init__(parent, highlightthickness=0, borderwidth=0, width=10, height=10)
        self._theme, self._title, self._from_zero = theme, title, from_zero
        self._series: list[Series] = []
        self.least_size = theme.px(LEAST[0]), theme.px(LEAST[1])
        self._across, self._whole, self._spikes = "", True, spikes
        self._font = tk_font.nametofont(theme.font("small"), self)
        self.bind("<Configure>", lambda _: self.draw())
        theme.listen(self, self.draw)

    def show(self, series: Sequence[Series], title: str = "", across: str = "", whole: bool = True) -> None:
        """Draws other lines.

        Args:
            series: the lines.
            title: another one than before; empty: the same.
            across: what the x axis counts; stands at its end.
            whole: whether that is whole numbers.
        """
        self._series, self._title = list(series), title or self._title
        self._across, self._whole = across, whole
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
        shown = [series for series in self._series if series.points]
        rows = self._legend_rows(shown, wide)
        below = 0 if self._fits_beside(rows, wide) else len(rows)
        box = (px(LEFT), px(TOP) + below * px(LEGEND), wide - px(RIGHT), high - px(BOTTOM))
        if box[2] - box[0] < px(60) or box[3] - box[1] < px(20):
            return
        if not shown:
            middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            self.create_text(*middle, text=tr("nothing yet"), fill=color("faint"), font=self._theme.font("small"))
            return
        self._draw_lines(shown, box)
        self._draw_legend(rows, wide, bool(below))

    def _draw_lines(self, shown: list[Series], box: tuple[int, int, int, int]) -> None:
        color = self._theme.color
        left, top, right, bottom = box
        first, last = min(series.points[0][0] for series in shown), max(series.points[-1][0] for series in shown)
        last = max(last, first + (1 if self._whole else 1e-6))
        low, top_value = bounds([series.points for series in shown], spikes=self._spikes)
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
        # the name of the axis stands at its end
        name = right - self._font.measure(self._across) - self._theme.px(24) if self._across else right + 1
        for value in ticks(first, last, columns):
            if x(value) < name and (value == int(value) or not self._whole):
                anchor = "ne" if x(value) > right - self._theme.px(16) else "n"
                self.create_text(
                    x(value), bottom + 4, text=f"{value:g}", anchor=anchor, fill=color("muted"), font=small
                )
        if self._across:
            self.create_text(right, bottom + 4, text=self._across, anchor="ne", fill=color("muted"), font=small)
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

    def _legend_rows(self, shown: list[Series], wide: int) -> list[list[tuple[Series, str]]]:
        """Names with their last values, as many in a row as there is room for."""
        rows: list[list[tuple[Series, str]]] = [[]]
        room = left = wide - self._theme.px(LEFT + RIGHT)
        for series in (series for series in shown if series.name):
            value = tick_text(float(f"{series.points[-1][1]:.3g}"))
            name = shortened(series.name, round(room * LONGEST_NAME), self._font.measure)
            text = f"{name} {value}"
            needed = self._font.measure(text) + self._theme.px(30)
            if rows[-1] and needed > left:
                rows.append([])
                left = room
            rows[-1].append((series, text))
            left -= needed
        return rows

    def _fits_beside(self, rows: list[list[tuple[Series, str]]], wide: int) -> bool:
        """Whether there is room beside the title."""
        title = tk_font.nametofont(self._theme.font("bold"), self).measure(self._title)
        needed = sum(self._font.measure(text) + self._theme.px(30) for _, text in rows[0])
        return len(rows) == 1 and needed + title + self._theme.px(24) < wide

    def _draw_legend(self, rows: list[list[tuple[Series, str]]], wide: int, below: bool) -> None:
        """From right to left beside the title, or from left to right in rows below it."""
        px = self._theme.px
        for number, row in enumerate(rows):
            needed = sum(self._font.measure(text) + px(30) for _, text in row)
            left, top = (px(8), px(TOP) + number * px(LEGEND)) if below else (wide - px(RIGHT) - needed + px(12), px(5))
            for series, text in row:
                ink = SERIES_COLORS[series.color][self._theme.dark]
                self.create_line(left, top + px(8), left + px(13), top + px(8), fill=ink, width=px(2))
                self.create_text(left + px(18), top, text=text, anchor="nw", fill=self._theme.color("muted"),
                                 font=self._theme.font("small"))  # fmt: skip
                left += self._font.measure(text) + px(30)
