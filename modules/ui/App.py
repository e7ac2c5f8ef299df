import tkinter as tk
from collections.abc import Callable
from pathlib import Path
from tkinter import ttk
from typing import Any

from modules.ui.AskWindow import AskWindow
from modules.ui.ChoicePopup import ChoicePopup
from modules.ui.DropTargets import DropTargets
from modules.ui.FormView import FormView
from modules.ui.OfferBar import OfferBar
from modules.ui.OptimizerWindow import OptimizerWindow
from modules.ui.OptionGuide import OptionGuide
from modules.ui.OptionPlotView import OptionPlotView
from modules.ui.Panes import Panes
from modules.ui.PictureWindow import PictureWindow
from modules.ui.PresetActions import PresetActions
from modules.ui.ProblemBar import ProblemBar
from modules.ui.RunFollower import RunFollower
from modules.ui.ScrollFrame import ScrollFrame, follow
from modules.ui.TabBar import TabBar
from modules.ui.tabs import TABS, Tab
from modules.ui.Theme import Theme
from modules.ui.Timer import Timer
from modules.ui.Tooltip import Tooltip
from modules.ui.TopBar import TopBar
from modules.ui.window_keys import bind_keys
from modules.ui.window_place import fitting_place, limit_size
from modules.ui.WindowTools import WindowTools
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.texts import choose_language, later, tr
from modules.viewModel.CatalogLoader import CatalogLoader
from modules.viewModel.form_tabs import OPTIMIZER, sections_of
from modules.viewModel.FormField import FormSection
from modules.viewModel.OptionPlot import plot_kinds
from modules.viewModel.Session import RUNS, Session
from modules.viewModel.StepCount import StepCount
from modules.viewModel.TrainForm import OPTIMIZER as OPTIMIZER_PATH
from modules.viewModel.TrainHints import TrainHints
from modules.viewModel.UiSettings import ALL
from modules.viewModel.Worker import Worker

import customtkinter as ctk
from tkinterdnd2 import TkinterDnD

# of a tab, in pixels at 100 %, below which the whole window is scrolled; views made by hand may say another one
LEAST_TAB = 190
# of a list, and of the form below it
LEAST_PANES = (150, 150)
POLL_MS, SETTLE_MS, LATER_MS = 50, 150, 1500
STAY, CLOSE = later("Stay"), later("Close")
PROGRAM = "scaled-trainer"


