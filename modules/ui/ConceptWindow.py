import tkinter as tk
from collections.abc import Callable
from tkinter import ttk
from typing import TYPE_CHECKING

from modules.ui.ItemWindow import ItemWindow
from modules.ui.TabBar import TabBar
from modules.ui.TextPane import TextPane
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.UserError import UserError
from modules.viewModel import ConceptModel
from modules.viewModel.ConceptModel import CheckResult, Preview

from PIL import Image, ImageTk

if TYPE_CHECKING:
    from modules.ui.App import App

SIZE, RIGHT = (1180, 700), 560
PREVIEW, CHECK = "preview", "dataset check"
SETTLE_MS = 250


class ConceptWindow(ItemWindow):
    """A concept: its options, its images as they are trained, their captions, and the dataset check.

    Args:
        app: the window.
        concept: what is edited; a copy is.
        changed: gets the edited copy after each change.

    Attributes:
        place, variation: of what is shown.
        preview: what is shown, None before the first.
        caption: the editable caption.
        save: writes it.
        check_text: what the dataset check found.
    """

    def __init__(self, app: "App", concept: ConceptConfig, changed: Callable[[ConceptConfig], None]) -> None:
        super().__init__(app, ConceptModel.title_of(concept), concept, changed, SIZE)
        self._app, px = app, app.theme.px
        self.place, self.variation, self.preview = 0, 0, None
        self._images: list[tuple[str, str]] = []
        self._photos: list[ImageTk.PhotoImage] = []
        self._known, self._waiting, self._round = "", "", 0
        right = ttk.Frame(self.body, style="Window.TFrame", width=px(RIGHT))
        right.pack(side="right", fill="both", before=self.view, padx=(px(4), px(8)))
        right.pack_propagate(False)
        self.tabs = TabBar(right, app.theme, (PREVIEW, CHECK), self.show_page)
        self.tabs.pack(anchor="w", pady=(0, px(6)))
        self._pages = {PREVIEW: self._make_preview(right), CHECK: self._make_check(right)}
        self._recolor()
        app.theme.listen(self, self._recolor)
        self.form.listen(lambda _: self._show_soon())
        self.show_page(PREVIEW)
        self._show_soon()

    def _make_preview(self, parent: ttk.Frame) -> ttk.Frame:
        px = self._app.theme.px
        card = ttk.Frame(parent, style="Card.TFrame", padding=px(10))
        row = ttk.Frame(card)
        row.pack(fill="x")
        made = []
        for text, action in (
            ("‹ Image", lambda: self.go(self.place - 1)), ("Image ›", lambda: self.go(self.place + 1)),
            ("Another variation", lambda: self.go(self.place, self.variation + 1)),
        ):  # fmt: skip
            button = ttk.Button(row, text=text, command=action)
            button.pack(side="left", padx=(0, px(6)))
            made.append(button)
        self.preceding, self.following, self.another = made
        self._title = ttk.Label(row, style="Muted.TLabel", anchor="e")
        self._title.pack(side="right", fill="x", expand=True)
        foot = ttk.Frame(card)
        foot.pack(side="bottom", fill="x")
        self._facts = ttk.Label(card, style="Muted.TLabel", anchor="w", justify="left", wraplength=px(RIGHT - 40))
        self._facts.pack(side="bottom", fill="x", pady=(px(4), px(6)))
        self._picture = tk.Label(card, borderwidth=0)
        self._picture.pack(fill="both", expand=True, pady=(px(8), 0))
        self._picture.bind("<Configure>", lambda _: self._draw())
        ttk.Label(foot, text="Caption", style="Bold.TLabel").pack(anchor="w")
        self.caption = tk.Text(
            foot, height=3, wrap="word", borderwidth=0, highlightthickness=1, padx=6, pady=4, undo=True,
            font=self._app.theme.font("normal"),
        )  # fmt: skip
        self.caption.pack(fill="x", pady=px(3))
        self.caption.bind("<<Modified>>", lambda _: self._typed())
        self.caption.bind("<Tab>", lambda event: event.widget.tk_focusNext().focus() or "break")
        row = ttk.Frame(foot)
        row.pack(fill="x")
        self.save = ttk.Button(row, text="Save the caption", command=self.save_caption)
        self.save.pack(side="left")
        self._varied = ttk.Label(row, style="Muted.TLabel", anchor="w", justify="left", wraplength=px(RIGHT - 180))
        self._varied.pack(side="left", fill="x", expand=True, padx=(px(8), 0))
        return card

    def _make_check(self, parent: ttk.Frame) -> ttk.Frame:
        px = self._app.theme.px
        card = ttk.Frame(parent, style="Card.TFrame", padding=px(10))
        row = ttk.Frame(card)
        row.pack(fill="x", pady=(0, px(6)))
        self.check_button = ttk.Button(row, text="Check", command=self.check)
        self.check_button.pack(side="left")
        self.check_heading = ttk.Label(row, text="Reads every image and caption.", style="Muted.TLabel", justify="left",
                                       wraplength=px(RIGHT - 140))  # fmt: skip
        self.check_heading.pack(side="left", padx=px(8))
        self.check_text = TextPane(card, self._app.theme)
        self.check_text.pack(fill="both", expand=True)
        return card

    def _recolor(self) -> None:
        color = self._app.theme.color
        self._picture.configure(background=color("card"), foreground=color("muted"))
        self.caption.configure(
            background=color("field"), foreground=color("text"), insertbackground=color("text"),
            highlightbackground=color("field_line"), highlightcolor=color("accent"),
        )  # fmt: skip
        self._draw()

    def show_page(self, name: str) -> None:
        """Shows the preview or the dataset check."""
        for page in self._pages.values():
            page.pack_forget()
        self._pages[name].pack(fill="both", expand=True)
        self.tabs.mark(name)
        if name == CHECK and not self.check_text.text:
            self.check()

    def go(self, place: int, variation: int = 0) -> None:
        """Shows another image, or another variation of one."""
        self.place, self.variation = place, variation
        self._show()

    def check(self) -> None:
        """Runs the dataset check on this concept."""
        self.check_button.state(["disabled"])
        self.check_heading.configure(text="Checking …", style="Muted.TLabel")
        config, concept = self._copies()
        self._app.worker.run(lambda: ConceptModel.check_concept(config, concept), self._checked, self._not_checked)

    def save_caption(self) -> None:
        """Writes the caption beside the image."""
        path = self._caption_path()
        if path is None:
            return
        text = self.caption.get("1.0", "end").rstrip()
        try:
            ConceptModel.write_caption(path, text, self._known)
        except UserError as error:
            self._varied.configure(text=str(error), style="Error.TLabel")
            return
        self._known = text
        self._show()

    def _copies(self) -> tuple:
        return self._app.form.config.model_copy(deep=True), self.form.config.model_copy(deep=True)

    def _show_soon(self) -> None:
        if self._waiting:
            self.after_cancel(self._waiting)
        self._waiting = self.after(SETTLE_MS, self._show)

    def _show(self) -> None:
        """Draws on a worker's thread; only the newest wish counts."""
        self._waiting = ""
        self._round += 1
        number, place, variation = self._round, self.place, self.variation
        config, concept = self._copies()
        if self.preview is None:
            self._picture.configure(image="", text="Drawing …")

        def work() -> tuple:
            images = ConceptModel.images_of(concept)
            if not images:
                return images, 0, None
            where = place % len(images)
            return images, where, ConceptModel.preview(config, concept, images[where], variation)

        self._app.worker.run(
            work, lambda found: self._shown(number, *found), lambda error: self._failed(number, place, error)
        )

    def _shown(self, number: int, images: list[tuple[str, str]], place: int, preview: Preview | None) -> None:
        if number != self._round or not self.winfo_exists():
            return
        self._images, self.place, self.preview = images, place, preview
        several = len(images) > 1
        for button in (self.preceding, self.following):
            button.state(["!disabled" if several else "disabled"])
        self.another.state(["!disabled" if preview else "disabled"])
        if preview is None:
            self._title.configure(text="")
            self._picture.configure(image="", text="There are no images in this folder.")
            self._facts.configure(text="")
            return
        self._title.configure(text=f"{place + 1} of {len(images)} · {images[place][0]}")
        self._facts.configure(text=f"Variation {self.variation + 1}: {preview.facts}")
        self._draw()
        self._show_caption(preview)

    def _show_caption(self, preview: Preview) -> None:
        path, text = self._caption_path(), "\n".join(preview.captions)
        if path is not None:
            try:
                text = ConceptModel.read_caption(path)
            except UserError as error:
                preview = Preview(preview.original, preview.varied, preview.facts, (), "", str(error))
        self._known = text
        self.caption.configure(state="normal")
        self.caption.delete("1.0", "end")
        self.caption.insert("1.0", text)
        self.caption.edit_modified(False)
        if path is None or (preview.trouble and not preview.captions):
            self.caption.configure(state="disabled")
        self.save.state(["disabled"])
        shown = f"In this variation: {preview.varied_caption}" if preview.varied_caption != text else ""
        self._varied.configure(
            text=preview.trouble or shown, style="Error.TLabel" if preview.trouble else "Muted.TLabel"
        )

    def _failed(self, number: int, place: int, error: Exception) -> None:
        if number == self._round and self.winfo_exists():
            self.place, self.preview, self._photos = place, None, []
            self._picture.configure(image="", text=str(error), wraplength=self._app.theme.px(RIGHT - 60))
            self._facts.configure(text="")

    def _caption_path(self):
        if not self._images:
            return None
        return ConceptModel.caption_file(self.form.config, self._images[self.place][1])

    def _typed(self) -> None:
        changed = self.caption.get("1.0", "end").rstrip() != self._known
        self.save.state(["!disabled" if changed and self._caption_path() is not None else "disabled"])
        self.caption.edit_modified(False)

    def _draw(self) -> None:
        """Original and variation beside each other, as large as there is room for."""
        if self.preview is None:
            return
        room = ((self._picture.winfo_width() - 16) // 2, self._picture.winfo_height() - 8)
        if min(room) < 16:
            return
        both = Image.new("RGB", (2 * room[0] + 12, room[1]), self._app.theme.color("card"))
        for place, image in enumerate((self.preview.original, self.preview.varied)):
            scale = min(room[0] / image.width, room[1] / image.height)
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            way = Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.BICUBIC
            left = place * (room[0] + 12) + (room[0] - size[0]) // 2
            both.paste(image.resize(size, way), (left, (room[1] - size[1]) // 2))
        self._photos = [ImageTk.PhotoImage(both, master=self)]
        self._picture.configure(image=self._photos[0], text="")

    def _checked(self, result: CheckResult) -> None:
        if self.winfo_exists():
            self.check_button.state(["!disabled"])
            self.check_heading.configure(text=result.heading, style="TLabel")
            self.check_text.show(result.lines)

    def _not_checked(self, error: Exception) -> None:
        if self.winfo_exists():
            self.check_button.state(["!disabled"])
            self.check_heading.configure(text=str(error), style="Error.TLabel")
            self.check_text.show([" "])
