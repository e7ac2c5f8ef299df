from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Progress = Callable[[str, int, int], None]
"""Gets the stage ("check", "compare", "latents", "masks", "conditioning", "captions"), how many are done, and how many
there are."""


def track(items: Iterable[Item], total: int, stage: str, progress: Progress | None, bar: bool = True) -> Iterator[Item]:
    """Passes items on, shows a progress bar if `bar`, and tells `progress`, at the start and after each item."""
    if progress:
        progress(stage, 0, total)
    # where it is not mentioned, the environment may switch bars off
    hidden = {} if bar else {"disable": True}
    for done, item in enumerate(tqdm(items, desc=stage, total=total, unit="", dynamic_ncols=True, **hidden), 1):
        yield item
        if progress:
            progress(stage, done, total)
