import tempfile
import tkinter as tk
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tkinter import ttk
from typing import TYPE_CHECKING, Any

from modules.ui.FormView import FormView
from modules.ui.TabBar import TabBar
from modules.ui.TextPane import TextPane
from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.errors import ConfigError
from modules.viewModel import ToolModel
from modules.viewModel.FormModel import FormModel
from modules.viewModel.ToolModel import ToolResult

from PIL import Image, ImageTk

if TYPE_CHECKING:
    from modules.ui.App import App

FORM_WIDTH = 590
ALPHA, INSPECT, CONVERT, RANK, MEMORY, BOARD = (
    "alpha calculator", "adapter inspector", "converter", "effective rank", "memory estimate", "TensorBoard",
)  # fmt: skip
HELPS = {
    ALPHA: "Another alpha, with the learning rate and start values that keep training what it was.",
    INSPECT: "What is in an adapter file, layer by layer.",
    CONVERT: "Another format, rank, alpha or kind. The read file stays as it is.",
    RANK: "How many of their ranks the layers of an adapter really use.",
    MEMORY: "Where the memory of a run of the present config will go, before its base model is loaded.",
    BOARD: "Shows the curves of all runs in the workspace of the present config in the browser.",
}
DO = {ALPHA: "Calculate", INSPECT: "Inspect", CONVERT: "Convert", RANK: "Plot", MEMORY: "Estimate", BOARD: "Open"}


@dataclass
class _Page:
    """One tool: its frame, its form (None: it has no options), its button, and where its result stands."""

    frame: ttk.Frame
    form: FormModel | None
    button: ttk.Button
    apply: ttk.Button
    note: ttk.Label
    text: TextPane
    picture: tk.Label
    result: ToolResult | None = None
    photo: Any = None


