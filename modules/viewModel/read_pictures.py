"""The pictures of a concept with their captions, as the trainer finds them. Call it on a worker's thread."""

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modules.dataLoader.captions import NoPlainCaption, join_lines, read_json_caption, split_lines
from modules.dataLoader.find_images import FolderListing, list_folder
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.enum.PromptSource import PromptSource
from modules.util.regular_file import is_regular, read_regular
from modules.util.texts import tr
from modules.util.UserError import UserError
from modules.viewModel.CaptionText import CaptionText
from modules.viewModel.fit_picture import fit_picture
from modules.viewModel.paths import is_folder

from PIL import Image, ImageOps

JPEG = b"\xff\xd8\xff"
# EXIF: the orientation, and those of its values that swap width and height
ORIENTATION, ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Picture:
    """An image of a concept.

    Attributes:
        name: below the concept's folder, with `/` between.
        path: of its file.
        caption: its text file, there or not yet; None where its caption comes from elsewhere.
        fixed: the caption from elsewhere.
        why_fixed: why that can't be edited here, empty if `caption` can.
    """

    name: str
    path: str
    caption: Path | None = None
    fixed: str = ""
    why_fixed: str = ""


@dataclass(frozen=True)
class FoundPictures:
    """What a look into a concept's folder found.

    Attributes:
        pictures: sorted by name.
        captions: of all caption files, there or not; several pictures may share one.
        by_model: paths of those that a model wrote and nobody has changed since.
        note: on where captions come from and what could not be read; for people, may be empty.
    """

    pictures: list[Picture] = field(default_factory=list)
    captions: dict[Path, CaptionText] = field(default_factory=dict)
    by_model: frozenset[Path] = frozenset()
    note: str = ""


def read_pictures(concept: ConceptConfig) -> FoundPictures:
    """Lists a concept's pictures and reads their captions.

    Raises:
        UserError: there is no such folder.
    """
    if not concept.path.strip():
        raise UserError(tr("No folder is chosen."))
    if not is_folder(concept.path):
        raise UserError(tr("There is no folder {path}.", path=concept.path))
    listing = list_folder(concept.path, concept.include_subdirectories)
    pictures = [_picture(concept, name, path, listing) for name, path in listing.images]
    captions = {file: CaptionText.read(file) for file in dict.fromkeys(one.caption for one in pictures) if file}
    note = source_note(concept)
    if not pictures and not concept.include_subdirectories:
        note = tr("There are no pictures in {path} itself; subfolders are not included.", path=concept.path)
    elif not pictures:
        note = tr("There are no pictures in {path}.", path=concept.path)
    if listing.errors:
        error = listing.errors[0]
        note = tr("{path} can't be read: {why}.", path=error.filename, why=error.strerror or error) + f" {note}"
    return FoundPictures(pictures, captions, written_by_model(captions.values()), note.strip())


def source_note(concept: ConceptConfig) -> str:
    """Where captions come from, if that is not a file beside each picture."""
    source = concept.text.prompt_source
    if source == PromptSource.FILENAME:
        return tr(
            "The captions of this concept are the names of its files. They are not edited here: rename the files, or "
            "set Caption source to sample."
        )
    if source == PromptSource.CONCEPT:
        return tr(
            "For each picture of this concept a line of {path} is drawn. It is not edited here: use a text editor, or "
            "set Caption source to sample.",
            path=concept.text.prompt_path or tr("a prompt file"),
        )
    return ""


def _picture(concept: ConceptConfig, name: str, path: str, listing: FolderListing) -> Picture:
    if why := source_note(concept):
        stem = Path(path).stem if concept.text.prompt_source == PromptSource.FILENAME else ""
        return Picture(name, path, fixed=stem, why_fixed=why)
    folder, captions = os.path.dirname(path), listing.beside[path].captions
    texts = [one for one in captions if not one.lower().endswith(".json")]
    if texts:
        return Picture(name, path, Path(folder, texts[0]))
    for one in captions:
        try:
            text = "\n".join(join_lines(concept.text, split_lines(read_json_caption(os.path.join(folder, one)))))
        except (NoPlainCaption, FileNotFoundError):
            continue
        why = tr("Its caption stands in {name}, which is not edited here: use a text editor.", name=one)
        return Picture(name, path, fixed=text, why_fixed=why)
    return Picture(name, path, listing.new_file(path, ".txt"))


def written_by_model(captions: Iterable[CaptionText]) -> frozenset[Path]:
    """Those that a model wrote and nobody has changed since. Where that can't be read, it counts as a person's."""
    # it loads torch
    from modules.tool.WrittenCaptions import WrittenCaptions

    books: dict[Path, WrittenCaptions | None] = {}
    found = set()
    for one in captions:
        folder = one.path.parent
        if folder not in books:
            try:
                books[folder] = WrittenCaptions(folder)
            except UserError:
                books[folder] = None
        book = books[folder]
        if book is not None and one.data is not None and book.wrote(one.path.name, one.data):
            found.add(one.path)
    return frozenset(found)


def picture_size(path: str) -> tuple[int, int] | None:
    """Width and height of an image, upright, as its header says; None if it has none that can be read."""
    # opening a pipe would wait for who writes to it
    if not is_regular(path):
        return None
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION) in ON_ITS_SIDE
    # Pillow's readers raise almost anything on damaged files
    except Exception:
        return None
    return (height, width) if turned else (width, height)


def picture_sizes(paths: Sequence[str]) -> dict[str, tuple[int, int] | None]:
    """`picture_size` of many."""
    return {path: picture_size(path) for path in paths}


def small_picture(path: str, edge: int, enlarged: bool = False) -> Image.Image | None:
    """A whole image, upright, whose longer side has at most `edge` pixels; None if it can't be read.

    Photos are decoded no larger than needed. If `enlarged`, that side has just so many pixels; what is much smaller is
    shown pixel by pixel.
    """
    # imported here, as numpy comes with it, for which opening the window does not wait
    from modules.util.decode_image import LARGEST_FILE, ImageError, decode_image

    try:
        data = read_regular(path, LARGEST_FILE)
        image = _drafted(data, edge) if data.startswith(JPEG) else decode_image(data)
        if enlarged:
            size, scale = fit_picture(image.size, (edge, edge))
            return image.resize(size, Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.LANCZOS)
        image.thumbnail((edge, edge), Image.Resampling.BOX if max(image.size) > 4 * edge else Image.Resampling.BICUBIC)
    # Pillow's readers raise almost anything on damaged files; the dataset check says what is wrong
    except (ImageError, OSError, MemoryError):
        return None
    return image


def _drafted(data: bytes, edge: int) -> Image.Image:
    from modules.util.decode_image import LARGEST_PIXELS, ImageError, decode_image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise ImageError("too large")
            image.draft("RGB", (2 * edge, 2 * edge))
            return ImageOps.exif_transpose(image).convert("RGB")
    except ImageError:
        raise
    except Exception:
        # it has its own ways with damaged files
        return decode_image(data)
