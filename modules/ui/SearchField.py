import tkinter as tk
from collections.abc import Callable
from tkinter import ttk

from modules.ui.screen_area import place_beside, screen_area
from modules.ui.ShortLabel import ShortLabel
from modules.ui.Theme import screen_position
from modules.ui.Timer import Timer
from modules.ui.widgets import focused
from modules.ui.WindowTools import WindowTools
from modules.util.texts import later, tr
from modules.viewModel.FormModel import FormModel
from modules.viewModel.search_options import Found, search_options

WIDTH, SHOWN, LEAVE_MS = 460, 9, 150
# of a match whose note has two lines, in pixels at 100 %
LINE_HEIGHT = 56
PROMPT = later("Find an option (Ctrl+F)")


class SearchField(ttk.Frame):
    """Finds options anywhere by name or help. The list opens while one types; Return goes to the marked one.

    Args:
        parent: that it is put into.
        tools: the window's own.
        form: whose options are searched.
        go_to: gets the path of what is chosen.

    Attributes:
        found: what the list shows.
    """

    def __init__(self, parent: tk.Misc, tools: WindowTools, form: FormModel, go_to: Callable[[str], None]) -> None:
        super().__init__(parent, style="Window.TFrame")
        self._tools, self._form, self._go_to = tools, form, go_to
        self._text = tk.StringVar(self)
        self.entry = ttk.Entry(self, textvariable=self._text, width=12, style="Window.TEntry")
        self.entry.pack(fill="x", expand=True)
        self._hint = ShortLabel(self.entry, tr(PROMPT), "Hint.TLabel", cursor="xterm")
        self._hint.bind("<Button-1>", lambda _: self.entry.focus_set())
        self.found: list[Found] = []
        self._marked = 0
        self._window: tk.Toplevel | None = None
        self._lines: list[tk.Label] = []
        self._text.trace_add("write", lambda *_: self._search())
        for key, action in (
            ("<Return>", self.take), ("<Escape>", self.clear), ("<Down>", lambda: self._mark(self._marked + 1)),
            ("<Up>", lambda: self._mark(self._marked - 1)),
        ):  # fmt: skip
            self.entry.bind(key, lambda _, action=action: action())
        leaving = Timer(self, self._leave)
        self.entry.bind("<FocusOut>", lambda _: leaving.start(LEAVE_MS), add="+")
        self.entry.bind("<FocusIn>", lambda _: self._search(), add="+")
        self._place_hint()

    def clear(self) -> None:
        """Empties the field and closes the list."""
        self._text.set("")
        self._close()

    def take(self) -> None:
        """Goes to the marked option."""
        if self.found:
            path = self.found[self._marked].path
            self.clear()
            self._go_to(path)

    def _search(self) -> None:
        self._place_hint()
        self.found = search_options(self._form, self._text.get())
        self._marked = 0
        if not self._text.get().strip():
            self._close()
        else:
            self._show()

    def _place_hint(self) -> None:
        if self._text.get():
            self._hint.place_forget()
        else:
            px = self._tools.theme.px
            self._hint.place(x=px(9), rely=0.5, anchor="w", relwidth=1, width=-px(14))

    def _show(self) -> None:
        """The best matches around the marked one, each with its place below the title."""
        theme = self._tools.theme
        if self._window is None:
            self._window = tk.Toplevel(self, borderwidth=1)
            self._window.withdraw()
            self._window.overrideredirect(True)
            self._window.attributes("-topmost", True)
        self._window.configure(background=theme.color("field_line"))
        for child in self._window.winfo_children():
            child.destroy()
        self._lines = []
        # one takes two lines and a little more
        room = screen_area(self)[3] - screen_position(self.entry)[3]
        shown = max(2, min(SHOWN, room // theme.px(LINE_HEIGHT)))
        first = max(0, min(self._marked - shown // 2, len(self.found) - shown))
        if not self.found:
            self._line(tr("Nothing has this in its name or help."), "", False, None)
        for place, one in list(enumerate(self.found))[first : first + shown]:
            note = f"{one.place}   {one.path}"
            if one.missing:
                note += f"\n{tr('only with {needs}', needs=one.missing)}"
            self._line(one.title, note, place == self._marked, place)
        self._window.update_idletasks()
        area, anchor = screen_area(self), screen_position(self.entry)
        wide = min(max(theme.px(WIDTH), self.entry.winfo_width()), area[2] - area[0])
        # not beyond the window on its right, where it can be
        window = self.winfo_toplevel()
        edge = max(window.winfo_rootx() + window.winfo_width(), area[0] + wide)
        within = (area[0], area[1], min(area[2], edge), area[3])
        left, top = place_beside(anchor, within, (wide, self._window.winfo_reqheight()), 2)
        self._window.geometry(f"{wide}x{self._window.winfo_reqheight()}+{left}+{top}")
        self._window.deiconify()
        self._window.lift()

    def _line(self, title: str, note: str, marked: bool, place: int | None) -> None:
        theme = self._tools.theme
        face = theme.color("accent" if marked else "field")
        box = tk.Frame(self._window, background=face, padx=8, pady=3)
        box.pack(fill="x", padx=1, pady=0)
        texts = [(title, "bold", "on_accent" if marked else "text")]
        texts += [(note, "small", "on_accent" if marked else "muted")] if note else []
        for text, font, color in texts:
            label = tk.Label(
                box, text=text, font=theme.font(font), background=face, foreground=theme.color(color), anchor="w",
                justify="left", wraplength=theme.px(WIDTH) - 24,
            )  # fmt: skip
            label.pack(fill="x")
            self._lines.append(label)
        if place is not None:
            for widget in (box, *box.winfo_children()):
                widget.bind("<Button-1>", lambda _, place=place: self._click(place))

    def _click(self, place: int) -> None:
        self._marked = place
        self.take()

    def _mark(self, place: int) -> None:
        if self.found:
            self._marked = max(0, min(len(self.found) - 1, place))
            self._show()

    def _leave(self) -> None:
        if focused(self) is not self.entry:
            self._close()

    def _close(self) -> None:
        if self._window is not None:
            self._window.destroy()
            self._window = None
