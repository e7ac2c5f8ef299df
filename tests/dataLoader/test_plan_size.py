"""Counting batches without planning them, and runs that would never end."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from modules.dataLoader.ImageSource import ImageSource
from modules.dataLoader.plan import PlanRules, plan_epoch
from modules.dataLoader.plan_size import MOST_STEPS, BatchCounter, check_plan_size, used_variations
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.dataLoader.test_plan import concept, images_of, size_of

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def varied(image: int, variation: int) -> tuple[int, int]:
    return size_of(image + variation * variation, 0)


def numbered(size_of: Callable[[int, int], tuple[int, int]]) -> Callable[..., Callable[[], np.ndarray]]:
    """As `ImageSource.begin_sizes` of a source with those sizes."""
    numbers: dict[tuple[int, int], int] = {}

    def begin(members: Sequence[int], variations: int) -> Callable[[], np.ndarray]:
        sizes = [[size_of(member, variation) for member in members] for variation in range(variations)]
        return lambda: np.array([[numbers.setdefault(size, len(numbers)) for size in row] for row in sizes])

    return begin


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 9), st.sampled_from([0, 0.3, 0.5, 1, 1.5, 3]), st.sampled_from(["REPEATS", "SAMPLES"]),
            st.integers(1, 4),
        ),
        min_size=1, max_size=3,
    ),
    st.integers(1, 5), st.booleans(), st.integers(0, 3),
)  # fmt: skip
def test_counts_what_a_plan_has(concepts, batch_size, fixed, seed):
    configs = [
        concept(balancing=balancing, balancing_strategy=strategy, image_variations=variations)
        for _, balancing, strategy, variations in concepts
    ]
    images = images_of(*(count for count, *_ in concepts))
    rules = PlanRules(seed=seed, batch_size=batch_size, fixed=fixed)
    counter = BatchCounter(rules, configs, images, numbered(varied), epochs=12)
    for epoch in range(12):
        planned = plan_epoch(epoch, rules, configs, images, varied)
        assert counter.batches(epoch) == len(planned)
        assert counter.samples() == sum(len(batch.samples) for batch in planned)


def test_a_million_epochs_are_counted_in_seconds():
    start = time.process_time()
    counter = BatchCounter(PlanRules(1, 4), [concept(balancing=0.7)], images_of(30), numbered(size_of), 1_000_000)
    assert sum(counter.batches(epoch) for epoch in range(1_000_000)) > 5_000_000
    assert time.process_time() - start < 10


@pytest.mark.parametrize(("resolution", "variations"), [("512", 100), ("512,768,1024", 5)])
def test_ten_thousand_images_are_planned_at_once(resolution, variations):
    """The pause before the first step. Under a second on an idle core; the bound leaves room for a busy one."""
    many = concept(image_variations=variations, balancing=1.0)
    generator = random.Random(0)
    sides = [(generator.randint(300, 2000), generator.randint(300, 2000)) for _ in range(10_000)]
    images = [replace(image, width=w, height=h) for image, (w, h) in zip(images_of(10_000), sides, strict=True)]
    source = ImageSource(TrainConfig.from_dict({"resolution": resolution}), [many], images, 64)
    rules = PlanRules(seed=1, batch_size=4, caption_dropout=0.1)
    start = time.process_time()
    counter = BatchCounter(rules, [many], images, source.begin_sizes, 100, source.sizes_vary)
    counted = [counter.batches(epoch) for epoch in range(100)]
    first = plan_epoch(0, rules, [many], images, source.size)
    assert time.process_time() - start < 3
    assert counted[0] == len(first) and 2500 <= len(first) < 2560 and len({batch.size for batch in first}) > 5
    assert (len(set(counted)) == 1) == (resolution == "512")


@pytest.mark.parametrize("resolution", ["64", "64,128", "64x96"])
def test_sizes_vary_only_with_several_resolutions(resolution):
    varied_concept = concept(image_variations=4, balancing=1.5)
    images = images_of(9)
    source = ImageSource(TrainConfig.from_dict({"resolution": resolution}), [varied_concept], images, 16)
    rules = PlanRules(seed=1, batch_size=2)
    assert source.begin_sizes([0, 3], 1)().shape == (1, 2)
    counter = BatchCounter(rules, [varied_concept], images, source.begin_sizes, 6, source.sizes_vary)
    for epoch in range(6):
        assert counter.batches(epoch) == len(plan_epoch(epoch, rules, [varied_concept], images, source.size))
    found = [len({source.size(index, variation) for variation in range(4)}) for index in range(9)]
    assert (max(found) > 1) == source.sizes_vary(0) == ("," in resolution)
    assert all(
        source.size(index, variation) == source.layout(index, variation)[1].size[::-1]
        for index in range(9)
        for variation in range(4)
    )


def test_variations_that_no_epoch_reaches_are_not_used():
    assert used_variations(concept(), 10, 3, 10**9) == 3
    assert used_variations(concept(balancing=0.5), 10, 3, 10**9) == 2
    assert used_variations(concept(), 10, 50, 4) == 4 and used_variations(concept(balancing=0), 10, 5, 4) == 1


def config(**options) -> TrainConfig:
    return TrainConfig.from_dict({"batch_size": 1, **options})


@pytest.mark.parametrize(
    ("options", "concept_options", "text"),
    [
        ({}, {"balancing": 1e12}, "concepts.0.balancing: found 1e.12, with which 12 images give"),
        ({}, {"balancing": 1e12, "balancing_strategy": "SAMPLES"}, "concepts.0.balancing: found 1e.12"),
        ({"epochs": 1_000_000}, {"balancing": 1000}, "epochs: found 1000000, .*12,000 samples in each and 1 in a step"),
        ({"epochs": 900_000}, {"image_variations": 10**6}, "concepts.0.image_variations: found 1000000"),
    ],
)
def test_what_would_never_end_is_refused(options, concept_options, text):
    with pytest.raises(UserError, match=text):
        check_plan_size(config(**options), [ConceptConfig.from_dict(concept_options)], [12])


def test_what_ends_is_not():
    check_plan_size(config(epochs=1_000_000), [concept()], [900])
    check_plan_size(config(epochs=1_000_000, batch_size=12), [concept(image_variations=10)], [12])
    check_plan_size(config(epochs=100), [concept(type="VALIDATION", balancing=1e12), concept(enabled=False)], [12, 12])
    assert MOST_STEPS >= 1_000_000
