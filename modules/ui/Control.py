import tkinter as tk
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from modules.viewModel.FieldHints import FieldHints
from modules.viewModel.FormField import FormField

if TYPE_CHECKING:
    from modules.ui.WindowTools import WindowTools


class Control(ABC):
    """What a person edits one option with. It shows a text and hands over texts; what they mean is the form's matter.

    Args:
        parent: frame that it is made in.
        one: the option.
        hints: what can be chosen.
        tools: the window's own.
        changed: gets a text that a person typed or chose.

    Attributes:
        frame: what is put into the form.
        focus: the widget that takes the keys.
    """

    frame: tk.Widget
    focus: tk.Widget

    def __init__(
        self, parent: tk.Misc, one: FormField, hints: FieldHints, tools: "WindowTools", changed: Callable[[str], None]
    ) -> None:
        self.one, self.hints, self.tools, self.changed = one, hints, tools, changed
        self.build(parent)

    @abstractmethod
    def build(self, parent: tk.Misc) -> None:
        """Makes `frame` and `focus`."""

    @abstractmethod
    def show(self, text: str, invalid: bool) -> None:
        """Shows a text without handing it over."""

    @abstractmethod
    def shown(self) -> str:
        """The text that it shows."""
