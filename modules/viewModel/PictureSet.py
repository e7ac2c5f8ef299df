from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from modules.dataLoader.buckets import enlargement, resolutions_of
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.CaptionLines import CaptionLines
from modules.util.texts import tr, tr_n
from modules.viewModel.caption_edits import Form, Within, count_tags, count_words, holds
from modules.viewModel.CaptionLengths import CaptionLength, CaptionLengths
from modules.viewModel.CaptionText import CaptionText
from modules.viewModel.PictureLooks import PictureLooks
from modules.viewModel.read_pictures import FoundPictures, Picture, picture_sizes, read_pictures

# pictures whose headers are read at once, so that the first sizes come soon
AT_ONCE = 2000


class Show(StrEnum):
    """Which pictures are shown. All but the first are marks that a picture may have."""

    ALL = "all"
    WITHOUT = "without"
    LONG = "long"
    DOUBLES = "doubles"
    SOFT = "soft"
    SMALL = "small"
    LEFT_OUT = "left out"
    BY_MODEL = "by model"


@dataclass(frozen=True)
class Filter:
    """Which pictures are shown: with a mark, and with a text in the caption or in the name; empty: with any."""

    text: str = ""
    within: Within = Within.ANYWHERE
    show: Show = Show.ALL


class PictureSet:
    """The pictures of a concept: what is known of each, and which are shown.

    Args:
        config: of the run, for its resolution and for the dataset check.
        concept: whose folder is looked into. Nobody else changes either.

    Attributes:
        pictures: all of them, sorted by name.
        shown: those that the filter lets through; doubles stand beside each other where these are asked for.
        captions: by file; see `FoundPictures`.
        by_model: caption files that a model wrote and nobody has changed since.
        note: what is to be said of all of them, may be empty.
        sizes: path -> width and height; None where it can't be read, missing where it is not known yet.
        looks: what a closer look found; None before.
        lengths: how many tokens captions have.
        filter: which are shown.
        form: how captions are written.
    """

    def __init__(self, config: TrainConfig, concept: ConceptConfig) -> None:
        self.config, self.concept = config, concept
        self.pictures: list[Picture] = []
        self.shown: list[Picture] = []
        self.captions: dict[Path, CaptionText] = {}
        self.by_model: set[Path] = set()
        self.note = ""
        self.sizes: dict[str, tuple[int, int] | None] = {}
        self.looks: PictureLooks | None = None
        self.lengths = CaptionLengths(config, concept)
        self.filter = Filter()
        text = concept.text
        self.form = Form(text.tag_delimiter or ",", text.caption_lines == CaptionLines.DRAW)
        self._resolutions = resolutions_of(config, concept)
        self._counts: dict[Show, int] | None = None
        self._all_counted = False
        self._names: dict[str, str] = {}
        self._sharing: dict[Path, list[str]] = {}

    def load(self) -> Callable[[], FoundPictures]:
        """What looks into the folder, on a worker's thread."""
        return lambda: read_pictures(self.concept)

    def take(self, found: FoundPictures) -> None:
        """Keeps what was found; what is known of pictures that are still there stays."""
        self.pictures, self.captions = found.pictures, dict(found.captions)
        self.by_model, self.note = set(found.by_model), found.note
        self.lengths.begin_anew()
        self._all_counted = False
        self._know()

    def learn(self, typed: str = "") -> tuple[Callable[[], Any], Callable[[Any], None]] | None:
        """What finds out more of the pictures on a worker's thread, and who takes the result; None when all is known.

        Args:
            typed: the text of a caption that is being edited.
        """
        if (work := self.measure()) is not None:
            return work, self.take_sizes
        if (counting := self.lengths.count([typed, *map(self.text, self.pictures)])) is not None:
            return counting, self.take_lengths
        self._all_counted = True
        return None

    def measure(self) -> Callable[[], dict[str, tuple[int, int] | None]] | None:
        """What reads the next sizes, on a worker's thread; None when all are known."""
        missing = [one.path for one in self.pictures if one.path not in self.sizes][:AT_ONCE]
        return (lambda: picture_sizes(missing)) if missing else None

    def take_sizes(self, sizes: dict[str, tuple[int, int] | None]) -> None:
        """Keeps sizes that were read."""
        self.sizes |= sizes
        self._counts = None
        if self.filter.show == Show.SMALL:
            self.refresh()

    def take_lengths(self, found: dict[str, CaptionLength | None] | Exception) -> None:
        """Keeps what was counted of captions."""
        self.lengths.take(found)
        self._counts = None
        # later ones are those of captions that were edited just now, see `refresh`
        if self.filter.show == Show.LONG and not self._all_counted:
            self.refresh()

    def take_looks(self, looks: PictureLooks) -> None:
        """Keeps what a closer look found."""
        self.looks = looks
        self.refresh()

    def text(self, picture: Picture) -> str:
        """The caption of a picture."""
        return picture.fixed if picture.caption is None else self.captions[picture.caption].text

    def why_fixed(self, picture: Picture) -> str:
        """Why a picture's caption can't be edited, empty if it can."""
        return picture.why_fixed or (self.captions[picture.caption].trouble if picture.caption else "")

    def sharing(self, picture: Picture) -> list[str]:
        """Names of the other pictures that have the same caption file."""
        if picture.caption is None:
            return []
        return [name for name in self._sharing[picture.caption] if name != picture.name]

    def marks(self, picture: Picture) -> list[Show]:
        """What there is to say of a picture, the most important first."""
        return [mark for mark in _ORDER if self._has(picture, mark)]

    def badges(self, picture: Picture) -> list[str]:
        """What stands on a picture: its marks that are faults."""
        names = [self._length(picture).short if mark == Show.LONG else badge_of(mark) for mark in self.marks(picture)]
        return [name for name in names if name]

    def length_text(self, text: str) -> str:
        """How many tokens a caption has and how many are read, empty if that is not known."""
        found = self.lengths.of(text)
        return found.short if found is not None else ""

    def size_text(self, picture: Picture) -> str:
        """Width and height of a picture, for people."""
        if picture.path not in self.sizes:
            return ""
        size = self.sizes[picture.path]
        return f"{size[0]} × {size[1]}" if size else tr("can't be read")

    def explain(self, picture: Picture, typed: str | None = None) -> list[str]:
        """A sentence on each mark of a picture.

        Args:
            picture: one of them.
            typed: its caption as it is being edited; None: that of its file counts.
        """
        lines = [line for mark in self.marks(picture) if (line := self._explain(picture, mark))]
        length = self.lengths.of(self.text(picture) if typed is None else typed)
        return [*([length.sentence] if length is not None and length.cut else []), *lines]

    def set_filter(self, text: str, within: Within, show: Show) -> bool:
        """Shows other pictures. False: it is the same filter."""
        new = Filter(text.strip(), within, show)
        if new == self.filter:
            return False
        self.filter = new
        self.refresh()
        return True

    def refresh(self) -> None:
        """Filters anew. A single caption that was edited is not a reason: its picture would go from under the hands."""
        self._counts = None
        text, within, show = self.filter.text, self.filter.within, self.filter.show
        self.shown = [
            one for one in self.pictures
            if (show == Show.ALL or self._has(one, show)) and (not text or self._matches(one, text, within))
        ]  # fmt: skip
        if show == Show.DOUBLES and self.looks is not None:
            group = self.looks.group
            self.shown.sort(key=lambda one: group[one.path])

    def changed(self, captions: Iterable[CaptionText]) -> None:
        """Keeps captions that were written."""
        self.captions |= {one.path: one for one in captions}
        self._counts = None

    def forget(self, picture: Picture) -> None:
        """A picture is no longer there."""
        self.pictures = [one for one in self.pictures if one.path != picture.path]
        self._know()

    def counts(self) -> dict[Show, int]:
        """How many pictures have each mark, without marks of which nothing can be said."""
        if self._counts is None:
            marks = [mark for mark in _ORDER if mark != Show.LONG or self.lengths.is_known]
            self._counts = {mark: sum(self._has(one, mark) for one in self.pictures) for mark in marks}
            self._counts[Show.ALL] = len(self.pictures)
        return self._counts

    def count_tags(self) -> list[tuple[str, int]]:
        """(tag, number of pictures with it) of all pictures, the usual ones first."""
        return count_tags((self.text(one) for one in self.pictures), self.form)

    def count_words(self) -> list[tuple[str, int]]:
        """The same of words."""
        return count_words(self.text(one) for one in self.pictures)

    @property
    def heading(self) -> str:
        """How many pictures are shown."""
        count = len(self.pictures)
        if len(self.shown) == count:
            return tr_n("{n} picture", "{n} pictures", count)
        return tr_n("{shown} of {n} picture", "{shown} of {n} pictures", count, shown=len(self.shown))

    @property
    def empty_text(self) -> str:
        """What stands in place of pictures if none are shown, else empty."""
        if self.shown:
            return ""
        return tr("No picture has this.") if self.pictures else self.note

    def _know(self) -> None:
        """Finds by path and by file what there is now."""
        self._names = {one.path: one.name for one in self.pictures}
        self._sharing = {}
        for one in self.pictures:
            if one.caption is not None:
                self._sharing.setdefault(one.caption, []).append(one.name)
        self.refresh()

    def _matches(self, picture: Picture, text: str, within: Within) -> bool:
        if holds(self.text(picture), text, within, self.form):
            return True
        return within == Within.ANYWHERE and text.casefold() in picture.name.casefold()

    def _has(self, picture: Picture, mark: Show) -> bool:
        if mark == Show.WITHOUT:
            return picture.caption is not None and not self.text(picture).strip() and not self.why_fixed(picture)
        if mark == Show.BY_MODEL:
            return picture.caption in self.by_model
        if mark == Show.LONG:
            return (length := self._length(picture)) is not None and length.cut > 0
        if mark == Show.SMALL:
            return self._enlargement(picture) > 1
        looks = self.looks
        if looks is None:
            return mark == Show.LEFT_OUT and self.sizes.get(picture.path, ()) is None
        if mark == Show.DOUBLES:
            return bool(self._doubles(picture))
        return picture.path in (looks.soft if mark == Show.SOFT else looks.rejected)

    def _length(self, picture: Picture) -> CaptionLength | None:
        return self.lengths.of(self.text(picture))

    def _doubles(self, picture: Picture) -> list[str]:
        """Names of those that look nearly the same, as far as they are there."""
        others = self.looks.doubles_of.get(picture.path, ()) if self.looks is not None else ()
        return [self._names[path] for path in others if path in self._names]

    def _enlargement(self, picture: Picture) -> float:
        size = self.sizes.get(picture.path)
        if size is None or min(size) < 1:
            return 0.0
        bucketing = self.config.aspect_ratio_bucketing
        return max(enlargement(*size, one, bucketing) for one in self._resolutions)

    def _explain(self, picture: Picture, mark: Show) -> str:
        if mark == Show.SMALL:
            factor = self._enlargement(picture)
            return tr("Too small: it is enlarged by {factor} for the resolution.", factor=f"{factor:.2g}")
        if mark == Show.BY_MODEL:
            return tr("A model wrote this caption, and nobody has changed it.")
        if mark == Show.LEFT_OUT and self.looks is None:
            return tr("It can't be read as a picture, so a run leaves it out.")
        if self.looks is None:
            return ""
        if mark == Show.LEFT_OUT:
            return tr("A run leaves it out: {why}.", why=self.looks.rejected[picture.path])
        if mark == Show.DOUBLES:
            return tr("Nearly the same: {names}.", names=", ".join(self._doubles(picture)))
        if mark == Show.SOFT:
            return tr("Far less fine detail than the others, perhaps blurred.")
        return ""


_ORDER = (Show.LEFT_OUT, Show.WITHOUT, Show.LONG, Show.DOUBLES, Show.SOFT, Show.SMALL, Show.BY_MODEL)


def name_of(show: Show) -> str:
    """What a list of marks shows."""
    names = {
        Show.ALL: tr("all"), Show.WITHOUT: tr("without caption"), Show.LONG: tr("caption too long"),
        Show.DOUBLES: tr("doubles"), Show.SOFT: tr("soft"), Show.SMALL: tr("too small"), Show.LEFT_OUT: tr("left out"),
        Show.BY_MODEL: tr("caption by a model"),
    }  # fmt: skip
    return names[show]


def badge_of(show: Show) -> str:
    """What stands on a picture with a mark; empty where that is no fault, or a number."""
    names = {
        Show.WITHOUT: tr("no caption"), Show.DOUBLES: tr("double"), Show.SOFT: tr("soft"), Show.SMALL: tr("small"),
        Show.LEFT_OUT: tr("left out"),
    }  # fmt: skip
    return names.get(show, "")
