import tkinter as tk
from tkinter import ttk

from modules.ui.SampleWindow import SampleWindow
from modules.ui.SelectControl import SELECT_ROOM
from modules.ui.ShortLabel import ShortButton
from modules.ui.Theme import COLORS
from modules.ui.widgets import enable
from modules.ui.WindowTools import WindowTools
from modules.util.texts import tr
from modules.viewModel.FieldHints import Choice
from modules.viewModel.fit_picture import fit_picture
from modules.viewModel.RunModel import RunModel, SamplePicture
from modules.viewModel.SampleBrowser import SampleBrowser
from modules.viewModel.SampleGrid import rows_of

import customtkinter as ctk
from PIL import Image, ImageTk

# in pixels at 100 %
LEAST_PICTURE = 96


class SampleViewer(ttk.Frame):
    """The pictures of a run: one prompt at a time, with a slider over the steps. At its end it follows the newest.

    Args:
        parent: that it is put into.
        tools: the window's own.

    Attributes:
        browser: knows which picture is looked at.
        picture: what is shown, None before the first one.
        slider: over the pictures of the prompt.
        window: the one that shows a picture large; None before the first.
    """

    def __init__(self, parent: tk.Misc, tools: WindowTools) -> None:
        super().__init__(parent, style="Card.TFrame", padding=tools.theme.px(10))
        self._tools, px = tools, tools.theme.px
        self.browser = SampleBrowser()
        self.picture: SamplePicture | None = None
        self.window: SampleWindow | None = None
        self._photo: ImageTk.PhotoImage | None = None
        head = ttk.Frame(self)
        head.pack(fill="x")
        ttk.Label(head, text=tr("Samples"), style="Bold.TLabel").pack(side="left")
        self.chooser = ShortButton(head, "", self._list, "Select.TButton", px(SELECT_ROOM), 8)
        self.chooser.pack(side="left", fill="x", expand=True, padx=(px(10), 0))
        tools.tooltip.attach(self.chooser, lambda: self.browser.prompt)
        foot = ttk.Frame(self)
        foot.pack(side="bottom", fill="x", pady=(px(6), 0))
        self._before = ttk.Button(foot, text="‹", width=2, command=lambda: self.go(self.browser.place - 1))
        self._before.pack(side="left")
        self._after = ttk.Button(foot, text="›", width=2, command=lambda: self.go(self.browser.place + 1))
        self._after.pack(side="right")
        self.slider = ctk.CTkSlider(
            foot, from_=0, to=1, height=16, width=80, command=lambda value: self.go(round(value)),
            bg_color=COLORS["card"], fg_color=COLORS["line"], progress_color=COLORS["accent"],
            button_color=COLORS["accent"], button_hover_color=COLORS["accent_hover"],
        )  # fmt: skip
        self.slider.pack(side="left", fill="x", expand=True, padx=px(6))
        self._text = ttk.Label(self, style="Muted.TLabel", anchor="center")
        self._text.pack(side="bottom", fill="x", pady=(px(4), 0))
        self._image = tk.Label(self, borderwidth=0)
        # a smaller one shows nothing of what it is looked at for
        self._image.least_size = (px(LEAST_PICTURE), px(LEAST_PICTURE))
        self._image.pack(fill="both", expand=True, pady=(px(8), 0))
        self._image.bind("<Configure>", lambda _: self._draw())
        self._image.bind("<Button-1>", lambda _: self.enlarge())
        tools.tooltip.attach(self._image, lambda: tr("Click: as large as the screen") if self.picture else "")
        tools.theme.listen(self, self._recolor)
        self._recolor()
        self.show(RunModel())

    def show(self, model: RunModel) -> None:
        """Shows what a run has drawn so far."""
        self._model = model
        self.browser.show(model)
        self._refresh()
        if self.window is not None and self.window.winfo_exists():
            self.window.show(rows_of(model))

    def enlarge(self) -> None:
        """Shows the picture in a window of its own."""
        if self.picture is None:
            return
        if self.window is not None:
            self.window.destroy()
        self.window = SampleWindow(self.winfo_toplevel(), self._tools, rows_of(self._model), self.picture)

    def choose(self, prompt: str) -> None:
        """Shows the newest picture of another prompt."""
        self.browser.choose(prompt)
        self._refresh()

    def go(self, place: int) -> None:
        """Shows a picture by its place among those of the prompt."""
        self.browser.go(place)
        self._refresh()

    def _refresh(self) -> None:
        browser = self.browser
        self.chooser.show(browser.prompt or tr("none yet"))
        enable(self.chooser, bool(browser.prompts))
        several = browser.last > 0
        ink = COLORS["accent" if several else "line"]
        self.slider.configure(
            state="normal" if several else "disabled", to=max(1, browser.last), number_of_steps=max(1, browser.last),
            progress_color=ink, button_color=ink,
        )  # fmt: skip
        self.slider.set(browser.place if several else 1)
        enable(self._before, browser.can_go_back)
        enable(self._after, browser.can_go_on)
        if browser.picture != self.picture or browser.picture is None:
            self.picture = browser.picture
            self._text.configure(text=tr("after step {step}", step=self.picture.step) if self.picture else "")
            self._draw()

    def _list(self) -> None:
        choices = [Choice(name, name) for name in self.browser.prompts]
        self._tools.popup.open(self.chooser, choices, self.browser.prompt, self.choose)

    def _draw(self) -> None:
        """The picture, as large as there is room for."""
        room = (self._image.winfo_width() - 4, self._image.winfo_height() - 4)
        self._image.configure(wraplength=max(1, room[0]))
        if self.picture is None or min(room) < 16:
            self._photo = None
            none = tr("Samples appear here as they are drawn.")
            self._image.configure(image="", text="" if self.picture else none)
            return
        self._image.configure(cursor="hand2")
        try:
            with Image.open(self.picture.path) as image:
                size, scale = fit_picture(image.size, room)
                # the pixels of a miniature are to be seen as they are
                way = Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.LANCZOS
                self._photo = ImageTk.PhotoImage(image.convert("RGB").resize(size, way), master=self)
        # Pillow's readers raise almost anything on damaged files
        except Exception as error:
            self._photo = None
            trouble = tr("{picture} cannot be shown: {error}", picture=self.picture.path.name, error=error)
            self._image.configure(image="", text=trouble)
            return
        self._image.configure(image=self._photo, text="")

    def _recolor(self) -> None:
        if self._image.winfo_exists():
            color = self._tools.theme.color
            self._image.configure(background=color("card"), foreground=color("faint"))
