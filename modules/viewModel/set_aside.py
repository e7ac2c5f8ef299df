"""Takes a picture out of a concept, with what belongs to it, without deleting anything."""

import os
import shutil
from pathlib import Path

from modules.dataLoader.Companions import Companions
from modules.util.texts import tr
from modules.util.UserError import UserError

Move = tuple[Path, Path]


def aside_of(folder: str | Path) -> Path:
    """The folder beside a concept's, into which its pictures are moved.

    Raises:
        UserError: the concept's folder is a whole drive, which nothing is beside.
    """
    whole = Path(os.path.abspath(folder))
    if not whole.name:
        raise UserError(
            tr("{path} is a whole drive, so there is no folder beside it. Put the pictures into a folder.", path=whole)
        )
    return whole.with_name(f"{whole.name} set aside")


def moves_aside(folder: str | Path, path: str) -> list[Move]:
    """(from, to) of a picture and of what belongs to it alone: caption, mask, conditioning image.

    Args:
        folder: of the concept.
        path: of the picture, in it or below it.

    Raises:
        UserError: its folder can't be listed, or there is no folder beside the concept's.
    """
    root, image = Path(os.path.abspath(folder)), Path(os.path.abspath(path))
    try:
        companions = Companions(os.listdir(image.parent))
    except OSError as error:
        raise UserError(tr("{path} can't be read: {why}.", path=image.parent, why=error.strerror or error)) from None
    own = _belonging(companions, image.name)
    for other in companions.images:
        if other != image.name:
            own -= _belonging(companions, other)
    below = image.parent.relative_to(root)
    names = [image.name, *sorted(own)]
    number = 1
    while True:
        target = aside_of(root) / below if number == 1 else aside_of(root) / below / str(number)
        moves = [(image.parent / name, target / name) for name in names]
        if not any(os.path.lexists(to) for _, to in moves):
            return moves
        number += 1


def _belonging(companions: Companions, name: str) -> set[str]:
    beside = companions.of(name)
    return {*beside.captions, *beside.masks, *beside.conditioning}


def move_files(moves: list[Move]) -> None:
    """Moves files; all of them, or none.

    Raises:
        UserError: one can't be moved; those before it are where they were.
    """
    done: list[Move] = []
    for one, to in moves:
        try:
            if os.path.lexists(to):
                raise FileExistsError(17, tr("a file of this name is there already"))
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(one, to)
        except OSError as error:
            for back, moved in reversed(done):
                shutil.move(moved, back)
            why = error.strerror or error
            raise UserError(
                tr("{path} can't be moved to {target}: {why}. Nothing was moved.", path=one, target=to, why=why)
            ) from None
        done.append((one, to))
