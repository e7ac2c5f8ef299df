import tkinter as tk
from collections.abc import Callable, Mapping, Sequence
from tkinter import ttk

from modules.ui.FieldRow import LABEL_WIDTH, FieldRow
from modules.ui.ScrollFrame import ScrollFrame
from modules.ui.WindowTools import WindowTools
from modules.util.texts import tr
from modules.viewModel.FieldHints import FieldHints
from modules.viewModel.FormField import FormField, FormSection
from modules.viewModel.FormModel import FormModel

CARD_WIDTH, MOST_COLUMNS = 560, 3
# what a heading takes, in rows
HEADING_ROWS, EXTRA_ROWS = 2, 4


class FormView(ScrollFrame):
    """A form made from the declarations of a config: a card for each section, in as many columns as there is room for.

    A row is made when it is first shown. While the view itself can't be seen it does nothing; it catches up when it
    is shown.

    Args:
        parent: that it is put into.
        tools: the window's own.
        form: holds the values.
        sections: what is shown, in this order.
        hints: what can be chosen; None: as the config declares it.
        everything: whether advanced options are shown.
        actions: section -> text and what it does, of a button beside its heading.
        extras: section -> card -> what stands below its fields.

    Attributes:
        rows: path -> row, of those made so far.
        extras: section -> what stands below its fields, of those made so far.
    """

    def __init__(
        self, parent: tk.Misc, tools: WindowTools, form: FormModel, sections: Sequence[FormSection],
        hints: FieldHints | None = None, everything: bool = False,
        actions: Mapping[str, tuple[str, Callable[[], None]]] | None = None,
        extras: Mapping[str, Callable[[tk.Misc], tk.Widget]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(parent, tools.theme)
        self._tools, self._form, self._hints = tools, form, hints or FieldHints(form)
        self._sections, self._everything, self._actions = list(sections), everything, dict(actions or {})
        self._extras, self.extras = dict(extras or {}), {}
        self.rows: dict[str, FieldRow] = {}
        self._cards: dict[str, ttk.Frame] = {}
        self._columns: list[ttk.Frame] = []
        self._nothing = ttk.Label(self.inside, style="Muted.Window.TLabel")
        self._stale: set[str] | None = None
        self._packed: tuple[object, ...] = ()
        self._end = form.listen(self._changed)
        self.bind("<Destroy>", self._destroyed)
        self.bind("<Map>", lambda _: self._catch_up())
        self.bind("<Configure>", lambda _: self._arrange())
        self.refresh()

    @property
    def everything(self) -> bool:
        """Whether advanced options are shown."""
        return self._everything

    def show_everything(self, everything: bool) -> None:
        """Shows or hides advanced options."""
        if everything != self._everything:
            self._everything = everything
            self._changed(frozenset([""]))

    def show_sections(self, sections: Sequence[FormSection]) -> None:
        """Shows other sections."""
        for card in self._cards.values():
            card.destroy()
        self._cards.clear()
        self.rows.clear()
        self._sections, self._packed = list(sections), ()
        self.refresh()

    def refresh(self) -> None:
        """Shows what the form has, and what matters now."""
        self._stale = None
        self._update(None)

    def show_field(self, path: str) -> bool:
        """Scrolls to an option, gives it the focus and draws the eye to it. False: it can't be seen now."""
        self._catch_up()
        row = next((row for row in self.rows.values() if path in row.paths and row.visible), None)
        if row is None:
            return False
        self.update_idletasks()
        self.see(row.label, middle=True)
        row.control.focus.focus_set()
        row.flash()
        return True

    def place_of(self, path: str) -> tuple[int, int] | None:
        """Top and bottom, on the screen, of the card in which an option stands; None: it can't be seen now."""
        row = self.rows.get(path)
        if row is None or not row.label.winfo_viewable():
            return None
        card = row.label.master
        return card.winfo_rooty(), card.winfo_rooty() + card.winfo_height()

    def _changed(self, paths: frozenset[str]) -> None:
        if self.winfo_ismapped():
            self._update(None if "" in paths else paths)
        else:
            self._stale = (self._stale or set()) | paths

    def _catch_up(self) -> None:
        if self._stale is not None:
            stale, self._stale = self._stale, None
            self._update(None if "" in stale else frozenset(stale))

    def _update(self, paths: frozenset[str] | None) -> None:
        """Shows new values of `paths` (None: of all) and whatever now matters or no longer does."""
        for section in self._sections:
            inline = {one.unit_path for one in section.fields if one.unit_path and self._belongs(section, one)}
            added = False
            for place, one in enumerate(section.fields):
                visible = self._belongs(section, one) and one.path not in inline and self._form.applies(one.path)
                row = self.rows.get(one.path)
                if row is None and visible:
                    row = self.rows[one.path] = FieldRow(
                        self._card(section), place + 1, one, self._form, self._hints, self._tools
                    )
                    added = True
                if row is None:
                    continue
                known = row.visible
                row.set_visible(visible)
                # what can be chosen depends on other options, so lists and switches are always asked again
                if known and visible and (paths is None or not paths.isdisjoint(row.paths) or one.kind.kind is bool):
                    row.refresh()
                elif known and visible:
                    row.show_note()
            if added:
                for one in section.fields:
                    if one.path in self.rows:
                        self.rows[one.path].lift()
        self._arrange()

    def _belongs(self, section: FormSection, one: FormField) -> bool:
        advanced = section.advanced or one.is_advanced
        # nothing that was set stays behind hidden
        shown = self._everything or not advanced or self._form.is_modified(one.path)
        return shown or bool(self._form.complaint(one.path))

    def _card(self, section: FormSection) -> ttk.Frame:
        if section.key not in self._cards:
            px = self._tools.theme.px
            card = self._cards[section.key] = ttk.Frame(self.inside, style="Card.TFrame", padding=(0, px(6), 0, px(8)))
            heading = ttk.Label(card, text=tr(section.title), style="Heading.TLabel")
            heading.grid(row=0, column=0, columnspan=3, sticky="w", padx=px(12), pady=(px(2), px(4)))
            if section.key in self._actions:
                text, action = self._actions[section.key]
                button = ttk.Button(card, text=text, command=action)
                button.grid(row=len(section.fields) * 2 + 2, column=1, sticky="w", pady=(px(4), px(2)))
            if section.key in self._extras:
                extra = self.extras[section.key] = self._extras[section.key](card)
                row = len(section.fields) * 2 + 3
                extra.grid(row=row, column=0, columnspan=3, sticky="we", padx=px(12), pady=(px(6), 0))
            if section.help:
                text = ttk.Label(card, text=tr(section.help), style="Muted.TLabel", wraplength=px(CARD_WIDTH - 40))
                text.grid(row=1, column=0, columnspan=3, sticky="w", padx=px(12), pady=(0, px(4)))
                card.bind("<Configure>", lambda event: text.configure(wraplength=max(1, event.width - px(28))))
            card.grid_columnconfigure(0, minsize=px(LABEL_WIDTH + 20))
            card.grid_columnconfigure(1, weight=1)
            card.grid_columnconfigure(2, minsize=px(40))
        return self._cards[section.key]

    def _arrange(self) -> None:
        """Spreads the cards over the columns: each goes to the shortest one. Only where something has changed."""
        px = self._tools.theme.px
        room = self.winfo_width() if self.winfo_width() > 1 else self.winfo_toplevel().winfo_width()
        shown = [section for section in self._sections if self._is_shown(section)]
        count = max(1, min(MOST_COLUMNS, room // px(CARD_WIDTH)))
        packed = (count, self._everything, *(section.key for section in shown))
        if packed == self._packed:
            return
        self._packed = packed
        for card in self._cards.values():
            card.pack_forget()
        while len(self._columns) < count:
            self._columns.append(ttk.Frame(self.inside, style="Window.TFrame"))
        for place, column in enumerate(self._columns):
            column.grid_forget()
            self.inside.grid_columnconfigure(
                place, weight=1 if place < count else 0, uniform="column" if place < count else ""
            )
            if place < count:
                column.grid(row=0, column=place, sticky="nwe", padx=(0, px(8)))
        if shown:
            self._nothing.grid_forget()
        else:
            self._nothing.configure(text=self._why_nothing())
            self._nothing.grid(row=1, column=0, columnspan=count, sticky="w", padx=px(12), pady=px(12))
        heights = [0] * count
        for section in shown:
            place = heights.index(min(heights))
            heights[place] += (
                HEADING_ROWS
                + EXTRA_ROWS * (section.key in self._extras)
                + sum(one.path in self.rows and self.rows[one.path].visible for one in section.fields)
            )
            card = self._cards[section.key]
            card.pack(in_=self._columns[place], fill="x", pady=(0, px(8)))
            card.lift()

    def _why_nothing(self) -> str:
        """What would have to be otherwise for something to be shown here."""
        needs = [self._form.needs(one.path) for section in self._sections for one in section.fields]
        needs = [words for words in dict.fromkeys(needs) if words]
        if not needs:
            return tr("There are no options here.")
        return tr("These options matter only with {needs}.", needs=min(needs, key=len))

    def _is_shown(self, section: FormSection) -> bool:
        return any(one.path in self.rows and self.rows[one.path].visible for one in section.fields)

    def _destroyed(self, event: tk.Event) -> None:
        if event.widget is self:
            self._end()
