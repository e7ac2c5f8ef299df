import tkinter as tk
from collections.abc import Callable
from tkinter import font as tk_font
from tkinter import ttk
from typing import TYPE_CHECKING

from modules.ui.FormView import FormView
from modules.ui.TextPane import TextPane
from modules.ui.widgets import enable
from modules.util.texts import tr
from modules.util.UserError import UserError
from modules.viewModel.fit_picture import fit_picture
from modules.viewModel.FormModel import FormModel
from modules.viewModel.plot_colors import in_colors
from modules.viewModel.ToolProcess import ToolCancelled, ToolProcess
from modules.viewModel.tools.Tool import Tool, tool_section
from modules.viewModel.tools.ToolResult import ToolResult

from PIL import Image, ImageTk

if TYPE_CHECKING:
    from modules.ui.App import App

FORM_WIDTH = 590
# longer results are scrolled, in as much room as there is
MOST_LINES = 200
LARGEST_SCALE = 1.5
# of a page's height: what a picture takes, and what is left to a table below it at least
PICTURE_SHARE, TABLE_SHARE = 0.48, 0.4
# of a page's width: what a form takes at most
FORM_SHARE = 0.56
# of a page: the height that it has at least, the width below which its parts stand one below the other, and the heights
# of these
LEAST_HEIGHT, NARROW, STACKED = 300, 720, (230, 190, 200)


