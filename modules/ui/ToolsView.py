import tempfile
import tkinter as tk
from collections.abc import Callable
from pathlib import Path
from tkinter import ttk
from typing import TYPE_CHECKING, Any

from modules.ui.TabBar import TabBar
from modules.ui.Timer import Timer
from modules.ui.ToolPage import Tool, ToolPage
from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.errors import ConfigError
from modules.util.UserError import UserError
from modules.viewModel import ToolModel
from modules.viewModel.FormModel import FormModel
from modules.viewModel.TensorBoard import TensorBoard
from modules.viewModel.ToolModel import ToolResult
from modules.viewModel.ToolProcess import ToolProcess

if TYPE_CHECKING:
    from modules.ui.App import App

TICK_MS = 250
TRY, CAPTIONS, ALPHA, INSPECT, CONVERT, MERGE, EXTRACT, RANK, COORD, MEMORY, BOARD = (
    "try a prompt", "captions", "alpha calculator", "adapter inspector", "converter", "merge", "extract",
    "effective rank", "coordinate check", "memory estimate", "TensorBoard",
)  # fmt: skip
TOOLS = (
    Tool(
        TRY, "Draws a prompt with the base model of the present config, alone and with an adapter. Nothing is trained.",
        "Draw", "The pictures appear here, beside one another. They are kept in the workspace, in images.",
    ),
    Tool(
        CAPTIONS, "Describes the images of a folder by a model. What you wrote yourself is never changed.",
        "Describe", "The captions appear here. They are written only where Preview is empty.",
    ),
    Tool(
        ALPHA, "Another alpha, with the learning rate and start values that go with it.", "Calculate",
        "What changes with alpha appears here, and can be taken into the config.", has_process=False,
    ),
    Tool(
        INSPECT, "What is in an adapter file, layer by layer.", "Inspect",
        "Kind, rank and alpha of the adapter, and a table of its layers, appear here.",
    ),
    Tool(
        CONVERT, "Another format, rank, alpha or kind. The read file stays as it is.", "Convert",
        "What was written appears here, and what a lower rank loses.",
    ),
    Tool(
        MERGE, "A base model with an adapter in it, for programs that load no adapters. What is read stays as it is.",
        "Merge", "What was written appears here.",
    ),
    Tool(
        EXTRACT, "The LoRA between two models: what a fine-tuned model has learned, as a small file.", "Extract",
        "What was written appears here, and what the rank loses.",
    ),
    Tool(
        RANK, "How many of their ranks the layers of an adapter really use.", "Plot",
        "A plot over the layers, and their table, appear here.",
    ),
    Tool(
        COORD, "How much one step of the present config changes the model, over ranks, block sizes and methods. Where "
        "it is as much, the learning rate holds for all.", "Measure",
        "A plot over sizes, and a table of all variants, appear here. Nothing is trained but a few steps in memory.",
    ),
    Tool(
        MEMORY, "Where the memory of a run of the present config will go, before its base model is loaded.",
        "Estimate", "What weights, gradients, optimizer and activations take appears here.",
    ),
    Tool(
        BOARD, "Shows the curves of all runs in the workspace of the present config in the browser.", "Open",
        "The address of TensorBoard appears here. It runs until the window is closed.",
    ),
)  # fmt: skip