class App(ctk.CTk, TkinterDnD.DnDWrapper):
    """The window. It puts parts together; what they do is told by the models behind them.

    Args:
        root: folder of the presets and of what the window remembers.

    Attributes:
        session: config, presets and settings; `form`, `presets` and `settings` are its own.
        tools: theme, tooltip, popup list and drop targets, which all views share; `theme` is its own.
        hints: what can be chosen in the form.
        worker: for what takes long.
        catalog: loads what the optimizers take.
        guide: leads to an option.
        steps: how many the config is.
        runs: the run that goes on, and the queue.
        preset_actions: opens, saves and deletes presets.
        views: tab -> the form and the view made by hand, of those shown so far.
        kept: what such views want to find again when the window is built anew, by names of their own; closed with the
            window if it has `close()`.
        optimizer_window: while it is open.
        picture_window: the pictures of a concept, while it is open.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.session = Session(root)
        trouble = choose_language(self.session.settings.language)
        self.form, self.presets, self.settings = self.session.form, self.session.presets, self.session.settings
        self.theme = Theme(self)
        self.theme.apply(self.settings.theme, self.settings.scale)
        self.tools = WindowTools(
            self.theme, Tooltip(self, self.theme), ChoicePopup(self, self.theme), DropTargets(self)
        )
        self.hints = TrainHints(self.form)
        self.worker = Worker()
        self.catalog = CatalogLoader(self.form, self.worker, self.refresh, self.say)
        self.guide = OptionGuide(self)
        runs = root / RUNS
        self.steps = StepCount(self.worker, self._show_steps, (runs, runs / "queue"))
        self.runs = RunFollower(self, self.tools, self.session, root, self.say, self._tell_of_run)
        self.preset_actions = PresetActions(self, self.tools, self.session, self.say, self.refresh)
        self.optimizer_window: OptimizerWindow | None = None
        self.picture_window: PictureWindow | None = None
        self.kept: dict[str, Any] = {}
        # of Tk's own: customtkinter's scales
        tk.Wm.wm_geometry(self, fitting_place(self, self.theme, self.settings.geometry))
        limit_size(self, self.theme)
        news = [trouble] if trouble else []
        self.session.restore(news.append)
        self._build()
        self.form.listen(lambda _: self.refresh())
        follow(self)
        bind_keys(self, lambda: bool(self._held()), {
            "f": self.find, "s": self.preset_actions.save, "Shift-S": self.preset_actions.save_as,
            "Prior": lambda: self._turn(-1), "Next": lambda: self._turn(1),
        })  # fmt: skip
        self.protocol("WM_DELETE_WINDOW", self.close)
        self._checking = Timer(self, self._check)
        self._not_kept: list[str] = []
        self.refresh()
        queue = self.runs.controller.queue
        if queue.trouble:
            news.append(queue.trouble)
        if news:
            self.say(" ".join(news))
        if self.runs.controller.running or not queue.paused:
            self.show_tab("run")
        self._poll()
        # counted from when the window has been drawn
        self.after_idle(lambda: self.after(LATER_MS, self.catalog.load))

    def find(self) -> None:
        """Puts the cursor into the search field."""
        self.lift()
        self.top.search.entry.focus_force()

    def _build(self) -> None:
        """Everything but the tabs, which are made when they are shown."""
        px = self.theme.px
        self._body = ttk.Frame(self, style="Window.TFrame", padding=(px(12), px(10), px(4), px(8)))
        self._body.pack(fill="both", expand=True)
        self._whole = ScrollFrame(self._body, self.theme, fills=True)
        inside = self._whole.inside
        self.top = TopBar(
            inside, self.tools, self.session, self.hints, self.preset_actions, self.show_view, self.show_theme,
            self.guide.go_to, self.show_language,
        )  # fmt: skip
        self.top.pack(fill="x", padx=(0, px(8)))
        self.tabs = TabBar(inside, self.theme, [tab.name for tab in TABS], self.show_tab)
        self.tabs.pack(fill="x", pady=px(8), padx=(0, px(8)))
        self.problems = ProblemBar(self._body, self.tools, self.form, self.guide.go_to_problem, self.start_run)
        self.problems.pack(side="bottom", fill="x", pady=(px(6), 0), padx=(0, px(8)))
        self.offer = OfferBar(self._body, self.tools, self.form, self.show_concept)
        self._whole.pack(fill="both", expand=True)
        # what a tab needs depends on the width
        self._whole.bind("<Configure>", lambda _: self.fit_tab(), add="+")
        # holds a tab, and is never lower than that needs
        self._holder = ttk.Frame(inside, style="Window.TFrame")
        self._holder.pack(fill="both", expand=True)
        self._holder.pack_propagate(False)
        self._pages: dict[str, ttk.Frame] = {}
        self.views: dict[str, tuple[FormView | None, Any]] = {}
        known = [tab.name for tab in TABS]
        self.show_tab(self.settings.tab if self.settings.tab in known else known[0])

    def show_tab(self, name: str) -> None:
        """Brings a tab to the front; the first time, makes it."""
        for page in self._pages.values():
            page.pack_forget()
        if name not in self._pages:
            self._pages[name] = ttk.Frame(self._holder, style="Window.TFrame")
            self._pages[name].pack(fill="both", expand=True)
            self.views[name] = self._make(next(tab for tab in TABS if tab.name == name), self._pages[name])
        self._pages[name].pack(fill="both", expand=True)
        self.tabs.mark(name)
        self.settings.tab = name
        form, view = self.views[name]
        self.fit_tab()
        if form is not None:
            form.show_everything(self.settings.view == ALL)
        _call(view, "shown")

    def fit_tab(self) -> None:
        """Gives the tab that is shown the height that it needs; where the window is lower, all of it is scrolled."""
        form, view = self.views[self.tabs.current]
        least = LEAST_TAB if view is None or form is None else sum(LEAST_PANES)
        self._holder.configure(height=_call(view, "least_height") or self.theme.px(least))

    def _make(self, tab: Tab, page: ttk.Frame) -> tuple[FormView | None, Any]:
        """The view made by hand, and below it the form; each is made if there is one."""
        sections = sections_of(tab.name, self.form.sections)
        view = tab.load_view()(page, self) if tab.view else None
        if tab.name == "training":
            one = self.form.fields[OPTIMIZER_PATH]
            sections.insert(0, FormSection(OPTIMIZER, later("Optimizer"), "", one.declared.group, False, [one]))
        if not sections:
            view.pack(fill="both", expand=True)
            return None, view
        actions = {OPTIMIZER: (tr("Options of the optimizer …"), self.open_optimizer)}
        plots = {key: lambda card, kind=kind: OptionPlotView(card, self, kind) for key, kind in plot_kinds().items()}
        form = FormView(page, self.tools, self.form, sections, self.hints, self.settings.view == ALL, actions, plots)
        if view is None:
            form.pack(fill="both", expand=True)
        else:
            panes = Panes(page, self, f"{tab.name}: list and form", "vertical", view.needed_height, LEAST_PANES)
            panes.pack(fill="both", expand=True)
            panes.hold(view, form)
            view.leave_room(panes)
        return form, view

    def show_view(self, view: str) -> None:
        """Shows basic or all options."""
        self.settings.view = view
        self.top.views.mark(view)
        form, _ = self.views[self.tabs.current]
        if form is not None:
            form.show_everything(view == ALL)

    def show_theme(self, theme: str, scale: int) -> None:
        """Takes other colours, or another size of everything, for which the window is built anew."""
        rescaled = scale != self.settings.scale
        if rescaled and not self._may_rebuild():
            return
        self.settings.theme, self.settings.scale = theme, scale
        self.theme.apply(theme, scale)
        if rescaled:
            # customtkinter pins the window to its size while it scales
            limit_size(self, self.theme)
            self._rebuild()

    def show_language(self, code: str) -> None:
        """Takes the texts of another language, for which the window is built anew."""
        if code == self.settings.language or not self._may_rebuild():
            return
        self.settings.language = code
        trouble = choose_language(code)
        self._rebuild()
        self.say(trouble)

    def _may_rebuild(self) -> bool:
        return all(_call(view, "may_rebuild") is not False for _, view in self.views.values()) and self.close_pictures()

    def _rebuild(self) -> None:
        """Sizes and texts are taken when widgets are made. What a hand-made view knows is in its model or in `kept`."""
        if self.optimizer_window is not None:
            self.optimizer_window.destroy()
        self._body.destroy()
        self._build()
        self.refresh()

    def show_concept(self, place: int) -> None:
        """Opens the window of a concept, by its place in the list."""
        self.show_tab("concepts")
        self.views["concepts"][1].edit(place)

    def open_optimizer(self, path: str = "") -> None:
        """Opens the optimizer window, if asked to at an option, as soon as it is known what the optimizers take."""
        if self.form.catalog is None:
            self.catalog.load_for(lambda: self.open_optimizer(path))
            return
        if self.optimizer_window is None or not self.optimizer_window.winfo_exists():
            form, _ = self.views.get("training", (None, None))
            row = form.place_of(OPTIMIZER_PATH) if form is not None else None
            self.optimizer_window = OptimizerWindow(self, self.tools, self.form, self.settings.view, row)
        window = self.optimizer_window
        window.lift()
        window.focus_force()
        window.update_idletasks()
        if path and not window.show_field(path):
            self.guide.say_what_it_needs(path)

    def open_pictures(self, concept: ConceptConfig) -> None:
        """Opens the pictures and captions of a concept, in place of those of another one."""
        if self.close_pictures():
            self.picture_window = PictureWindow(self, concept)

    def close_pictures(self) -> bool:
        """Closes that window, if it is open. False: it stays, as a caption could not be saved."""
        window = self.picture_window
        return window is None or not window.winfo_exists() or window.close()

    def refresh(self) -> None:
        """Shows what preset is open and changed, and, when the last of a row of changes is done, what is wrong."""
        self.top.refresh()
        self.offer.refresh()
        self.title(f"{self.session.title} – {PROGRAM}")
        self._checking.start(SETTLE_MS)

    def start_run(self) -> None:
        """Shows the run and starts it."""
        self.show_tab("run")
        _call(self.views["run"][1], "start")

    def _tell_of_run(self) -> None:
        """Shows what is new of a run: in its tab, and while another one is shown, as a line."""
        _, view = self.views.get("run", (None, None))
        if view is not None and view.winfo_exists():
            view.news()
        if self.tabs.current != "run":
            self.say(self.runs.controller.model.line)

    def say(self, text: str) -> None:
        """Shows a line at the foot of the window."""
        self.problems.say(text)

    def close(self) -> None:
        """Keeps everything for the next time and closes, unless a question is open, a view objects, or one stays."""
        self.tools.popup.close()
        if held := self._held():
            self.tk.call("raise", held)
            return
        self.settings.geometry = tk.Wm.wm_geometry(self)
        if troubles := self.session.close():
            question = "\n\n".join([tr("Not everything can be kept:"), *troubles, tr("Close all the same?")])
            if AskWindow(self, self.tools, tr(CLOSE), question, (STAY, CLOSE)).ask() != CLOSE:
                return
        for _, view in list(self.views.values()):
            if _call(view, "closing") is False:
                return
        if self.close_pictures() and self.runs.may_close():
            self.destroy()

    def destroy(self) -> None:
        """Ends the window, and what views have kept that has an end."""
        for one in self.kept.values():
            _call(one, "close")
        super().destroy()

    def leave(self) -> None:
        """Keeps everything and closes without a question, as the system wants it. A run goes on."""
        self.tools.popup.close()
        if held := self._held():
            # who waits for an answer gets none
            self.tk.call("destroy", held)
            self.after(POLL_MS, self.leave)
            return
        self.settings.geometry = tk.Wm.wm_geometry(self)
        self.session.close()
        if self.picture_window is not None and self.picture_window.winfo_exists():
            self.picture_window.save()
        self.destroy()

    def _held(self) -> str:
        """The window that has to be answered first, by its name, as dialogs of Tk's own have no other; "" for none."""
        return str(self.tk.call("grab", "current", self))

    def _check(self) -> None:
        self.problems.show(self.form.check())
        self._show_steps()
        self.form.look_at_concepts()
        self.offer.refresh()
        before, self._not_kept = self._not_kept, self.session.keep()
        if self._not_kept and self._not_kept != before:
            self.say(tr("Not everything can be kept: {what}", what=" ".join(self._not_kept)))

    def _show_steps(self) -> None:
        self.steps.show(self.form.config, self.form.checks is not None)
        self.problems.tell_size(self.steps.text, self.steps.detail)
        form, _ = self.views.get("training", (None, None))
        for plot in form.extras.values() if form is not None else ():
            plot.refresh()

    def _poll(self) -> None:
        # first, so that one result that cannot be shown does not keep back all others
        self.after(POLL_MS, self._poll)
        self.theme.follow_system(self.settings.theme)
        self.worker.poll()

    def _turn(self, by: int) -> None:
        names = [tab.name for tab in TABS]
        self.show_tab(names[(names.index(self.tabs.current) + by) % len(names)])


def _call(view: Any, name: str) -> Any:
    """Asks a view made by hand, if it has an answer."""
    method: Callable[[], Any] | None = getattr(view, name, None) if view is not None else None
    return method() if callable(method) else None
