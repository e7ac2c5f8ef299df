import tkinter as tk
from collections.abc import Callable
from tkinter import ttk

from modules.ui.WindowTools import WindowTools
from modules.util.texts import tr
from modules.viewModel.TrainForm import TrainForm


class OfferBar(ttk.Frame):
    """What goes with a choice that was just made, to take or to leave, or what to look at. It is seen only while there
    is something.

    Args:
        parent: that it is put into, with `pack`.
        tools: the window's own.
        form: that makes the offer.
        show_concept: shows the concept at a place of the list.

    Attributes:
        take, keep: its buttons.
    """

    def __init__(
        self, parent: tk.Misc, tools: WindowTools, form: TrainForm, show_concept: Callable[[int], None]
    ) -> None:
        super().__init__(parent, style="Card.TFrame", padding=tools.theme.px(8))
        self._form, self._gap, self._show_concept = form, tools.theme.px(8), show_concept
        self.take = ttk.Button(self, command=self._take)
        self.keep = ttk.Button(self, command=form.decline_offer)
        self.keep.pack(side="right", padx=(self._gap, 0))
        self.take.pack(side="right", padx=(self._gap, 0))
        self._text = ttk.Label(self, justify="left")
        self._text.pack(side="left", fill="x", expand=True)
        self._text.bind("<Configure>", lambda event: self._text.configure(wraplength=max(1, event.width)))

    @property
    def text(self) -> str:
        """What it says, empty while it is not seen."""
        return str(self._text.cget("text")) if self.winfo_manager() else ""

    def _take(self) -> None:
        offer = self._form.offer()
        if offer is not None and offer.concept is not None:
            self._show_concept(offer.concept)
        else:
            self._form.take_offer()

    def refresh(self) -> None:
        """Shows what the form offers now."""
        offer = self._form.offer()
        if offer is None:
            self.pack_forget()
            return
        self._text.configure(text=offer.text)
        if offer.concept is None:
            self.take.configure(text=tr("Take them"))
            self.keep.configure(text=tr("Keep mine"))
        else:
            self.take.configure(text=tr("Show it"))
            self.keep.configure(text=tr("Keep it so"))
        if not self.winfo_manager():
            self.pack(side="bottom", fill="x", pady=(self._gap, 0), padx=(0, self._gap))