class ToolPage(ttk.Frame):
    """A tool: its form, its button, and what it found. While it works, its button ends it.

    The result stands beside the form, or below it if its lines need the whole width.

    Args:
        parent: that it is put into.
        app: the window.
        tool: what it says of itself.
        form: its options; None: it has none.
        run, cancel: what the button does while the tool rests, and while it works.

    Attributes:
        form: as above.
        view: of it; None if there is none.
        button: runs and cancels.
        note: how long it has been working, or what went wrong.
        hint: stands where results will be.
        text, picture: the result.
        result: the same; None before the first.
        process: of the tool while it works, None while it rests.
    """

    def __init__(
        self, parent: tk.Misc, app: "App", tool: Tool, form: FormModel | None, run: Callable[[], None],
        cancel: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(parent, style="Window.TFrame")
        self._theme, self._tool, self.form = app.theme, tool, form
        self.result: ToolResult | None = None
        self.process: ToolProcess | None = None
        self._photo: ImageTk.PhotoImage | None = None
        self._drawn: tuple[object, ...] = ()
        self._arranged: tuple[object, ...] = ()
        px, name = app.theme.px, tr(tool.name)
        title = name[0].upper() + name[1:]
        self.view: FormView | None = None
        if form is not None:
            self._left = ttk.Frame(self, style="Window.TFrame", width=px(FORM_WIDTH))
            self._left.pack_propagate(False)
            self.view = FormView(
                self._left, app.tools, form, [tool_section(form, title, tr(tool.help))], everything=True
            )
            self.view.pack(fill="both", expand=True)
        card = self._card = ttk.Frame(self, style="Card.TFrame", padding=px(12))
        card.pack_propagate(False)
        self._below = ttk.Frame(self, style="Card.TFrame", padding=px(12))
        self._below.pack_propagate(False)
        if form is None:
            ttk.Label(card, text=title, style="Heading.TLabel").pack(anchor="w")
            ttk.Label(card, text=tr(tool.help), style="Muted.TLabel").pack(anchor="w", pady=(px(2), px(8)))
        row = self.row = ttk.Frame(card)
        row.pack(fill="x", pady=(0, px(8)))
        self.button = ttk.Button(
            row, text=tr(tool.do), style="Accent.TButton", command=lambda: (run if self.process is None else cancel)()
        )
        self.button.pack(side="left", anchor="n")
        self.note = ttk.Label(row, style="Muted.TLabel", justify="left")
        self.note.pack(side="left", fill="x", expand=True, padx=(px(10), 0))
        self.hint = ttk.Label(card, text=tr(tool.promise), style="Muted.TLabel", anchor="center", justify="center")
        for label in (self.note, self.hint):
            label.bind("<Configure>", lambda event: event.widget.configure(wraplength=event.width))
        self.picture = tk.Label(card, borderwidth=0)
        self.text = TextPane(self, app.theme, wrap="none")
        self.grid_columnconfigure(1, weight=1)
        self.bind("<Configure>", lambda _: self._arrange())
        for widget in (card, row):
            widget.bind("<Configure>", lambda _: self._draw())
        app.theme.listen(self, self._recolor)
        self._recolor()
        self.clear()

    def begin(self, process: ToolProcess) -> None:
        """The tool works from now on."""
        self.process = process
        # what cannot be ended cannot be begun twice either
        self.button.configure(text=tr("Cancel") if self._tool.has_process else tr(self._tool.do), style="TButton")
        enable(self.button, self._tool.has_process)
        self.tick()

    def cancelling(self) -> None:
        """The tool is about to end."""
        self.button.state(["disabled"])

    def tick(self) -> None:
        """Shows how long the tool has been working."""
        if self.process is not None:
            self._say(self.process.line, "Muted.TLabel")

    def show(self, result: ToolResult) -> None:
        """The tool is done, with this result."""
        self._rest()
        self.result = result
        self.text.show(result.text.splitlines())
        self.hint.pack_forget()
        self.picture.pack_forget()
        if result.picture is not None:
            self.picture.pack()
        self._arranged = self._drawn = ()
        self._arrange()
        self._draw()

    def fail(self, error: Exception) -> None:
        """The tool did not get to its end. An older result stays."""
        self._rest()
        style = "Muted.TLabel" if isinstance(error, ToolCancelled) else "Error.TLabel"
        known = isinstance(error, (UserError, OSError, ValueError)) and str(error)
        self._say(str(error) if known else f"{type(error).__name__}: {error}", style)

    def clear(self) -> None:
        """As before the first result; what still works is not waited for."""
        self._rest()
        self.result = None
        self.picture.pack_forget()
        self.hint.pack(fill="both", expand=True)
        self._arrange()

    def _rest(self) -> None:
        self.process = None
        self.button.configure(text=tr(self._tool.do), style="Accent.TButton")
        self.button.state(["!disabled"])
        self._say("", "Muted.TLabel")

    def _say(self, text: str, style: str) -> None:
        self.note.configure(text=text, style=style)

    def _arrange(self) -> None:
        """Puts the result beside the form or below it. Only where something has changed."""
        wide, high = self.winfo_width(), self.winfo_height()
        if wide <= 1 or (self.result, wide, high) == self._arranged:
            return
        self._arranged = (self.result, wide, high)
        if self.view is not None:
            self._left.configure(width=min(self._form_width(wide), wide))
        px, narrow = self._theme.px, self._is_narrow(wide)
        below = self.result is not None and (narrow or self._needs_width(wide))
        if narrow:
            self._stack(below)
        else:
            self._put_beside(below, high)
        self.text.pack_forget()
        if self.result is not None:
            self.text.box.configure(height=min(self.result.text.count("\n") + 1, MOST_LINES))
            gap = px(8) if self.result.picture is not None and not below else 0
            self.text.pack(in_=self._below if below else self._card, fill="x", pady=(gap, 0))
            self.text.lift()

    def _put_beside(self, below: bool, high: int) -> None:
        """Form and result beside each other, and below them the lines that need the whole width."""
        edge = (0, self._theme.px(8))
        if self.view is not None:
            self._left.grid(row=0, column=0, rowspan=1 if below else 2, columnspan=1, sticky="nswe")
        self._card.grid(row=0, column=1, rowspan=1 if below else 2, columnspan=1, sticky="nswe", padx=edge, pady=edge)
        self.grid_rowconfigure(0, weight=0 if below else 1, minsize=self._top_height(high) if below else 0)
        self.grid_rowconfigure(1, weight=1 if below else 0, minsize=0)
        self.grid_rowconfigure(2, weight=0, minsize=0)
        if below:
            self._below.grid(row=1, column=0, columnspan=2, sticky="nswe", padx=edge, pady=edge)
        else:
            self._below.grid_remove()

    def _stack(self, below: bool) -> None:
        """Form, result and its lines one below the other; the whole window is scrolled where it is lower."""
        edge, px = (0, self._theme.px(8)), self._theme.px
        parts = [self._left, self._card, *([self._below] if below else [])]
        for row, (part, least) in enumerate(zip(parts, STACKED, strict=False)):
            part.grid(row=row, column=0, rowspan=1, columnspan=2, sticky="nswe", padx=edge, pady=edge)
            self.grid_rowconfigure(row, weight=1, minsize=px(least))
        if not below:
            self._below.grid_remove()
            self.grid_rowconfigure(2, weight=0, minsize=0)

    def least_height(self) -> int:
        """What it needs, in pixels."""
        narrow = self._is_narrow(max(self.winfo_width(), self.winfo_toplevel().winfo_width()))
        stacked = sum(STACKED[: 2 if self.result is None else 3]) + 24
        return self._theme.px(stacked if narrow else LEAST_HEIGHT)

    def _is_narrow(self, wide: int) -> bool:
        return self.view is not None and wide < self._theme.px(NARROW)

    def _needs_width(self, wide: int) -> bool:
        """Whether a page is too narrow for the result's lines beside the form."""
        px = self._theme.px
        font = tk_font.nametofont(self._theme.font("mono"), self)
        longest = max((font.measure(line) for line in self.result.text.splitlines()), default=0)
        return self.view is not None and self._form_width(wide) + longest + px(60) > wide

    def _form_width(self, wide: int) -> int:
        return min(self._theme.px(FORM_WIDTH), round(FORM_SHARE * wide))

    def _top_height(self, high: int) -> int:
        """Of form and picture where the text stands below them."""
        needed = self.view.inside.winfo_reqheight() + self._theme.px(8)
        if self.result.picture is not None:
            needed = max(needed, round(PICTURE_SHARE * high))
        return min(needed, round((1 - TABLE_SHARE) * high))

    def _draw(self) -> None:
        """The picture, as large as there is room for beside the text, in the colours of now."""
        if self.result is None or self.result.picture is None:
            return
        color, path, px = self._theme.color, self.result.picture, self._theme.px
        beside = self.text.winfo_manager() and self.text.pack_info()["in"] is self._card
        high = self._card.winfo_height()
        high = round(PICTURE_SHARE * high) if beside else high - self.row.winfo_height() - px(40)
        room = self._card.winfo_width() - px(28), high
        wanted = (path, room, color("card"))
        if wanted == self._drawn or min(room) < 16:
            return
        self._drawn = wanted
        try:
            with Image.open(path) as image:
                size, _ = fit_picture(image.size, room, LARGEST_SCALE)
                own = in_colors(image, color("card"), color("text")) if self.result.plot else image.convert("RGB")
                shown = own.resize(size, Image.Resampling.LANCZOS)
        except OSError as error:
            self.note.configure(text=tr("The picture cannot be shown: {error}", error=error), style="Error.TLabel")
            return
        self._photo = ImageTk.PhotoImage(shown, master=self)
        self.picture.configure(image=self._photo)

    def _recolor(self) -> None:
        self.picture.configure(background=self._theme.color("card"))
        self._draw()
