import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from modules.dataLoader.Companions import Beside, Companions, is_caption, is_image, spoken


@dataclass
class FolderListing:
    """What a concept's folder holds.

    Attributes:
        images: (name, path) of each image file, sorted by name: the order does not depend on the file system.
        beside: path of an image -> what belongs to it.
        errors: of folders that could not be listed.
        folders: paths of folders with the name of an image, into which nobody looks.
        lonely_masks, lonely_conditioning: paths of masks and of conditioning images without an image.
    """

    images: list[tuple[str, str]] = field(default_factory=list)
    beside: dict[str, Beside] = field(default_factory=dict)
    errors: list[OSError] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    lonely_masks: list[str] = field(default_factory=list)
    lonely_conditioning: list[str] = field(default_factory=list)

    @cached_property
    def _stems(self) -> Counter[str]:
        return Counter(spoken(os.path.splitext(path)[0]) for _, path in self.images)

    def new_file(self, image: str, ending: str) -> Path:
        """A file that would belong to an image, given by its path, and to no other one."""
        stem = os.path.splitext(image)[0]
        # cat.txt would be the caption of cat.jpg and of cat.png
        return Path(f"{image if self._stems[spoken(stem)] > 1 else stem}{ending}")


def list_folder(folder: str | Path, include_subdirectories: bool) -> FolderListing:
    """Lists the image files of a folder, including those in formats that cannot be read, and what lies beside them.

    Hidden files and folders (names that start with a dot) are passed over, and masks and conditioning images are no
    images.
    """
    root, found, visited = os.fspath(folder), FolderListing(), set()
    for directory, folders, files in os.walk(root, onerror=found.errors.append, followlinks=True):
        real = os.path.realpath(directory)
        if real in visited:  # a link back to a folder above
            folders.clear()
            continue
        visited.add(real)
        companions = Companions([*files, *filter(is_caption, folders)])
        for file in companions.images:
            path = os.path.join(directory, file)
            name = os.path.relpath(path, root).replace(os.sep, "/")
            found.images.append((unicodedata.normalize("NFC", name), path))
            found.beside[path] = companions.of(file)
        found.lonely_masks += [os.path.join(directory, name) for name in companions.lonely]
        found.lonely_conditioning += [os.path.join(directory, name) for name in companions.lonely_conditioning]
        visible = sorted(name for name in folders if not name.startswith("."))
        if not include_subdirectories:
            found.folders += [os.path.join(directory, name) for name in visible if is_image(name)]
        folders[:] = visible if include_subdirectories else []
    found.images.sort()
    return found


def find_images(folder: str | Path, include_subdirectories: bool) -> tuple[list[tuple[str, str]], list[OSError]]:
    """(name, path) of the image files of a folder, and the folders that could not be listed; see `list_folder`."""
    found = list_folder(folder, include_subdirectories)
    return found.images, found.errors
