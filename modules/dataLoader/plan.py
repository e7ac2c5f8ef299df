"""Which images are trained when: the order of an epoch as a pure function of config, seed and epoch."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modules.dataLoader.DatasetReport import DatasetImage
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.enum.BalancingStrategy import BalancingStrategy
from modules.util.keyed_random import keyed_random


@dataclass(frozen=True)
class PlannedSample:
    """One use of an image.

    Attributes:
        image: its index.
        image_variation, text_variation: which of its variations are used.
        drop_caption: it is trained with an empty caption.
        whole_image: its mask is not used.
    """

    image: int
    image_variation: int
    text_variation: int
    drop_caption: bool = False
    whole_image: bool = False


@dataclass(frozen=True)
class PlannedBatch:
    """Samples that are trained together, or the part of them that one process of a run trains.

    Attributes:
        samples: of the batch, or of the part.
        size: (height, width) of all of them, in pixels.
        first: place of the part's first sample in the whole batch.
        others: the samples of the whole batch that are not in the part.
    """

    samples: tuple[PlannedSample, ...]
    size: tuple[int, int]
    first: int = 0
    others: tuple[PlannedSample, ...] = ()

    def part(self, start: int, stop: int) -> "PlannedBatch":
        """The samples from `start` to before `stop`, as a part of this batch."""
        others = (*self.samples[:start], *self.samples[stop:])
        return PlannedBatch(self.samples[start:stop], self.size, start, others)


@dataclass(frozen=True)
class PlanRules:
    """What a plan depends on, apart from the images.

    Attributes:
        seed: the run's seed.
        batch_size: largest number of samples in a batch.
        caption_dropout, mask_dropout: chances that a sample has an empty caption, or ignores its mask.
        vary_captions_freely: each use of an image has a new text variation; otherwise they are taken in turn.
        fixed: every epoch is the same, in order, in the first variations, without dropout; for validation.
    """

    seed: int
    batch_size: int
    caption_dropout: float = 0.0
    mask_dropout: float = 0.0
    vary_captions_freely: bool = False
    fixed: bool = False


def samples_per_epoch(concept: ConceptConfig, images: int) -> int:
    """How many samples a concept with `images` images gives to an epoch; at least one if it has a part in it at all."""
    if images == 0 or concept.balancing == 0:
        return 0
    repeats = concept.balancing_strategy == BalancingStrategy.REPEATS
    # 0.3 · 10 is a little less than 3 in floating point
    return max(1, math.floor((images if repeats else 1) * concept.balancing + 1e-6))


def plan_epoch(
    epoch: int,
    rules: PlanRules,
    concepts: Sequence[ConceptConfig],
    images: Sequence[DatasetImage],
    size_of: Callable[[int, int], tuple[int, int]],
) -> list[PlannedBatch]:
    """The batches of an epoch.

    A concept's images are used in turn: an epoch continues in the concept's fixed random order where the epoch before
    it ended, so that fractions of a pass reach every image equally often. The n-th use of an image takes its n-th
    variation. Samples are then shuffled and grouped by size; of each size the last batch may be smaller, so that no
    image is left out.

    Args:
        epoch: number of the epoch, from 0.
        rules: see `PlanRules`.
        concepts: all concepts; those without images add nothing.
        images: all images of this plan.
        size_of: (image, image variation) -> (height, width).
    """
    epoch = 0 if rules.fixed else epoch
    samples = [
        sample
        for index, concept in enumerate(concepts)
        for sample in _samples_of(
            epoch, rules, concept, index, [number for number, image in enumerate(images) if image.concept == index]
        )
    ]
    rng = keyed_random("order", rules.seed, epoch)
    if not rules.fixed:
        rng.shuffle(samples)
    by_size: dict[tuple[int, int], list[PlannedSample]] = {}
    for sample in samples:
        by_size.setdefault(size_of(sample.image, sample.image_variation), []).append(sample)
    batches = [
        PlannedBatch(tuple(group[start : start + rules.batch_size]), size)
        for size, group in by_size.items()
        for start in range(0, len(group), rules.batch_size)
    ]
    if not rules.fixed:
        rng.shuffle(batches)
    return batches


def turn(rules: PlanRules, concept: ConceptConfig, concept_index: int, members: Sequence[int]) -> list[int]:
    """The fixed random order in which a concept's images are used."""
    order = list(members)
    keyed_random("turn", rules.seed, concept.seed, concept_index).shuffle(order)
    return order


def _samples_of(
    epoch: int, rules: PlanRules, concept: ConceptConfig, concept_index: int, members: list[int]
) -> list[PlannedSample]:
    count = samples_per_epoch(concept, len(members))
    if not rules.fixed:
        members = turn(rules, concept, concept_index, members)
    text_variations = sys.maxsize if rules.vary_captions_freely else concept.text_variations
    drops = not rules.fixed and (rules.caption_dropout > 0 or rules.mask_dropout > 0)
    samples = []
    for use in range(epoch * count, (epoch + 1) * count):
        passes, place = divmod(use, len(members))
        caption = mask = False
        if drops:
            chance = keyed_random("drop", rules.seed, concept_index, use)
            caption, mask = chance.random() < rules.caption_dropout, chance.random() < rules.mask_dropout
        samples.append(
            PlannedSample(
                image=members[place],
                image_variation=0 if rules.fixed else passes % concept.image_variations,
                text_variation=0 if rules.fixed else passes % text_variations,
                drop_caption=caption,
                whole_image=mask,
            )
        )
    return samples