class ToolsView(ttk.Frame):
    """Tools beside training, each with a form of its own and room for what it finds. They work beside the window.

    Args:
        parent: that it is put into.
        app: the window.

    Attributes:
        tabs: chooses the tool.
        pages: name -> the tool, of those shown so far.
        board: TensorBoard.
    """

    def __init__(self, parent: tk.Misc, app: "App") -> None:
        super().__init__(parent, style="Window.TFrame")
        self._app, self.pages, self.board = app, {}, ToolModel.TensorBoard()
        self._folder = tempfile.TemporaryDirectory()
        self.tabs = TabBar(self, app.theme, tuple(HELPS), self.show_tool)
        self.tabs.pack(anchor="w", pady=(0, app.theme.px(6)))
        self.bind("<Destroy>", self._destroyed)
        self.show_tool(ALPHA)

    def show_tool(self, name: str) -> None:
        """Brings a tool to the front."""
        for page in self.pages.values():
            page.frame.pack_forget()
        if name not in self.pages:
            self.pages[name] = self._make(name)
        self.pages[name].frame.pack(fill="both", expand=True)
        self.tabs.mark(name)

    def refresh(self) -> None:
        """The calculator starts from another config now."""
        if ALPHA in self.pages:
            self.pages[ALPHA].form.replace(ToolModel.alpha_input(self._app.form.config))

    def run(self, name: str) -> None:
        """Does what a tool is for, on a worker's thread."""
        page = self.pages[name]
        if page.form is not None and (problems := page.form.check()):
            self._show_error(page, str(problems[0]))
            return
        work = self._work(name, page.form.config.model_copy(deep=True) if page.form is not None else None)
        page.button.state(["disabled"])
        page.note.configure(text="Working …", style="Muted.TLabel")
        self._app.worker.run(
            work, lambda result: self._show(page, result), lambda error: self._show_error(page, str(error))
        )

    def apply(self) -> None:
        """Takes what the alpha calculator found into the config."""
        result = self.pages[ALPHA].result
        if result is not None and result.values:
            known = {path: value for path, value in result.values.items() if path in self._app.form.fields}
            try:
                self._app.form.set_values(known)
            except ConfigError as error:
                self._show_error(self.pages[ALPHA], str(error))
                return
            self._app.say(f"Set: {', '.join(known)}")

    def _work(self, name: str, wish: Any) -> Callable[[], ToolResult]:
        config = self._app.form.config.model_copy(deep=True)
        if name == BOARD:
            return lambda: self._open_board(Path(config.workspace_dir))
        picture = Path(self._folder.name) / "ranks.png"
        works: dict[str, Callable[[], ToolResult]] = {
            ALPHA: lambda: ToolModel.rebase(config, wish), INSPECT: lambda: ToolModel.inspect(wish),
            CONVERT: lambda: ToolModel.convert(wish), RANK: lambda: ToolModel.effective_rank(wish, picture),
            MEMORY: lambda: ToolModel.estimate_memory(config),
        }  # fmt: skip
        return works[name]

    def _open_board(self, workspace: Path) -> ToolResult:
        address = self.board.open(workspace)
        webbrowser.open(address)
        return ToolResult(f"TensorBoard shows {workspace} at {address}, until the window is closed.")

    def _make(self, name: str) -> _Page:
        px, app = self._app.theme.px, self._app
        inputs: dict[str, BaseConfig] = {
            ALPHA: ToolModel.alpha_input(app.form.config), INSPECT: ToolModel.InspectInput(),
            CONVERT: ToolModel.ConvertInput(), RANK: ToolModel.RankInput(),
        }  # fmt: skip
        frame = ttk.Frame(self, style="Window.TFrame")
        form, title = None, name[0].upper() + name[1:]
        if name in inputs:
            form = FormModel(inputs[name])
            left = ttk.Frame(frame, style="Window.TFrame", width=px(FORM_WIDTH))
            left.pack(side="left", fill="y")
            left.pack_propagate(False)
            sections = [ToolModel.tool_section(form, title, HELPS[name])]
            FormView(left, app.tools, form, sections, everything=True).pack(fill="both", expand=True)
        card = ttk.Frame(frame, style="Card.TFrame", padding=px(10))
        card.pack(side="left", fill="both", expand=True, padx=(0, px(8)), pady=(0, px(8)))
        if form is None:
            ttk.Label(card, text=title, style="Heading.TLabel").pack(anchor="w")
            ttk.Label(card, text=HELPS[name], style="Muted.TLabel").pack(anchor="w", pady=(0, px(8)))
        row = ttk.Frame(card)
        row.pack(fill="x", pady=(0, px(6)))
        button = ttk.Button(row, text=DO[name], style="Accent.TButton", command=lambda: self.run(name))
        button.pack(side="left")
        apply = ttk.Button(row, text="Take into the config", command=self.apply)
        note = ttk.Label(row, style="Muted.TLabel", justify="left", wraplength=px(560))
        note.pack(side="left", padx=px(10))
        picture = tk.Label(card, borderwidth=0, background=app.theme.color("card"))
        text = TextPane(card, app.theme, wrap="none")
        text.pack(fill="both", expand=True)
        return _Page(frame, form, button, apply, note, text, picture)

    def _show(self, page: _Page, result: ToolResult) -> None:
        if not self.winfo_exists():
            return
        page.result = result
        page.button.state(["!disabled"])
        page.note.configure(text="")
        page.text.show(result.text.splitlines())
        if result.values:
            page.apply.pack(side="left", padx=(self._app.theme.px(6), 0), after=page.button)
        else:
            page.apply.pack_forget()
        if result.picture is not None:
            self._show_picture(page, result.picture)

    def _show_picture(self, page: _Page, path: Path) -> None:
        room = max(200, page.text.winfo_width()), max(160, page.frame.winfo_height() // 2)
        with Image.open(path) as image:
            scale = min(room[0] / image.width, room[1] / image.height, 1.5)
            size = round(image.width * scale), round(image.height * scale)
            page.photo = ImageTk.PhotoImage(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), master=self)
        page.picture.configure(image=page.photo, background=self._app.theme.color("card"))
        page.picture.pack(before=page.text, pady=(0, self._app.theme.px(6)))

    def _show_error(self, page: _Page, text: str) -> None:
        if self.winfo_exists():
            page.button.state(["!disabled"])
            page.apply.pack_forget()
            page.note.configure(text=text, style="Error.TLabel")

    def _destroyed(self, event: tk.Event) -> None:
        if event.widget is self:
            self.board.close()
            self._folder.cleanup()
