"""What a window shows of a concept: its folder, its images as they are trained, its captions, the dataset check.

Everything here reads files, some of it loads torch: call it on a worker's thread.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modules.dataLoader.captions import LARGEST_CAPTION
from modules.dataLoader.Companions import beside_image
from modules.dataLoader.find_images import find_images
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConceptType import ConceptType
from modules.util.enum.PromptSource import PromptSource
from modules.util.regular_file import is_regular, read_regular
from modules.util.texts import later, tr, tr_n
from modules.util.UserError import UserError
from modules.viewModel.families import conditioning_of
from modules.viewModel.paths import is_folder, portable

from PIL import Image, ImageOps

if TYPE_CHECKING:
    from modules.dataLoader.DatasetReport import DatasetImage, DatasetReport
    from modules.dataLoader.progress import Progress

# what sides of training images are multiples of, in pixels, by the beginning of the family's name
GRIDS = {"STABLE_DIFFUSION_XL": 32, "STABLE_DIFFUSION_3": 16, "STABLE_DIFFUSION": 64}
USUAL_GRID = 16


@dataclass(frozen=True)
class FolderFacts:
    """What is in a concept's folder.

    Attributes:
        count: of images.
        first: path of the first one, "" if there is none.
        trouble: why it cannot be used, empty if it can.
    """

    count: int = 0
    first: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class Preview:
    """One image of a concept as it is trained in one variation.

    Attributes:
        original, varied: pictures; the second is exactly what the encoder gets.
        facts: size, bucket and what was changed, for people.
        captions: of the image, of which one is drawn at each use.
        varied_caption: what this variation makes of them.
        trouble: of the caption, empty if there is none.
    """

    original: Image.Image
    varied: Image.Image
    facts: str
    captions: tuple[str, ...]
    varied_caption: str
    trouble: str


@dataclass(frozen=True)
class CheckResult:
    """What the dataset check found, for people: a heading, then lines in an order worth reading."""

    heading: str
    lines: tuple[str, ...]


def title_of(concept: ConceptConfig) -> str:
    """How a concept is called: its name, or that of its folder."""
    return concept.name or Path(concept.path).name or tr("new concept")


def concept_of_folder(folder: Path) -> ConceptConfig:
    """A concept for a folder of images; paths below the working directory are written as seen from there."""
    images, _ = find_images(folder, False)
    below = not images and bool(find_images(folder, True)[0])
    return ConceptConfig(name=folder.absolute().name, path=portable(folder), include_subdirectories=below)


def look_into(concept: ConceptConfig) -> FolderFacts:
    """Counts the images of a concept's folder."""
    if not concept.path.strip():
        return FolderFacts(trouble=tr("no folder is chosen"))
    if not is_folder(concept.path):
        return FolderFacts(trouble=tr("there is no folder {folder}", folder=concept.path))
    images, errors = find_images(concept.path, concept.include_subdirectories)
    if not images:
        if errors:
            return FolderFacts(trouble=str(errors[0]))
        below = concept.include_subdirectories
        return FolderFacts(trouble=tr("no images") if below else tr("no images; subfolders are not included"))
    return FolderFacts(len(images), images[0][1])


def sort_dropped(paths: Sequence[Path]) -> tuple[list[Path], str]:
    """What was dropped onto the list of concepts: the folders, and what to say of all of it."""
    folders = [path for path in paths if path.is_dir()]
    files = [path.name for path in paths if not path.is_dir()]
    news = tr("Added: {folders}.", folders=", ".join(path.name for path in folders)) if folders else ""
    if files:
        few = ", ".join(files[:3]) + (" …" if len(files) > 3 else "")
        rest = tr("Not added: {files}. Drop the folder that holds the images.", files=few)
        news = f"{news} {rest}".strip()
    return folders, news


def thumbnail(path: str, edge: int) -> Image.Image | None:
    """The middle of an image as a square; None if it cannot be read."""
    # opening a pipe would wait for who writes to it
    if not is_regular(path):
        return None
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * edge, 2 * edge))
            return ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (edge, edge))
    # Pillow's readers raise almost anything on damaged files; the dataset check says what is wrong
    except Exception:
        return None


def images_of(concept: ConceptConfig) -> list[tuple[str, str]]:
    """(name, path) of a concept's images, sorted by name; none if there is no such folder."""
    return find_images(concept.path, concept.include_subdirectories)[0] if concept.path.strip() else []


