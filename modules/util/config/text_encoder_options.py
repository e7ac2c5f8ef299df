"""What a run and a sample both say of each text encoder: how many layers are left out, how many tokens it reads."""

from functools import partial
from typing import Any

from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup


def layer_skip(number: int, group: OptionGroup) -> Any:
    """Declares how many layers at the end of a text encoder are left out."""
    return option(
        0,
        f"Layer skip {number}",
        f"Last layers of text encoder {number} that are left out.",
        group,
        ge=0,
        unit="layers",
        advanced=True,
    )


sequence_length = partial(option, ge=1, le=4096, unit="tokens", advanced=True)
"""Declares how many tokens a text encoder reads; called as `option` is. null: the model's own number."""
