import tkinter as tk
from collections.abc import Callable
from tkinter import ttk
from typing import TYPE_CHECKING

from modules.ui.AskWindow import AskWindow
from modules.ui.FormView import FormView
from modules.ui.place_over import place_over
from modules.ui.TabBar import TabBar
from modules.ui.Timer import Timer
from modules.util.config.BaseConfig import BaseConfig
from modules.util.texts import later, tr
from modules.viewModel.FieldHints import FieldHints
from modules.viewModel.FormModel import FormModel
from modules.viewModel.UiSettings import ALL, BASIC

import customtkinter as ctk

if TYPE_CHECKING:
    from modules.ui.App import App

WIDTH, HEIGHT, FOCUS_MS = 660, 620, 50
SMALLEST = (420, 320)
GO_BACK, CLOSE = later("Go back"), later("Close")


class ItemWindow(ctk.CTkToplevel):
    """One config of a list, as a form made from its declarations. What is valid counts at once.

    Args:
        app: the window.
        title: of this one.
        item: what is edited; a copy is.
        changed: gets the edited copy after each change.
        size: width and height at 100 %.
        hints: made for the form, says what can be chosen and what should be known.

    Attributes:
        form: holds the values.
        views: chooses basic or all options.
        view: the form as it is seen.
        body: frame that holds `left`; more can be put beside it.
        left: frame that holds the form.
    """

    def __init__(
        self, app: "App", title: str, item: BaseConfig, changed: Callable[[BaseConfig], None],
        size: tuple[int, int] = (WIDTH, HEIGHT), hints: type[FieldHints] = FieldHints,
    ) -> None:  # fmt: skip
        super().__init__(app)
        self.withdraw()
        self._app, px = app, app.theme.px
        self.title(title)
        self.form = FormModel(item.model_copy(deep=True))
        self.body = ttk.Frame(self, style="Window.TFrame", padding=(px(12), px(10), px(4), px(8)))
        self.body.pack(fill="both", expand=True)
        self.left = ttk.Frame(self.body, style="Window.TFrame")
        self.left.pack(side="left", fill="both", expand=True)
        self.views = TabBar(self.left, app.theme, (BASIC, ALL), self._show_view)
        self.views.mark(app.settings.view)
        self.views.pack(anchor="w", pady=(0, px(6)))
        everything = app.settings.view == ALL
        self.view = FormView(self.left, app.tools, self.form, self.form.sections, hints(self.form), everything)
        self.view.pack(fill="both", expand=True)
        self.form.listen(lambda _: changed(self.form.config.model_copy(deep=True)))
        self.bind("<Escape>", lambda _: self.close())
        self.protocol("WM_DELETE_WINDOW", self.close)
        place_over(self, app, (px(size[0]), px(size[1])), (px(SMALLEST[0]), px(SMALLEST[1])))
        Timer(self, self._take_focus).start(FOCUS_MS)

    def close(self) -> bool:
        """Closes, after asking where something would be lost. False: it stays open."""
        if not self.may_close():
            return False
        self.destroy()
        return True

    def may_close(self) -> bool:
        """Asks, if a value was refused: the old one counts."""
        problems = self.form.problems()
        if not problems:
            return True
        wrong = "\n".join(self.form.line(problem) for problem in problems)
        question = tr("{wrong}\nThis does not count. Close all the same? The old value stays.", wrong=wrong)
        return AskWindow(self, self._app.tools, tr("A wrong value"), question, (GO_BACK, CLOSE)).ask() == CLOSE

    def let_go(self) -> None:
        """Closes as the item is no longer there; what is its alone is lost."""
        self.destroy()

    def on_close(self, action: Callable[[], None]) -> None:
        """Calls `action` when the window is gone."""

        def closed(event: tk.Event) -> None:
            if event.widget is self:
                action()

        self.bind("<Destroy>", closed, add="+")

    def _take_focus(self) -> None:
        self.lift()
        self.focus_force()

    def _show_view(self, view: str) -> None:
        self.views.mark(view)
        self.view.show_everything(view == ALL)
