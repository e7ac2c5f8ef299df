import tkinter as tk
from collections.abc import Callable
from tkinter import ttk
from typing import TYPE_CHECKING

from modules.ui.AskWindow import AskWindow
from modules.ui.Flow import Flow
from modules.ui.ItemWindow import ItemWindow
from modules.ui.Panes import SASH, Panes
from modules.ui.ScrollFrame import ScrollFrame
from modules.ui.ShortLabel import ShortLabel
from modules.ui.TabBar import TabBar
from modules.ui.TextPane import TextPane
from modules.ui.Timer import Timer
from modules.ui.widgets import enable
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.texts import later, tr
from modules.util.UserError import UserError
from modules.viewModel.concept_advice import ConceptHints
from modules.viewModel.ConceptCheck import ConceptCheck
from modules.viewModel.ConceptModel import CheckResult, Preview, title_of
from modules.viewModel.ConceptPreview import ConceptPreview, Drawn
from modules.viewModel.fit_picture import fit_picture

from PIL import Image, ImageTk

if TYPE_CHECKING:
    from modules.ui.App import App

SIZE, RIGHT = (1180, 700), 560
# of options and images beside each other, and the width of both below which there is one page for each
LEAST, NARROW = (420, 400), 860
OPTIONS, PREVIEW, CHECK = later("options"), later("preview"), later("dataset check")
# of a picture, in pixels at 100 %
LEAST_PICTURE = 120
SETTLE_MS = 250
SAVE, LOSE, CANCEL = later("Save"), later("Lose it"), later("Cancel")


