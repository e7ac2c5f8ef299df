import tkinter as tk
from abc import abstractmethod
from collections.abc import Callable
from tkinter import ttk
from typing import TYPE_CHECKING, Any

from modules.ui.AskWindow import AskWindow
from modules.ui.ItemWindow import ItemWindow
from modules.ui.Panes import Panes
from modules.ui.ScrollFrame import ScrollFrame
from modules.ui.ShortLabel import ShortLabel
from modules.ui.widgets import enable, focused
from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.errors import ConfigError, Problem
from modules.util.texts import later, tr
from modules.viewModel.ConfigList import ConfigList

if TYPE_CHECKING:
    from modules.ui.App import App

# of a tab's height for a list that stands above a form
MOST_SHARE = 0.55
CHANGE_FILE, TAKE, CANCEL = later("Change the file"), later("Copy into this config"), later("Cancel")


class ItemList(ttk.Frame):
    """A list of configs as cards: add, edit, switch on and off, duplicate, move, remove.

    Args:
        parent: that it is put into.
        app: the window.

    Attributes:
        list: the items and where they stand.
        cards: widgets by name for each item: frame, title, about, switch, edit, duplicate, up, down, remove.
        window: of the item that is edited, while it is open.
        add_button: adds an item.
    """

    key, item_class, add_text = "", BaseConfig, ""
    switch_key, card_width = "enabled", 400

    def __init__(self, parent: tk.Misc, app: "App") -> None:
        super().__init__(parent, style="Window.TFrame")
        self.app, px = app, app.theme.px
        self.list: ConfigList = ConfigList(app.form, self.key, self.item_class)
        self.cards: list[dict[str, Any]] = []
        self.window: ItemWindow | None = None
        self._asked_for, self._busy, self._columns = "", False, 1
        self.head = ttk.Frame(self, style="Window.TFrame")
        self.head.pack(fill="x", pady=(0, px(6)), padx=(0, px(8)))
        self.add_button = ttk.Button(self.head, text=tr(self.add_text), style="Window.Accent.TButton", command=self.add)
        self.add_button.pack(side="left")
        self.note = ShortLabel(self.head, "", "Muted.Window.TLabel", anchor="w")
        app.tools.tooltip.attach(self.note, lambda: self.note.full)
        self.note.pack(side="left", padx=px(10), fill="x", expand=True)
        self._scroll = ScrollFrame(self, app.theme)
        self._scroll.pack(fill="both", expand=True)
        self._inside = self._scroll.inside
        self.bind("<Configure>", lambda _: self._arrange())
        self._end = app.form.listen(self._form_changed)
        self.bind("<Destroy>", self._destroyed)
        self.refresh()

    def leave_room(self, panes: Panes) -> None:
        """A form stands below it: it takes no more height than its cards need, unless a person has given it another."""
        self._inside.bind("<Configure>", lambda _: panes.place_sash(), add="+")

    def needed_height(self, room: int) -> int:
        """The height that its cards need, in pixels, and never more than a share of the room."""
        cards = self._inside.winfo_reqheight() if self.cards else 1
        return min(self.head.winfo_reqheight() + self.app.theme.px(6) + cards, round(room * MOST_SHARE))

    @abstractmethod
    def counted(self, n: int) -> str:
        """So many items, in words."""

    @abstractmethod
    def describe(self, item: Any) -> tuple[str, str]:
        """Title and second line of an item's card."""

    def new_item(self) -> Any:
        """What the button adds."""
        return self.item_class()

    def refresh(self) -> None:
        """Shows the list as it is now."""
        self.list.load()
        self.show()

    def closing(self) -> bool:
        """Closes the window of the item that is edited, after asking where something would be lost. False: it stays."""
        return self.window is None or self.window.close()

    # another size is another window, too
    may_rebuild = closing

    def show(self) -> None:
        """Makes the cards anew. No window stays open: the place that it edits may be another item's now."""
        self._let_go()
        for card in self.cards:
            card["frame"].destroy()
        self.cards = [self._card(place, item) for place, item in enumerate(self.list.items)]
        self._columns = 0
        self._arrange()
        self._show_note()

    def add(self) -> None:
        """Adds an item and opens it."""
        if self.change(lambda: self.list.add(self.new_item())):
            self.edit(len(self.list.items) - 1)

    def edit(self, place: int) -> None:
        """Opens an item's window. Where the list is to be changed is asked when something is: one may look, too."""
        if not self.closing():
            return
        item = self.list.items[place]
        self.window = window = self.make_window(place, item)
        window.on_close(lambda: self._closed(window))

    def make_window(self, place: int, item: Any) -> ItemWindow:
        """The window that edits an item."""
        return ItemWindow(self.app, self.describe(item)[0], item, lambda new: self._edited(place, new))

    def change(self, action: Callable[[], Any], show: bool = True) -> bool:
        """Changes the list, after asking where, if that is not clear, and closing the window of an item.

        Returns:
            False: it was not changed.
        """
        is_new = self._is_new()
        if not self._may_change() or not self.closing() or not self._do(action):
            return False
        if is_new:
            # whoever begins a list has seen where it stands
            self._asked_for = str(self.list.file or "")
        if show:
            self.show()
        return True

    def _do(self, action: Callable[[], Any]) -> bool:
        """Changes the list; what keeps it from that is said, and a list that somebody else has changed is read anew."""
        self._busy = True
        try:
            action()
        except ConfigError as error:
            self.app.say(str(error))
        else:
            return True
        finally:
            self._busy = False
        if self.list.differs():
            self.refresh()
        return False

    def _edited(self, place: int, item: Any) -> None:
        """Takes what the window has. What it refuses is known to the run's form, so that no run starts with it."""
        window = self.window
        if window is None:
            return
        problems = [Problem(f"{self.key}.{place}.{one.path}", one.text) for one in window.form.problems()]
        told = self.app.form.inner_problems.get(self.key, [])
        if problems:
            self.app.form.inner_problems[self.key] = problems
        else:
            self.app.form.inner_problems.pop(self.key, None)
        if item != self.list.items[place]:
            may_change = self._may_change(window)
            # while that was asked, the list may have changed
            if window is self.window and not may_change:
                window.form.replace(self.list.items[place].model_copy(deep=True))
            elif window is self.window and self._do(lambda: self.list.replace(place, item)):
                self._update(place)
        if problems != told:
            self.app.form.changed(self.key)

    def _let_go(self) -> None:
        """Closes the window of an item that is no longer there, or no longer in its place."""
        window, self.window = self.window, None
        self.app.form.inner_problems.pop(self.key, None)
        if window is not None:
            window.let_go()

    def _closed(self, window: ItemWindow) -> None:
        if window is self.window:
            self.window = None
            if self.app.form.inner_problems.pop(self.key, None):
                self.app.form.changed(self.key)

    def _update(self, place: int) -> None:
        """Shows an item that has been edited."""
        if place < len(self.cards):
            title, about = self.describe(self.list.items[place])
            card = self.cards[place]
            card["title"].show(title)
            card["about"].show(about)
            card["variable"].set(getattr(self.list.items[place], self.switch_key))

    def _may_change(self, window: ItemWindow | None = None) -> bool:
        """A file may serve other configs, too: asked once for each file.

        Args:
            window: of an item, if that is where it was changed.
        """
        file = str(self.list.file or "")
        if not file or file == self._asked_for or not self.list.items:
            return True
        question = tr(
            "The list of this config stands in {file}, which other configs may use, too. Change the file, or copy its "
            "list into this config?",
            file=file,
        )
        title = tr("Where is the list to be changed?")
        before = focused(self)
        answer = AskWindow(window or self.app, self.app.tools, title, question, (TAKE, CHANGE_FILE, CANCEL)).ask()
        if window is not None and before is not None and before.winfo_exists():
            before.focus_force()
        if answer == TAKE:
            self._busy = True
            self.list.take_into_config()
            self._busy = False
            self._show_note()
        elif answer == CHANGE_FILE:
            self._asked_for = file
        return answer in (TAKE, CHANGE_FILE)

    def _is_new(self) -> bool:
        return not self.list.items and not self.list.error

    def _show_note(self) -> None:
        count, file = self.counted(len(self.list.items)), self.list.file
        where = tr("{count}, in {file}", count=count, file=file) if file else tr("{count}, in this config", count=count)
        self.note.show(self.list.error or where)

    def _card(self, place: int, item: Any) -> dict[str, Any]:
        px, title_about = self.app.theme.px, self.describe(item)
        frame = ttk.Frame(self._inside, style="Card.TFrame", padding=px(8))
        variable = tk.BooleanVar(frame, getattr(item, self.switch_key))
        card: dict[str, Any] = {"frame": frame, "variable": variable}
        card["left"] = ttk.Frame(frame)
        card["left"].grid(row=0, column=0, rowspan=3, sticky="nw")
        card["title"] = ShortLabel(frame, title_about[0], "Bold.TLabel", 10, anchor="w")
        card["title"].grid(row=0, column=1, sticky="we")
        card["switch"] = ttk.Checkbutton(
            frame, style="Switch.TCheckbutton", variable=variable, command=lambda: self._switch(place, variable.get())
        )
        card["switch"].grid(row=0, column=2, sticky="e")
        card["about"] = ShortLabel(frame, title_about[1], "Muted.TLabel", 10, anchor="w")
        card["about"].grid(row=1, column=1, columnspan=2, sticky="we", pady=(px(1), px(3)))
        row = ttk.Frame(frame)
        row.grid(row=2, column=1, columnspan=2, sticky="we")
        for name, text, action in (
            ("edit", tr("Edit"), lambda: self.edit(place)),
            ("duplicate", tr("Duplicate"), lambda: self.change(lambda: self.list.duplicate(place))),
            ("up", "↑", lambda: self.change(lambda: self.list.move(place, -1))),
            ("down", "↓", lambda: self.change(lambda: self.list.move(place, 1))),
            ("remove", tr("Remove"), lambda: self.change(lambda: self.list.remove(place))),
        ):
            width = {"width": 2} if len(text) == 1 else {}
            card[name] = ttk.Button(row, text=text, command=action, **width)
            card[name].pack(side="left", padx=(0, px(4)))
        enable(card["up"], place > 0)
        enable(card["down"], place < len(self.list.items) - 1)
        frame.grid_columnconfigure(1, weight=1)
        frame.bind("<Double-Button-1>", lambda _: self.edit(place))
        return card

    def _switch(self, place: int, on: bool) -> None:
        item = self.list.items[place].model_copy(deep=True)
        setattr(item, self.switch_key, on)
        if not self.change(lambda: self.list.replace(place, item), show=False):
            self.cards[place]["variable"].set(getattr(self.list.items[place], self.switch_key))

    def _arrange(self) -> None:
        px = self.app.theme.px
        room = self.winfo_width() if self.winfo_width() > 1 else self.app.winfo_width()
        columns = max(1, room // px(self.card_width))
        if columns == self._columns:
            return
        for place in range(max(columns, self._columns)):
            used = place < columns
            self._inside.grid_columnconfigure(place, weight=int(used), uniform="card" if used else "")
        self._columns = columns
        for place, card in enumerate(self.cards):
            card["frame"].grid(row=place // columns, column=place % columns, sticky="nswe", padx=(0, px(8)),
                               pady=(0, px(8)))  # fmt: skip

    def _form_changed(self, paths: frozenset[str]) -> None:
        # a sample in a file has its size from the model family
        if self._busy or paths.isdisjoint({"", self.key, self.list.file_key or self.key, "model_type"}):
            return
        # it is told of problems, too, and of what is typed in another tab
        if self.list.differs():
            self.refresh()

    def _destroyed(self, event: tk.Event) -> None:
        if event.widget is self:
            self._end()
            self._let_go()
