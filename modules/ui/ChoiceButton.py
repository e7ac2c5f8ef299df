import tkinter as tk
from collections.abc import Callable, Sequence
from tkinter import ttk

from modules.ui.WindowTools import WindowTools
from modules.viewModel.FieldHints import Choice


class ChoiceButton(ttk.Button):
    """A button that shows the chosen one of a list and opens the list; for what is no option of a config.

    Args:
        parent: that it is put into.
        tools: the window's own.
        choices: at least one; the first is chosen.
        changed: is called after a person has chosen another.
        prefix: of the style: "" on a card, "Window." beside one.

    Attributes:
        chosen: text of the chosen one.
    """

    def __init__(
        self, parent: tk.Misc, tools: WindowTools, choices: Sequence[Choice], changed: Callable[[], None],
        prefix: str = "",
    ) -> None:  # fmt: skip
        super().__init__(parent, style=f"{prefix}Select.TButton", width=1, command=self.open)
        self._tools, self._choices, self._changed = tools, list(choices), changed
        self.chosen = choices[0].text
        self.bind("<Down>", lambda _: self.open())
        self._show()

    def open(self) -> None:
        """Shows what can be chosen."""
        self._tools.popup.open(self, self._choices, self.chosen, self.take)

    def take(self, text: str) -> None:
        """Chooses one, as a person does."""
        if text != self.chosen:
            self.choose(text)
            self._changed()

    def choose(self, text: str) -> None:
        """Shows one as chosen, without telling anybody."""
        self.chosen = text
        self._show()

    def offer(self, choices: Sequence[Choice]) -> None:
        """Offers others; if the chosen one is not among them, the first is chosen."""
        self._choices = list(choices)
        if self.chosen not in [choice.text for choice in choices]:
            self.chosen = choices[0].text
        self._show()

    def _show(self) -> None:
        self.configure(text=next((one.label for one in self._choices if one.text == self.chosen), ""))
