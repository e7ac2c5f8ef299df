import tkinter as tk
from collections.abc import Callable
from dataclasses import dataclass
from tkinter import font as tk_font
from tkinter import ttk

from modules.ui.Theme import Theme
from modules.util.texts import tr
from modules.viewModel.grid_places import GridPlaces
from modules.viewModel.PictureSet import PictureSet
from modules.viewModel.read_pictures import Picture
from modules.viewModel.text_lines import shortened, wrapped
from modules.viewModel.Thumbnails import Thumbnails
from modules.viewModel.Worker import Worker

from PIL import ImageTk

# at 100 %: the longer side of a picture, the gap around it, and how far the wheel scrolls
EDGE, GAP, STEP = 150, 8, 70
CAPTION_LINES = 2
KEYS = ("Left", "Right", "Up", "Down", "Prior", "Next", "Home", "End")
BADGES = 2
# rows above and below what is seen, whose pictures are made ahead
AHEAD = 3


@dataclass
class _Cell:
    """Items of the canvas that show one picture; they are used again for another one when it is out of sight.

    Attributes:
        face, image, name, size, caption: the items.
        badges: (background, text) of each mark.
        shown: what it shows now.
        photo: what the image shows; Tk forgets it with this.
    """

    face: int
    image: int
    name: int
    size: int
    caption: int
    badges: list[tuple[int, int]]
    shown: tuple = ()
    photo: ImageTk.PhotoImage | None = None


