"""The tools of the window, in the order of their tabs."""

from modules.viewModel.tools import (
    alpha,
    board,
    captions,
    converter,
    coord_check,
    effective_rank,
    extract,
    inspector,
    masks,
    memory,
    merge,
    try_prompt,
)
from modules.viewModel.tools.Tool import Tool

MODULES = (
    try_prompt,
    captions,
    masks,
    alpha,
    inspector,
    converter,
    merge,
    extract,
    effective_rank,
    coord_check,
    memory,
    board,
)
"""Each has a function `tool`."""


def all_tools() -> list[Tool]:
    """What the window needs to know of each."""
    return [module.tool() for module in MODULES]
