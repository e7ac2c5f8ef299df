import tkinter as tk
from pathlib import Path
from tkinter import filedialog, ttk
from typing import TYPE_CHECKING

from modules.ui.AskWindow import AskWindow
from modules.ui.Panes import SASH, Panes
from modules.ui.PlotCanvas import SERIES_COLORS
from modules.ui.RunCurvesPage import RunCurvesPage
from modules.ui.RunGalleryPage import RunGalleryPage
from modules.ui.RunOptionsPage import RunOptionsPage
from modules.ui.TabBar import TabBar
from modules.ui.TableView import Column, TableView
from modules.ui.Timer import Timer
from modules.ui.widgets import enable
from modules.ui.write_file import write_file
from modules.util.config.errors import ConfigError
from modules.util.texts import later, tr, tr_n
from modules.viewModel.paths import is_folder, nearest_folder, portable
from modules.viewModel.run_curves import COLORS
from modules.viewModel.run_list import FAILED, GONE
from modules.viewModel.run_page import page_place, write_page
from modules.viewModel.RunResult import show_in_folder
from modules.viewModel.RunsModel import MOST_CHOSEN, RunsModel, cells_of, order_of

from PIL import Image, ImageTk

if TYPE_CHECKING:
    from modules.ui.App import App

# between two looks while a run goes on
LOOK_MS = 5000
# after which a page is drawn anew, and while more is read: several runs come one after the other
PAGE_MS, READING_MS = 40, 400
SWATCH, NAME = 12, 132
DATE = 4
LIST_SHARE = 0.36
# of the list and of the pages, in pixels at 100 %
LEAST = (110, 210)


