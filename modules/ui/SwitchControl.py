import tkinter as tk
from tkinter import ttk

from modules.ui.Control import Control
from modules.ui.widgets import enable
from modules.viewModel.field_text import FALSE, TRUE


class SwitchControl(Control):
    """On or off. Where an option can be empty, it shows the default that then counts."""

    def build(self, parent: tk.Misc) -> None:
        """Makes the switch, with what is in its way beside it."""
        self.frame = ttk.Frame(parent)
        self._on = tk.BooleanVar(parent)
        self.focus = self.switch = ttk.Checkbutton(
            self.frame, style="Switch.TCheckbutton", variable=self._on, command=self._toggled
        )
        self.switch.pack(side="left")
        self._why: str | None = None
        self._reason = ttk.Label(self.frame, style="Muted.TLabel", justify="left", wraplength=self.tools.theme.px(260))
        self._reason.bind("<Configure>", lambda event: self._reason.configure(wraplength=max(1, event.width)))

    def show(self, text: str, invalid: bool) -> None:
        """Shows on or off, and why it can't be switched, if so."""
        reason = self.hints.why_not(self.one.path, FALSE if text == TRUE else TRUE)
        if self._on.get() != (text == TRUE):
            self._on.set(text == TRUE)
        # each change is drawn, and a form asks all its switches whenever anything has changed
        if reason == self._why:
            return
        self._why = reason
        enable(self.switch, not reason)
        if reason:
            self._reason.configure(text=reason)
            self._reason.pack(side="left", fill="x", expand=True, padx=(self.tools.theme.px(8), 0))
        else:
            self._reason.pack_forget()

    def shown(self) -> str:
        """true or false."""
        return TRUE if self._on.get() else FALSE

    def _toggled(self) -> None:
        self.changed(self.shown())