class PictureGrid(ttk.Frame):
    """Pictures of a set in a grid. Only what is seen is drawn, so that their number does not matter.

    A click or the arrow keys choose, Return or a double click opens.

    Args:
        parent: that it is put into.
        theme: for colours and sizes.
        worker: that makes the small pictures.
        pictures: what is shown.
        choose: gets the picture that a person goes to.
        opened: is called when a person wants to edit the chosen one.
        failed: is told what went wrong beside the window.

    Attributes:
        canvas: that it is drawn on.
        chosen: the picture that is marked.
        thumbnails: its small pictures.
    """

    def __init__(
        self, parent: tk.Misc, theme: Theme, worker: Worker, pictures: PictureSet, choose: Callable[[Picture], None],
        opened: Callable[[], None], failed: Callable[[Exception], None],
    ) -> None:  # fmt: skip
        super().__init__(parent, style="Card.TFrame", padding=theme.px(6))
        self._theme, self._pictures, self._choose, self._opened = theme, pictures, choose, opened
        self.chosen: Picture | None = None
        self.thumbnails = Thumbnails(worker, theme.px(EDGE), self._come, failed)
        self._small = tk_font.nametofont(theme.font("small"), self)
        self._line = self._small.metrics("linespace")
        self._places = GridPlaces(0, (1, 1), 1)
        self._cells: dict[int, _Cell] = {}
        self._free: list[_Cell] = []
        self.canvas = tk.Canvas(self, highlightthickness=0, borderwidth=0, width=10, height=10, takefocus=True)
        bar = self._bar = ttk.Scrollbar(self, command=self._scroll_to)
        self.canvas.configure(yscrollcommand=bar.set, yscrollincrement=1)
        self.canvas.pack(side="left", fill="both", expand=True)
        bar.pack(side="right", fill="y", padx=(theme.px(2), 0))
        self._message = self.canvas.create_text(0, 0, anchor="n", justify="center", font=theme.font("normal"))
        self._bind_keys()
        theme.listen(self, self._recolor)
        self._recolor()

    def _bind_keys(self) -> None:
        canvas = self.canvas
        canvas.bind("<Configure>", lambda _: self._reflow())
        canvas.bind("<Button-1>", self._click)
        canvas.bind("<Double-Button-1>", lambda _: self._opened())
        canvas.bind("<Return>", lambda _: self._opened())
        for key in KEYS:
            canvas.bind(f"<{key}>", lambda _, key=key: self.go(key))
        canvas.bind("<Button-4>", lambda _: self._wheel(-1))
        canvas.bind("<Button-5>", lambda _: self._wheel(1))
        canvas.bind("<MouseWheel>", lambda event: self._wheel(-1 if event.delta > 0 else 1))
        self.bind("<Destroy>", lambda _: self.thumbnails.stop())

    @property
    def position(self) -> int:
        """Of the chosen picture among those shown, -1 if it is not there."""
        path = self.chosen.path if self.chosen is not None else ""
        return next((place for place, one in enumerate(self._pictures.shown) if one.path == path), -1)

    @property
    def drawn(self) -> int:
        """How many cells there are at the moment."""
        return len(self._cells)

    def show(self) -> None:
        """Draws the pictures that the set shows now."""
        self.canvas.itemconfigure(self._message, text=self._pictures.empty_text)
        self._reflow()

    def mark(self, picture: Picture | None, see: bool = True) -> None:
        """Marks a picture as the chosen one, and scrolls so far that it is seen."""
        self.chosen = picture
        if see and (index := self.position) >= 0:
            top = self._places.place(index)[1]
            first, page = round(self.canvas.canvasy(0)), self.canvas.winfo_height()
            if top < first:
                self._scroll_y(top)
            elif top + self._places.cell[1] > first + page:
                self._scroll_y(top + self._places.cell[1] - page)
        self._draw()

    def go(self, key: str) -> str:
        """Goes to another picture by a key."""
        shown = self._pictures.shown
        if shown:
            self._choose(shown[self._places.moved(self.position, key, self.canvas.winfo_height())])
        return "break"

    def step(self, by: int) -> None:
        """Goes so many pictures on."""
        self.go("Right" if by > 0 else "Left")

    def update_marks(self) -> None:
        """Draws anew what is seen, as facts, captions or colours have changed."""
        for cell in self._cells.values():
            cell.shown = ()
        self._draw()

    def _reflow(self) -> None:
        """Takes the width and the number of pictures of now; what stood at the top stays there."""
        canvas, px = self.canvas, self._theme.px
        wide, high = max(1, canvas.winfo_width()), canvas.winfo_height()
        cell = (px(EDGE + 3 * GAP), px(EDGE + 4 * GAP) + (2 + CAPTION_LINES) * self._line)
        before, top = self._places, canvas.canvasy(0)
        first = before.seen(round(top), 1).start
        self._places = GridPlaces(len(self._pictures.shown), cell, wide)
        canvas.configure(scrollregion=(0, 0, wide, max(self._places.height, high)))
        canvas.coords(self._message, wide // 2, px(30))
        canvas.itemconfigure(self._message, width=max(1, wide - px(40)))
        if before.columns != self._places.columns and before.count == self._places.count and first < before.count:
            self._scroll_y(self._places.place(first)[1])
        elif self._places.height <= high:
            canvas.yview_moveto(0)
        self.update_marks()

    def _scroll_y(self, top: int) -> None:
        self.canvas.yview_moveto(top / max(1, self._places.height, self.canvas.winfo_height()))

    def _scroll_to(self, *where: str) -> None:
        self.canvas.yview(*where)
        self._draw()

    def _wheel(self, steps: int) -> str:
        if self._places.height > self.canvas.winfo_height():
            self.canvas.yview_scroll(steps * self._theme.px(STEP), "units")
            self._draw()
        return "break"

    def _click(self, event: tk.Event) -> None:
        self.canvas.focus_set()
        index = self._places.at(round(self.canvas.canvasx(event.x)), round(self.canvas.canvasy(event.y)))
        if index is not None:
            self._choose(self._pictures.shown[index])

    def _draw(self) -> None:
        """Gives the cells of now to the pictures that are seen, and wishes for those of the rows around them."""
        top, high = round(self.canvas.canvasy(0)), self.canvas.winfo_height()
        seen = self._places.seen(top, high)
        for index in [one for one in self._cells if one not in seen]:
            self._free.append(self._cells.pop(index))
        chosen = self.chosen.path if self.chosen is not None else ""
        for index in seen:
            cell = self._cells.get(index) or self._take_cell(index)
            self._fill(cell, index, self._pictures.shown[index], chosen)
        for cell in self._free:
            if cell.shown != ("hidden",):
                self._hide(cell)
        margin = AHEAD * self._places.columns
        around = [*range(seen.stop, seen.stop + margin), *range(seen.start - 1, seen.start - 1 - margin, -1)]
        shown = self._pictures.shown
        self.thumbnails.wish([shown[index].path for index in [*seen, *around] if 0 <= index < len(shown)])

    def _take_cell(self, index: int) -> _Cell:
        if not self._free:
            self._free.append(self._make_cell())
        self._cells[index] = self._free.pop()
        return self._cells[index]

    def _make_cell(self) -> _Cell:
        canvas, small = self.canvas, self._theme.font("small")
        texts = [canvas.create_text(0, 0, anchor="nw", font=small) for _ in range(3)]
        face, image = canvas.create_rectangle(0, 0, 0, 0), canvas.create_image(0, 0)
        canvas.tag_lower(face)
        badges = [
            (canvas.create_rectangle(0, 0, 0, 0, width=0), canvas.create_text(0, 0, anchor="nw", font=small))
            for _ in range(BADGES)
        ]
        return _Cell(face, image, texts[0], texts[1], texts[2], badges)

    def _hide(self, cell: _Cell) -> None:
        items = [cell.face, cell.image, cell.name, cell.size, cell.caption, *sum(cell.badges, ())]
        for item in items:
            self.canvas.itemconfigure(item, state="hidden")
        self.canvas.itemconfigure(cell.image, image="")
        cell.shown, cell.photo = ("hidden",), None

    def _fill(self, cell: _Cell, index: int, picture: Picture, chosen: str) -> None:
        """Shows a picture in a cell, unless it shows just that already."""
        small = self.thumbnails.get(picture.path)
        wanted = (index, picture.path, chosen == picture.path, id(small), self.thumbnails.has(picture.path))
        if cell.shown == wanted:
            return
        before, cell.shown = cell.shown, wanted
        canvas, px, color = self.canvas, self._theme.px, self._theme.color
        left, top = self._places.place(index)
        edge, gap = px(EDGE), px(GAP)
        wide = self._places.width // self._places.columns - gap
        room = wide - 2 * gap
        marked = chosen == picture.path
        line = color("accent") if marked else color("line")
        canvas.coords(cell.face, left + 1, top + 1, left + wide, top + self._places.cell[1] - gap)
        canvas.itemconfigure(cell.face, state="normal", fill=color("button") if marked else color("card"),
                             outline=line, width=px(2) if marked else 1)  # fmt: skip
        if before[1:2] != wanted[1:2] or before[3:4] != wanted[3:4] or not before:
            cell.photo = ImageTk.PhotoImage(small, master=self) if small is not None else None
            canvas.itemconfigure(cell.image, image=cell.photo or "", state="normal")
        canvas.coords(cell.image, left + wide // 2, top + gap + edge // 2)
        if before[:2] == wanted[:2]:
            return
        under, ink = top + edge + 2 * gap, color("text")
        name = shortened(picture.name, room, self._small.measure)
        caption = self._pictures.text(picture)
        lines = wrapped(caption, room, CAPTION_LINES, self._small.measure)
        for item, place, text, fill in (
            (cell.name, 0, name, ink), (cell.size, 1, self._pictures.size_text(picture), color("muted")),
            (cell.caption, 2, "\n".join(lines), ink),
        ):  # fmt: skip
            canvas.coords(item, left + gap, under + place * self._line)
            canvas.itemconfigure(item, text=text, fill=fill, state="normal")
        self._badge(cell, left + gap, top + gap, picture)

    def _badge(self, cell: _Cell, left: int, top: int, picture: Picture) -> None:
        canvas, px, color = self.canvas, self._theme.px, self._theme.color
        names = self._pictures.badges(picture)
        if len(names) > BADGES:
            names = [*names[: BADGES - 1], tr("{count} more", count=len(names) - BADGES + 1)]
        for (face, text), name in zip(cell.badges, [*names, *[""] * BADGES], strict=False):
            state = "normal" if name else "hidden"
            canvas.itemconfigure(text, text=name, fill=color("on_tooltip"), state=state)
            canvas.itemconfigure(face, fill=color("tooltip"), state=state)
            if name:
                wide = self._small.measure(name) + px(8)
                canvas.coords(text, left + px(4), top + px(1))
                canvas.coords(face, left, top, left + wide, top + self._line + px(2))
                canvas.tag_raise(face)
                canvas.tag_raise(text)
                left += wide + px(4)

    def _come(self, paths: list[str]) -> None:
        if self.winfo_exists():
            come = set(paths)
            shown = self._pictures.shown
            if any(index < len(shown) and shown[index].path in come for index in self._cells):
                self._draw()

    def _recolor(self) -> None:
        if self.canvas.winfo_exists():
            self.canvas.configure(background=self._theme.color("card"))
            self.canvas.itemconfigure(self._message, fill=self._theme.color("muted"))
            self.update_marks()
