import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

IMAGE_SUFFIXES = frozenset(
    ".apng .avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pcx .pgm .png .pnm .ppm .qoi .tga .tif .tiff "
    ".webp".split()
)
"""Endings of files that are taken for training images. What a file really is, its content decides."""

OTHER_IMAGE_SUFFIXES = frozenset(".arw .cr2 .cr3 .dng .heic .heif .jxl .nef .orf .psd .raf .raw .rw2 .svg .xcf".split())
"""Endings of images that we do not read; such files are reported, not passed over in silence."""

MASK, CONDITIONING = "-masklabel", "-condlabel"
"""Endings of the stems of files that belong to an image, whether it is there or not."""

OTHER_MASKS = ("_masklabel", ".masklabel", "_mask", "-mask", ".mask")
"""Those of other programs. Such a file is a mask if an image of the name before the ending lies beside it."""

CAPTION_SUFFIXES = (".txt", ".caption", ".captions", ".cap", ".tags", ".text", ".prompt", ".json")
"""Endings of caption files; where an image has several, the first one counts."""

NO_TEXT = frozenset(".npz .npy .safetensors .pt .bak .tmp".split())
"""Endings of what other trainers leave beside images; such files hold no captions."""


@dataclass(frozen=True)
class Beside:
    """Names of the files that belong to an image, in its folder, the one that counts first.

    Attributes:
        captions: text files.
        masks: image files.
        others: files of the image's name that are none of these.
        conditioning: conditioning images.
    """

    captions: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    conditioning: tuple[str, ...] = ()


class Companions:
    """Which files of one folder belong to which image.

    A file belongs to `cat.jpg` if what stands before its ending is `cat`, else `cat.jpg`, else one of both in other
    capitals or another Unicode form. What fits an image exactly belongs to no other one.

    Args:
        names: of all files in the folder, and of folders in it.

    Attributes:
        images: names of image files that are no masks and no conditioning images.
        lonely: names of masks beside which no image lies.
        lonely_conditioning: names of conditioning images beside which no image lies.
    """

    def __init__(self, names: Iterable[str]) -> None:
        visible = sorted(name for name in names if not name.startswith("."))
        pictures = [name for name in visible if is_image(name)]
        self._owners = _Owners(pictures)
        mask_bases = {name: base for name in pictures if (base := self._mask_base(name)) is not None}
        self.images = [name for name in pictures if name not in mask_bases]
        self._owners = _Owners(self.images) if mask_bases else self._owners
        self._beside: dict[str, tuple[list, list, list, list]] = {}
        self.lonely, self.lonely_conditioning = [], []
        for name, base in mask_bases.items():
            ending = name[len(base) :].lower()
            if ending.startswith(CONDITIONING):
                rank = (name[len(base) :] != f"{CONDITIONING}.png", not ending.endswith(".png"))
                if not self._give(3, name, base, rank):
                    self.lonely_conditioning.append(name)
                continue
            # today's name first, then the same ending in another format, then other programs'
            rank = (name[len(base) :] != f"{MASK}.png", not ending.startswith(MASK), not ending.endswith(".png"))
            if not self._give(1, name, base, rank):
                self.lonely.append(name)
        for name in visible:
            if not is_image(name):
                self._sort_text(name)

    def of(self, image: str) -> Beside:
        """What belongs to an image file of this name."""
        found = self._beside.get(image, ((), (), (), ()))
        return Beside(*(tuple(name for _, name in sorted(names)) for names in found))

    def _mask_base(self, name: str) -> str | None:
        """What stands before the ending of a mask's or conditioning image's name, None for other images."""
        stem, suffix = os.path.splitext(name)
        for ending in (MASK, CONDITIONING, *OTHER_MASKS):
            if stem.lower().endswith(ending):
                base = stem[: -len(ending)]
                if ending in (MASK, CONDITIONING) or (base and self._owners.of(base)[1]):
                    return base
        return None

    def _sort_text(self, name: str) -> None:
        stem, suffix = os.path.splitext(name)
        if is_caption(name):
            rank = CAPTION_SUFFIXES.index(suffix.lower()), suffix != suffix.lower()
            # cat.txt.txt, as systems that hide endings make it
            if not self._give(0, name, stem, rank) and is_caption(stem):
                self._give(0, name, os.path.splitext(stem)[0], rank)
        elif suffix.lower() not in NO_TEXT:
            self._give(2, name, stem if suffix else name, ())

    def _give(self, kind: int, name: str, base: str, rank: tuple) -> bool:
        nearness, owners = self._owners.of(base)
        for image in owners:
            place = rank[:1] + (nearness,) + rank[1:]
            self._beside.setdefault(image, ([], [], [], []))[kind].append((place, name))
        return bool(owners)


class _Owners:
    """Images by their names with and without ending, as they are and as a person would say them."""

    def __init__(self, images: Iterable[str]) -> None:
        self._known: tuple[dict[str, list[str]], ...] = ({}, {}, {}, {})
        for image in images:
            stem = os.path.splitext(image)[0]
            for known, key in zip(self._known, (stem, image, spoken(stem), spoken(image)), strict=True):
                known.setdefault(key, []).append(image)

    def of(self, base: str) -> tuple[int, list[str]]:
        """How far the names are apart, from 0, and the images."""
        for nearness, known in enumerate(self._known):
            key = base if nearness < 2 else spoken(base)
            if key in known:
                return nearness, known[key]
        return len(self._known), []


def is_image(name: str) -> bool:
    """Whether a file's name is one of an image, also in a format that we do not read."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in IMAGE_SUFFIXES or suffix in OTHER_IMAGE_SUFFIXES


def is_caption(name: str) -> bool:
    """Whether a file's name is one of a caption."""
    return os.path.splitext(name)[1].lower() in CAPTION_SUFFIXES


def spoken(name: str) -> str:
    """A name without the differences that nobody hears: capitals and Unicode forms."""
    # the same for both, and faster
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def beside_image(path: str) -> Beside:
    """What belongs to an image, by a look into its folder; nothing if that cannot be listed."""
    try:
        return Companions(os.listdir(os.path.dirname(path) or ".")).of(os.path.basename(path))
    except OSError:
        return Beside()
