"""Shows the options of our optimizers in the optimizer window, by OneTrainer's own widgets of either toolkit."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from scaled_onetrainer.members import rule_of
from scaled_onetrainer.run_hook import place
from scaled_onetrainer.window_rows import DIALOG, DROPDOWN, ENTRY, Row, Section, sections_of

# the window's columns: a label and a widget, a gap, and a label and a widget
PAIRS, STRIDE = 2, 3


def apply(module: ModuleType) -> None:
    """`build_dynamic_content` shows our rows for our optimizers, and is what it was for others."""
    view = place(module, "BaseOptimizerParamsWindowView")
    build = place(view, "build_dynamic_content")

    def build_dynamic_content(
        self: Any,
        master: Any,
        controller: Any,
        optimizer_ui_state: Any,
        update_user_pref_cb: Callable[..., None],
        open_muon_adam_cb: Callable[..., None],
    ) -> None:
        name = str(controller.config.optimizer.optimizer)
        if rule_of(name) is None:
            build(self, master, controller, optimizer_ui_state, update_user_pref_cb, open_muon_adam_cb)
            return
        # the button of another optimizer, which is gone with its rows
        self.muon_adam_button = None

        def remember(*_: Any) -> None:
            # rows of this optimizer still stand when the values of the next one are set
            if str(controller.config.optimizer.optimizer) == name:
                update_user_pref_cb()

        build_sections(self.components, master, optimizer_ui_state, sections_of(name), remember, open_muon_adam_cb)
        # while values were set, the rows of the optimizer before remembered half of them for this one
        remember()

    view.build_dynamic_content = build_dynamic_content


def build_sections(
    components: Any,
    master: Any,
    ui_state: Any,
    sections: Sequence[Section],
    changed: Callable[..., None] | None,
    open_dialog: Callable[..., None] | None,
    first: int = 1,
) -> None:
    """Builds sections below each other, each with a heading and rows in two columns.

    Args:
        components: OneTrainer's functions that make widgets.
        master: the widget that they go into.
        ui_state: of the config that they change.
        changed: called after each change.
        open_dialog: called by the button of a DIALOG.
        first: row of the grid that the first heading is in.
    """
    line = first
    for section in sections:
        components.label(master, line, 0, section.title, underline=True)
        for place_, row in enumerate(section.rows):
            at, column = line + 1 + place_ // PAIRS, STRIDE * (place_ % PAIRS)
            components.label(master, at, column, row.title, tooltip=row.help, wide_tooltip=True)
            build_widget(components, master, at, column + 1, ui_state, row, changed, open_dialog)
        line += 1 + -(-len(section.rows) // PAIRS)


def build_widget(
    components: Any,
    master: Any,
    line: int,
    column: int,
    ui_state: Any,
    row: Row,
    changed: Callable[..., None] | None,
    open_dialog: Callable[..., None] | None,
) -> None:
    """Builds the widget of one row. Others: see `build_sections`."""
    if row.widget == DIALOG:
        components.button(master, line, column, "...", open_dialog, tooltip=row.help)
    elif row.widget == DROPDOWN:
        value = ui_state.get_var(row.key)
        if value.get() not in row.values:
            # null, which means the default
            value.set(row.default)
        components.options(master, line, column, list(row.values), ui_state, row.key, command=changed)
    elif row.widget == ENTRY:
        components.entry(master, line, column, ui_state, row.key, command=changed, extra_validate=row.check)
    else:
        components.switch(master, line, column, ui_state, row.key, command=changed)
