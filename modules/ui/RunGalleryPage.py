import tkinter as tk
from collections.abc import Callable, Sequence
from tkinter import font as tk_font
from tkinter import ttk

from modules.ui.SampleWindow import SampleWindow
from modules.ui.Timer import Timer
from modules.ui.WindowTools import WindowTools
from modules.util.texts import tr
from modules.viewModel.FieldHints import Choice
from modules.viewModel.run_curves import names_of
from modules.viewModel.run_data import RunData
from modules.viewModel.run_list import ListedRun
from modules.viewModel.RunModel import SamplePicture
from modules.viewModel.SampleGallery import Gallery, gallery, prompts_of
from modules.viewModel.text_lines import shortened
from modules.viewModel.Thumbnails import Thumbnails
from modules.viewModel.Worker import Worker

from PIL import ImageTk

EDGE, GAP, LINE = 128, 10, 20


class RunGalleryPage(ttk.Frame):
    """Samples over time: of one run a row for each prompt, of several a row for each run, with the same prompt.

    Pictures are read when they can be seen.

    Args:
        parent: that it is put into.
        tools: the window's own.
        worker: reads pictures.
        failed: is told what went wrong with that.

    Attributes:
        gallery: what is shown.
        chooser: chooses the prompt of several runs.
        canvas: it is drawn on.
        window: the one that shows a picture large; None before the first.
    """

    def __init__(
        self, parent: tk.Misc, tools: WindowTools, worker: Worker, failed: Callable[[Exception], None]
    ) -> None:  # fmt: skip
        super().__init__(parent)
        self._tools, px = tools, tools.theme.px
        self.gallery, self.window = Gallery(), None
        self._prompt, self._prompts = "", list[str]()
        self._ends: dict[ttk.Scrollbar, tuple[str, ...]] = {}
        self._compared: Sequence[tuple[ListedRun, RunData]] = ()
        self._photos: list[ImageTk.PhotoImage] = []
        self._places: list[tuple[int, int, SamplePicture]] = []
        self._drawing = Timer(self, self._draw)
        self._thumbnails = Thumbnails(worker, px(EDGE), lambda _: self._draw_soon(), failed, enlarged=True)
        self._head = ttk.Frame(self)
        ttk.Label(self._head, text=tr("Prompt"), style="Muted.TLabel").pack(side="left", padx=(0, px(8)))
        self.chooser = ttk.Button(self._head, style="Select.TButton", width=8, command=self._list)
        self.chooser.pack(side="left", fill="x", expand=True)
        self._body = ttk.Frame(self)
        self._body.pack(fill="both", expand=True)
        self.canvas = tk.Canvas(self._body, highlightthickness=0, borderwidth=0, width=10, height=10)
        down = ttk.Scrollbar(self._body, command=self.canvas.yview)
        across = ttk.Scrollbar(self._body, orient="horizontal", command=self.canvas.xview)
        self.canvas.configure(
            yscrollcommand=lambda *ends: self._scrolled(down, ends),
            xscrollcommand=lambda *ends: self._scrolled(across, ends), yscrollincrement=1, xscrollincrement=1,
        )  # fmt: skip
        self.canvas.grid(row=0, column=0, sticky="nswe")
        down.grid(row=0, column=1, sticky="ns", padx=(2, 0))
        across.grid(row=1, column=0, sticky="we")
        self._body.grid_columnconfigure(0, weight=1)
        self._body.grid_rowconfigure(0, weight=1)
        self._bind_mouse()
        tools.theme.listen(self, self._recolor)
        self._recolor()

    def _bind_mouse(self) -> None:
        canvas, step = self.canvas, self._tools.theme.px(60)
        canvas.bind("<Configure>", lambda _: self._draw_soon())
        canvas.bind("<Button-1>", lambda event: self._click(event.x, event.y))
        canvas.bind("<Motion>", lambda event: self._point(event.x, event.y))
        for event, steps in (("<Button-4>", -1), ("<Button-5>", 1)):
            canvas.bind(event, lambda _, steps=steps: self._scroll(steps * step, across=False))
            canvas.bind(event.replace("<", "<Shift-"), lambda _, steps=steps: self._scroll(steps * step, across=True))
        canvas.bind("<MouseWheel>", lambda event: self._scroll(-step if event.delta > 0 else step, across=False))
        canvas.bind("<Shift-MouseWheel>", lambda event: self._scroll(-step if event.delta > 0 else step, across=True))

    def show(self, compared: Sequence[tuple[ListedRun, RunData]]) -> None:
        """Shows these runs."""
        self._compared = compared
        known = [prompts_of(data.pictures) for _, data in compared]
        self._prompts = list(dict.fromkeys(prompt for one in known for prompt in one))
        if self._prompt not in self._prompts:
            # one that all have says most
            shared = [prompt for prompt in self._prompts if all(prompt in one for one in known)]
            self._prompt = (shared or self._prompts or [""])[0]
        if len(known) == 1:
            self.gallery = gallery(known[0])
            self._head.pack_forget()
        else:
            names = names_of([run for run, _ in compared])
            rows = {name: one.get(self._prompt, []) for name, one in zip(names, known, strict=True)}
            self.gallery = gallery(rows)
            self._head.pack(fill="x", pady=(0, self._tools.theme.px(6)), before=self._body)
            self.chooser.configure(text=self._prompt or tr("no samples"))
        if self.window is not None and self.window.winfo_exists():
            self.window.show(self.gallery.rows)
        self._draw_soon()

    def choose(self, prompt: str) -> None:
        """Compares another prompt."""
        self._prompt = prompt
        self.show(self._compared)

    def enlarge(self, picture: SamplePicture) -> None:
        """Shows a picture in a window of its own."""
        if self.window is not None:
            self.window.destroy()
        self.window = SampleWindow(self.winfo_toplevel(), self._tools, self.gallery.rows, picture)

    def _list(self) -> None:
        choices = [Choice(prompt, prompt) for prompt in self._prompts]
        if choices:
            self._tools.popup.open(self.chooser, choices, self._prompt, self.choose)

    def _draw_soon(self) -> None:
        if self.winfo_exists() and not self._drawing.waits:
            self._drawing.start(15)

    def _scrolled(self, bar: ttk.Scrollbar, ends: tuple[str, ...]) -> None:
        # Tk tells of a region that is set anew, too, which drawing does
        if self._ends.get(bar) != ends:
            self._ends[bar] = ends
            bar.set(*ends)
            bar.state(["disabled" if float(ends[0]) <= 0 and float(ends[1]) >= 1 else "!disabled"])
            self._draw_soon()

    def _scroll(self, pixels: int, across: bool) -> str:
        canvas = self.canvas
        wide, high = self._extent()
        if across or high <= canvas.winfo_height():
            if wide > canvas.winfo_width():
                canvas.xview_scroll(pixels, "units")
        else:
            canvas.yview_scroll(pixels, "units")
        return "break"

    def _extent(self) -> tuple[int, int]:
        """Width and height of all of it."""
        px = self._tools.theme.px
        return (
            self.gallery.columns * px(EDGE + GAP) + px(GAP),
            len(self.gallery.rows) * px(EDGE + 2 * LINE + GAP) + px(GAP),
        )

    def _draw(self) -> None:
        """What can be seen of it."""
        canvas, px, color = self.canvas, self._tools.theme.px, self._tools.theme.color
        canvas.delete("all")
        self._photos, self._places = [], []
        if not self.winfo_ismapped():
            return
        if not self.gallery.rows:
            middle = (canvas.winfo_width() / 2, canvas.winfo_height() / 2)
            text = tr("No samples.") if self._compared else tr("Choose runs above, with Ctrl or Shift several.")
            canvas.configure(scrollregion=(0, 0, 1, 1))
            canvas.create_text(*middle, text=text, fill=color("faint"), font=self._tools.theme.font("small"))
            return
        canvas.configure(scrollregion=(0, 0, *self._extent()))
        left, top = canvas.canvasx(0), canvas.canvasy(0)
        right, bottom = left + canvas.winfo_width(), top + canvas.winfo_height()
        wide, high = px(EDGE + GAP), px(EDGE + 2 * LINE + GAP)
        font = tk_font.nametofont(self._tools.theme.font("bold"), self)
        wanted = []
        for row, (line, cells) in enumerate(zip(self.gallery.rows, self.gallery.cells, strict=True)):
            y = row * high + px(GAP)
            if y > bottom or y + high < top:
                continue
            # a row's title stays in sight
            title = shortened(line.title, canvas.winfo_width() - 2 * px(GAP), font.measure)
            canvas.create_text(left + px(GAP), y, text=title, anchor="nw", fill=color("text"), font=font)
            for column, picture in enumerate(cells):
                x = column * wide + px(GAP)
                if picture is not None and x < right and x + wide > left:
                    self._draw_cell(picture, x, y + px(LINE))
                    wanted.append(str(picture.path))
        self._thumbnails.wish(wanted)

    def _draw_cell(self, picture: SamplePicture, x: int, y: int) -> None:
        canvas, px, color = self.canvas, self._tools.theme.px, self._tools.theme.color
        edge, small, path = px(EDGE), self._tools.theme.font("small"), str(picture.path)
        image = self._thumbnails.get(path)
        middle = (x + edge // 2, y + edge // 2)
        if image is not None:
            self._photos.append(ImageTk.PhotoImage(image, master=self))
            canvas.create_image(*middle, image=self._photos[-1])
        else:
            canvas.create_rectangle(x, y, x + edge, y + edge, fill=color("line"), outline="")
            if self._thumbnails.has(path):
                canvas.create_text(*middle, text=tr("not there"), fill=color("muted"), font=small)
        text = tr("step {step}", step=picture.step)
        canvas.create_text(x + edge // 2, y + edge + px(2), text=text, anchor="n", fill=color("muted"), font=small)
        self._places.append((x, y, picture))

    def _at(self, x: int, y: int) -> SamplePicture | None:
        """The picture at a place of the canvas."""
        across, down, edge = self.canvas.canvasx(x), self.canvas.canvasy(y), self._tools.theme.px(EDGE)
        return next(
            (one for left, top, one in self._places if 0 <= across - left < edge and 0 <= down - top < edge), None
        )

    def _click(self, x: int, y: int) -> None:
        picture = self._at(x, y)
        if picture is not None and picture.path.is_file():
            self.enlarge(picture)

    def _point(self, x: int, y: int) -> None:
        self.canvas.configure(cursor="hand2" if self._at(x, y) is not None else "")

    def _recolor(self) -> None:
        self.canvas.configure(background=self._tools.theme.color("card"))
        self._draw_soon()
