import tkinter as tk
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from tkinter import ttk

from modules.ui.Theme import Theme
from modules.ui.Tooltip import Tooltip


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: stands above it.
        width: at least, in pixels at 100 %.
        share: of the room that is left.
        right: whether its texts end at its right side, as numbers do.
    """

    title: str
    width: int
    share: int = 0
    right: bool = False


class TableView(ttk.Frame):
    """Rows of texts in columns. Tk draws those alone that can be seen, so that there may be many.

    Args:
        parent: that it is put into.
        theme: for colours and sizes.
        columns: the first one may have pictures.
        several: whether more than one row can be chosen.
        chosen: called when a person has chosen others.
        sorted_by: called with the number of a column whose title was pressed; None: titles can't be pressed.
        across: whether there is a scrollbar for columns that need more room than there is.

    Attributes:
        tree: the widget of ttk; the names of its rows are their keys.
    """

    def __init__(
        self, parent: tk.Misc, theme: Theme, columns: Sequence[Column], several: bool = True,
        chosen: Callable[[], None] = lambda: None, sorted_by: Callable[[int], None] | None = None, across: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(parent)
        self._theme, self._sorted_by = theme, sorted_by
        self._told: tuple[str, ...] = ()
        self._shown: dict[str, dict[str, object]] = {}
        self._marks: dict[str, str] = {}
        self._chosen = chosen
        self.tree = ttk.Treeview(self, selectmode="extended" if several else "browse", height=3)
        bar = ttk.Scrollbar(self, command=self.tree.yview)
        self.tree.configure(yscrollcommand=bar.set)
        self.tree.grid(row=0, column=0, sticky="nswe")
        bar.grid(row=0, column=1, sticky="ns", padx=(2, 0))
        if across:
            low = ttk.Scrollbar(self, orient="horizontal", command=self.tree.xview)
            self.tree.configure(xscrollcommand=low.set)
            low.grid(row=1, column=0, sticky="we")
        self.grid_columnconfigure(0, weight=1)
        self.grid_rowconfigure(0, weight=1)
        self.tree.bind("<<TreeviewSelect>>", lambda _: self._tell())
        self.tree.bind("<Control-a>", lambda _: self.tree.selection_set(self.tree.get_children()))
        self.set_columns(columns)
        theme.listen(self, self._recolor)
        self._recolor()

    def set_columns(self, columns: Sequence[Column]) -> None:
        """Other columns; no rows stay."""
        self.tree.delete(*self.tree.get_children())
        self._shown.clear()
        self._marks.clear()
        self.tree.configure(columns=[str(number) for number in range(1, len(columns))])
        for number, column in enumerate(columns):
            name, anchor = f"#{number}", "e" if column.right else "w"
            wide = self._theme.px(column.width)
            self.tree.column(name, width=wide, minwidth=wide, stretch=bool(column.share), anchor=anchor)
            command = (lambda number=number: self._sorted_by(number)) if self._sorted_by is not None else ""
            self.tree.heading(name, text=column.title, anchor=anchor, command=command)

    @property
    def chosen(self) -> list[str]:
        """Keys of the rows that are chosen, in their order."""
        return list(self.tree.selection())

    def choose(self, keys: Sequence[str]) -> None:
        """Chooses rows, without telling anybody."""
        self._told = tuple(keys)
        self.tree.selection_set([key for key in keys if self.tree.exists(key)])

    def show(self, rows: Sequence[tuple[str, Sequence[str], str]]) -> None:
        """Shows rows: key, texts, and a tag, "" for none. What is chosen and where it is scrolled stays.

        Args:
            rows: keys are different. Of the first column the text stands beside its picture.
        """
        kept, place = set(self.chosen), self.tree.yview()[0]
        before = list(self.tree.get_children())
        keys = [key for key, _, _ in rows]
        if before != keys:
            self.tree.delete(*before)
            self._shown.clear()
            self._marks.clear()
        for key, texts, tag in rows:
            values = {"text": texts[0], "values": list(texts[1:]), "tags": (tag,) if tag else ()}
            if self._shown.get(key) == values:
                continue
            if key in self._shown:
                self.tree.item(key, **values)
            else:
                self.tree.insert("", "end", iid=key, **values)
            self._shown[key] = values
        self.choose([key for key in keys if key in kept])
        if before != keys:
            self.tree.yview_moveto(place)

    def mark(self, key: str, image: tk.PhotoImage | object | str) -> None:
        """A picture in the first column of a row; "" for none."""
        if key in self._shown and self._marks.get(key) != str(image):
            self._marks[key] = str(image)
            self.tree.item(key, image=image)

    def attach(self, tooltip: Tooltip, text: Callable[[str], str]) -> None:
        """Shows `text(key)` of the row under the pointer as help."""
        tree, pointed = self.tree, [""]

        def moved(event: tk.Event) -> None:
            # another row has another help, for which the pointer has come anew
            row = tree.identify_row(event.y)
            if row != pointed[0]:
                pointed[0] = row
                tooltip.hide()
                tree.event_generate("<Enter>", x=event.x, y=event.y)

        tooltip.attach(tree, lambda: text(tree.identify_row(tree.winfo_pointery() - tree.winfo_rooty())))
        tree.bind("<Motion>", moved, add="+")

    def _tell(self) -> None:
        # Tk tells of what the program chose, too, and later
        if tuple(self.tree.selection()) != self._told:
            self._told = tuple(self.tree.selection())
            self._chosen()

    def _recolor(self) -> None:
        color = self._theme.color
        self.tree.tag_configure("error", foreground=color("error"))
        self.tree.tag_configure("muted", foreground=color("faint"))
