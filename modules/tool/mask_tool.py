"""What `scripts/mask.py` does: writes masks beside pictures that have none, and touches no other one."""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modules.dataLoader.Companions import MASK, spoken
from modules.dataLoader.find_images import FolderListing, list_folder
from modules.dataLoader.findings import counted
from modules.model.hub import Hub, Progress
from modules.tool.mask_preview import Shown, draw_sheet
from modules.tool.mask_shape import MaskShape, is_empty, shape_mask, white_share
from modules.tool.masker import Masker, load_masker
from modules.tool.WrittenFiles import WrittenByFolder
from modules.tool.WrittenMasks import WrittenMasks
from modules.trainer.devices import resolve_device
from modules.util.atomic_file import write_bytes
from modules.util.config.load import load_train_config
from modules.util.config.TrainConfig import TrainConfig
from modules.util.decode_image import LARGEST_FILE, ImageError, decode_image
from modules.util.regular_file import read_regular
from modules.util.UserError import UserError

from PIL import Image, PngImagePlugin

Say = Callable[[str], None]
MARK = "masks over pictures", "preview of scripts/mask.py"
"""Text in a preview's PNG, by which the next one may replace it."""


@dataclass(frozen=True)
class MaskWishes:
    """What the command line asked for.

    Attributes:
        folder: of the pictures.
        model: folder, ONNX file or hub name.
        prompt: what is looked for; see `load_masker`.
        shape: what is made of the model's values.
        limit: pictures at most, at least 1; None: all.
        preview: PNG file that shows pictures with their masks; then no mask is written. None: they are written.
        overwrite: masks that this tool wrote and nobody changed are made anew.
        subfolders: pictures below the folder count, too.
        config: its device, cache folder, token and offline mode count; None: defaults.
        device: as `train_device`; None: the config's, else the best one there is.
    """

    folder: Path
    model: str
    prompt: str = ""
    shape: MaskShape = field(default_factory=MaskShape)
    limit: int | None = None
    preview: Path | None = None
    overwrite: bool = False
    subfolders: bool = False
    config: Path | None = None
    device: str | None = None


@dataclass(frozen=True)
class MaskPlace:
    """A picture that gets a mask.

    Attributes:
        name: of the picture, from the folder on.
        image: its file.
        mask: file that is written.
        again: whether this tool wrote the one that is there.
    """

    name: str
    image: Path
    mask: Path
    again: bool = False


@dataclass
class MaskOutcome:
    """How many masks were written (in a preview: shown), and how many pictures were left out."""

    written: int = 0
    left_out: int = 0


def mask_folder(
    wishes: MaskWishes,
    say: Say,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_download: Progress = lambda stage, done, total: None,
    outcome: MaskOutcome | None = None,
) -> MaskOutcome:
    """Writes a mask beside each picture of a folder that has none, each as soon as it is made.

    Args:
        wishes: of the command line.
        say: gets what was found in each picture, and remarks.
        on_progress: is told of pictures, done and in all.
        on_download: is told of what comes from the hub.
        outcome: is counted up, for callers that are interrupted.

    Raises:
        UserError, ConfigError: something can't be read, is no model for masks, or can't be written.
    """
    outcome = MaskOutcome() if outcome is None else outcome
    books = WrittenByFolder(WrittenMasks)
    # what is wrong with a folder or a file should not wait for the model
    if wishes.preview is not None:
        check_preview(wishes.preview)
    places, kept = find_places(wishes, say, books)
    if kept:
        say(f"{counted(kept, 'picture')} with a mask: left alone.")
    if not places:
        say("There is no picture without a mask." if kept else f"There are no pictures in {wishes.folder}.")
        return outcome
    config = _config(wishes, say)
    masker = _load(wishes, config, say, on_download)
    on_progress(0, len(places))
    shown = []
    for done, place in enumerate(places, 1):
        shown += _treat(wishes, place, masker, say, books, outcome)
        on_progress(done, len(places))
    if wishes.preview is not None and shown:
        _write_sheet(wishes.preview, shown)
        say(f"written: {wishes.preview}")
    what = counted(outcome.written, "mask")
    say(f"{what} shown, none written." if wishes.preview is not None else f"{what} written.")
    if wishes.config is not None and not config.masked_training:
        say("note: masked_training is off. Switch it on, or the masks are not used.")
    return outcome


