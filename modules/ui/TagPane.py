import tkinter as tk
from collections.abc import Callable
from tkinter import ttk

from modules.ui.ChoiceButton import ChoiceButton
from modules.ui.WindowTools import WindowTools
from modules.util.texts import tr, tr_n
from modules.viewModel.caption_edits import Within
from modules.viewModel.FieldHints import Choice
from modules.viewModel.PictureSet import PictureSet

# a list of more is of no use, and takes long to fill
MOST = 2000


class TagPane(ttk.Frame):
    """How many of all pictures have each tag or word. A click shows these alone.

    Args:
        parent: that it is put into.
        tools: the window's own.
        pictures: whose captions are counted.
        filter: gets the tag or word, and what it is.

    Attributes:
        kind: tags or words.
        box: the list.
        texts: tags or words of its lines.
    """

    def __init__(
        self, parent: tk.Misc, tools: WindowTools, pictures: PictureSet, filter: Callable[[str, Within], None]
    ) -> None:
        super().__init__(parent, style="Card.TFrame", padding=tools.theme.px(10))
        self._tools, self._pictures, self._filter, px = tools, pictures, filter, tools.theme.px
        self.texts: list[str] = []
        kinds = [Choice(Within.TAGS, tr("Tags")), Choice(Within.WORDS, tr("Words"))]
        self.kind = ChoiceButton(self, tools, kinds, self.refresh)
        self.kind.pack(fill="x")
        self._heading = ttk.Label(self, style="Muted.TLabel", anchor="w", justify="left")
        self._heading.pack(fill="x", pady=px(4))
        self._heading.bind("<Configure>", lambda event: self._heading.configure(wraplength=event.width))
        inside = ttk.Frame(self)
        inside.pack(fill="both", expand=True)
        self.box = tk.Listbox(
            inside, font=tools.theme.font("normal"), borderwidth=0, highlightthickness=0, activestyle="none",
            exportselection=False, width=10, height=4,
        )  # fmt: skip
        bar = ttk.Scrollbar(inside, command=self.box.yview)
        self.box.configure(yscrollcommand=bar.set)
        self.box.pack(side="left", fill="both", expand=True)
        bar.pack(side="right", fill="y", padx=(2, 0))
        self.box.bind("<<ListboxSelect>>", lambda _: self._chosen())
        self._recolor()
        tools.theme.listen(self, self._recolor)

    def refresh(self) -> None:
        """Counts anew, if it can be seen."""
        if not self.winfo_ismapped():
            return
        words = self.kind.chosen == Within.WORDS
        counts = self._pictures.count_words() if words else self._pictures.count_tags()
        self.texts = [text for text, _ in counts[:MOST]]
        self.box.delete(0, "end")
        self.box.insert("end", *(f" {count} × {text} " for text, count in counts[:MOST]))
        found = tr_n("{n} word", "{n} words", len(counts)) if words else tr_n("{n} tag", "{n} tags", len(counts))
        more = " " + tr("The {most} usual ones are listed.", most=MOST) if len(counts) > MOST else ""
        told = tr("{found} in all captions. A click shows the pictures that have it.", found=found)
        self._heading.configure(text=told + more)

    def _chosen(self) -> None:
        if place := self.box.curselection():
            self._filter(self.texts[place[0]], Within(self.kind.chosen))

    def _recolor(self) -> None:
        if self.box.winfo_exists():
            color = self._tools.theme.color
            self.box.configure(
                background=color("field"), foreground=color("text"), selectbackground=color("accent"),
                selectforeground=color("on_accent"),
            )  # fmt: skip