class RunsView(ttk.Frame):
    """All runs, and of those that are chosen: curves, samples, and the options in which they differ.

    Args:
        parent: that it is put into.
        app: the window.

    Attributes:
        model: knows the runs.
        table: the list.
        tabs: chooses the page.
        curves, gallery, options: the pages.
        buttons: by what they do.
    """

    def __init__(self, parent: tk.Misc, app: "App") -> None:
        super().__init__(parent, style="Window.TFrame")
        self._app, px = app, app.theme.px
        settings, controller = app.settings, app.runs.controller
        self.model = RunsModel(
            app.worker, controller.folder, controller.folder.parent, settings.run_folders, settings.workspaces,
            lambda: [(item.name, item.config) for item in controller.queue.items if item.waits], self._news,
        )  # fmt: skip
        self._sort, self._down = DATE, True
        self._looking, self._paging = Timer(self, self._look), Timer(self, self._show_page)
        self._swatches: list[ImageTk.PhotoImage] = []
        self._build_head()
        panes = Panes(self, app, "runs: list and pages", "vertical", LIST_SHARE, LEAST)
        panes.pack(fill="both", expand=True, padx=(0, px(8)))
        upper = ttk.Frame(panes, style="Card.TFrame", padding=px(6))
        lower = ttk.Frame(panes, style="Card.TFrame", padding=px(8))
        panes.hold(upper, lower)
        self.table = TableView(upper, app.theme, _columns(), chosen=self._chose, sorted_by=self.sort_by)
        self.table.pack(fill="both", expand=True)
        self.table.attach(app.tools.tooltip, self._help)
        self.table.tree.bind("<Double-Button-1>", lambda event: self._double(event))
        self._build_pages(lower)
        self.bind("<Map>", lambda _: self._look())
        app.theme.listen(self, self._recolor)
        self._recolor()

    def least_height(self) -> int:
        """What it needs, in pixels."""
        return self._line.winfo_reqheight() + self._app.theme.px(sum(LEAST) + SASH + 6)

    def _build_head(self) -> None:
        px = self._app.theme.px
        row = ttk.Frame(self, style="Window.TFrame")
        row.pack(fill="x", pady=(0, px(6)), padx=(0, px(8)))
        self.buttons: dict[str, ttk.Button] = {}
        for key, text, help, action in (
            ("add", tr("Add a folder …"), tr("A folder with workspaces of runs. It is only read."), self.add_folder),
            ("config", tr("Open this config"), tr("Puts the options of the run into the form."), self.open_config),
            ("folder", tr("Open folder"), tr("Shows the workspace in the system's own window."), self.open_folder),
            (
                "page", tr("Page of the run"),
                tr("Curves, pictures and options as one HTML file, to send to somebody."), self.write_page,
            ),
            ("forget", tr("Forget"), tr("Takes folders that are gone out of the list."), self.forget),
        ):  # fmt: skip
            button = ttk.Button(row, text=text, style="Window.TButton", command=action)
            button.pack(side="left", padx=(0, px(6)))
            self._app.tools.tooltip.attach(button, lambda help=help: help)
            self.buttons[key] = button
        self._note = ttk.Label(row, style="Muted.Window.TLabel")
        self._note.pack(side="right")
        self._line = row

    def _build_pages(self, parent: ttk.Frame) -> None:
        app, px = self._app, self._app.theme.px
        self._names = {later("curves"): "curves", later("samples"): "gallery", later("options that differ"): "options"}
        head = ttk.Frame(parent)
        head.pack(fill="x", pady=(0, px(6)))
        self.tabs = TabBar(head, app.theme, list(self._names), self.show_page, "card")
        self.tabs.pack(side="left")
        self._about = ttk.Label(head, style="Muted.TLabel", width=1, anchor="e")
        self._about.pack(side="left", fill="x", expand=True, padx=(px(10), 0))
        self.curves = RunCurvesPage(parent, app.tools)
        self.gallery = RunGalleryPage(parent, app.tools, app.worker, lambda error: app.say(str(error)))
        self.options = RunOptionsPage(parent, app, self.model)
        self.show_page(app.kept.get("page of runs", next(iter(self._names))))

    def show_page(self, name: str) -> None:
        """Brings a page to the front."""
        self._app.kept["page of runs"] = name
        self.tabs.mark(name)
        for page in (self.curves, self.gallery, self.options):
            page.pack_forget()
        getattr(self, self._names[name]).pack(fill="both", expand=True)
        self._show_page()

    def shown(self) -> None:
        """Looks again when the tab comes to the front."""
        self.model.refresh()

    def add_folder(self) -> None:
        """Asks for a folder that is searched from now on."""
        start = nearest_folder(self.model.runs[0].workspace if self.model.runs else "")
        folder = filedialog.askdirectory(parent=self, title=tr("A folder with runs"), initialdir=start, mustexist=True)
        if folder:
            self.model.add_folder(Path(folder))

    def forget(self) -> None:
        """Takes folders that are gone out of the list."""
        self.model.forget()

    def open_folder(self) -> None:
        """Shows the workspace of the first run that is chosen."""
        workspace = self.model.runs[0].workspace
        if workspace is not None:
            self._app.say(show_in_folder(workspace))

    def write_page(self) -> None:
        """Writes the run that is chosen as one HTML file, into its workspace."""
        run = self.model.runs[0]
        target = page_place(run)
        done = tr("Written: {file}. Any browser shows it.", file=portable(target))
        write_file(
            self._app, tr("Writing the page …"), target, lambda overwrite: write_page(run, target, overwrite), done
        )

    def open_config(self) -> None:
        """Puts the config of a run into the form; changes that would be lost are asked about."""
        app, run = self._app, self.model.runs[0]
        if run.config is None:
            return
        if app.session.is_modified:
            question = tr(
                "{preset} has been changed. Open the config of {run} and lose the changes?",
                preset=app.session.name, run=run.name,
            )  # fmt: skip
            cancel, do = tr("Cancel"), tr("Open")
            if AskWindow(app, app.tools, tr("Open a config"), question, (cancel, do)).ask() != do:
                return
        news: list[str] = []
        try:
            app.session.open_config(run.config, news.append)
        except ConfigError as error:
            app.say(str(error))
            return
        app.refresh()
        app.say(
            " ".join(news) or tr("The config of {run} is in the form. Save it under a name to keep it.", run=run.name)
        )

    def sort_by(self, column: int) -> None:
        """Sorts by a column, the other way round the second time."""
        self._down = not self._down if column == self._sort else column >= DATE and column != DATE + 2
        self._sort = column
        self._show_list()

    def _news(self) -> None:
        if not self.winfo_exists():
            return
        if self.model.loaded and not self.model.chosen and self.model.rows:
            # something to see at once
            first = next((run for run in self.model.rows if run.summary.steps), None)
            if first is not None:
                self.model.chosen = [first.key]
                self.model.refresh()
        self._show_list()
        if not self._paging.waits:
            self._paging.start(READING_MS if self.model.reads else PAGE_MS)
        if self.model.any_running and self.winfo_ismapped():
            self._looking.start(LOOK_MS)

    def _look(self) -> None:
        if self.winfo_ismapped():
            self.model.refresh()

    def _chose(self) -> None:
        self.model.choose(self.table.chosen)

    def _show_list(self) -> None:
        known = [run for run in self.model.rows if order_of(run, self._sort)[0] is False]
        unknown = [run for run in self.model.rows if order_of(run, self._sort)[0]]
        rows = sorted(known, key=lambda run: order_of(run, self._sort)[1], reverse=self._down) + unknown
        tags = {FAILED: "error", GONE: "muted"}
        self.table.show([(run.key, cells_of(run), tags.get(run.state, "")) for run in rows])
        self.table.choose(self.model.chosen)
        self._note.configure(text=self.model.note)
        runs = self.model.runs
        colors = {run.key: self._swatches[place] for place, run in enumerate(runs[:MOST_CHOSEN])}
        for run in rows:
            self.table.mark(run.key, colors.get(run.key, self._swatches[len(COLORS)]))
        one = runs[0] if len(runs) == 1 else None
        enable(self.buttons["config"], one is not None and one.config is not None)
        enable(self.buttons["folder"], one is not None and one.workspace is not None and is_folder(one.workspace))
        enable(self.buttons["page"], one is not None and page_place(one) is not None)
        enable(self.buttons["forget"], self.model.can_forget())

    def _show_page(self) -> None:
        compared, runs = self.model.compared(), self.model.runs
        about = ""
        if len(runs) > MOST_CHOSEN:
            about = tr("the first {most} of {count} that are chosen", most=MOST_CHOSEN, count=len(runs))
        elif self.model.reads:
            about = tr("Reading …")
        elif len(runs) == 1 and runs[0].reason:
            about = " ".join(runs[0].reason.split())
        elif len(runs) > 1:
            about = tr_n("{n} run", "{n} runs", len(runs))
        self._about.configure(text=about)
        page = self._names[self.tabs.current]
        if page == "curves":
            self.curves.show(compared)
        elif page == "gallery":
            self.gallery.show(compared)
        else:
            self.options.show()

    def _help(self, key: str) -> str:
        run = next((run for run in self.model.rows if run.key == key), None)
        if run is None:
            return ""
        what = " · ".join(text for text in (run.family, run.method) if text)
        lines = [run.name, what, str(run.workspace or ""), run.reason]
        return "\n".join(line for line in lines if line)

    def _double(self, event: tk.Event) -> None:
        if self.table.tree.identify_row(event.y) and len(self.model.runs) == 1:
            self.show_page(next(name for name, page in self._names.items() if page == "gallery"))

    def _recolor(self) -> None:
        edge, dark = self._app.theme.px(SWATCH), self._app.theme.dark
        inks = [*(SERIES_COLORS[name][dark] for name in COLORS), "#00000000"]
        self._swatches = []
        for ink in inks:
            # with a gap between it and the name
            picture = Image.new("RGBA", (edge + edge // 2, edge), "#00000000")
            picture.paste(ink, (0, 0, edge, edge))
            self._swatches.append(ImageTk.PhotoImage(picture, master=self))
        if self.model.loaded:
            self._show_list()


def _columns() -> list[Column]:
    return [
        Column(tr("name"), NAME, 3), Column(tr("state"), 72), Column(tr("model"), 126, 2), Column(tr("method"), 72, 1),
        Column(tr("begun"), 118), Column(tr("steps"), 84, 1, right=True), Column(tr("last loss"), 68, right=True),
        Column(tr("best validation"), 106, right=True),
    ]  # fmt: skip
