import tkinter as tk
from pathlib import Path
from tkinter import filedialog
from typing import TYPE_CHECKING

from modules.ui.ConceptWindow import ConceptWindow
from modules.ui.ItemList import ItemList
from modules.util.config.ConceptConfig import ConceptConfig
from modules.viewModel.ConceptModel import FolderFacts, concept_of_folder, look_into, sort_dropped, thumbnail, title_of

from PIL import Image, ImageTk

if TYPE_CHECKING:
    from modules.ui.App import App

THUMBNAIL = 84


class ConceptList(ItemList):
    """The folders of images that a run trains on."""

    key, item_class, plural, add_text = "concepts", ConceptConfig, "concepts", "Add a folder …"
    card_width = 500

    def __init__(self, parent: tk.Misc, app: "App") -> None:
        self._facts: dict[tuple[str, bool], tuple[FolderFacts, Image.Image | None]] = {}
        self._photos: list[ImageTk.PhotoImage] = []
        self._looking = False
        super().__init__(parent, app)
        app.theme.listen(self, self._recolor)
        app.tools.drops.accept(self, self.add_dropped)

    def describe(self, item: ConceptConfig) -> tuple[str, str]:
        """Name; type and count of images, or what is wrong with the folder."""
        known = self._facts.get(_key(item))
        if known is None:
            return title_of(item), f"{item.type} · counting images …"
        facts = known[0]
        return title_of(item), facts.trouble or f"{item.type} · {facts.count} images"

    def new_item(self) -> ConceptConfig | None:
        """For a folder that a person chooses."""
        folder = filedialog.askdirectory(parent=self, title="A folder of images", initialdir=Path.cwd())
        return concept_of_folder(Path(folder)) if folder else None

    def add_folder(self, folder: Path) -> bool:
        """Adds a folder without asking for it."""
        return self.change(lambda: self.list.add(concept_of_folder(folder)))

    def add_dropped(self, paths: list[Path]) -> None:
        """Adds a concept for each folder among what was dropped here."""
        folders, news = sort_dropped(paths)
        if folders and not self.change(lambda: [self.list.add(concept_of_folder(folder)) for folder in folders]):
            return
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
        self._facts.clear()
        super().refresh()

    def _card(self, place: int, item: ConceptConfig) -> dict:
        card = super()._card(place, item)
        px = self.app.theme.px
        card["picture"] = tk.Label(card["left"], borderwidth=0, width=px(THUMBNAIL), height=px(THUMBNAIL))
        card["picture"].pack(padx=(0, px(10)))
        self._paint(card)
        self._show_picture(card, item)
        return card

    def _update(self, place: int) -> None:
        super()._update(place)
        self._look()

    def _show_picture(self, card: dict, item: ConceptConfig) -> None:
        known = self._facts.get(_key(item))
        if known is not None:
            card["about"].configure(style="Error.TLabel" if known[0].trouble else "Muted.TLabel")
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
        """Counts and draws on a worker's thread: a folder may be large, or far away."""
        missing = {_key(item): item for item in self.list.items if _key(item) not in self._facts}
        if not missing or self._looking:
            return
        self._looking, edge = True, self.app.theme.px(THUMBNAIL)

        def work() -> dict:
            found = {}
            for key, item in missing.items():
                facts = look_into(item)
                found[key] = facts, thumbnail(facts.first, edge) if facts.first else None
            return found

        self.app.worker.run(work, self._looked, lambda error: self._not_looked(error))

    def _looked(self, found: dict) -> None:
        self._looking = False
        if not self.winfo_exists():
            return
        self._facts |= found
        for card, item in zip(self.cards, self.list.items, strict=True):
            card["about"].configure(text=self.describe(item)[1])
            self._show_picture(card, item)
        self._look()

    def _not_looked(self, error: Exception) -> None:
        self._looking = False
        self.app.say(f"The folders cannot be read: {error}")


def _key(item: ConceptConfig) -> tuple[str, bool]:
    return item.path, item.include_subdirectories
