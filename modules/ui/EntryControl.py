import tkinter as tk
from pathlib import Path
from tkinter import filedialog, ttk

from modules.ui.Control import Control
from modules.ui.ShortLabel import ShortLabel
from modules.util.texts import tr
from modules.viewModel.FieldHints import Choice
from modules.viewModel.paths import nearest_folder, portable

SUGGEST_WIDTH = 2


class EntryControl(Control):
    """A text or number that is typed; with a list where there are suggestions, and dialogs where it is a path."""

    def build(self, parent: tk.Misc) -> None:
        """Makes the entry and its buttons."""
        declared, kind = self.one.declared, self.one.kind
        self.frame = ttk.Frame(parent)
        self._variable = tk.StringVar(parent)
        font = self.tools.theme.font("mono") if kind.kind in (list, dict) else self.tools.theme.font("normal")
        self.focus = self.entry = ttk.Entry(
            self.frame, textvariable=self._variable, width=8, font=font, show="•" if declared.secret else ""
        )
        self.entry.pack(side="left", fill="x", expand=True)
        self._showing, self._hinted = False, ""
        self._variable.trace_add("write", lambda *_: None if self._showing else self.changed(self._variable.get()))
        if declared.choices:
            self._button("▾", self._suggest)
        elif declared.path:
            self._button("…", self._browse)
        if declared.path:
            self.tools.drops.accept(self.frame, lambda paths: self._take(portable(paths[0])))
        self._hint = ShortLabel(self.entry, "", "Hint.TLabel", cursor="xterm")
        self._hint.bind("<Button-1>", lambda _: self.entry.focus_set())
        self.entry.bind("<FocusIn>", lambda _: self._place_hint(), add="+")
        self.entry.bind("<FocusOut>", lambda _: self._place_hint(), add="+")

    def show(self, text: str, invalid: bool) -> None:
        """Shows a text, and whether it was refused."""
        if self._variable.get() != text:
            self._showing = True
            self._variable.set(text)
            self._showing = False
        if invalid != self.entry.instate(["invalid"]):
            self.entry.state(["invalid" if invalid else "!invalid"])
        self._place_hint()

    def shown(self) -> str:
        """What stands in the entry."""
        return self._variable.get()

    def _button(self, text: str, command) -> None:
        button = ttk.Button(self.frame, text=text, width=SUGGEST_WIDTH, command=command)
        button.pack(side="left", padx=(self.tools.theme.px(4), 0))

    def _place_hint(self) -> None:
        """In an empty entry stands what that means."""
        hint = "" if self._variable.get() else self.hints.placeholder(self.one.path)
        if hint and self.entry.instate(["focus"]):
            hint = ""
        if hint == self._hinted:
            return
        self._hinted = hint
        if hint:
            self._hint.show(hint)
            px = self.tools.theme.px
            self._hint.place(x=px(9), rely=0.5, anchor="w", relwidth=1, width=-px(14))
        else:
            self._hint.place_forget()

    def _suggest(self) -> None:
        choices = self.hints.choices(self.one.path)
        self.tools.popup.open(self.entry, choices, self.shown(), self._take)

    def _browse(self) -> None:
        if self.one.declared.path == "model":
            choices = [Choice("file", tr("A file …")), Choice("folder", tr("A folder …"))]
            self.tools.popup.open(self.entry, choices, "file", self._ask)
        else:
            self._ask(self.one.declared.path)

    def _ask(self, what: str) -> None:
        title, start = tr(self.one.declared.title), nearest_folder(self.shown())
        if what == "folder":
            path = filedialog.askdirectory(parent=self.entry, title=title, initialdir=start)
        elif what == "file":
            path = filedialog.askopenfilename(
                parent=self.entry, title=title, initialdir=start, initialfile=Path(self.shown()).name
            )
        else:
            # a file that is to be written need not be there, and one that is there is not written by choosing it
            path = filedialog.asksaveasfilename(
                parent=self.entry, title=title, initialdir=start, confirmoverwrite=False,
                initialfile=Path(self.shown()).name,
            )  # fmt: skip
        if path:
            self._take(portable(path))

    def _take(self, text: str) -> None:
        self._variable.set(text)
