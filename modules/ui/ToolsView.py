import tempfile
import tkinter as tk
from collections.abc import Callable
from pathlib import Path
from tkinter import ttk
from typing import TYPE_CHECKING, Any

from modules.ui.TabBar import TabBar
from modules.ui.Timer import Timer
from modules.ui.ToolPage import ToolPage
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.errors import ConfigError
from modules.util.texts import tr
from modules.util.UserError import UserError
from modules.viewModel.FormModel import FormModel
from modules.viewModel.paths import portable
from modules.viewModel.TensorBoard import TensorBoard
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.all_tools import all_tools
from modules.viewModel.tools.alpha import ALPHA, alpha_input, alpha_start, values_for
from modules.viewModel.tools.captions import CAPTIONS
from modules.viewModel.tools.Tool import Tool, ToolCall
from modules.viewModel.tools.ToolResult import ToolResult
from modules.viewModel.tools.try_prompt import TRY

if TYPE_CHECKING:
    from modules.ui.App import App

TICK_MS = 250


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
        self._start = alpha_start(app.form.config)
        self._wish: Any = None
        self._tools = {tool.name: tool for tool in all_tools()}
        self.tabs = TabBar(self, app.theme, list(self._tools), self.show_tool)
        self.tabs.pack(fill="x", pady=(0, app.theme.px(6)))
        # in a narrow window they have more rows
        self.tabs.bind("<Configure>", lambda _: self._refit(), add="+")
        self.show_tool(ALPHA)
        alpha = self.pages[ALPHA]
        self.show_tool(TRY)
        self.take = ttk.Button(alpha.row, text=tr("Take into the config"), command=self.apply)
        self._end = app.form.listen(lambda _: self._config_changed())
        self.bind("<Destroy>", self._destroyed)

    def show_tool(self, name: str) -> None:
        """Brings a tool to the front."""
        for page in self.pages.values():
            page.pack_forget()
        if name not in self.pages:
            self.pages[name] = self._make(self._tools[name])
            if name == CAPTIONS:
                self._offer_reading(self.pages[name])
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
        self.pages[name].form.set_text("adapter", portable(path))

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

    def _offer_reading(self, page: ToolPage) -> None:
        """A button that opens the captions of the folder, to read and correct them."""
        self.read_button = ttk.Button(page.row, text=tr("Read the captions"), command=self.read_captions)
        self.read_button.pack(side="right", padx=(self._app.theme.px(6), 0), before=page.button)

    def read_captions(self) -> None:
        """Opens the pictures and captions of the folder that the captioning tool works on."""
        wish = self.pages[CAPTIONS].form.config
        if wish.folder.strip():
            folder = ConceptConfig(path=wish.folder, include_subdirectories=wish.subfolders)
            self._app.open_pictures(folder)
        else:
            self.pages[CAPTIONS].fail(UserError(tr("Choose the folder of your images first.")))

    def may_rebuild(self) -> bool:
        """Not while a tool works, which would end with its page."""
        working = [name for name, page in self.pages.items() if page.process is not None]
        if working:
            self._app.say(
                tr(
                    "Size and language stay as they are, as the {tool} is at work. Cancel it, or wait for its end.",
                    tool=tr(working[0]),
                )
            )
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
            values = values_for(form.config, self._wish, page.result)
            self.take.pack_forget()
            # the page keeps what it shows when the config changes
            page.result = None
            known = {path: value for path, value in values.items() if path in form.fields}
            form.set_values(known)
        except (UserError, ConfigError) as error:
            page.fail(error)
        else:
            self._app.say(tr("Set: {what}", what=", ".join(known)))

    def _work(self, name: str, wish: Any, process: ToolProcess) -> Callable[[], ToolResult]:
        call = ToolCall(self._app.form.config.model_copy(deep=True), wish, process, Path(self._folder.name), self.board)
        return lambda: self._tools[name].run(call)

    def _make(self, tool: Tool) -> ToolPage:
        forms = self._app.kept.setdefault("forms of tools", {})
        if tool.form is not None and tool.name not in forms:
            forms[tool.name] = FormModel(tool.form(self._app.form.config))
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
        start, page = alpha_start(self._app.form.config), self.pages[ALPHA]
        if start == self._start:
            return
        self._start = start
        page.form.replace(alpha_input(self._app.form.config))
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
