import tkinter as tk
from collections.abc import Callable
from tkinter import ttk
from typing import TYPE_CHECKING

from modules.ui.FormView import FormView
from modules.util.config.BaseConfig import BaseConfig
from modules.viewModel.FormModel import FormModel
from modules.viewModel.UiSettings import ALL

import customtkinter as ctk

if TYPE_CHECKING:
    from modules.ui.App import App

WIDTH, HEIGHT = 660, 620


class ItemWindow(ctk.CTkToplevel):
    """One config of a list, as a form made from its declarations. What is valid counts at once.

    Args:
        app: the window.
        title: of this one.
        item: what is edited; a copy is.
        changed: gets the edited copy after each change.
        size: width and height at 100 %.

    Attributes:
        form: holds the values.
        view: the form as it is seen.
        body: frame that holds the view; more can be put beside it.
    """

    def __init__(
        self, app: "App", title: str, item: BaseConfig, changed: Callable[[BaseConfig], None],
        size: tuple[int, int] = (WIDTH, HEIGHT),
    ) -> None:  # fmt: skip
        super().__init__(app)
        self.withdraw()
        px = app.theme.px
        self.title(title)
        self.form = FormModel(item.model_copy(deep=True))
        self.body = ttk.Frame(self, style="Window.TFrame", padding=(px(12), px(10), px(4), px(8)))
        self.body.pack(fill="both", expand=True)
        everything = app.settings.view == ALL
        self.view = FormView(self.body, app.tools, self.form, self.form.sections, everything=everything)
        self.view.pack(side="left", fill="both", expand=True)
        self.form.listen(lambda _: changed(self.form.config.model_copy(deep=True)))
        self.bind("<Escape>", lambda _: self.destroy())
        self.minsize(420, 320)
        wide, high = min(px(size[0]), app.winfo_width() - 40), min(px(size[1]), app.winfo_height() - 60)
        left = app.winfo_rootx() + (app.winfo_width() - wide) // 2
        self.wm_geometry(f"{max(wide, 420)}x{max(high, 320)}+{max(0, left)}+{app.winfo_rooty() + 40}")
        self.deiconify()
        self.after(50, self._take_focus)

    def _take_focus(self) -> None:
        if self.winfo_exists():
            self.lift()
            self.focus_force()

    def on_close(self, action: Callable[[], None]) -> None:
        """Calls `action` when the window is gone."""

        def closed(event: tk.Event) -> None:
            if event.widget is self:
                action()

        self.bind("<Destroy>", closed, add="+")
