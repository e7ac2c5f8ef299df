import tkinter as tk
from collections.abc import Callable
from pathlib import Path
from tkinter import filedialog, ttk
from typing import TYPE_CHECKING

from modules.ui.ConceptWindow import ConceptWindow
from modules.ui.ItemList import ItemList
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.texts import later, tr, tr_n
from modules.viewModel.ConceptFacts import ConceptFacts
from modules.viewModel.ConceptModel import concept_of_folder, sort_dropped

from PIL import Image, ImageTk

if TYPE_CHECKING:
    from modules.ui.App import App

THUMBNAIL = 84


class ConceptList(ItemList):
    """The folders of images that a run trains on."""

    key, item_class, add_text = "concepts", ConceptConfig, later("Add a folder …")
    card_width = 500

    def __init__(self, parent: tk.Misc, app: "App") -> None:
        self._facts = ConceptFacts(app.worker)
        super().__init__(parent, app)
        app.theme.listen(self, self._recolor)
        app.tools.drops.accept(self, self.add_dropped)

    def counted(self, n: int) -> str:
        """How many concepts there are, in words."""
        return tr_n("{n} concept", "{n} concepts", n)

    def describe(self, item: ConceptConfig) -> tuple[str, str]:
        """Name; type and count of images, or what is wrong with the folder."""
        return self._facts.describe(item)

    def add(self) -> None:
        """Adds the folder that a person chooses, and opens it."""
        folder = filedialog.askdirectory(parent=self, title=tr("A folder of images"), initialdir=Path.cwd())
        if folder:
            self.add_folders([Path(folder)], lambda: self.edit(len(self.list.items) - 1))

    def add_folders(self, folders: list[Path], then: Callable[[], None] = lambda: None) -> None:
        """Adds folders without asking for them, as soon as it is known where their images are."""
        form = self.app.form
        config = form.config

        def found(concepts: list[ConceptConfig]) -> None:
            # they were meant for the preset that was open then
            if self.winfo_exists() and form.config is config:
                if self.change(lambda: [self.list.add(concept) for concept in concepts]):
                    then()

        self.app.worker.run(lambda: [concept_of_folder(folder) for folder in folders], found, self._not_looked)

    def add_dropped(self, paths: list[Path]) -> None:
        """Adds a concept for each folder among what was dropped here."""
        folders, news = sort_dropped(paths)
        if folders:
            self.add_folders(folders, lambda: self.app.say(news))
        else:
            self.app.say(news)

    def make_window(self, place: int, item: ConceptConfig) -> ConceptWindow:
        """The window of a concept."""
        return ConceptWindow(self.app, item, lambda new: self._edited(place, new))

    def show(self) -> None:
        """Makes the cards anew, and looks into folders that are not known yet."""
        super().show()
        self._look()

    def refresh(self) -> None:
        """Shows the list as it is now; folders are looked into again."""
        self._facts.forget()
        super().refresh()

    def _card(self, place: int, item: ConceptConfig) -> dict:
        card = super()._card(place, item)
        px = self.app.theme.px
        card["pictures"] = ttk.Button(
            card["edit"].master, text=tr("Pictures …"), command=lambda: self.app.open_pictures(self.list.items[place])
        )
        card["pictures"].pack(side="left", padx=(0, px(4)), after=card["edit"])
        self.app.tools.tooltip.attach(card["pictures"], lambda: tr("All pictures of this concept and their captions."))
        card["picture"] = tk.Label(card["left"], borderwidth=0, width=px(THUMBNAIL), height=px(THUMBNAIL))
        card["picture"].pack(padx=(0, px(10)))
        self._paint(card)
        self._show_picture(card, item)
        return card

    def _update(self, place: int) -> None:
        super()._update(place)
        self._look()

    def _show_picture(self, card: dict, item: ConceptConfig) -> None:
        known = self._facts.of(item)
        if known is not None:
            card["about"].show(card["about"].full, "Error.TLabel" if known[0].trouble else "Muted.TLabel")
            if known[1] is not None:
                card["photo"] = ImageTk.PhotoImage(known[1], master=self)
                card["picture"].configure(image=card["photo"])

    def _recolor(self) -> None:
        for card, item in zip(self.cards, self.list.items, strict=True):
            self._paint(card)
            self._show_picture(card, item)

    def _paint(self, card: dict) -> None:
        """An empty thumbnail in the theme's colours."""
        edge, color = self.app.theme.px(THUMBNAIL), self.app.theme.color
        card["photo"] = ImageTk.PhotoImage(Image.new("RGB", (edge, edge), color("line")), master=self)
        card["picture"].configure(image=card["photo"], background=color("card"))

    def _look(self) -> None:
        edge = self.app.theme.px(THUMBNAIL)
        self._facts.look(self.list.items, edge, self._looked, self._not_looked)

    def _looked(self) -> None:
        if not self.winfo_exists():
            return
        for card, item in zip(self.cards, self.list.items, strict=True):
            card["about"].show(self.describe(item)[1])
            self._show_picture(card, item)
        self._look()

    def _not_looked(self, error: Exception) -> None:
        self.app.say(tr("The folders cannot be read: {error}", error=error))
