from collections.abc import Callable

from modules.util.texts import tr
from modules.viewModel.PictureLooks import PictureLooks, look_at
from modules.viewModel.PictureSet import PictureSet

BY_ITSELF = 300
"""Pictures up to which a closer look begins by itself. Each is read twice."""


class LookStopped(Exception):
    """A closer look is not wanted any more."""


class PictureLook:
    """A closer look at all pictures of a set, which takes a while and can be stopped.

    Args:
        pictures: that are looked at.

    Attributes:
        is_busy: whether it goes on.
        trouble: why it could not be done, empty if it could.
    """

    def __init__(self, pictures: PictureSet) -> None:
        self._pictures = pictures
        self.is_busy, self.trouble = False, ""
        self._stopped = False
        self._progress = ("check", 0, 0)

    @property
    def line(self) -> str:
        """How far it is."""
        stage, done, total = self._progress
        if not total:
            return tr("Looking …")
        if stage == "check":
            return tr("Reading {done} of {total} pictures …", done=done, total=total)
        return tr("Comparing {done} of {total} pictures …", done=done, total=total)

    @property
    def is_due(self) -> bool:
        """Whether it should begin by itself."""
        return not self.is_busy and self._pictures.looks is None and 0 < len(self._pictures.pictures) <= BY_ITSELF

    def begin(self) -> Callable[[], PictureLooks]:
        """What looks, on a worker's thread."""
        assert not self.is_busy
        self.is_busy, self._stopped, self.trouble, self._progress = True, False, "", ("check", 0, 0)
        config = self._pictures.config.model_copy(deep=True)
        concept = self._pictures.concept.model_copy(deep=True)
        return lambda: look_at(config, concept, self._tell)

    def stop(self) -> None:
        """It ends after the pictures that are being read."""
        self._stopped = True

    def take(self, found: PictureLooks | Exception) -> None:
        """Keeps what it found, or why it could not be done."""
        self.is_busy = False
        if isinstance(found, PictureLooks):
            self._pictures.take_looks(found)
            self.trouble = found.note
        elif not isinstance(found, LookStopped):
            self.trouble = tr("The pictures can't be compared: {why}", why=found)

    def _tell(self, stage: str, done: int, total: int) -> None:
        self._progress = (stage, done, total)
        if self._stopped:
            raise LookStopped
