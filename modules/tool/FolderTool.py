from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from modules.dataLoader.Companions import Beside
from modules.dataLoader.find_images import list_folder
from modules.dataLoader.findings import counted
from modules.model.hub import Hub, Progress
from modules.tool.WrittenFiles import WrittenByFolder, WrittenFiles
from modules.trainer.devices import resolve_device
from modules.util.config.load import load_train_config
from modules.util.config.TrainConfig import TrainConfig
from modules.util.decode_image import LARGEST_FILE, ImageError, decode_image
from modules.util.regular_file import read_regular
from modules.util.UserError import UserError

import torch

from PIL import Image


@dataclass(frozen=True)
class FolderWishes:
    """What the command line asked for.

    Attributes:
        folder: of the pictures.
        model: folder, file or hub name.
        limit: pictures at most, at least 1; None: all.
        preview: what the model makes is shown and not written.
        again: files that this tool wrote and nobody changed are written anew.
        subfolders: pictures below the folder count, too.
        config: its device, cache folder, token and offline mode count; None: defaults.
        device: as `train_device`; None: the config's, else the best one there is.
    """

    folder: Path
    model: str
    limit: int | None = None
    preview: bool = False
    again: bool = False
    subfolders: bool = False
    config: Path | None = None
    device: str | None = None


@dataclass(frozen=True)
class Place:
    """A picture that gets a file.

    Attributes:
        name: of the picture, from the folder on.
        image: its file.
        file: that is written.
        again: whether this tool wrote the one that is there.
    """

    name: str
    image: Path
    file: Path
    again: bool = False


@dataclass(frozen=True)
class Made:
    """What a model made of a picture.

    Attributes:
        told: of it, for people, after the picture's name.
        data: gives the content of the file.
    """

    told: str
    data: Callable[[], bytes]


class LeftOut(Exception):
    """A picture that gets no file. The text is the reason, for people."""


class FolderTool(ABC):
    """Goes through a folder of pictures and writes a file of a model beside each, as soon as it is made.

    A preview writes nothing. A file that is there is left alone. Only one that a model wrote here and nobody has
    changed since is written anew, where that is asked for.

    Args:
        wishes: of the command line.
        say: gets what the model makes of each picture, and remarks.
        on_progress: is told of pictures, done and in all.
        on_download: is told of what comes from the hub.

    Attributes:
        written: how many files were written; in a preview, how many pictures were shown.
        left_out: how many pictures got none, as they are broken or the model found nothing.
    """

    picture, what = "picture", "file"
    """A picture, and what is written beside it, for people."""

    shown = "shown"
    """What a preview does with it, for people."""

    ending = ""
    """Of the names of the files."""

    kind: type[WrittenFiles]
    """Remembers which of them a model wrote."""

    def __init__(
        self,
        wishes: FolderWishes,
        say: Callable[[str], None],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        on_download: Progress = lambda stage, done, total: None,
    ) -> None:
        self.wishes, self.say = wishes, say
        self._on_progress, self._on_download = on_progress, on_download
        self._books = WrittenByFolder(self.kind)
        self.written = self.left_out = 0

    @abstractmethod
    def existing(self, image: str, beside: Beside) -> Path | None:
        """The file that an image has already, None if it has none. Raises LeftOut if that can't be known."""

    @abstractmethod
    def load(self, device: torch.device, hub: Hub) -> None:
        """Loads the model. Raises UserError if it can't be used."""

    @abstractmethod
    def make(self, place: Place, image: Image.Image) -> Made:
        """What the model makes of an image, 8-bit RGB and upright. Raises LeftOut if that is nothing."""

    def run(self) -> None:
        """Does all of it.

        Raises:
            UserError, ConfigError: something can't be read, is no model for this, or can't be written.
        """
        # what is wrong with a folder should not wait for the model
        places = self._places()
        if not places:
            return
        config = self._config()
        device = resolve_device(config)
        self.load(device, Hub(config, self._on_download, self.warn))
        self._on_progress(0, len(places))
        for done, place in enumerate(places, 1):
            try:
                self._treat(place)
            except LeftOut as why:
                self.warn(f"{place.name} is left out: {why}")
                self.left_out += 1
            self._on_progress(done, len(places))
        self.end(config)

    def end(self, config: TrainConfig) -> None:
        """Says what was done."""
        done = counted(self.written, self.what)
        self.say(f"{done} {self.shown}, none written." if self.wishes.preview else f"{done} written.")

    def warn(self, text: str) -> None:
        """Says what a person should know."""
        self.say(f"warning: {text}")

    def _places(self) -> list[Place]:
        """The pictures that get a file, in the order of their names."""
        folder, picture = self.wishes.folder, self.picture
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder. Expected the folder of your {picture}s.")
        every = list(self._every_place())
        wanted = [place for place in every if place is not None]
        if kept := len(every) - len(wanted):
            self.say(f"{counted(kept, picture)} with a {self.what}: left alone.")
        if not wanted:
            none = f"There are no {picture}s in {folder}."
            self.say(f"There is no {picture} without a {self.what}." if kept else none)
        return wanted[: self.wishes.limit]

    def _every_place(self) -> Iterator[Place | None]:
        """For each picture its place, None where its file is left alone."""
        listing = list_folder(self.wishes.folder, self.wishes.subfolders)
        for error in listing.errors:
            self.warn(f"{error.filename} cannot be read: {error.strerror or error}")
        for name, path in listing.images:
            try:
                file = self.existing(path, listing.beside[path])
            except LeftOut as why:
                self.warn(str(why))
                yield None
                continue
            if file is None:
                yield Place(name, Path(path), listing.new_file(path, self.ending))
            else:
                again = self.wishes.again and self._books.of(file).has(file)
                yield Place(name, Path(path), file, True) if again else None

    def _config(self) -> TrainConfig:
        path = self.wishes.config
        config = TrainConfig() if path is None else load_train_config(path, warn=self.warn)
        config.train_device = self.wishes.device or config.train_device
        return config

    def _treat(self, place: Place) -> None:
        try:
            image = decode_image(read_regular(place.image, LARGEST_FILE))
        except ImageError as error:
            raise LeftOut(str(error)) from error
        except OSError as error:
            raise LeftOut(f"cannot be read: {error.strerror or error}") from error
        made = self.make(place, image)
        if not self.wishes.preview and not self._books.write(place.file, made.data(), place.again):
            raise LeftOut(f"{place.file.name} has been written or changed meanwhile")
        self.written += 1
        self.say(f"{place.name}: {made.told}")
