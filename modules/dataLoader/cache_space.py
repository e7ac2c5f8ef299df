"""The disk that a cache will take: told, and compared with what is free, before anything is loaded to fill it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from modules.util.UserError import UserError

GB = 10**9
LEAST = GB
"""Bytes. What can't need as much isn't measured, unless the disk has less."""

MOST_OF_CAPTION = 64 << 20
MOST_OF_PIXEL = 32
"""Bytes that no family needs for a caption, or for a pixel of an image with mask and conditioning."""

HEADER, BLOCK = 512, 4096
"""Bytes of an entry's header, and what file systems round a file up to."""


@dataclass(frozen=True)
class EncodedBytes:
    """What a model's encoded data take.

    Attributes:
        image, mask, conditioning: bytes for each pixel.
        caption: bytes of the longest caption that is read.
        short_caption: bytes of a short one: of one chunk, or of a few tokens where captions keep their own length.
    """

    image: float
    mask: float
    conditioning: float
    caption: int
    short_caption: int


@dataclass
class MissingEntries:
    """What is not cached yet.

    Attributes:
        images, masks, conditioning: (height, width) in pixels of each entry.
        captions: how many.
    """

    images: list[tuple[int, int]] = field(default_factory=list)
    masks: list[tuple[int, int]] = field(default_factory=list)
    conditioning: list[tuple[int, int]] = field(default_factory=list)
    captions: int = 0

    def at_most(self) -> int:
        """Bytes that these can't exceed in any family."""
        pictures = (*self.images, *self.masks, *self.conditioning)
        return self.captions * MOST_OF_CAPTION + sum(MOST_OF_PIXEL * h * w + BLOCK for h, w in pictures)

    def take(self, measured: EncodedBytes, least: bool = False) -> dict[str, int]:
        """Bytes on disk of each kind that is missing.

        Args:
            measured: of the model.
            least: if all captions are short; otherwise all are long.
        """
        found = {
            kind: sum(_on_disk(h * w * getattr(measured, one)) for h, w in sizes)
            for kind, one, sizes in (
                ("images", "image", self.images), ("masks", "mask", self.masks),
                ("conditioning images", "conditioning", self.conditioning),
            )
        }  # fmt: skip
        found["captions"] = self.captions * _on_disk(measured.short_caption if least else measured.caption)
        return {kind: size for kind, size in found.items() if size}


@dataclass(frozen=True)
class CacheSpace:
    """Asks whether a cache has room.

    Attributes:
        measure: gives what a model's encoded data take, without its weights; None where that can't be told.
        tell: gets a line.
    """

    measure: Callable[[], EncodedBytes | None]
    tell: Callable[[str], None]

    def check(self, directory: Path, missing: MissingEntries) -> None:
        """Tells what the missing entries will take. Little is not told.

        Args:
            directory: of the cache.
            missing: see `MissingEntries`.

        Raises:
            UserError: they can't fit, even if all captions are short.
        """
        free = shutil.disk_usage(directory).free
        if missing.at_most() <= min(LEAST, free) or (measured := self.measure()) is None:
            return
        most, least = missing.take(measured), missing.take(measured, least=True)
        needed = sum(most.values())
        if sum(least.values()) > free:
            bound = "up to" if least == most else "at least"
            raise UserError(
                f"{_told(directory, bound, least, free)}, so there is no space left for it. Free some, set cache_dir "
                "to another disk, train fewer images or variations, set text_cache_dtype to BFLOAT_16 if captions are "
                "stored in 32 bits, or set latent_caching to false, with which every step encodes its images and "
                "captions anew."
            )
        text = _told(directory, "up to", most, free)
        if needed > free:
            self.tell(f"{text}. It may not fit: how much it takes depends on how long the captions are.")
        elif needed >= LEAST / 10:
            self.tell(f"{text}.")


def _told(directory: Path, bound: str, sizes: dict[str, int], free: int) -> str:
    shares = ", ".join(f"{kind} {size / GB:.1f}" for kind, size in sizes.items())
    needed = sum(sizes.values()) / GB
    return f"{directory}: the cache will take {bound} {needed:.1f} GB more ({shares}); {free / GB:.1f} GB are free"


def _on_disk(size: float) -> int:
    return -(-(round(size) + HEADER) // BLOCK) * BLOCK
