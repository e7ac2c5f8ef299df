"""The order of an epoch: determinism, balancing, variations, dropout."""

from collections import Counter

from modules.dataLoader.DatasetReport import DatasetImage
from modules.dataLoader.plan import PlanRules, plan_epoch, samples_per_epoch
from modules.util.config.ConceptConfig import ConceptConfig

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def concept(**options) -> ConceptConfig:
    return ConceptConfig.from_dict({"path": "x", **options})


def images_of(*counts: int) -> list[DatasetImage]:
    return [
        DatasetImage(index, f"{number}.png", f"{number}.png", 64, 64, "", ("",))
        for index, count in enumerate(counts)
        for number in range(count)
    ]


def size_of(image: int, variation: int) -> tuple[int, int]:
    return [(64, 64), (48, 80), (80, 48)][image % 3]


def plan(epoch: int, concepts, *counts, size_of=size_of, **rules):
    rules = PlanRules(**{"seed": 1, "batch_size": 4, **rules})
    return plan_epoch(epoch, rules, concepts, images_of(*counts), size_of)


def flat(batches):
    return [sample for batch in batches for sample in batch.samples]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 2**31), st.integers(0, 5))
def test_every_image_once_in_batches_of_one_size(count, batch_size, seed, epoch):
    batches = plan(epoch, [concept()], count, seed=seed, batch_size=batch_size)
    assert sorted(sample.image for sample in flat(batches)) == list(range(count))
    for batch in batches:
        assert 0 < len(batch.samples) <= batch_size
        assert {size_of(sample.image, sample.image_variation) for sample in batch.samples} == {batch.size}
    # at most one batch of each size is not full
    assert max(Counter(batch.size for batch in batches if len(batch.samples) < batch_size).values(), default=0) <= 1
    assert batches == plan(epoch, [concept()], count, seed=seed, batch_size=batch_size)
    assert len(set(batches)) == len(batches)


def test_epochs_and_seeds_differ():
    plans = [plan(epoch, [concept()], 20, seed=seed) for epoch in range(3) for seed in range(3)]
    assert len({tuple(batches) for batches in plans}) == len(plans)


@pytest.mark.parametrize(
    ("options", "images", "expected"),
    [
        ({}, 10, 10),
        ({"balancing": 0.3}, 10, 3),
        ({"balancing": 2.5}, 3, 7),
        ({"balancing": 0.1}, 3, 1),
        ({"balancing": 0}, 3, 0),
        ({"balancing": 7, "balancing_strategy": "SAMPLES"}, 3, 7),
        ({"balancing": 2.9, "balancing_strategy": "SAMPLES"}, 300, 2),
        ({}, 0, 0),
    ],
)
def test_samples_per_epoch(options, images, expected):
    assert samples_per_epoch(concept(**options), images) == expected


@pytest.mark.parametrize("balancing", [0.2, 0.4, 1, 2, 2.5])
def test_fractions_reach_every_image_equally_often(balancing):
    used, concepts = Counter(), [concept(balancing=balancing)]
    for epoch in range(20):
        samples = flat(plan(epoch, concepts, 10))
        assert len(samples) == 10 * balancing
        # no image comes twice before all have come once
        assert max(Counter(sample.image for sample in samples).values()) <= -(-balancing // 1) + (balancing % 1 > 0)
        used.update(sample.image for sample in samples)
    assert set(used.values()) == {20 * balancing}


def test_a_fraction_takes_other_images_next_time():
    first, second = ({sample.image for sample in flat(plan(epoch, [concept(balancing=0.5)], 10))} for epoch in range(2))
    assert len(first) == len(second) == 5 and not first & second


def test_concepts_are_mixed():
    samples = flat(plan(0, [concept(), concept(balancing=3, balancing_strategy="SAMPLES")], 6, 50))
    assert sum(sample.image >= 6 for sample in samples) == 3 and len(samples) == 9


def test_variations_come_in_turn():
    concepts = [concept(image_variations=3, text_variations=2)]
    for epoch in range(7):
        for sample in flat(plan(epoch, concepts, 5)):
            assert (sample.image_variation, sample.text_variation) == (epoch % 3, epoch % 2)
    repeated = Counter(
        sample.image_variation for sample in flat(plan(0, [concept(image_variations=3, balancing=2)], 5))
    )
    assert repeated == {0: 5, 1: 5}
    free = flat(plan(9, concepts, 5, vary_captions_freely=True))
    assert {(sample.image_variation, sample.text_variation) for sample in free} == {(0, 9)}


def test_dropout_has_its_share_and_is_deterministic():
    options = {"caption_dropout": 0.2, "mask_dropout": 0.5}
    samples = [sample for epoch in range(20) for sample in flat(plan(epoch, [concept()], 100, **options))]
    # four standard deviations of a share out of 2000
    assert sum(sample.drop_caption for sample in samples) / 2000 == pytest.approx(0.2, abs=0.036)
    assert sum(sample.whole_image for sample in samples) / 2000 == pytest.approx(0.5, abs=0.045)
    assert plan(3, [concept()], 100, **options) == plan(3, [concept()], 100, **options)
    # dropout is no property of the image
    assert len({sample.image for sample in samples if sample.drop_caption}) > 60
    assert not any(sample.drop_caption or sample.whole_image for sample in flat(plan(0, [concept()], 100)))


def test_fixed_plan_for_validation():
    options = {"fixed": True, "caption_dropout": 1.0, "mask_dropout": 1.0}
    first = plan(0, [concept(image_variations=4, balancing=2)], 9, **options)
    assert first == plan(5, [concept(image_variations=4, balancing=2)], 9, **options)
    assert {(s.image_variation, s.text_variation, s.drop_caption, s.whole_image) for s in flat(first)} == {
        (0, 0, False, False)
    }
