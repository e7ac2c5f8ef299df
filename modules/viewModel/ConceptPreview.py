from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.texts import tr
from modules.util.UserError import UserError
from modules.viewModel.ConceptModel import Preview, caption_file, images_of, preview, read_caption, write_caption


@dataclass(frozen=True)
class Drawn:
    """What was found for one wish.

    Attributes:
        number: of the wish.
        place, count: of the image among all of them.
        name, path: of the image, "" if there is none.
        variation: from 0.
        picture: None if there is none, or if it cannot be used.
        trouble: why it cannot be used, empty if it can.
        file: of its caption; None where captions come from elsewhere, or if the file cannot be read.
        caption: what stands in the file, or the captions from elsewhere.
        caption_trouble: what is wrong with it, empty if nothing.
    """

    number: int = 0
    place: int = 0
    count: int = 0
    name: str = ""
    path: str = ""
    variation: int = 0
    picture: Preview | None = None
    trouble: str = ""
    file: Path | None = None
    caption: str = ""
    caption_trouble: str = ""


class ConceptPreview:
    """Which image of a concept a window shows, in which variation, and the caption that is edited beside it.

    A caption belongs to the image that is shown. As long as it is edited and not saved, that image stays.

    Attributes:
        shown: what is shown now.
        text: what stands in the box of the caption; the window keeps it so.
    """

    def __init__(self) -> None:
        self.shown = Drawn()
        self.text = ""
        self._wish, self._round = (0, 0), 0

    @property
    def is_edited(self) -> bool:
        """Whether a caption would be lost."""
        return self.shown.file is not None and self.text.rstrip() != self.shown.caption.rstrip()

    @property
    def title(self) -> str:
        """Which image it is."""
        shown = self.shown
        place = tr("{number} of {count}", number=shown.place + 1, count=shown.count)
        return f"{place} · {shown.name}" if shown.path else ""

    @property
    def message(self) -> str:
        """What stands where the picture would, empty if there is one."""
        if self.shown.number == 0:
            return tr("Drawing …")
        return self.shown.trouble or ("" if self.shown.picture else tr("There are no images in this folder."))

    @property
    def facts(self) -> str:
        """Variation, size, and what was changed."""
        picture = self.shown.picture
        if picture is None:
            return ""
        return tr("Variation {number}: {facts}", number=self.shown.variation + 1, facts=picture.facts)

    @property
    def caption_note(self) -> str:
        """What stands below the caption: what this variation makes of it, if that is something else."""
        made = self.shown.picture.varied_caption if self.shown.picture else ""
        return tr("In this variation: {caption}", caption=made) if made and made != self.shown.caption else ""

    def wish(self, by: int = 0, variation: int = 0) -> None:
        """Another image, so many places on, or another variation of the one that is shown."""
        self._wish = (self.shown.place + by, variation)

    def draw(self, config: TrainConfig, concept: ConceptConfig) -> tuple[int, Callable[[], Drawn]]:
        """The wish's number and what draws it, on a worker's thread. Only the newest wish counts.

        Args:
            config, concept: that nobody else changes meanwhile.
        """
        self._round += 1
        number, (place, variation) = self._round, self._wish
        stays = (self.shown.name, self.shown.path) if self.is_edited else None

        def work() -> Drawn:
            images = images_of(concept)
            if stays is not None and stays not in images:
                # of another folder, or renamed: the caption belongs to it all the same
                return _draw(Drawn(number, 0, max(1, len(images)), *stays, variation), config, concept)
            if not images:
                return Drawn(number)
            where = images.index(stays) if stays is not None else place % len(images)
            return _draw(Drawn(number, where, len(images), *images[where], variation), config, concept)

        return number, work

    def take(self, drawn: Drawn) -> bool:
        """Shows what was drawn. False: something else is wanted by now."""
        if drawn.number != self._round:
            return False
        if self.is_edited:
            if drawn.path != self.shown.path:
                self.wish(variation=self.shown.variation)
                return False
            drawn = replace(drawn, file=self.shown.file, caption=self.shown.caption, caption_trouble="")
        else:
            self.text = drawn.caption
        self.shown = drawn
        self._wish = (drawn.place, drawn.variation)
        return True

    def failed(self, number: int, error: Exception) -> Drawn:
        """What is shown where a wish cannot be drawn at all."""
        return replace(self.shown, number=number, picture=None, trouble=str(error))

    def save(self) -> None:
        """Writes the caption beside the image that is shown.

        Raises:
            UserError: it can't be written, or has been changed by somebody else meanwhile.
        """
        assert self.shown.file is not None
        write_caption(self.shown.file, self.text, self.shown.caption)
        self.lose_edit(self.text.rstrip())

    def lose_edit(self, caption: str | None = None) -> None:
        """From now on the caption counts as not edited: it is what stood in the file, or this."""
        self.text = self.shown.caption if caption is None else caption
        self.shown = replace(self.shown, caption=self.text)


def _draw(wish: Drawn, config: TrainConfig, concept: ConceptConfig) -> Drawn:
    file = caption_file(concept, wish.path)
    try:
        caption, caption_trouble = read_caption(file) if file is not None else "", ""
    except UserError as error:
        file, caption, caption_trouble = None, "", str(error)
    wish = replace(wish, file=file, caption=caption, caption_trouble=caption_trouble)
    try:
        picture = preview(config, concept, (wish.name, wish.path), wish.variation)
    except UserError as error:
        return replace(wish, trouble=str(error))
    if caption_file(concept, wish.path) is None:
        wish = replace(wish, caption="\n".join(picture.captions))
    return replace(wish, picture=picture, caption_trouble=caption_trouble or picture.trouble)
