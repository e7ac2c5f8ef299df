from tkinter import ttk

from modules.ui.Control import Control
from modules.ui.EntryControl import EntryControl
from modules.ui.SelectControl import SelectControl
from modules.ui.SwitchControl import SwitchControl
from modules.ui.Timer import Timer
from modules.ui.widgets import focused
from modules.ui.WindowTools import WindowTools
from modules.util.texts import tr
from modules.viewModel.FieldHints import NOTHING, FieldHints
from modules.viewModel.FormField import FormField
from modules.viewModel.FormModel import FormModel

LABEL_WIDTH, UNIT_WIDTH = 170, 90
# half-typed numbers are wrong numbers; nobody wants to be told while typing
PATIENCE_MS, FLASH_MS = 700, 1600


class FieldRow:
    """One option in a form: title, control, unit, a mark that gives back the default, and what is wrong.

    Args:
        parent: a frame with a grid, of which it takes the rows `2·place` and `2·place + 1`.
        place: in that frame.
        one: the option.
        form: holds the values.
        hints: what can be chosen, and what an empty field stands for.
        tools: the window's own.
    """

    def __init__(
        self, parent: ttk.Frame, place: int, one: FormField, form: FormModel, hints: FieldHints, tools: WindowTools
    ) -> None:
        self.one, self._form, self._hints, self._tools = one, form, hints, tools
        self._parent, self._row = parent, 2 * place
        px = tools.theme.px
        self.label = ttk.Label(parent, text=tr(one.declared.title), wraplength=px(LABEL_WIDTH), justify="left")
        self._body = ttk.Frame(parent)
        self.control = control_class(one, hints)(self._body, one, hints, tools, self._typed)
        self.control.frame.pack(side="left", fill="x", expand=True)
        self.unit: Control | None = None
        if one.unit_path:
            unit = form.fields[one.unit_path]
            self.unit = SelectControl(self._body, unit, hints, tools, lambda text: self._set(unit.path, text))
            self.unit.frame.pack(side="left", padx=(px(6), 0), ipadx=px(36))
        elif one.declared.unit:
            unit = ttk.Label(self._body, text=tr(one.declared.unit), style="Muted.TLabel", wraplength=px(UNIT_WIDTH))
            unit.pack(side="left", padx=(px(6), 0))
        self._undo = ttk.Button(parent, text="↺", style="Clear.TButton", width=2, command=self.reset)
        self._error: ttk.Label | None = None
        self._note: ttk.Label | None = None
        self._patience, self._flash = Timer(self.label, self._show_error), Timer(self.label, self._calm)
        self.visible = False
        tools.tooltip.attach(self.label, self._help, self._body)
        tools.tooltip.attach(self.control.focus, self._help, self.label)
        tools.tooltip.attach(self._undo, lambda: tr("Back to the default: {value}", value=self._default_text()))
        self.control.focus.bind("<FocusOut>", lambda _: self._show_error(), add="+")
        self.control.focus.bind("<Return>", lambda _: self._show_error(), add="+")

    @property
    def paths(self) -> tuple[str, ...]:
        """The options that it edits: its own, and the one that holds its unit."""
        return (self.one.path, self.unit.one.path) if self.unit else (self.one.path,)

    @property
    def error(self) -> str:
        """What it says is wrong, empty if nothing."""
        return str(self._error.cget("text")) if self._error is not None and self._error.winfo_manager() else ""

    def set_visible(self, visible: bool) -> None:
        """Shows or hides the row."""
        if visible == self.visible:
            return
        self.visible = visible
        px = self._tools.theme.px
        if visible:
            self.label.grid(row=self._row, column=0, sticky="w", padx=(px(12), px(8)), pady=px(3))
            self._body.grid(row=self._row, column=1, sticky="we", pady=px(3))
            self.refresh()
        else:
            for widget in (self.label, self._body, self._undo, self._error, self._note):
                if widget is not None:
                    widget.grid_remove()

    def refresh(self) -> None:
        """Shows what the form has."""
        error = self._form.complaint(self.one.path)
        self.control.show(self._shown(), bool(error))
        if self.unit is not None:
            self.unit.show(self._form.text(self.unit.one.path), False)
        if not self.visible:
            return
        # one click must not drop a whole list
        whole = self.one.kind.kind in (list, dict) and not self.one.declared.secret
        modified = self._form.is_modified(self.one.path) and not whole
        if modified == bool(self._undo.winfo_manager()):
            pass
        elif modified:
            self._undo.grid(row=self._row, column=2, padx=(self._tools.theme.px(2), self._tools.theme.px(8)))
        else:
            self._undo.grid_remove()
        if error and not self.error and self._has_focus():
            self._patience.start(PATIENCE_MS)
        else:
            self._show_error()
        self.show_note()

    @property
    def note(self) -> str:
        """What stands below it that is not wrong but should be known, empty if nothing does."""
        return str(self._note.cget("text")) if self._note is not None and self._note.winfo_manager() else ""

    def show_note(self) -> None:
        """Shows what should be known of its value; that may depend on other options."""
        found = self._hints.note(self.one.path) if self.visible and not self.error else NOTHING
        if found.text == self.note:
            return
        if self._note is None:
            wide = self._body.winfo_width()
            wide = wide if wide > 1 else self._tools.theme.px(280)
            self._note = ttk.Label(self._parent, justify="left", wraplength=wide)
            self._note.bind("<Configure>", lambda event: self._note.configure(wraplength=max(1, event.width)))
        self._note.configure(text=found.text, style="Note.TLabel" if found.warns else "Muted.TLabel")
        if found.text:
            pady = (0, self._tools.theme.px(4))
            self._note.grid(row=self._row + 1, column=1, columnspan=2, sticky="we", pady=pady)
        else:
            self._note.grid_remove()

    def reset(self) -> None:
        """Gives the option its default."""
        for path in self.paths:
            self._form.reset(path)
        # an option that matters no more takes its row along
        if self.label.winfo_exists():
            self.control.focus.focus_set()

    def flash(self) -> None:
        """Draws the eye to it."""
        self.label.configure(style="Flash.TLabel")
        self._flash.start(FLASH_MS)

    def lift(self) -> None:
        """Puts it behind the others in the order of the Tab key."""
        for widget in (self.label, self._body, self._undo):
            widget.lift()

    def _shown(self) -> str:
        switch = isinstance(self.control, SwitchControl)
        return self._hints.shown_text(self.one.path) if switch else self._form.text(self.one.path)

    def _typed(self, text: str) -> None:
        self._set(self.one.path, text)

    def _set(self, path: str, text: str) -> None:
        self._form.set_text(path, text)

    def _has_focus(self) -> bool:
        return focused(self.label) is self.control.focus

    def _calm(self) -> None:
        self.label.configure(style="TLabel")

    def _show_error(self) -> None:
        self._patience.stop()
        error = self._form.complaint(self.one.path)
        if not error or not self.visible:
            if self.error:
                self._error.grid_remove()
                self.show_note()
            return
        if self._note is not None:
            self._note.grid_remove()
        if self._error is None:
            self._error = ttk.Label(self._parent, style="Error.TLabel", justify="left")
        wide = self._body.winfo_width()
        self._error.configure(text=error, wraplength=wide if wide > 1 else self._tools.theme.px(280))
        self._error.grid(row=self._row + 1, column=1, columnspan=2, sticky="w", pady=(0, self._tools.theme.px(4)))

    def _help(self) -> str:
        return f"{self.one.path}\n{self._hints.help(self.one.path)}"

    def _default_text(self) -> str:
        return self._hints.default_text(self.one.path)


def control_class(one: FormField, hints: FieldHints) -> type[Control]:
    """The kind of control that suits an option."""
    if one.kind.kind is bool and (not one.kind.nullable or hints.default(one.path) is not None):
        return SwitchControl
    if one.kind.kind is bool or one.kind.is_enum:
        return SelectControl
    return EntryControl