def find_places(wishes: MaskWishes, say: Say, books: WrittenByFolder) -> tuple[list[MaskPlace], int]:
    """The pictures that get a mask, in the order of their names, and how many have one that is left alone.

    Raises:
        UserError: there is no such folder.
    """
    if not wishes.folder.is_dir():
        raise UserError(f"{wishes.folder} is no folder. Expected the folder of your pictures.")
    listing = list_folder(wishes.folder, wishes.subfolders)
    for error in listing.errors:
        say(f"warning: {error.filename} cannot be read: {error.strerror or error}")
    every = list(_places(wishes, listing, books))
    wanted = [place for place in every if place is not None]
    return wanted[: wishes.limit], len(every) - len(wanted)


def _places(wishes: MaskWishes, listing: FolderListing, books: WrittenByFolder) -> Iterator[MaskPlace | None]:
    """For each picture its place, None where the mask is left alone."""
    shared = Counter(spoken(os.path.splitext(path)[0]) for _, path in listing.images)
    for name, path in listing.images:
        if masks := listing.beside[path].masks:
            own = Path(path).with_name(masks[0])
            yield MaskPlace(name, Path(path), own, True) if wishes.overwrite and books.of(own).has(own) else None
            continue
        stem = os.path.splitext(path)[0]
        # cat-masklabel.png would be the mask of cat.jpg and of cat.png
        yield MaskPlace(name, Path(path), Path(f"{path if shared[spoken(stem)] > 1 else stem}{MASK}.png"))


def _config(wishes: MaskWishes, say: Say) -> TrainConfig:
    if wishes.config is None:
        config = TrainConfig()
    else:
        config = load_train_config(wishes.config, warn=lambda text: say(f"warning: {text}"))
    config.train_device = wishes.device or config.train_device
    return config


def _load(wishes: MaskWishes, config: TrainConfig, say: Say, on_download: Progress) -> Masker:
    device = resolve_device(config)
    say(f"model: {wishes.model}")
    hub = Hub(config, on_download, lambda text: say(f"warning: {text}"))
    return load_masker(wishes.model, device, hub, wishes.prompt)


def _treat(
    wishes: MaskWishes, place: MaskPlace, masker: Masker, say: Say, books: WrittenByFolder, outcome: MaskOutcome
) -> list[Shown]:
    """Makes the mask of a picture, and writes it or gives what the preview shows of it."""

    def leave_out(why: str) -> list[Shown]:
        say(f"warning: {place.name} is left out: {why}")
        outcome.left_out += 1
        return []

    try:
        image = decode_image(read_regular(place.image, LARGEST_FILE))
    except (ImageError, OSError) as error:
        return leave_out(str(error) if isinstance(error, ImageError) else f"cannot be read: {error.strerror or error}")
    mask = shape_mask(masker.segment(image), image.size, wishes.shape)
    if is_empty(mask):
        # with it nothing would be learnt of the picture
        return leave_out("the mask would be black, as nothing was found that is to be white; try a lower threshold")
    told = f"{place.name}: {100 * white_share(mask):.0f} % white"
    if wishes.preview is None:
        if not books.write(place.mask, _png(Image.fromarray(mask)), place.again):
            return leave_out(f"{place.mask.name} has been written or changed meanwhile")
        told += f", {place.mask.name}"
    outcome.written += 1
    say(told)
    return [] if wishes.preview is None else [Shown.of(told, image, mask)]


def _png(image: Image.Image, info: PngImagePlugin.PngInfo | None = None) -> bytes:
    with io.BytesIO() as file:
        image.save(file, "PNG", pnginfo=info)
        return file.getvalue()


def check_preview(path: Path) -> None:
    """UserError if a file stands there that is no earlier preview."""
    if path.suffix.lower() != ".png":
        raise UserError(f"--preview: {path} is no name of a PNG file; expected one that ends with .png.")
    if not os.path.lexists(path):
        return
    try:
        with Image.open(io.BytesIO(read_regular(path, LARGEST_FILE)), formats=["PNG"]) as image:
            image.load()
            known = image.info.get(MARK[0]) == MARK[1]
    # as `decode_image`: Pillow's readers raise almost anything
    except Exception:
        known = False
    if not known:
        raise UserError(f"--preview: {path} exists and is no preview of masks. Choose another name.")


def _write_sheet(path: Path, shown: list[Shown]) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(*MARK)
    write_bytes(path, _png(draw_sheet(shown), info))