def grid_of(config: TrainConfig) -> int:
    """What sides of training images are multiples of, in pixels: as the base model's folder says, or as is usual."""
    try:
        depths = [
            len(
                json.loads((Path(config.base_model_name) / component / "config.json").read_text("utf-8"))[
                    "block_out_channels"
                ]
            )
            for component in ("unet", "vae")
        ]
    except (OSError, ValueError, KeyError, TypeError):
        family = str(config.model_type)
        return next((grid for name, grid in GRIDS.items() if family.startswith(name)), USUAL_GRID)
    return 2 ** (sum(depths) - len(depths))


def preview(config: TrainConfig, concept: ConceptConfig, image: tuple[str, str], variation: int) -> Preview:
    """An image in one of its variations, by the code that training uses.

    Args:
        config: of the run.
        concept: that the image belongs to.
        image: (name, path), of `images_of`.
        variation: from 0.

    Raises:
        UserError: the image cannot be used, with the reason.
    """
    from modules.dataLoader.buckets import choose_bucket, resolutions_of
    from modules.dataLoader.captions import vary_caption
    from modules.dataLoader.ImageVariation import ImageVariation
    from modules.dataLoader.render import find_geometry, render_pixels
    from modules.util.decode_image import LARGEST_FILE, ImageError, decode_image

    name, path = image
    try:
        original = decode_image(read_regular(path, LARGEST_FILE))
    except ImageError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(tr("{file} cannot be read: {error}", file=path, error=error.strerror or error)) from None
    drawn = ImageVariation.draw(concept, name, variation, resolutions_of(config, concept))
    size = choose_bucket(
        original.width, original.height, drawn.resolution, grid_of(config), config.aspect_ratio_bucketing
    )
    geometry = find_geometry(original.width, original.height, size, drawn)
    pixels = render_pixels(original, geometry, drawn)
    varied = Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    captions, trouble = _captions(concept, path)
    varied_caption = vary_caption(concept, name, captions, variation) if captions else ""
    sizes = tr(
        "{width} × {height}, trained in {trained_width} × {trained_height}",
        width=original.width, height=original.height, trained_width=size[0], trained_height=size[1],
    )  # fmt: skip
    facts = [sizes, *_changes(drawn)]
    return Preview(original, varied, " · ".join(facts), captions, varied_caption, trouble)


def _changes(drawn) -> list[str]:
    found = [tr("mirrored")] if drawn.flip else []
    found += [tr("turned by {angle:.3g}°", angle=drawn.angle)] if drawn.angle else []
    for name in (later("brightness"), later("contrast"), later("saturation")):
        if (value := getattr(drawn, name)) != 1:
            found.append(f"{tr(name)} × {value:.2f}")
    return [*found, tr("hue {angle:+.0f}°", angle=drawn.hue * 360)] if drawn.hue else found


def _captions(concept: ConceptConfig, path: str) -> tuple[tuple[str, ...], str]:
    """The captions of an image, and what is wrong with them."""
    from modules.dataLoader.captions import CaptionError, find_captions, no_caption, read_prompt_file

    try:
        found = find_captions(concept, path, read_prompt_file(concept, "this concept"), beside_image(path))
    except (CaptionError, UserError) as error:
        return (), str(error)
    return found.texts, "" if found.path else no_caption(path, found.unread)


def caption_file(concept: ConceptConfig, path: str) -> Path | None:
    """The text file of an image's own caption, there or not yet; None where captions come from elsewhere."""
    if concept.text.prompt_source != PromptSource.SAMPLE:
        return None
    first = next(iter(beside_image(path).captions), "")
    usual = Path(path).with_suffix(".txt")
    return usual.with_name(first) if first and not first.lower().endswith(".json") else usual


def read_caption(path: Path) -> str:
    """What stands in a caption file, "" if there is none.

    Raises:
        UserError: it can't be read.
    """
    try:
        return (
            read_regular(path, LARGEST_CAPTION)
            .decode("utf-8-sig")
            .replace("\r\n", "\n")
            .replace("\r", "\n")
            .rstrip("\n")
        )
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(tr("{file} can't be read: {error}", file=path, error=error.strerror or error)) from None
    except UnicodeDecodeError as error:
        raise UserError(tr("{file} can't be read: {error}", file=path, error=error)) from None


def write_caption(path: Path, text: str, known: str) -> None:
    """Writes a caption file.

    Args:
        path: of the file.
        text: a caption a line.
        known: what stood in it when it was read.

    Raises:
        UserError: it can't be written, or has been changed by somebody else meanwhile.
    """
    # it loads torch, which the preview has loaded already
    from modules.util.atomic_file import write_bytes

    if read_caption(path) != known:
        raise UserError(
            tr("{file} was changed by another program. Show the image anew, and edit what stands there now.", file=path)
        )
    write_bytes(path, f"{text.rstrip()}\n".encode())


