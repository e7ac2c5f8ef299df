import os
import unicodedata
from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    ".apng .avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pcx .pgm .png .pnm .ppm .qoi .tga .tif .tiff "
    ".webp".split()
)
"""Endings of files that are taken for training images. What a file really is, its content decides."""

OTHER_IMAGE_SUFFIXES = frozenset(".arw .cr2 .cr3 .dng .heic .heif .jxl .nef .orf .psd .raf .raw .rw2 .svg .xcf".split())
"""Endings of images that we do not read; such files are reported, not passed over in silence."""

COMPANIONS = ("-masklabel", "-condlabel")
"""Endings of the stems of files that belong to an image."""


def find_images(folder: str | Path, include_subdirectories: bool) -> tuple[list[tuple[str, str]], list[OSError]]:
    """Lists the image files of a folder, including those in formats that cannot be read.

    Hidden files and folders (names that start with a dot) are passed over, and so are masks and conditioning images.

    Returns:
        (name, path) of each file, sorted by name: the order does not depend on the file system. And the folders that
        could not be listed.
    """
    root, errors, found, visited = os.fspath(folder), [], [], set()
    for directory, folders, files in os.walk(root, onerror=errors.append, followlinks=True):
        real = os.path.realpath(directory)
        if real in visited:  # a link back to a folder above
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if include_subdirectories else []
        for file in files:
            stem, suffix = os.path.splitext(file)
            known = suffix.lower() in IMAGE_SUFFIXES or suffix.lower() in OTHER_IMAGE_SUFFIXES
            if known and not file.startswith(".") and not stem.endswith(COMPANIONS):
                path = os.path.join(directory, file)
                name = os.path.relpath(path, root).replace(os.sep, "/")
                found.append((unicodedata.normalize("NFC", name), path))
    return sorted(found), errors


def companion_path(path: str, ending: str) -> str:
    """The path of a PNG beside an image, as `cat-masklabel.png` beside `cat.jpg`."""
    return os.path.splitext(path)[0] + ending + ".png"
