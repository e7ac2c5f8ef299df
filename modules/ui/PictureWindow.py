import tkinter as tk
from collections.abc import Callable
from tkinter import ttk
from typing import TYPE_CHECKING, Any

from modules.ui.CaptionPane import CaptionPane
from modules.ui.FilterBar import FilterBar
from modules.ui.picture_questions import MINE, THEIRS, may_lose, may_move, which_counts
from modules.ui.PictureGrid import PictureGrid
from modules.ui.place_over import place_over
from modules.ui.ReplacePane import ReplacePane
from modules.ui.TabBar import TabBar
from modules.ui.TagPane import TagPane
from modules.ui.Timer import Timer
from modules.ui.widgets import enable
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.texts import tr
from modules.util.UserError import UserError
from modules.viewModel.caption_edits import Edit, Within
from modules.viewModel.CaptionText import CaptionChanged
from modules.viewModel.ConceptModel import title_of
from modules.viewModel.PictureEditor import Outcome, PictureEditor, Plan
from modules.viewModel.PictureLook import PictureLook
from modules.viewModel.PictureSet import PictureSet, Show
from modules.viewModel.read_pictures import FoundPictures, Picture

import customtkinter as ctk

if TYPE_CHECKING:
    from modules.ui.App import App

SIZE, SMALLEST = (1240, 740), (640, 420)
SIDE, SIDE_SHARE = 430, 0.45
TICK_MS, FOCUS_MS, COUNT_MS = 200, 50, 300


