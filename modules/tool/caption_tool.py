"""What `scripts/caption.py` does: writes captions beside images that have none, and touches no other one."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modules.dataLoader.captions import CaptionError, find_captions
from modules.dataLoader.Companions import spoken
from modules.dataLoader.find_images import FolderListing, list_folder
from modules.dataLoader.findings import counted
from modules.model.hub import Hub, Progress
from modules.tool.captioner import Asked, Captioner, load_captioner
from modules.tool.WrittenCaptions import WrittenCaptions
from modules.tool.WrittenFiles import WrittenByFolder
from modules.trainer.devices import resolve_device
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.load import load_train_config
from modules.util.config.TrainConfig import TrainConfig
from modules.util.decode_image import LARGEST_FILE, ImageError, decode_image
from modules.util.regular_file import read_regular
from modules.util.UserError import UserError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    """What the command line asked for.

    Attributes:
        folder: of the images.
        model: folder or hub name.
        asked: of each image.
        start: what each caption begins with, before what the model says.
        limit: images at most, at least 1; None: all.
        preview: captions are told and not written.
        redo: captions that this tool wrote and nobody changed are written anew.
        subfolders: images below the folder count, too.
        config: its device, cache folder, token and offline mode count; None: defaults.
        device: as `train_device`; None: the config's, else the best one there is.
    """

    folder: Path
    model: str
    asked: Asked = field(default_factory=Asked)
    start: str = ""
    limit: int | None = None
    preview: bool = False
    redo: bool = False
    subfolders: bool = False
    config: Path | None = None
    device: str | None = None


@dataclass(frozen=True)
class Place:
    """An image that gets a caption.

    Attributes:
        name: of the image, from the folder on.
        image: its file.
        caption: file that is written.
        again: whether this tool wrote the one that is there.
    """

    name: str
    image: Path
    caption: Path
    again: bool = False


@dataclass
class Outcome:
    """How many captions were written (in a preview: told), and how many images were left out, as they are broken."""

    written: int = 0
    left_out: int = 0


def caption_folder(
    wishes: Wishes,
    say: Say,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_download: Progress = lambda stage, done, total: None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Writes a caption beside each image that has none, and says each.

    Args:
        wishes: of the command line.
        say: gets captions and remarks.
        on_progress: is told of images, done and in all.
        on_download: is told of what comes from the hub.
        outcome: is counted up, for callers that are interrupted.

    Raises:
        UserError, ConfigError: something can't be read, is no captioning model, or can't be written.
    """
    outcome = Outcome() if outcome is None else outcome
    # what is wrong with a folder should not wait for the model
    books = WrittenByFolder(WrittenCaptions)
    places, kept = find_places(wishes, say, books)
    if kept:
        say(f"{counted(kept, 'image')} with a caption: left alone.")
    if not places:
        say("There is no image without a caption." if kept else f"There are no images in {wishes.folder}.")
        return outcome
    captioner = _load(wishes, say, on_download)
    on_progress(0, len(places))
    for done, place in enumerate(places, 1):
        _describe(wishes, place, captioner, say, books, outcome)
        on_progress(done, len(places))
    what = counted(outcome.written, "caption")
    say(f"{what} told, none written." if wishes.preview else f"{what} written.")
    return outcome


def find_places(wishes: Wishes, say: Say, books: WrittenByFolder) -> tuple[list[Place], int]:
    """The images that get a caption, in the order of their names, and how many have one that is left alone.

    Raises:
        UserError: there is no such folder.
    """
    if not wishes.folder.is_dir():
        raise UserError(f"{wishes.folder} is no folder. Expected the folder of your images.")
    listing = list_folder(wishes.folder, wishes.subfolders)
    for error in listing.errors:
        say(f"warning: {error.filename} cannot be read: {error.strerror or error}")
    every = list(_places(wishes, listing, say, books))
    wanted = [place for place in every if place is not None]
    return wanted[: wishes.limit], len(every) - len(wanted)


def _places(wishes: Wishes, listing: FolderListing, say: Say, books: WrittenByFolder) -> Iterator[Place | None]:
    """For each image its place, None where the caption is left alone."""
    shared = Counter(spoken(os.path.splitext(path)[0]) for _, path in listing.images)
    for name, path in listing.images:
        try:
            found = find_captions(ConceptConfig(), path, (), listing.beside[path])
        except CaptionError as error:
            say(f"warning: {error}; it is left as it is")
            yield None
            continue
        if found.path:
            own = Path(found.path)
            again = wishes.redo and books.of(own).has(own)
            yield Place(name, Path(path), own, True) if again else None
            continue
        stem = os.path.splitext(path)[0]
        # cat.txt would be the caption of cat.jpg and of cat.png
        yield Place(name, Path(path), Path(f"{path if shared[spoken(stem)] > 1 else stem}.txt"))


def _load(wishes: Wishes, say: Say, on_download: Progress) -> Captioner:
    def warn(text: str) -> None:
        say(f"warning: {text}")

    config = TrainConfig() if wishes.config is None else load_train_config(wishes.config, warn=warn)
    config.train_device = wishes.device or config.train_device
    device = resolve_device(config)
    say(f"model: {wishes.model} on {device}")
    return load_captioner(wishes.model, device, Hub(config, on_download, warn), wishes.asked)


def _describe(
    wishes: Wishes, place: Place, captioner: Captioner, say: Say, books: WrittenByFolder, outcome: Outcome
) -> None:
    try:
        image = decode_image(read_regular(place.image, LARGEST_FILE))
    except (ImageError, OSError) as error:
        why = str(error) if isinstance(error, ImageError) else f"cannot be read: {error.strerror or error}"
        say(f"warning: {place.name} is left out: {why}")
        outcome.left_out += 1
        return
    text = captioner.describe(image)
    if not text:
        say(f"warning: {place.name} is left out: the model says nothing of it")
        outcome.left_out += 1
        return
    # a line break would make two captions of it, of which one is drawn
    text = " ".join(f"{wishes.start} {text}".split())
    data = f"{text}\n".encode()
    if not wishes.preview and not books.write(place.caption, data, place.again):
        say(f"warning: {place.name} is left out: {place.caption.name} has been written or changed meanwhile")
        outcome.left_out += 1
        return
    outcome.written += 1
    say(f"{place.name}: {text}")
