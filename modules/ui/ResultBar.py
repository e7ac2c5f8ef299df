import tkinter as tk
from collections.abc import Callable
from pathlib import Path
from tkinter import filedialog, ttk
from typing import TYPE_CHECKING

from modules.ui.AskWindow import AskWindow
from modules.ui.Flow import Flow
from modules.ui.ShortLabel import ShortLabel
from modules.ui.tabs import TOOLS_TAB
from modules.ui.write_file import CANCEL, REPLACE, write_file
from modules.util.texts import later, tr
from modules.util.UserError import UserError
from modules.viewModel import RunResult
from modules.viewModel.paths import portable
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.converter import CONVERT
from modules.viewModel.tools.try_prompt import TRY

if TYPE_CHECKING:
    from modules.ui.App import App

BOTH = later("Keep both")
# what whole models and embeddings have, too
OPEN, PAGE = later("Open folder"), later("Page of the run")
FOR_ALL = (OPEN, PAGE)


class ResultBar(ttk.Frame):
    """What a run has made, and what comes next: it is seen when a run has ended and has saved something.

    Args:
        parent: that it is put into, with `pack`.
        app: the window.

    Attributes:
        buttons: by what they say in English.
    """

    def __init__(self, parent: tk.Misc, app: "App") -> None:
        super().__init__(parent)
        self._app = app
        self._path: ShortLabel | None = None
        self._result: RunResult.RunResult | None = None
        self.buttons: dict[str, ttk.Button] = {}
        self._row = Flow(self, app.theme.px(6))
        self._row.pack(fill="x")
        for text, help, command in (
            (OPEN, tr("Shows the file in the system's own window."), self.open_folder),
            (later("Try a prompt"), tr("Draws with it, beside the base model alone."), lambda: self._to_tool(TRY)),
            (
                later("ComfyUI workflow"), tr("Writes a workflow beside it; drop that onto ComfyUI's window."),
                self.write_workflow,
            ),
            (later("Copy to ComfyUI …"), tr("Copies it to where ComfyUI looks for adapters."), self.copy),
            (PAGE, tr("Curves, pictures and options as one HTML file, to send to somebody."), self.write_page),
            (later("Convert"), tr("Another format, rank, alpha or kind."), lambda: self._to_tool(CONVERT)),
        ):  # fmt: skip
            button = ttk.Button(self._row, text=tr(text), command=command)
            app.tools.tooltip.attach(button, lambda help=help: help)
            self.buttons[text] = button

    def refresh(self) -> None:
        """Shows what the run of now has made."""
        found = RunResult.result_of(self._app.runs.controller.model)
        if found == self._result:
            return
        self._result = found
        if self._path is not None:
            self._path.destroy()
            self._path = None
        if found is None:
            self.pack_forget()
            return
        px = self._app.theme.px
        self._row.show(button for text, button in self.buttons.items() if found.is_adapter or text in FOR_ALL)
        self._path = ShortLabel(self, portable(found.path), "Muted.TLabel")
        self._path.pack(fill="x", pady=(px(3), 0))
        self._app.tools.tooltip.attach(self._path, lambda: str(found.path))
        self.pack(fill="x", pady=(px(4), 0))

    def open_folder(self) -> None:
        """Shows the folder of the file."""
        self._app.say(RunResult.show_in_folder(self._result.path))

    def write_workflow(self) -> None:
        """Writes a workflow for ComfyUI beside the adapter."""
        target = self._result.workflow
        done = tr("Written: {file}. Drop it onto ComfyUI's window; a note in it says the rest.", file=portable(target))
        self._write(tr("Writing the workflow …"), target, RunResult.write_workflow, done)

    def write_page(self) -> None:
        """Writes the run as one HTML file beside what it has saved."""
        done = tr("Written: {file}. Any browser shows it.", file=portable(self._result.page))
        self._write(tr("Writing the page …"), self._result.page, RunResult.write_page, done)

    def _write(self, begun: str, target: Path, write: Callable[..., str], done: str) -> None:
        """Writes a file beside the result."""
        result = self._result
        write_file(self._app, begun, target, lambda overwrite: write(result, overwrite, ToolProcess()), done)

    def copy(self) -> None:
        """Copies the adapter into ComfyUI, whose folder is asked for once."""
        app = self._app
        kept = app.settings.comfy
        folder = kept if kept and Path(kept).is_dir() else self._asked_folder()
        if not folder:
            return
        try:
            replace = False
            if other := RunResult.other_in_comfy(self._result, Path(folder)):
                question = tr("{file} exists, with another content.", file=other)
                answer = AskWindow(app, app.tools, tr("Copy to ComfyUI"), question, (BOTH, REPLACE, CANCEL)).ask()
                if answer not in (BOTH, REPLACE):
                    return
                replace = answer == REPLACE
            copied = RunResult.copy_to_comfy(self._result, Path(folder), replace)
        except (UserError, OSError) as error:
            # another folder may be the right one
            app.settings.comfy = ""
            app.say(str(error))
            return
        app.settings.comfy = str(folder)
        app.say(tr("Copied: {file}. Press R in ComfyUI, so that it is found.", file=portable(copied)))

    def _asked_folder(self) -> str:
        return filedialog.askdirectory(parent=self, title=tr("The folder of ComfyUI"), mustexist=True)

    def _to_tool(self, name: str) -> None:
        self._app.show_tab(TOOLS_TAB)
        self._app.views[TOOLS_TAB][1].take_adapter(name, self._result.path)
