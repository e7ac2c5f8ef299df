import tkinter as tk
from tkinter import ttk

from modules.ui.Flow import Flow
from modules.ui.FormView import FormView
from modules.ui.place_over import place_over
from modules.ui.SelectControl import SelectControl
from modules.ui.TabBar import TabBar
from modules.ui.widgets import enable
from modules.ui.WindowTools import WindowTools
from modules.util.texts import tr
from modules.viewModel.OptimizerForm import OptimizerForm
from modules.viewModel.recommended import RECOMMENDATIONS, Recommendation
from modules.viewModel.TrainForm import OPTIMIZER, TrainForm
from modules.viewModel.UiSettings import ALL, BASIC

import customtkinter as ctk

WIDTH, HEIGHT, SMALLEST = 1180, 700, (560, 320)


class OptimizerWindow(ctk.CTkToplevel):
    """The options of the chosen optimizer: exactly those that it has, with its defaults.

    Args:
        window: that it opens over.
        form: of the config that is edited; its catalog is loaded.
        view: basic or all options.
        beside: top and bottom, on the screen, of the row that it is opened from; None: it stands in the middle.

    Attributes:
        view: the form.
        optimizer: the control that chooses the optimizer.
        recommended: title -> button.
    """

    def __init__(
        self, window: tk.Misc, tools: WindowTools, form: TrainForm, view: str, beside: tuple[int, int] | None = None
    ) -> None:
        super().__init__(window)
        self.withdraw()
        assert form.catalog is not None
        self._whole, self._form = form, OptimizerForm(form, form.catalog)
        self.title(tr("Optimizer"))
        px = tools.theme.px
        body = ttk.Frame(self, style="Window.TFrame", padding=(px(12), px(10), px(4), px(8)))
        body.pack(fill="both", expand=True)
        head = ttk.Frame(body, style="Window.TFrame")
        head.pack(fill="x", padx=(0, px(8)))
        self.optimizer = SelectControl(
            head, form.fields[OPTIMIZER], self._form, tools, lambda text: form.set_text(OPTIMIZER, text)
        )
        self.optimizer.button.configure(width=28, style="Window.Select.TButton")
        self.optimizer.frame.pack(side="left")
        tools.tooltip.attach(self.optimizer.button, lambda: self._form.help(OPTIMIZER))
        reset = ttk.Button(head, text=tr("Reset all"), style="Window.TButton", command=self._form.reset)
        reset.pack(side="left", padx=px(8))
        tools.tooltip.attach(reset, lambda: tr("Gives every option the optimizer's own default."))
        self.views = TabBar(head, tools.theme, (BASIC, ALL), self._show_view)
        self.views.mark(view)
        self.views.pack(side="right")
        row = Flow(body, px(6), "Window.TFrame")
        row.pack(fill="x", pady=(px(8), px(8)), padx=(0, px(8)))
        label = ttk.Label(row, text=tr("Recommended:"), style="Muted.Window.TLabel")
        self.recommended: dict[str, ttk.Button] = {}
        for one in RECOMMENDATIONS:
            title, command = tr(one.title), lambda one=one: self._apply(one)
            button = ttk.Button(row, text=title, style="Window.TButton", command=command)
            tools.tooltip.attach(button, lambda one=one: self._form.explain(one))
            self.recommended[one.title] = button
        row.show((label, *self.recommended.values()))
        self._news = ttk.Label(body, style="Muted.Window.TLabel", justify="left")
        self.view = FormView(body, tools, form, self._form.sections(), self._form, view == ALL)
        self.view.pack(fill="both", expand=True)
        self._shown = self._signature()
        self._end = form.listen(lambda _: self._refresh())
        self.bind("<Escape>", lambda _: self.destroy())
        self.bind("<Destroy>", self._destroyed, add="+")
        place_over(self, window, (px(WIDTH), px(HEIGHT)), (px(SMALLEST[0]), px(SMALLEST[1])), beside)
        self._refresh()

    def show_field(self, path: str) -> bool:
        """Shows an option; False if the optimizer has none of this name."""
        one = self._whole.fields.get(path)
        if one is not None and one.is_advanced and not self.view.everything:
            self._show_view(ALL)
        return path == OPTIMIZER or self.view.show_field(path)

    def _refresh(self) -> None:
        self.optimizer.show(self._whole.text(OPTIMIZER), False)
        self._news.pack_forget()
        if self._signature() != self._shown:
            self._shown = self._signature()
            self.view.show_sections(self._form.sections())
            self.view.to_top()
        for one in RECOMMENDATIONS:
            why = self._form.why_not_recommended(one)
            enable(self.recommended[one.title], not why)

    def _signature(self) -> tuple[str, ...]:
        """What is shown. Another optimizer has other defaults, even for the same options."""
        paths = (one.path for section in self._form.sections() for one in section.fields)
        return str(self._form.chosen), *paths

    def _apply(self, one: Recommendation) -> None:
        done = ", ".join(self._form.apply(one))
        self._news.configure(text=tr("Set: {what}", what=done), wraplength=self.winfo_width() - 40)
        self._news.pack(fill="x", pady=(0, 6), before=self.view)

    def _show_view(self, view: str) -> None:
        self.views.mark(view)
        self.view.show_everything(view == ALL)

    def _destroyed(self, event: tk.Event) -> None:
        if event.widget is self:
            self._end()
