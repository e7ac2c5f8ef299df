import tkinter as tk
from collections.abc import Sequence
from tkinter import ttk
from typing import TYPE_CHECKING

from modules.ui.TableView import Column, TableView
from modules.util.texts import tr, tr_n
from modules.viewModel.config_difference import Difference
from modules.viewModel.run_curves import names_of
from modules.viewModel.run_list import ListedRun
from modules.viewModel.RunsModel import RunsModel

if TYPE_CHECKING:
    from modules.ui.App import App

OPTION, VALUE = 260, 220


class RunOptionsPage(ttk.Frame):
    """The options in which some runs differ; one alone is compared with the program's defaults.

    Args:
        parent: that it is put into.
        app: the window.
        model: knows the runs.

    Attributes:
        table: of them.
        note: how many there are.
    """

    def __init__(self, parent: tk.Misc, app: "App", model: RunsModel) -> None:
        super().__init__(parent)
        self._app, self._model = app, model
        self._asked: tuple[str, ...] = ()
        self._found: dict[str, Difference] = {}
        self.note = ttk.Label(self, style="Muted.TLabel")
        self.note.pack(fill="x", pady=(0, app.theme.px(4)))
        self.table = TableView(self, app.theme, [Column("", OPTION)], several=False, across=True)
        self.table.pack(fill="both", expand=True)
        self.table.attach(app.tools.tooltip, self._help)

    def show(self) -> None:
        """Shows those that are looked at, if they are others than before."""
        asked = tuple(run.key for run in self._model.runs)
        if asked == self._asked:
            return
        self._asked = asked
        if not asked:
            self._clear(tr("Choose runs above, with Ctrl or Shift several."))
            return
        catalog = self._app.form.catalog
        self._model.compare(catalog.defaults if catalog is not None else None, self._take, self._failed)

    def _take(self, runs: Sequence[ListedRun], found: Sequence[Difference]) -> None:
        if not self.winfo_exists():
            return
        if not runs:
            self._clear(tr("Nothing is known of what was set in these runs."))
            return
        names = [*names_of(runs), *([tr("default")] if len(runs) == 1 else [])]
        self.table.set_columns([Column(tr("option"), OPTION), *(Column(name, VALUE, 1) for name in names)])
        self._found = {one.path: one for one in found}
        self.table.show([(one.path, (one.title, *one.values), "" if one.matters else "muted") for one in found])
        text = tr_n("{n} option differs.", "{n} options differ.", len(found))
        self.note.configure(text=f"{text} {tr('Grey ones do not change what is trained.')}")

    def _failed(self, error: Exception) -> None:
        if self.winfo_exists():
            self._clear(str(error))

    def _clear(self, note: str) -> None:
        self.table.show([])
        self.note.configure(text=" ".join(note.split()))

    def _help(self, path: str) -> str:
        one = self._found.get(path)
        return "\n".join([one.title, f"({one.path})", *one.values]) if one is not None else ""