class PictureWindow(ctk.CTkToplevel):
    """The pictures of a concept in a grid, and their captions: read, searched, edited one by one or many at once.

    Args:
        app: the window.
        concept: whose folder it works on.

    Attributes:
        pictures, editor, look: what is shown, what is done, and the search for doubles.
        tiles: the grid.
        caption, replace, tags: the pages beside it.
        pages: chooses one of them.
        filter: which pictures are shown.
        undo_button, look_button: do so.
        heading, news: how many pictures are shown, and what there is to say.
    """

    def __init__(self, app: "App", concept: ConceptConfig) -> None:
        super().__init__(app)
        self.withdraw()
        self._app, px = app, app.theme.px
        self.title(tr("Pictures and captions: {name}", name=title_of(concept)))
        self.pictures = PictureSet(app.form.config.model_copy(deep=True), concept.model_copy(deep=True))
        self.editor, self.look = PictureEditor(self.pictures), PictureLook(self.pictures)
        self._busy, self._said, self._after_load = tr("Reading the folder …"), "", ""
        self._ticking, self._counting = Timer(self, self._tick), Timer(self, self._learn)
        self._learning = False
        body = ttk.Frame(self, style="Window.TFrame", padding=(px(12), px(10), px(12), px(10)))
        body.pack(fill="both", expand=True)
        self._make_head(body)
        row = ttk.Frame(body, style="Window.TFrame")
        row.pack(fill="x", pady=(0, px(6)))
        self.heading = ttk.Label(row, style="Muted.Window.TLabel")
        self.heading.pack(side="left", anchor="n", padx=(0, px(12)))
        self.news = ttk.Label(row, style="Muted.Window.TLabel", justify="left", anchor="w")
        self.news.pack(side="left", fill="x", expand=True)
        self.news.bind("<Configure>", lambda event: self.news.configure(wraplength=event.width))
        self._side = ttk.Frame(body, style="Window.TFrame", width=px(SIDE))
        self._side.pack(side="right", fill="y", padx=(px(8), 0))
        self._side.pack_propagate(False)
        body.bind("<Configure>", self._fit)
        self.tiles = PictureGrid(
            body, app.theme, app.worker, self.pictures, self.choose, self._to_caption, self._failed
        )  # fmt: skip
        self.tiles.pack(side="left", fill="both", expand=True)
        self._make_side()
        self._bind_keys()
        place_over(self, app, (px(SIZE[0]), px(SIZE[1])), SMALLEST)
        self.load()
        self._refresh()
        Timer(self, self.tiles.canvas.focus_force).start(FOCUS_MS)

    def _make_head(self, body: ttk.Frame) -> None:
        app, px = self._app, self._app.theme.px
        self.filter = FilterBar(body, app.tools, self._filter)
        self.filter.pack(fill="x", pady=(0, px(8)))
        row = self.filter.row
        self.look_button = ttk.Button(row, text=tr("Find doubles"), style="Window.TButton", command=self.look_closer)
        self.undo_button = ttk.Button(row, text=tr("Undo"), style="Window.TButton", command=self.undo)
        self.filter.add(self.look_button, self.undo_button)
        app.tools.tooltip.attach(self.undo_button, lambda: self.editor.undo_help)
        app.tools.tooltip.attach(
            self.look_button,
            lambda: tr(
                "Reads every picture as a training does, and finds those that are nearly the same, those with little "
                "fine detail, and those that a run leaves out."
            ),
        )

    def _make_side(self) -> None:
        app, side = self._app, self._side
        names = (tr("caption"), tr("replace"), tr("tags"))
        self.pages = TabBar(side, app.theme, names, self.show_page)
        self.pages.pack(fill="x", pady=(0, app.theme.px(6)))
        self.caption = CaptionPane(
            side, app, self.editor, self.save, self.tiles.step, self.move_aside, self.tiles.canvas.focus_set,
            lambda: self._counting.start(COUNT_MS),
        )  # fmt: skip
        self.replace = ReplacePane(side, app.tools, self.plan, self.apply)
        self.tags = TagPane(side, app.tools, self.pictures, self.filter_by)
        self._pages = dict(zip(names, (self.caption, self.replace, self.tags), strict=True))
        self.show_page(names[0])

    def _bind_keys(self) -> None:
        held = "Command" if self.tk.call("tk", "windowingsystem") == "aqua" else "Control"
        # before those of the whole program
        for keys, action in (("sS", self.save), ("fF", self.filter.search.focus_set)):
            for key in keys:
                self.bind(f"<{held}-{key}>", lambda _, action=action: action() and "break" or "break")
        self.bind("<Escape>", lambda _: self.close())
        self.bind("<F5>", lambda _: self.reload())
        self.bind("<Destroy>", self._destroyed, add="+")
        self.protocol("WM_DELETE_WINDOW", self.close)

    def show_page(self, name: str) -> None:
        """Shows the caption, the change of many, or the tags."""
        for page in self._pages.values():
            page.pack_forget()
        page = self._pages[name]
        page.pack(fill="both", expand=True)
        self.pages.mark(name)
        self.update_idletasks()
        if page is not self.caption:
            page.refresh()

    def load(self, then: str = "") -> None:
        """Reads the folder anew.

        Args:
            then: path of the picture that is chosen afterwards, if it is there.
        """
        self._after_load = then or (self.editor.chosen.path if self.editor.chosen else "")
        self._run(tr("Reading the folder …"), self.pictures.load(), self._loaded)

    def reload(self) -> None:
        """Reads the folder anew, after the caption that is edited is saved."""
        if not self._busy and self.save():
            self.load()

    def choose(self, picture: Picture) -> None:
        """Looks at another picture, after the caption of the one before is saved."""
        if not self.save():
            return
        self.editor.choose(picture)
        self.tiles.mark(picture)
        self._learn()
        self.caption.show()
        self.caption.show_picture(self.tiles.thumbnails.get(picture.path))

    def save(self) -> bool:
        """Writes the caption that is edited. False: it is still to be saved."""
        self.caption.take_typed()
        if not self.editor.is_edited:
            return True
        if self._busy:
            return False
        try:
            self.editor.save()
        except CaptionChanged:
            if not self._ask_which():
                return False
        except UserError as error:
            self.say(str(error), True)
            return False
        self._refresh()
        self.tiles.update_marks()
        self._learn()
        return True

    def filter_by(self, text: str, within: Within) -> None:
        """Shows the pictures whose caption has a tag or word."""
        self.filter.look_for(text, within)

    def plan(self, edit: Edit, everywhere: bool) -> Plan:
        """What a change would do to the captions as they are saved."""
        return self.editor.plan(edit, everywhere)

    def apply(self, plan: Plan) -> None:
        """Changes many captions, after the one that is edited is saved."""
        if not self._busy and self.save():
            # what was saved just now counts, too
            plan = self.editor.plan(plan.edit, self.replace.everywhere)
            self._run(tr("Writing captions …"), self.editor.apply(plan), self._written)

    def undo(self) -> None:
        """Takes back what was done last."""
        if not self._busy and self.save() and self.editor.done:
            self._run(tr("Taking back …"), self.editor.undo(), self._written)

    def move_aside(self) -> None:
        """Moves the chosen picture out of the folder, after asking."""
        if self._busy or not self.save() or self.editor.chosen is None:
            return
        place, name = self.tiles.position, self.editor.chosen.name
        try:
            moves = self.editor.moves()
            if not may_move(self, self._app.tools, self.editor.move_question(moves)):
                return
            self.editor.set_aside(moves)
        except UserError as error:
            self.say(str(error), True)
            return
        self.say(tr("{name} is in {folder} now.", name=name, folder=moves[0][1].parent))
        self.tiles.show()
        shown = self.pictures.shown
        if shown:
            self.choose(shown[min(place, len(shown) - 1)])
        else:
            self.caption.show_picture(None)
        self._refresh()

    def look_closer(self) -> None:
        """Begins to look for doubles, or stops that."""
        if self.look.is_busy:
            self.look.stop()
            return
        self.look.trouble = ""
        self._app.worker.run(self.look.begin(), self._looked, self._looked)
        self._ticking.start(TICK_MS)
        self._refresh()

    def close(self) -> bool:
        """Saves and closes. False: it stays open, as something could not be saved."""
        if self._busy and self.editor.progress[1]:
            self.say(tr("Captions are being written. Wait for their end."), True)
            return False
        if not self.save() and not may_lose(self, self._app.tools, self.editor.chosen.name):
            return False
        self.destroy()
        return True

    def say(self, text: str, wrong: bool = False) -> None:
        """Shows a line above the pictures; empty: none but what is known of the folder."""
        self._said = text
        whole = " ".join(one for one in (text, self.look.trouble, self.pictures.note) if one)
        self.news.configure(text=whole, style="Error.Window.TLabel" if wrong else "Muted.Window.TLabel")

    def _run(self, line: str, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Works on files beside the window; meanwhile nothing else is done to them."""
        self._busy, self.editor.progress = line, (0, 0)
        self._lock(True)
        self.say("")

        def finished(result: Any) -> None:
            if self.winfo_exists():
                self._busy = ""
                self._lock(False)
                if isinstance(result, Exception):
                    self.say(str(result), True)
                else:
                    done(result)
                self._refresh()

        self._app.worker.run(work, finished, finished)
        self._ticking.start(TICK_MS)
        self._refresh()

    def _fit(self, event: tk.Event) -> None:
        """What is beside the grid gives way where the window is narrow."""
        self._side.configure(width=min(self._app.theme.px(SIDE), int(SIDE_SHARE * event.width)))

    def _failed(self, error: Exception) -> None:
        if self.winfo_exists():
            self.say(str(error), True)

    def _lock(self, locked: bool) -> None:
        self.caption.lock(locked)
        self.replace.lock(locked)

    def _loaded(self, found: FoundPictures) -> None:
        self.editor.leave()
        self.pictures.take(found)
        self.say(self._said)
        self.tiles.show()
        again = next((one for one in self.pictures.pictures if one.path == self._after_load), None)
        if again is not None:
            self.choose(again)
        elif self.pictures.shown:
            self.choose(self.pictures.shown[0])
        self._learn()
        if self.look.is_due:
            self.look_closer()

    def _learn(self) -> None:
        """Finds out what is not known of the pictures and captions yet, a part after the other."""
        found = None if self._learning else self.pictures.learn(self.editor.text.rstrip())
        if found is None:
            return
        work, take = found

        def learned(result: Any) -> None:
            self._learning = False
            if self.winfo_exists():
                before = self.pictures.shown
                take(result)
                self._show_again(before)
                self._learn()

        self._learning = True
        self._app.worker.run(work, learned, learned)

    def _looked(self, found: Any) -> None:
        self.look.take(found)
        if self.winfo_exists():
            before = self.pictures.shown
            self.pictures.refresh()
            self._show_again(before)
            self.say(self._said)
            self._refresh()

    def _show_again(self, before: list[Picture]) -> None:
        self.caption.take_typed()
        if before == self.pictures.shown:
            self.tiles.update_marks()
        else:
            self.tiles.show()
        self.caption.show()
        self._refresh()

    def _written(self, outcome: Outcome) -> None:
        self.editor.take(outcome)
        moved = outcome.done.moves
        self.pictures.refresh()
        self.tiles.show()
        self.caption.show()
        self.replace.refresh()
        self.tags.refresh()
        self.say(outcome.told or outcome.summary, bool(outcome.told))
        self._learn()
        if moved:
            said = self._said
            self.load(str(moved[0][0]))
            self.say(said)

    def _filter(self, text: str, within: Within, show: Show) -> None:
        if self.pictures.set_filter(text, within, show):
            self.tiles.show()
            self.tiles.mark(self.editor.chosen)
            self.replace.refresh()
            self._refresh()

    def _refresh(self) -> None:
        """Shows numbers and buttons as they are now."""
        self.filter.count(self.pictures.counts())
        self.heading.configure(text=self._busy_line() or self.pictures.heading)
        self.look_button.configure(text=tr("Stop") if self.look.is_busy else tr("Find doubles"))
        enable(self.look_button, bool(self.pictures.pictures))
        enable(self.undo_button, bool(self.editor.done) and not self._busy)

    def _busy_line(self) -> str:
        done, total = self.editor.progress
        if self._busy:
            return f"{self._busy} {done} / {total}" if total else self._busy
        return self.look.line if self.look.is_busy else ""

    def _tick(self) -> None:
        self._refresh()
        if self._busy or self.look.is_busy:
            self._ticking.start(TICK_MS)

    def _to_caption(self) -> None:
        self.show_page(next(iter(self._pages)))
        self.caption.caption.focus_set()

    def _ask_which(self) -> bool:
        """Another program has changed the caption that is edited: which one counts? False: it is not decided."""
        answer = which_counts(self, self._app.tools, self.editor)
        if answer == THEIRS:
            self.editor.reread()
            self.caption.show()
        elif answer == MINE:
            try:
                self.editor.save(over=True)
            except UserError as error:
                self.say(str(error), True)
                return False
        return bool(answer)

    def _destroyed(self, event: tk.Event) -> None:
        if event.widget is self:
            self.look.stop()
            self.tiles.thumbnails.stop()
