import tkinter as tk
from collections.abc import Callable
from tkinter import font as tk_font
from tkinter import ttk
from typing import TYPE_CHECKING

from modules.ui.ReasonText import ReasonText
from modules.ui.ShortLabel import ShortLabel
from modules.ui.Timer import Timer
from modules.ui.widgets import enable
from modules.util.texts import tr
from modules.viewModel.fit_picture import fit_picture
from modules.viewModel.PictureEditor import PictureEditor
from modules.viewModel.read_pictures import small_picture

from PIL import Image, ImageTk

if TYPE_CHECKING:
    from modules.ui.App import App

# lines of the caption's box, and of what is said of a picture
LEAST_LINES, LINES, MOST_SAID = 2, 6, 4
# of the picture at least where the caption has more than the fewest lines; between the parts
PICTURE, SPACE = 90, 60
# a picture is not enlarged beyond this
LARGEST_SCALE = 2.0
# longer side of the larger picture at 100 %; made when nobody goes on for a moment
LARGE, LARGE_MS = 900, 120


class CaptionPane(ttk.Frame):
    """The chosen picture, larger, and its whole caption to edit.

    Args:
        parent: that it is put into.
        app: the window.
        editor: of the captions.
        save: writes the caption.
        step: goes so many pictures on.
        aside: moves the picture out of the folder.
        leave: gives the keys back to the grid.

    Attributes:
        caption: the box.
        said: what there is to say of the picture and its caption.
        save_button, aside_button: do so.
    """

    def __init__(
        self, parent: tk.Misc, app: "App", editor: PictureEditor, save: Callable[[], object],
        step: Callable[[int], None], aside: Callable[[], None], leave: Callable[[], None],
    ) -> None:  # fmt: skip
        tools = app.tools
        super().__init__(parent, style="Card.TFrame", padding=tools.theme.px(10))
        self._tools, self._worker, self._editor, px = tools, app.worker, editor, tools.theme.px
        self._enlarging = Timer(self, self._enlarge)
        self._image: Image.Image | None = None
        self._photo: ImageTk.PhotoImage | None = None
        self._locked = False
        self._head = head = ttk.Frame(self)
        head.pack(fill="x")
        for text, by in (("‹", -1), ("›", 1)):
            ttk.Button(head, text=text, width=2, command=lambda by=by: step(by)).pack(side="left", padx=(0, px(4)))
        self._title = ShortLabel(head, "", "Muted.TLabel", anchor="e")
        self._title.pack(side="right", fill="x", expand=True)
        self._row = row = ttk.Frame(self)
        row.pack(side="bottom", fill="x", pady=(px(6), 0))
        self.save_button = ttk.Button(row, text=tr("Save"), style="Accent.TButton", command=save)
        self.save_button.pack(side="left")
        tools.tooltip.attach(
            self.save_button,
            lambda: tr("Ctrl+S. It is saved, too, when another picture is chosen. Ctrl+Return goes to the next one."),
        )
        self.aside_button = ttk.Button(row, text=tr("Move aside …"), command=aside)
        self.aside_button.pack(side="right")
        self.said = ReasonText(self, tools.theme, MOST_SAID)
        self.said.pack(side="bottom", fill="x", pady=(px(4), 0))
        self.caption = tk.Text(
            self, height=LINES, width=20, wrap="word", borderwidth=0, highlightthickness=1, padx=6, pady=4, undo=True,
            font=tools.theme.font("normal"),
        )  # fmt: skip
        self.caption.pack(side="bottom", fill="x", pady=(px(3), 0))
        self._label = ttk.Label(self, text=tr("Caption"), style="Bold.TLabel")
        self._label.pack(side="bottom", anchor="w")
        self._picture = tk.Label(self, borderwidth=0)
        self._picture.bind("<Configure>", lambda _: self._draw())
        self.caption.bind("<<Modified>>", lambda _: self._typed())
        self.caption.bind("<Tab>", lambda event: event.widget.tk_focusNext().focus() or "break")
        self.caption.bind("<Escape>", lambda _: leave() or "break")
        for key, by in (("<Control-Return>", 1), ("<Control-Next>", 1), ("<Control-Prior>", -1)):
            self.caption.bind(key, lambda _, by=by: step(by) or "break")
        self.bind("<Configure>", lambda event: self._fit(event.height))
        self._recolor()
        tools.theme.listen(self, self._recolor)
        self.show()

    def _fit(self, height: int) -> None:
        """Gives the caption as many lines as leave room for the picture and all the rest."""
        others = sum(part.winfo_reqheight() for part in (self._head, self._label, self.said, self._row))
        left = height - others - self._tools.theme.px(PICTURE + SPACE)
        line = tk_font.Font(self, self.caption["font"]).metrics("linespace")
        self.caption.configure(height=max(LEAST_LINES, min(LINES, left // line)))
        # the grid beside it shows the picture, too
        if left > 0:
            self._picture.pack(fill="both", expand=True, pady=self._tools.theme.px(8))
        else:
            self._picture.pack_forget()

    def show(self) -> None:
        """Shows the chosen picture's caption and what is known of it. A box that is typed in is left as it is."""
        editor, box = self._editor, self.caption
        chosen = editor.chosen
        self._title.show(f"{chosen.name} · {editor.pictures.size_text(chosen)}" if chosen else "")
        box.configure(state="normal")
        if self._shown() != editor.text:
            box.delete("1.0", "end")
            box.insert("1.0", editor.text)
            box.edit_reset()
        box.edit_modified(False)
        fixed = chosen is None or bool(editor.pictures.why_fixed(chosen))
        box.configure(state="disabled" if fixed or self._locked else "normal")
        enable(self.aside_button, chosen is not None and not self._locked)
        self._show_state()

    def take_typed(self) -> None:
        """Hands over what was typed just now, of which Tk has not told yet."""
        if self.caption.edit_modified():
            self._typed()

    def show_picture(self, small: Image.Image | None) -> None:
        """Shows the chosen picture: first a small one, if there is one, and soon a larger one."""
        self._image = small
        self._draw()
        self._enlarging.start(LARGE_MS)

    def lock(self, locked: bool) -> None:
        """Keeps captions from being edited, or no longer."""
        self._locked = locked
        self.show()

    def _show_state(self) -> None:
        editor = self._editor
        enable(self.save_button, editor.is_edited and not self._locked)
        self.said.show(self._editor.said, "muted")

    def _shown(self) -> str:
        return self.caption.get("1.0", "end-1c")

    def _typed(self) -> None:
        if self.caption.edit_modified():
            self._editor.text = self._shown()
            self._show_state()
            self.caption.edit_modified(False)

    def _enlarge(self) -> None:
        """Makes the larger picture of the chosen one."""
        picture, edge = self._editor.chosen, self._tools.theme.px(LARGE)
        if picture is None:
            return

        def show(image: Image.Image | None) -> None:
            if self.winfo_exists() and self._editor.chosen == picture:
                self._image = image
                self._draw()

        self._worker.run(lambda: small_picture(picture.path, edge), show, lambda _: show(None))

    def _draw(self) -> None:
        """The picture, as large as there is room for."""
        room = (self._picture.winfo_width() - 4, self._picture.winfo_height() - 4)
        if self._image is None or min(room) < 16:
            self._photo = None
            text = (
                tr("It can't be shown.")
                if self._editor.chosen
                else tr("Choose a picture to read and edit its caption.")
            )
            self._picture.configure(image="", text=text, wraplength=max(1, room[0]))
            return
        size, _ = fit_picture(self._image.size, room, LARGEST_SCALE)
        self._photo = ImageTk.PhotoImage(self._image.resize(size, Image.Resampling.BICUBIC), master=self)
        self._picture.configure(image=self._photo, text="")

    def _recolor(self) -> None:
        if self.caption.winfo_exists():
            color = self._tools.theme.color
            self._tools.theme.paint(self.caption, "field")
            self._picture.configure(background=color("card"), foreground=color("muted"))