class ConceptWindow(ItemWindow):
    """A concept: its options, its images as they are trained, their captions, and the dataset check.

    Args:
        app: the window.
        concept: what is edited; a copy is.
        changed: gets the edited copy after each change.

    Attributes:
        images: which image is shown, and its caption.
        checked: the dataset check.
        caption: the editable caption.
        save: writes it.
        all_pictures: opens all pictures and captions of the concept.
        check_text: what the dataset check found.
    """

    def __init__(self, app: "App", concept: ConceptConfig, changed: Callable[[ConceptConfig], None]) -> None:
        super().__init__(app, title_of(concept), concept, changed, SIZE, ConceptHints)
        px = app.theme.px
        self.images, self.checked = ConceptPreview(), ConceptCheck()
        self._photo: ImageTk.PhotoImage | None = None
        self._drawing, self._leaving = Timer(self, self._show), Timer(self, self._leave)
        self.left.pack_forget()
        self._panes = Panes(self.body, app, "concept: options and preview", "horizontal", self._usual_left, LEAST)
        self._panes.pack(fill="both", expand=True)
        # on a low screen the preview is scrolled
        scroll = self._right = ScrollFrame(self._panes, app.theme, fills=True)
        right = ttk.Frame(scroll.inside, style="Window.TFrame", padding=(px(4), 0, px(8), 0))
        right.pack(fill="both", expand=True)
        self._holder = right
        head = ttk.Frame(right, style="Window.TFrame")
        head.pack(fill="x", pady=(0, px(6)))
        self.all_pictures = ttk.Button(
            head, text=tr("Pictures and captions …"), style="Window.TButton", command=self._open_pictures
        )
        self.all_pictures.pack(side="right", anchor="n")
        self.tabs = TabBar(head, app.theme, (OPTIONS, PREVIEW, CHECK), self.show_page)
        self.tabs.pack(side="left", fill="x", expand=True)
        self._pages = {PREVIEW: self._make_preview(right), CHECK: self._make_check(right)}
        self._recolor()
        app.theme.listen(self, self._recolor)
        self.form.listen(lambda _: self._options_changed())
        self.on_close(app.form.listen(lambda _: self._compare()))
        self._narrow: bool | None = None
        self._arrange(self.body.winfo_width())
        self.body.bind("<Configure>", lambda event: self._arrange(event.width))
        self.show_page(PREVIEW)
        self._show_soon()

    @property
    def preview(self) -> Preview | None:
        """What is shown; None before the first, and where there is none."""
        return self.images.shown.picture

    def _usual_left(self, room: int) -> int:
        return room - self._app.theme.px(RIGHT + SASH)

    def _arrange(self, wide: int) -> None:
        """Options and images beside each other; in a narrow window the options are one more page."""
        narrow = 1 < wide < self._app.theme.px(NARROW)
        if narrow == self._narrow:
            return
        self._narrow = narrow
        for pane in self._panes.panes():
            self._panes.forget(pane)
        self.left.pack_forget()
        if narrow:
            self._panes.add(self._right, weight=1)
        else:
            self._panes.hold(self.left, self._right)
        shown = (OPTIONS, PREVIEW, CHECK) if narrow else (PREVIEW, CHECK)
        self.tabs.show(self.tabs.buttons[name] for name in shown)
        if not narrow and self.tabs.current == OPTIONS:
            self.show_page(PREVIEW)

    def _make_preview(self, parent: ttk.Frame) -> ttk.Frame:
        px = self._app.theme.px
        card = ttk.Frame(parent, style="Card.TFrame", padding=px(10))
        row = Flow(card, px(6))
        row.pack(fill="x")
        made = [
            ttk.Button(row, text=text, command=action)
            for text, action in (
                (tr("‹ Image"), lambda: self.go(-1)), (tr("Image ›"), lambda: self.go(1)),
                (tr("Another variation"), lambda: self.go(0, self.images.shown.variation + 1)),
            )
        ]  # fmt: skip
        self.preceding, self.following, self.another = made
        row.show(made)
        self._title = ShortLabel(card, "", "Muted.TLabel", anchor="w")
        self._title.pack(fill="x", pady=(px(4), 0))
        self._app.tools.tooltip.attach(self._title, lambda: self._title.full)
        foot = ttk.Frame(card)
        foot.pack(side="bottom", fill="x")
        self._facts = ttk.Label(card, style="Muted.TLabel", anchor="w", justify="left", wraplength=px(RIGHT - 40))
        self._facts.pack(side="bottom", fill="x", pady=(px(4), px(6)))
        # as high as the room that is left, whatever it shows
        room = ttk.Frame(card, height=px(LEAST_PICTURE))
        room.pack(fill="both", expand=True, pady=(px(8), 0))
        room.pack_propagate(False)
        self._picture = tk.Label(room, borderwidth=0, text=tr("Drawing …"), wraplength=px(RIGHT - 60))
        self._picture.least_size = (px(LEAST_PICTURE), px(LEAST_PICTURE))
        self._picture.pack(fill="both", expand=True)
        self._picture.bind("<Configure>", lambda event: self._picture_resized(event.width))
        ttk.Label(foot, text=tr("Caption"), style="Bold.TLabel").pack(anchor="w")
        self.caption = tk.Text(
            foot, height=3, wrap="word", borderwidth=0, highlightthickness=1, padx=6, pady=4, undo=True,
            font=self._app.theme.font("normal"),
        )  # fmt: skip
        self.caption.pack(fill="x", pady=px(3))
        self.caption.bind("<<Modified>>", lambda _: self._typed())
        self.caption.bind("<Tab>", lambda event: event.widget.tk_focusNext().focus() or "break")
        row = ttk.Frame(foot)
        row.pack(fill="x")
        self.save = ttk.Button(row, text=tr("Save the caption"), command=self.save_caption)
        self.save.pack(side="left")
        self._varied = ttk.Label(row, style="Muted.TLabel", anchor="w", justify="left", wraplength=px(RIGHT - 180))
        self._varied.pack(side="left", fill="x", expand=True, padx=(px(8), 0))
        return card

    def _make_check(self, parent: ttk.Frame) -> ttk.Frame:
        px = self._app.theme.px
        card = ttk.Frame(parent, style="Card.TFrame", padding=px(10))
        row = ttk.Frame(card)
        row.pack(fill="x", pady=(0, px(6)))
        self.check_button = ttk.Button(row, text=tr("Check"), command=self.check)
        self.check_button.pack(side="left")
        self.check_heading = ttk.Label(row, text=self.checked.heading, style="Muted.TLabel", justify="left",
                                       wraplength=px(RIGHT - 140))  # fmt: skip
        self.check_heading.pack(side="left", padx=px(8))
        self.check_text = TextPane(card, self._app.theme)
        self.check_text.pack(fill="both", expand=True)
        return card

    def _recolor(self) -> None:
        color = self._app.theme.color
        self._picture.configure(background=color("card"), foreground=color("muted"))
        self._app.theme.paint(self.caption, "field")
        self._draw()

    def show_page(self, name: str) -> None:
        """Shows the preview, the dataset check, or, in a narrow window, the options."""
        pages = {**self._pages, **({OPTIONS: self.left} if self._narrow else {})}
        for page in pages.values():
            page.pack_forget()
        pages[name].pack(in_=self._holder, fill="both", expand=True)
        pages[name].lift()
        self.tabs.mark(name)
        if name == CHECK and not self.checked.is_begun:
            self.check()

    def go(self, by: int, variation: int = 0) -> None:
        """Shows another image, so many on, or another variation of the one that is shown."""
        if by and not self._may_leave_caption():
            return
        self.images.wish(by, variation)
        self._show()

    def check(self) -> None:
        """Runs the dataset check on this concept."""
        self._app.worker.run(self.checked.begin(*self._copies()), self._take_check, self._take_check)
        self._show_check()

    def _open_pictures(self) -> None:
        """Shows all pictures of the concept; a caption is edited in one window at a time."""
        if self._may_leave_caption():
            self._app.open_pictures(self.form.config)

    def save_caption(self) -> bool:
        """Writes the caption beside the image. False: it could not be written, which is said."""
        try:
            self.images.save()
        except UserError as error:
            self._varied.configure(text=str(error), style="Error.TLabel")
            return False
        self._show_caption()
        self._show()
        return True

    def may_close(self) -> bool:
        """Asks about a caption, too, that is not saved."""
        return self._may_leave_caption() and super().may_close()

    def let_go(self) -> None:
        """Closes; a caption is not the list's, and may still be saved."""
        if self.images.is_edited:
            # whoever changed the list is not done with that
            self._leaving.start(0)
        else:
            self.destroy()

    def _leave(self) -> None:
        if self._may_leave_caption((SAVE, LOSE)):
            self.destroy()

    def _may_leave_caption(self, answers: tuple[str, ...] = (SAVE, LOSE, CANCEL)) -> bool:
        if not self.images.is_edited:
            return True
        question = tr("The caption of {image} is not saved.", image=self.images.shown.name)
        answer = AskWindow(self, self._app.tools, tr("The caption"), question, answers).ask()
        if answer == SAVE:
            return self.save_caption()
        if answer == LOSE:
            self.images.lose_edit()
            self._show_caption()
        return answer == LOSE

    def _copies(self) -> tuple:
        return self._app.form.config.model_copy(deep=True), self.form.config.model_copy(deep=True)

    def _show_soon(self) -> None:
        self._drawing.start(SETTLE_MS)

    def _show(self) -> None:
        """Draws on a worker's thread; only the newest wish counts."""
        self._drawing.stop()
        number, work = self.images.draw(*self._copies())
        self._app.worker.run(work, self._shown, lambda error: self._shown(self.images.failed(number, error)))

    def _shown(self, drawn: Drawn) -> None:
        if not self.winfo_exists() or not self.images.take(drawn):
            return
        for button in (self.preceding, self.following):
            enable(button, drawn.count > 1)
        enable(self.another, bool(drawn.picture))
        self._title.show(self.images.title)
        self._facts.configure(text=self.images.facts)
        self._draw()
        self._show_caption()

    def _show_caption(self) -> None:
        shown, text = self.images.shown, self.images.text
        self.caption.configure(state="normal")
        # a box that is typed in is left as it is
        if self._typed_caption() != text:
            self.caption.delete("1.0", "end")
            self.caption.insert("1.0", text)
            self.caption.edit_reset()
            self.caption.edit_modified(False)
        if shown.file is None:
            self.caption.configure(state="disabled")
        enable(self.save, self.images.is_edited)
        self._varied.configure(
            text=shown.caption_trouble or self.images.caption_note,
            style="Error.TLabel" if shown.caption_trouble else "Muted.TLabel",
        )

    def _typed_caption(self) -> str:
        return self.caption.get("1.0", "end-1c")

    def _typed(self) -> None:
        self.images.text = self._typed_caption()
        enable(self.save, self.images.is_edited)
        self.caption.edit_modified(False)

    def _picture_resized(self, wide: int) -> None:
        for label, less in ((self._picture, 20), (self._facts, 10), (self._varied, 170), (self.check_heading, 110)):
            label.configure(wraplength=max(80, wide - self._app.theme.px(less)))
        self._draw()

    def _draw(self) -> None:
        """Original and variation beside each other, as large as there is room for."""
        if self.preview is None:
            self._photo = None
            self._picture.configure(image="", text=self.images.message)
            return
        room = ((self._picture.winfo_width() - 16) // 2, self._picture.winfo_height() - 8)
        if min(room) < 16:
            return
        both = Image.new("RGB", (2 * room[0] + 12, room[1]), self._app.theme.color("card"))
        for place, image in enumerate((self.preview.original, self.preview.varied)):
            size, scale = fit_picture(image.size, room)
            way = Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.BICUBIC
            left = place * (room[0] + 12) + (room[0] - size[0]) // 2
            both.paste(image.resize(size, way), (left, (room[1] - size[1]) // 2))
        self._photo = ImageTk.PhotoImage(both, master=self)
        self._picture.configure(image=self._photo, text="")

    def _options_changed(self) -> None:
        self._show_soon()
        self._compare()

    def _compare(self) -> None:
        """What was checked with other options is said to be so."""
        if self.checked.is_begun:
            self.checked.compare(self._app.form.config, self.form.config)
            self._show_check()

    def _take_check(self, found: CheckResult | Exception) -> None:
        self.checked.take(found)
        if self.winfo_exists():
            self._show_check()

    def _show_check(self) -> None:
        checked = self.checked
        enable(self.check_button, not checked.is_busy)
        muted = checked.is_busy or checked.is_stale
        style = "Error.TLabel" if checked.trouble and not muted else "Muted.TLabel" if muted else "TLabel"
        self.check_heading.configure(text=checked.heading, style=style)
        self.check_text.show(checked.lines)
