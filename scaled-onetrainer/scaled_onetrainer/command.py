"""What the commands of `python -m scaled_onetrainer` share."""

import os
from pathlib import Path

from scaled_onetrainer.checkout import MARKS, is_onetrainer


class CommandError(RuntimeError):
    """A command can't be done. The message says why, for the person who gave it."""


def checkout_at(folder: str | None) -> Path:
    """The checkout of OneTrainer in a folder, None: in the current one.

    Raises:
        CommandError: there is none.
    """
    root = Path(folder or os.getcwd()).resolve()
    if not is_onetrainer(root):
        lacks = next(mark for mark in MARKS if not (root / mark).is_file())
        raise CommandError(
            f"{root} is no checkout of OneTrainer: it has no {lacks}. Start there, or name it: --onetrainer DIR."
        )
    return root