class ToolsView(ttk.Frame):
    """Tools beside training, each with a form of its own and room for what it finds. They work beside the window.

    Args:
        parent: that it is put into.
        app: the window.

    Attributes:
        tabs: chooses the tool.
        pages: name -> the tool, of those shown so far.
        take: takes what the alpha calculator found into the config.
        board: TensorBoard.
    """

    def __init__(self, parent: tk.Misc, app: "App") -> None:
        super().__init__(parent, style="Window.TFrame")
        self._app, self.pages = app, {}
        self.board: TensorBoard = app.kept.setdefault("TensorBoard", TensorBoard())
        self._folder = tempfile.TemporaryDirectory()
        self._ticking = Timer(self, self._tick)
        self._start = ToolModel.alpha_start(app.form.config)
        self._wish: Any = None
        self.tabs = TabBar(self, app.theme, [tool.name for tool in TOOLS], self.show_tool)
        self.tabs.pack(fill="x", pady=(0, app.theme.px(6)))
        # in a narrow window they have more rows
        self.tabs.bind("<Configure>", lambda _: self._refit(), add="+")
        self.show_tool(ALPHA)
        alpha = self.pages[ALPHA]
        self.show_tool(TRY)
        self.take = ttk.Button(alpha.row, text="Take into the config", command=self.apply)
        self._end = app.form.listen(lambda _: self._config_changed())
        self.bind("<Destroy>", self._destroyed)

    def show_tool(self, name: str) -> None:
        """Brings a tool to the front."""
        for page in self.pages.values():
            page.pack_forget()
        if name not in self.pages:
            self.pages[name] = self._make(next(tool for tool in TOOLS if tool.name == name))
        self.pages[name].pack(fill="both", expand=True)
        self.tabs.mark(name)
        self._refit()

    def _refit(self) -> None:
        if self._app.views.get(self._app.tabs.current, (None, None))[1] is self:
            self._app.fit_tab()

    def least_height(self) -> int:
        """What the tabs and the tool that is shown need, in pixels."""
        page = self.pages[self.tabs.current]
        return self.tabs.winfo_reqheight() + self._app.theme.px(6) + page.least_height()

    def take_adapter(self, name: str, path: Path) -> None:
        """Brings a tool that reads an adapter to the front, with this one in it."""
        self.show_tool(name)
        self.pages[name].form.set_text("adapter", str(path))

    def run(self, name: str) -> None:
        """Does what a tool is for, on a worker's thread."""
        page = self.pages[name]
        if page.form is not None and (problems := page.form.check()):
            page.fail(UserError(page.form.line(problems[0])))
            return
        process, wish = ToolProcess(), page.form.config.model_copy(deep=True) if page.form is not None else None
        work = self._work(name, wish, process)
        if name == ALPHA:
            self._wish = wish
        page.begin(process)
        self._app.worker.run(
            work, lambda result: self._show(name, process, result), lambda error: self._fail(name, process, error)
        )
        if not self._ticking.waits:
            self._ticking.start(TICK_MS)

    def may_rebuild(self) -> bool:
        """Not while a tool works, which would end with its page."""
        working = [name for name, page in self.pages.items() if page.process is not None]
        if working:
            self._app.say(f"The size stays as it is, as the {working[0]} is at work. Cancel it, or wait for its end.")
        return not working

    def cancel(self, name: str) -> None:
        """Ends a tool that works; its page tells when that has happened."""
        page = self.pages[name]
        if page.process is not None:
            page.cancelling()
            self._app.worker.run(page.process.cancel, lambda _: None, lambda error: self._app.say(str(error)))

    def apply(self) -> None:
        """Takes what the alpha calculator found into the config."""
        page, form = self.pages[ALPHA], self._app.form
        if page.result is None:
            return
        try:
            values = ToolModel.values_for(form.config, self._wish, page.result)
            self.take.pack_forget()
            # the page keeps what it shows when the config changes
            page.result = None
            known = {path: value for path, value in values.items() if path in form.fields}
            form.set_values(known)
        except (UserError, ConfigError) as error:
            page.fail(error)
        else:
            self._app.say(f"Set: {', '.join(known)}")

    def _work(self, name: str, wish: Any, process: ToolProcess) -> Callable[[], ToolResult]:
        config = self._app.form.config.model_copy(deep=True)
        folder = Path(self._folder.name)
        works: dict[str, Callable[[], ToolResult]] = {
            TRY: lambda: ToolModel.try_prompt(config, wish, process),
            CAPTIONS: lambda: ToolModel.write_captions(config, wish, process),
            ALPHA: lambda: ToolModel.rebase(config, wish),
            INSPECT: lambda: ToolModel.inspect(wish, process),
            CONVERT: lambda: ToolModel.convert(wish, process),
            MERGE: lambda: ToolModel.merge(wish, process),
            EXTRACT: lambda: ToolModel.extract(wish, process),
            RANK: lambda: ToolModel.effective_rank(wish, folder / "ranks.png", process),
            COORD: lambda: ToolModel.coord_check(config, wish, folder / "coordinates.png", process),
            MEMORY: lambda: ToolModel.estimate_memory(config, process),
            BOARD: lambda: ToolModel.open_board(self.board, Path(config.workspace_dir), process),
        }
        return works[name]

    def _make(self, tool: Tool) -> ToolPage:
        inputs: dict[str, BaseConfig] = {
            TRY: ToolModel.TryInput(), CAPTIONS: ToolModel.CaptionInput(),
            ALPHA: ToolModel.alpha_input(self._app.form.config), INSPECT: ToolModel.InspectInput(),
            CONVERT: ToolModel.ConvertInput(), MERGE: ToolModel.MergeInput(), EXTRACT: ToolModel.ExtractInput(),
            RANK: ToolModel.RankInput(), COORD: ToolModel.CoordInput(),
        }  # fmt: skip
        forms = self._app.kept.setdefault("forms of tools", {})
        if tool.name in inputs and tool.name not in forms:
            forms[tool.name] = FormModel(inputs[tool.name])
        form = forms.get(tool.name)
        return ToolPage(self, self._app, tool, form, lambda: self.run(tool.name), lambda: self.cancel(tool.name))

    def _show(self, name: str, process: ToolProcess, result: ToolResult) -> None:
        if not self._awaits(name, process):
            return
        page = self.pages[name]
        page.show(result)
        if name == ALPHA and result.values:
            self.take.pack(side="left", padx=(self._app.theme.px(6), 0), after=page.button)
        elif name == ALPHA:
            self.take.pack_forget()

    def _fail(self, name: str, process: ToolProcess, error: Exception) -> None:
        if self._awaits(name, process):
            self.pages[name].fail(error)

    def _awaits(self, name: str, process: ToolProcess) -> bool:
        return bool(self.winfo_exists()) and self.pages[name].process is process

    def _config_changed(self) -> None:
        """The calculator starts from what the config has now; what it found for another one can't be taken."""
        start, page = ToolModel.alpha_start(self._app.form.config), self.pages[ALPHA]
        if start == self._start:
            return
        self._start = start
        page.form.replace(ToolModel.alpha_input(self._app.form.config))
        if page.result is not None or page.process is not None:
            self.take.pack_forget()
            page.clear()

    def _tick(self) -> None:
        working = [page for page in self.pages.values() if page.process is not None]
        for page in working:
            page.tick()
        if working:
            self._ticking.start(TICK_MS)

    def _destroyed(self, event: tk.Event) -> None:
        if event.widget is not self:
            return
        self._end()
        for page in self.pages.values():
            if page.process is not None:
                page.process.cancel()
        self._folder.cleanup()
