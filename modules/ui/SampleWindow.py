import tkinter as tk
from collections.abc import Callable, Sequence
from tkinter import ttk

from modules.ui.Timer import Timer
from modules.ui.WindowTools import WindowTools
from modules.util.texts import tr
from modules.viewModel.PictureZoom import PictureZoom
from modules.viewModel.RunModel import SamplePicture
from modules.viewModel.SampleGrid import PictureRow, SampleGrid

import customtkinter as ctk
from PIL import Image, ImageTk

# of the screen, when it opens
SHARE = 0.8
SMALLEST = (320, 240)


class SampleWindow(ctk.CTkToplevel):
    """A picture, as large as the window, among others. If it was the newest, it follows the newest.

    Arrows lead to other pictures: left and right along the row, up and down to other rows. The wheel zooms, dragging
    moves, a double click shows all, F11 fills the screen, Escape closes.

    Args:
        window: that it opens over.
        tools: the window's own.
        rows: pictures that can be looked at.
        picture: the first one.

    Attributes:
        grid_model: knows which picture is looked at.
        zoom: knows which part of it.
    """

    def __init__(self, window: tk.Misc, tools: WindowTools, rows: Sequence[PictureRow], picture: SamplePicture) -> None:
        super().__init__(window)
        self.withdraw()
        self._tools, px = tools, tools.theme.px
        self.grid_model, self.zoom = SampleGrid(rows), PictureZoom()
        self.grid_model.open(picture)
        self._shown: SamplePicture | None = None
        self._image: Image.Image | None = None
        self._photo: ImageTk.PhotoImage | None = None
        self._drawing, self._held, self._full = Timer(self, self._draw), (0, 0), False
        foot = ttk.Frame(self, style="Window.TFrame", padding=(px(8), px(4)))
        foot.pack(side="bottom", fill="x")
        self.buttons: dict[str, ttk.Button] = {}
        for text, help, action in (
            ("‹", tr("Earlier (left)"), lambda: self.turn(-1)), ("›", tr("Later (right)"), lambda: self.turn(1)),
            ("↑", tr("Row above (up)"), lambda: self.change_row(-1)),
            ("↓", tr("Row below (down)"), lambda: self.change_row(1)),
        ):  # fmt: skip
            button = ttk.Button(foot, text=text, width=3, style="Window.TButton", command=action, takefocus=False)
            button.pack(side="left", padx=(0, px(4)))
            tools.tooltip.attach(button, lambda help=help: help)
            self.buttons[text] = button
        hint = tr("Wheel: zoom · drag: move · double click: all of it · F11: whole screen · Esc: close")
        self._hint = ttk.Label(foot, text=hint, style="Muted.Window.TLabel")
        self._hint.pack(side="right")
        self.label = ttk.Label(foot, style="Window.TLabel", width=1)
        self.label.pack(side="left", fill="x", expand=True, padx=px(8))
        tools.tooltip.attach(self.label, lambda: self.grid_model.title)
        self.canvas = tk.Canvas(self, highlightthickness=0, borderwidth=0, background=tools.theme.color("window"))
        self.canvas.pack(fill="both", expand=True)
        self._bind_keys()
        wide, high = round(self.winfo_screenwidth() * SHARE), round(self.winfo_screenheight() * SHARE)
        left, top = (self.winfo_screenwidth() - wide) // 2, (self.winfo_screenheight() - high) // 3
        self.wm_minsize(*SMALLEST)
        # customtkinter's own geometry() scales
        self.wm_geometry(f"{wide}x{high}+{left}+{top}")
        self.deiconify()
        self.lift()
        self.focus_force()
        self.refresh()

    def _bind_keys(self) -> None:
        keys: dict[str, Callable[[], None]] = {
            "<Left>": lambda: self.turn(-1), "<Right>": lambda: self.turn(1), "<Up>": lambda: self.change_row(-1),
            "<Down>": lambda: self.change_row(1), "<Escape>": self.destroy, "<F11>": self._fill,
        }  # fmt: skip
        for key, action in keys.items():
            self.bind(key, lambda _, action=action: action())
        canvas = self.canvas
        canvas.bind("<Configure>", lambda _: self._draw_soon())
        canvas.bind("<Double-Button-1>", lambda _: self.show_all())
        canvas.bind("<ButtonPress-1>", lambda event: self._hold(event.x, event.y))
        canvas.bind("<B1-Motion>", lambda event: self._drag(event.x, event.y))
        for event, steps in (("<Button-4>", 1), ("<Button-5>", -1)):
            canvas.bind(event, lambda event, steps=steps: self.wheel(steps, event.x, event.y))
        canvas.bind("<MouseWheel>", lambda event: self.wheel(1 if event.delta > 0 else -1, event.x, event.y))

    def show(self, rows: Sequence[PictureRow]) -> None:
        """Takes in what rows are now."""
        self.grid_model.show(rows)
        self.refresh()

    def turn(self, by: int) -> None:
        """To an earlier or later picture."""
        self.grid_model.turn(by)
        self.refresh()

    def change_row(self, by: int) -> None:
        """To another row."""
        self.grid_model.change_row(by)
        self.refresh()

    def wheel(self, steps: int, x: float, y: float) -> None:
        """Zooms at a place of the canvas."""
        self.zoom.zoom(steps, x, y)
        self._draw_soon()

    def refresh(self) -> None:
        """Shows the picture that is looked at."""
        picture = self.grid_model.picture
        self.title(self.grid_model.title)
        self.label.configure(text=self.grid_model.title)
        if picture == self._shown and self._image is not None:
            return
        self._shown, self._image = picture, None
        if picture is not None:
            try:
                with Image.open(picture.path) as image:
                    self._image = image.convert("RGB")
            # Pillow's readers raise almost anything on damaged files
            except Exception as error:
                self.label.configure(text=tr("{file} cannot be shown: {error}", file=picture.path.name, error=error))
        self._draw_soon()

    def _room(self) -> tuple[int, int]:
        return self.canvas.winfo_width(), self.canvas.winfo_height()

    def _draw_soon(self) -> None:
        self._drawing.start(0)

    def _draw(self) -> None:
        self.canvas.delete("all")
        wide, high = self._room()
        if self._image is None or min(wide, high) < 16:
            return
        self.zoom.show(self._image.size, (wide, high))
        # the pixels of a miniature are to be seen as they are
        way = Image.Resampling.NEAREST if self.zoom.scale >= 3 else Image.Resampling.LANCZOS
        shown = self._image.resize(self.zoom.shown, way, box=self.zoom.box)
        self._photo = ImageTk.PhotoImage(shown, master=self)
        self.canvas.create_image(wide // 2, high // 2, image=self._photo)

    def show_all(self) -> None:
        """Shows the whole picture again."""
        self.zoom.fit()
        self._draw_soon()

    def _hold(self, x: int, y: int) -> None:
        self._held = (x, y)

    def _drag(self, x: int, y: int) -> None:
        self.zoom.move(x - self._held[0], y - self._held[1])
        self._hold(x, y)
        self._draw_soon()

    def _fill(self) -> None:
        self._full = not self._full
        self.attributes("-fullscreen", self._full)
