import tkinter as tk
from collections.abc import Callable
from tkinter import ttk

from modules.ui.ChoiceButton import ChoiceButton
from modules.ui.ScrollFrame import ScrollFrame
from modules.ui.TextPane import TextPane
from modules.ui.Timer import Timer
from modules.ui.widgets import enable
from modules.ui.WindowTools import WindowTools
from modules.util.texts import tr
from modules.viewModel.caption_edits import Action, Edit, Within
from modules.viewModel.edit_names import action_name, field_name, help_of, offered, scope_name, within_name
from modules.viewModel.FieldHints import Choice
from modules.viewModel.PictureEditor import Plan

SETTLE_MS = 200
ALL, SHOWN = "all", "shown"


class ReplacePane(ttk.Frame):
    """One change for many captions: replace, add, remove, with a look at what would change.

    Args:
        parent: that it is put into.
        tools: the window's own.
        plan: (edit, whether all pictures count) -> what it would change.
        apply: does it.

    Attributes:
        action, within, scope: what is chosen.
        text, by: the fields.
        case: whether capitals count.
        heading: how many captions change.
        examples: the first of them.
        button: does it.
        planned: what would change; None while nothing is typed.
    """

    def __init__(
        self, parent: tk.Misc, tools: WindowTools, plan: Callable[[Edit, bool], Plan], apply: Callable[[Plan], None]
    ) -> None:
        super().__init__(parent, style="Card.TFrame", padding=tools.theme.px(10))
        self._plan, self._apply, px = plan, apply, tools.theme.px
        self.planned: Plan | None = None
        self._locked = False
        self._waiting = Timer(self, self.refresh)
        # in a low window the fields are scrolled
        self._scroll = ScrollFrame(self, tools.theme, "card", fills=True)
        self._form = ttk.Frame(self._scroll.inside)
        self._form.pack(fill="both", expand=True)
        self.action = self._choice(tools, [Choice(one, action_name(one)) for one in Action], self._arrange)
        self._labels = [ttk.Label(self._form, style="Small.TLabel") for _ in range(2)]
        self._variables = [tk.StringVar(self) for _ in range(2)]
        self.text, self.by = (ttk.Entry(self._form, textvariable=one) for one in self._variables)
        for variable in self._variables:
            variable.trace_add("write", lambda *_: self.refresh_soon())
        for entry in (self.text, self.by):
            entry.bind("<Return>", lambda _: self.run())
        self.within = self._choice(tools, [Choice(one, within_name(one)) for one in Within], self.refresh)
        self._case = tk.BooleanVar(self, False)
        self.case = ttk.Checkbutton(
            self._form,
            text="  " + tr("Capitals count"),
            style="Switch.TCheckbutton",
            variable=self._case,
            command=self.refresh,
        )
        self.scope = self._choice(
            tools, [Choice(ALL, scope_name(True)), Choice(SHOWN, scope_name(False))], self.refresh
        )
        self._help = ttk.Label(self._form, style="Muted.TLabel", justify="left", anchor="w")
        self._help.bind("<Configure>", lambda event: self._help.configure(wraplength=event.width))
        self.heading = ttk.Label(self._form, style="Bold.TLabel", justify="left", anchor="w")
        self.heading.bind("<Configure>", lambda event: self.heading.configure(wraplength=event.width))
        self.examples = TextPane(self._form, tools.theme)
        self.button = ttk.Button(self, text=tr("Change them"), style="Accent.TButton", command=self.run)
        self._gap = px(4)
        self.button.pack(side="bottom", anchor="w", pady=(self._gap, 0))
        self._scroll.pack(fill="both", expand=True)
        self._arrange()

    def _choice(self, tools: WindowTools, choices: list[Choice], chosen: Callable[[], None]) -> ChoiceButton:
        return ChoiceButton(self._form, tools, choices, chosen)

    @property
    def everywhere(self) -> bool:
        """Whether all pictures count, not only those shown."""
        return self.scope.chosen == ALL

    def run(self) -> None:
        """Does what is planned, as it is typed now."""
        self.refresh()
        if self.planned is not None and self.planned.changes and not self._locked:
            self._apply(self.planned)

    def lock(self, locked: bool) -> None:
        """Keeps it from being done, or no longer."""
        self._locked = locked
        self.refresh()

    def refresh_soon(self) -> None:
        """Plans anew when nothing is typed for a moment."""
        self._waiting.start(SETTLE_MS)

    def refresh(self) -> None:
        """Plans anew, if it can be seen."""
        self._waiting.stop()
        if not self.winfo_ismapped():
            return
        edit = Edit(
            Action(self.action.chosen), self._variables[0].get(), self._variables[1].get(), Within(self.within.chosen),
            self._case.get(),
        )  # fmt: skip
        self.planned = self._plan(edit, self.everywhere)
        self.heading.configure(text=self.planned.heading)
        self.examples.show(self.planned.lines)
        enable(self.button, bool(self.planned.changes) and not self._locked)

    def _arrange(self) -> None:
        """Shows the fields that the action has."""
        action = Action(self.action.chosen)
        self.within.offer([Choice(one, within_name(one)) for one in offered(action)])
        for widget in self._form.winfo_children():
            widget.pack_forget()
        self._labels[0].configure(text=field_name(action))
        self._labels[1].configure(text=tr("By"))
        self._help.configure(text=help_of(action))
        rows: list[tk.Widget] = [self.action, self._help, self._labels[0], self.text]
        rows += [self._labels[1], self.by] if action == Action.REPLACE else []
        rows += [self.within]
        rows += [self.case] if action in (Action.REPLACE, Action.REMOVE) else []
        for widget in (*rows, self.scope, self.heading):
            widget.pack(fill="x", pady=(self._gap, 0))
        self.examples.pack(fill="both", expand=True, pady=(self._gap, 0))
        self.refresh()
