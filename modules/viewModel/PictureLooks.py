from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Self

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.texts import tr


@dataclass(frozen=True)
class PictureLooks:
    """What the dataset check and a comparison of all pictures tell of each.

    Attributes:
        group: path -> number of the group of doubles that it is in, from 0 in the order of the pictures.
        doubles_of: path -> paths of the others that are the same or nearly the same.
        soft: paths of those with far less fine detail than the others.
        rejected: path -> why a run leaves it out.
        note: what was not looked at, empty if all was.
    """

    group: dict[str, int] = field(default_factory=dict)
    doubles_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    soft: frozenset[str] = frozenset()
    rejected: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def of(cls, pairs: Collection[tuple[str, str]], soft: Collection[str], rejected: dict[str, str], note: str) -> Self:
        """Pictures that are the same, directly or by others between them, are one group."""
        near: dict[str, set[str]] = {}
        for one, other in pairs:
            near.setdefault(one, set()).add(other)
            near.setdefault(other, set()).add(one)
        group: dict[str, int] = {}
        number = 0
        for first in sorted(near):
            if first in group:
                continue
            waiting = [first]
            while waiting:
                path = waiting.pop()
                if path not in group:
                    group[path] = number
                    waiting += near[path]
            number += 1
        doubles_of = {path: tuple(sorted(others)) for path, others in near.items()}
        return cls(group, doubles_of, frozenset(soft), rejected, note)


def look_at(config: TrainConfig, concept: ConceptConfig, progress: Callable[[str, int, int], None]) -> PictureLooks:
    """Reads every picture of a concept as a run does, and compares them.

    Args:
        config, concept: that nobody else changes meanwhile.
        progress: is told of each picture, as `dataLoader.progress`; what it raises ends the look.

    Raises:
        UserError: nothing can be trained, with the reason.
    """
    from modules.dataLoader.likeness import MOST, likeness
    from modules.viewModel.ConceptModel import dataset_of

    # how often its pictures are used does not matter here
    report = dataset_of(config, concept.model_copy(update={"balancing": 1.0}), progress)
    found = likeness(report.images, config.dataloader_threads, progress)
    pairs = [(paths[0], other) for paths in found.same for other in paths[1:]] + list(found.near)
    note = ""
    if len(report.images) > MOST:
        note = tr("More than {most} pictures are not compared in pairs: only equal files count as doubles.", most=MOST)
    return PictureLooks.of(pairs, found.soft, {one.path: one.reason for one in report.rejected}, note)
