import tkinter as tk
from collections.abc import Callable, Sequence
from tkinter import ttk

from modules.ui.place_over import place_over
from modules.ui.widgets import focused
from modules.ui.WindowTools import WindowTools
from modules.util.texts import tr

import customtkinter as ctk

WIDTH = 420


class AskWindow(ctk.CTkToplevel):
    """A question that has to be answered before anything else.

    Args:
        parent: the window that waits.
        tools: the window's own.
        title: of the window.
        text: the question.
        buttons: answers, shown in the language of the window; the first, by which nothing may be lost, is what Return
            gives. Escape and closing give "".
        entry: what stands in a field for a text; None: there is no field.
        check: says what is wrong with the answer and the text; while it does, the window stays.

    Attributes:
        answer: the button, "" for none.
        text: of the field.
    """

    def __init__(
        self, parent: tk.Misc, tools: WindowTools, title: str, text: str, buttons: Sequence[str],
        entry: str | None = None, check: Callable[[str, str], str] = lambda answer, text: "",
    ) -> None:  # fmt: skip
        super().__init__(parent)
        self.withdraw()
        px = tools.theme.px
        self.title(title)
        self.resizable(False, False)
        self.answer, self.text, self._check = "", entry or "", check
        body = ttk.Frame(self, style="Window.TFrame", padding=px(16))
        body.pack(fill="both", expand=True)
        ttk.Label(body, text=text, style="Window.TLabel", wraplength=px(WIDTH), justify="left").pack(anchor="w")
        self._variable = tk.StringVar(self, entry or "")
        self.entry = ttk.Entry(body, textvariable=self._variable, width=44, style="Window.TEntry")
        if entry is not None:
            self.entry.pack(fill="x", pady=(px(10), 0))
        self.error = ttk.Label(body, style="Error.Window.TLabel", wraplength=px(WIDTH), justify="left")
        row = ttk.Frame(body, style="Window.TFrame")
        row.pack(anchor="e", pady=(px(14), 0), side="bottom")
        self.buttons: dict[str, ttk.Button] = {}
        for place, name in enumerate(buttons):
            style = "Window.Accent.TButton" if place == 0 else "Window.TButton"
            button = ttk.Button(row, text=tr(name), style=style, command=lambda name=name: self.give(name))
            button.pack(side="left", padx=(px(8), 0))
            self.buttons[name] = button
        self.bind("<Return>", lambda _: self.give(self._focused(buttons)))
        self.bind("<Escape>", lambda _: self.destroy())
        self.transient(parent.winfo_toplevel())
        place_over(self, parent.winfo_toplevel())
        self.entry.select_range(0, "end")
        (self.entry if entry is not None else self.buttons[buttons[0]]).focus_force()

    def ask(self) -> str:
        """Waits for the answer."""
        self.grab_set()
        self.wait_window()
        return self.answer

    def give(self, answer: str) -> None:
        """Answers."""
        self.text = self._variable.get()
        if problem := self._check(answer, self.text):
            self.error.configure(text=problem)
            self.error.pack(anchor="w", pady=(8, 0))
            return
        self.answer = answer
        self.destroy()

    def _focused(self, buttons: Sequence[str]) -> str:
        return next((name for name, button in self.buttons.items() if button is focused(self)), buttons[0])