# of pairs of images, and of tags, that are listed
MOST_PAIRS, MOST_TAGS = 20, 50


def dataset_of(config: TrainConfig, concept: ConceptConfig, progress: "Progress | None" = None) -> "DatasetReport":
    """What the dataset check finds in one concept, as if it were the only one; it is told of each image.

    Raises:
        UserError: nothing can be trained, with the reason.
    """
    from modules.dataLoader.check_dataset import check_dataset

    alone = concept.model_copy(update={"enabled": True, "type": ConceptType.STANDARD})
    config = config.model_copy(update={"validation": False})
    conditioning = conditioning_of(config.model_type)
    return check_dataset(config, [alone], conditioning=conditioning, warn=lambda _: None, progress=progress, bar=False)


def check_concept(config: TrainConfig, concept: ConceptConfig) -> CheckResult:
    """The dataset check of one concept, as if it were the only one: counts, sizes, buckets, rejected files.

    Raises:
        UserError: nothing can be trained, with the reason.
    """
    from modules.dataLoader.buckets import choose_bucket, resolutions_of

    report = dataset_of(config, concept)
    sizes = Counter((image.width, image.height) for image in report.images)
    buckets = Counter(
        choose_bucket(*size, resolution, grid_of(config), config.aspect_ratio_bucketing)
        for size, count in sizes.items() for resolution in resolutions_of(config, concept) for _ in range(count)
    )  # fmt: skip
    without = sum(image.captions == ("",) for image in report.images)
    words = tr(
        "{images} images, {rejected} rejected files, {without} without a caption",
        images=len(report.images), rejected=len(report.rejected), without=without,
    )  # fmt: skip
    lines = [tr("Rejected:"), *(f"  {rejected}" for rejected in report.rejected), ""] if report.rejected else []
    several = len(resolutions_of(config, concept)) > 1
    lines += [tr("Buckets, for each of the resolutions:") if several else tr("Buckets:")]
    lines += [*(_size_line(size, count) for size, count in buckets.most_common()), ""]
    lines += [tr("Sizes:"), *(_size_line(size, count) for size, count in sizes.most_common(20))]
    lines += ["  " + tr("and {count} more", count=len(sizes) - 20)] if len(sizes) > 20 else []
    worth = [*report.warnings, *_long_captions(config, report), *_look_lines(report.images, config.dataloader_threads)]
    lines += ["", tr("Worth knowing:"), *(f"  {line}" for line in worth)] if worth else []
    lines += _tag_lines(report.images, concept.text.tag_delimiter)
    return CheckResult(words, tuple(lines))


def _long_captions(config: TrainConfig, report: "DatasetReport") -> list[str]:
    """What a run will say of captions that are cut; nothing where its model is not on this disk."""
    from modules.trainer.CaptionReader import CaptionReader

    try:
        return CaptionReader(config).remarks(report)
    except UserError:
        return []


def _size_line(size: tuple[int, int], count: int) -> str:
    return "  " + tr_n(
        "{width} × {height}: {n} image", "{width} × {height}: {n} images", count, width=size[0], height=size[1]
    )


def _look_lines(images: Sequence["DatasetImage"], threads: int) -> list[str]:
    """Which images are the same, nearly the same, or hardly sharp."""
    from modules.dataLoader.likeness import likeness

    found, lines = likeness(images, threads), []
    lines += [tr("the same file more than once: {files}", files=_names(paths)) for paths in found.same]
    lines += [tr("nearly the same picture: {files}", files=_names(pair)) for pair in found.near[:MOST_PAIRS]]
    if len(found.near) > MOST_PAIRS:
        lines.append(tr("and {count} more pairs that are nearly the same", count=len(found.near) - MOST_PAIRS))
    lines += [
        tr("far less fine detail than the others, perhaps blurred: {file}", file=os.path.basename(path))
        for path in found.soft
    ]
    return lines


def _names(paths: Sequence[str]) -> str:
    return ", ".join(os.path.basename(path) for path in paths)


def _tag_lines(images: Sequence["DatasetImage"], delimiter: str) -> list[str]:
    """How often each tag stands in captions, the usual ones first; none where captions are sentences."""
    counts = Counter(
        tag for image in images for caption in image.captions for tag in map(str.strip, caption.split(delimiter)) if tag
    )
    often = [(tag, count) for tag, count in counts.most_common(MOST_TAGS) if count > 1]
    if not often:
        return []
    return ["", tr("Tags:"), *(f"  {count} × {tag}" for tag, count in often)]
