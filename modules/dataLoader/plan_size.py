"""How many samples and batches epochs have, counted without planning them: a run may have a million epochs."""

from collections.abc import Callable, Sequence
from functools import cached_property

from modules.dataLoader.DatasetReport import DatasetImage
from modules.dataLoader.plan import PlanRules, samples_per_epoch, turn
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConceptType import ConceptType
from modules.util.UserError import UserError

import numpy as np

MOST_SAMPLES = 10_000_000
"""Of an epoch: a plan of more would take minutes and gigabytes, and no set of images has as many."""

MOST_STEPS = 1_000_000_000
"""Of a run: more than anybody waits for, as such runs are stopped by hand."""


def used_variations(concept: ConceptConfig, images: int, epochs: int, variations: int) -> int:
    """How many of a concept's variations a run of so many epochs comes to.

    Args:
        images: that the concept has.
        variations: that the concept is set to have, of pictures or texts.
    """
    uses = epochs * samples_per_epoch(concept, images)
    return min(variations, max(1, -(-uses // max(1, images))))


def check_plan_size(config: TrainConfig, concepts: Sequence[ConceptConfig], images: Sequence[int]) -> None:
    """Raises UserError if an epoch had more than `MOST_SAMPLES` samples, or the run more than `MOST_STEPS` steps.

    Args:
        images: how many usable ones each concept has.
    """
    total = 0
    for index, (concept, count) in enumerate(zip(concepts, images, strict=True)):
        if concept.type == ConceptType.VALIDATION or not concept.enabled:
            continue
        samples = samples_per_epoch(concept, count)
        total += samples
        if samples > MOST_SAMPLES:
            raise UserError(
                f"concepts.{index}.balancing: found {concept.balancing:g}, with which {count} images give {samples:,} "
                f"samples to each epoch; expected at most {MOST_SAMPLES:,}. Set epochs higher instead."
            )
        most = max(concept.image_variations, 1)
        variations = used_variations(concept, count, config.epochs, most) * count
        if variations > MOST_SAMPLES:
            raise UserError(
                f"concepts.{index}.image_variations: found {most}, of which the run's {config.epochs} epochs would use "
                f"{variations:,} pictures; expected at most {MOST_SAMPLES:,}. Set it lower."
            )
    if total > MOST_SAMPLES:
        raise UserError(
            f"concepts: together they give {total:,} samples to each epoch, expected at most {MOST_SAMPLES:,}. "
            "Lower their balancing and set epochs higher instead."
        )
    taken = config.batch_size * config.gradient_accumulation_steps
    steps = config.epochs * total // taken
    if steps > MOST_STEPS:
        raise UserError(
            f"epochs: found {config.epochs}, which with {total:,} samples in each and {taken} in a step are {steps:,} "
            f"steps; expected at most {MOST_STEPS:,}."
        )


class BatchCounter:
    """The number of batches of every epoch, as `plan_epoch` makes them.

    What takes long begins when it is made, and is waited for when a number is first asked for.

    Args:
        rules, concepts, images: as of `plan_epoch`.
        begin_sizes: (images of a concept, variations) -> what gives the numbers of their sizes `[variations, images]`,
            see `ImageSource.begin_sizes`.
        epochs: of the run; the largest that is asked for, and one.
        varies: index of a concept -> whether the size of an image depends on the variation.
    """

    def __init__(
        self,
        rules: PlanRules,
        concepts: Sequence[ConceptConfig],
        images: Sequence[DatasetImage],
        begin_sizes: Callable[[Sequence[int], int], Callable[[], np.ndarray]],
        epochs: int,
        varies: Callable[[int], bool] = lambda concept: True,
    ) -> None:
        self._rules = rules
        # of each concept that has samples: their number in an epoch, and what gives its sizes
        self._begun: list[tuple[int, Callable[[], np.ndarray]]] = []
        for index, concept in enumerate(concepts):
            members = [number for number, image in enumerate(images) if image.concept == index]
            count = samples_per_epoch(concept, len(members))
            if not count:
                continue
            members = members if rules.fixed else turn(rules, concept, index, members)
            variations = 1
            if varies(index) and not rules.fixed:
                variations = used_variations(concept, len(members), epochs, concept.image_variations)
            self._begun.append((count, begin_sizes(members, variations)))
        self._known: dict[tuple[int, ...], int] = {}

    @cached_property
    def _uses(self) -> list[tuple[int, np.ndarray]]:
        """Of each concept that has samples: their number in an epoch, and the size of use u at u modulo the length."""
        return [(count, sizes().ravel()) for count, sizes in self._begun]

    def batches(self, epoch: int) -> int:
        """Of an epoch, from 0."""
        epoch = 0 if self._rules.fixed else epoch
        # epochs that begin at the same place have the same sizes
        starts = tuple(epoch * count % len(sizes) for count, sizes in self._uses)
        if starts not in self._known:
            counts = np.zeros(self._sizes, dtype=np.int64)
            for start, (count, sizes) in zip(starts, self._uses, strict=True):
                whole, rest = divmod(count, len(sizes))
                counts += whole * np.bincount(sizes, minlength=len(counts))
                counts += np.bincount(sizes[(start + np.arange(rest)) % len(sizes)], minlength=len(counts))
            self._known[starts] = int((-(-counts // self._rules.batch_size)).sum())
        return self._known[starts]

    @cached_property
    def _sizes(self) -> int:
        return max((int(sizes.max()) + 1 for _, sizes in self._uses), default=0)

    def samples(self) -> int:
        """Of each epoch."""
        return sum(count for count, _ in self._begun)
