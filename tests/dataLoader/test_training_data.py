"""From files to batches: caching, resuming, keys, masks, captions."""

import errno
import itertools
import os
import threading

from modules.dataLoader.plan import PlannedBatch
from modules.dataLoader.prepare_data import prepare_data
from modules.dataLoader.TensorCache import TensorCache
from modules.util.UserError import UserError

import torch

import numpy as np
import pytest
from PIL import Image


def batches(data, epochs=1):
    return [data.load(planned) for epoch in range(epochs) for planned in data.plan(epoch)]


def equal(first, second) -> bool:
    """Whether two lists of batches hold the same bits."""
    return len(first) == len(second) and all(
        torch.equal(a.latents, b.latents)
        and a.captions == b.captions
        and a.names == b.names
        and torch.equal(a.loss_weight, b.loss_weight)
        and (a.mask is b.mask is None or torch.equal(a.mask, b.mask))
        and (a.text is b.text is None or all(torch.equal(a.text[name], b.text[name]) for name in a.text))
        for a, b in zip(first, second, strict=True)
    )


def mixed(dataset):
    for number, size in enumerate([(64, 64), (100, 50), (50, 100), (64, 64), (80, 70)]):
        dataset.add(f"{number}.png", *size, caption=f"caption {number}, tag, other")


def lively(dataset, **options):
    image = {"enable_random_flip": True, "enable_random_rotate": True, "random_rotate_max_angle": 20}
    image |= {"enable_random_hue": True, "random_hue_max_strength": 0.5}
    text = {"enable_tag_shuffling": True, "keep_tags_count": 0}
    return dataset.concept(image_variations=3, text_variations=2, image=image, text=text, **options)


def test_batches_have_the_agreed_form(dataset):
    mixed(dataset)
    data = dataset.prepare([dataset.concept(loss_weight=0.5)])
    for batch in batches(data):
        height, width = batch.size
        count = len(batch.captions)
        assert batch.latents.shape == (count, 4, height // 8, width // 8) and batch.latents.dtype == torch.float32
        assert batch.text["hidden"].shape == (count, 2, 3) and batch.text["tokens"].shape == (count, 6)
        assert batch.loss_weight.tolist() == [0.5] * count and batch.mask is None
        for name, caption, latent in zip(batch.names, batch.captions, batch.latents, strict=True):
            assert caption.startswith(f"caption {name[-5]}") and latent.isfinite().all()
    assert data.sizes() and sum(data.sizes().values()) == 5


def test_latents_are_those_of_the_file(dataset, pooling_model):
    path = dataset.add("a.png", 64, 64)
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 127.5 - 1
    (batch,) = batches(dataset.prepare())
    assert torch.allclose(batch.latents, pooling_model().encode_images(pixels), atol=1e-6)


def test_second_run_encodes_nothing_and_gives_the_same(dataset):
    mixed(dataset)
    first = batches(dataset.prepare([lively(dataset)]), 4)
    encoded = dataset.model.images, len(dataset.model.captions)
    assert encoded[0] <= 15 and "" in dataset.model.captions
    # a caption of each variation, and the empty one
    assert len(set(dataset.model.captions)) == len(dataset.model.captions) <= 11
    assert equal(batches(dataset.prepare([lively(dataset)]), 4), first)
    assert (dataset.model.images, len(dataset.model.captions)) == encoded
    assert not any("damaged" in line or "removed" in line for line in dataset.warnings)


def test_cached_equals_live_in_every_bit(dataset):
    mixed(dataset)
    Image.effect_noise((100, 50), 99).save(dataset.folder / "1-masklabel.png")
    options = {"masked_training": True, "text_encoder": {"dropout_probability": 0.3}}
    cached = batches(dataset.prepare([lively(dataset)], **options), 4)
    live = batches(dataset.prepare([lively(dataset)], latent_caching=False, **options), 4)
    assert equal(cached, live)
    from_disk = batches(dataset.prepare([lively(dataset)], memory_budget=0, **options), 4)
    assert equal(cached, from_disk)


def test_interrupted_caching_resumes(dataset, pooling_model):
    mixed(dataset)
    whole = batches(dataset.prepare([lively(dataset)], cache_dir=str(dataset.root / "other")), 3)
    with pytest.raises(KeyboardInterrupt):
        dataset.prepare([lively(dataset)], model=pooling_model(fail_after=4))
    assert len(dataset.cached("latents")) == 4
    resumed = pooling_model()
    assert equal(batches(dataset.prepare([lively(dataset)], model=resumed), 3), whole)
    assert resumed.images == len(dataset.cached("latents")) - 4


def test_a_full_disk_loses_nothing(dataset, pooling_model, monkeypatch):
    mixed(dataset)
    replace, written = os.replace, []

    def full(written_path, path):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.extend([path] if path.suffix == ".safetensors" else [])
        return replace(written_path, path)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="no space left on the disk while caching"):
        dataset.prepare()
    monkeypatch.undo()
    assert len(dataset.cached("latents")) == 3 and not list(dataset.root.rglob("*.tmp"))
    model = pooling_model()
    dataset.prepare(model=model)
    assert model.images == 2 and not any("damaged" in line for line in dataset.warnings)


def test_the_model_encodes_while_what_it_encoded_is_written(dataset, pooling_model, monkeypatch):
    mixed(dataset)
    encoding, writing, write = threading.Event(), [], TensorCache.write

    class Counting(pooling_model):
        def encode_images(self, pixels):
            if self.images:
                encoding.set()
            return super().encode_images(pixels)

    def slow(self, kind, *entry):
        # the first is not written until the second is encoded
        writing.append((kind, encoding.wait(10), threading.current_thread() is threading.main_thread()))
        write(self, kind, *entry)

    monkeypatch.setattr(TensorCache, "write", slow)
    dataset.prepare(model=Counting())
    assert [kind for kind, *_ in writing] == ["latents"] * 5 + ["captions"] * 6
    assert all(waited and not main for _, waited, main in writing)


def test_damaged_entries_are_built_again(dataset):
    mixed(dataset)
    first = batches(dataset.prepare())
    for path in (*dataset.cached("latents")[:2], dataset.cached("captions")[0]):
        path.write_bytes(path.read_bytes()[:-3])
    encoded = dataset.model.images
    assert equal(batches(dataset.prepare()), first)
    assert dataset.model.images == encoded + 2
    assert sum("damaged" in line for line in dataset.warnings) == 1


def test_an_entry_that_is_damaged_during_the_run(dataset):
    mixed(dataset)
    data = dataset.prepare(memory_budget=0)
    first = batches(data)
    for path in dataset.cached("latents"):
        path.unlink()
    assert equal(batches(data), first)


@pytest.mark.parametrize(
    "change",
    [
        {"resolution": "96"},
        {"concept": {"seed": 7}},
        {"concept": {"image": {"enable_fixed_flip": True}}},
        {"concept": {"image": {"enable_fixed_brightness": True, "random_brightness_max_strength": 0.1}}},
        {"concept": {"image": {"enable_resolution_override": True, "resolution_override": "96"}}},
        {"aspect_ratio_bucketing": False},
        {"model": "other"},
        {"content": True},
    ],
    ids=str,
)
def test_what_matters_changes_the_key(dataset, pooling_model, change):
    change = dict(change)
    path = dataset.add("a.png", 100, 40)
    keep = {"clear_cache_before_training": False}
    dataset.prepare(**keep)
    if change.pop("content", False):
        Image.new("RGB", (100, 40), "red").save(path)
    model = pooling_model(change.pop("model", "pool"))
    dataset.prepare([dataset.concept(**change.pop("concept", {}))], model=model, **change, **keep)
    assert model.images == 1 and len(dataset.cached("latents")) == 2


@pytest.mark.parametrize(
    "options",
    [{"seed": 5}, {"batch_size": 1}, {"masked_training": True}, {"epochs": 7}, {"resolution": "66"}],
    ids=str,
)
def test_what_does_not_matter_keeps_the_key(dataset, pooling_model, options):
    dataset.add("a.png", 100, 90)
    dataset.prepare()
    model = pooling_model()
    dataset.prepare([dataset.concept(name="renamed", balancing=2, loss_weight=3)], model=model, **options)
    assert model.images == 0 and not model.captions


def test_a_moved_and_renamed_folder_keeps_its_cache_without_random_options(dataset, pooling_model):
    path = dataset.add("a.png")
    concept = dataset.concept(image={"enable_crop_jitter": False})
    dataset.prepare([concept])
    for suffix in (".png", ".txt"):
        path.with_suffix(suffix).rename(dataset.folder / f"b{suffix}")
    model = pooling_model()
    dataset.prepare([concept], model=model)
    assert model.images == 0


def test_cache_is_cleared_only_where_stale_and_announced(dataset):
    mixed(dataset)
    dataset.add("valid/v.png", caption="seen by validation")
    concepts = [dataset.concept(), dataset.concept(path=str(dataset.folder / "valid"), type="VALIDATION")]
    options = {"resolution": "96", "clear_cache_before_training": False}
    dataset.prepare(concepts, **options)
    old = set(dataset.cached("latents"))
    dataset.prepare(concepts, clear_cache_before_training=False)
    assert old < set(dataset.cached("latents"))
    dataset.warnings.clear()
    dataset.prepare(concepts)
    assert not old & set(dataset.cached("latents")) and len(dataset.cached("latents")) == 5
    assert sum("removed 5 cached entries" in line for line in dataset.warnings) == 1


def test_order_does_not_depend_on_threads_or_listing(dataset, monkeypatch):
    mixed(dataset)
    first = batches(dataset.prepare([lively(dataset)], dataloader_threads=1), 2)
    walk = os.walk

    def shuffled_walk(*args, **options):
        for directory, folders, files in walk(*args, **options):
            yield directory, folders, files[::-1]

    monkeypatch.setattr("modules.dataLoader.find_images.os.walk", shuffled_walk)
    again = dataset.prepare([lively(dataset)], dataloader_threads=4, cache_dir=str(dataset.root / "other"))
    assert equal(batches(again, 2), first)


@pytest.mark.parametrize(("option", "held"), [(0.0, 0), (1.0, 5), (None, 5)])
def test_the_memory_for_data_is_that_of_the_option(dataset, monkeypatch, option, held):
    mixed(dataset)
    # a quarter of what is free
    monkeypatch.setattr("modules.dataLoader.prepare_data.free_memory", lambda: 4 * 2**20)
    data = prepare_data(
        dataset.config(data_memory=option), [dataset.concept()], dataset.model, cache_text=True,
        warn=dataset.warnings.append,
    )  # fmt: skip
    first = batches(data)
    for path in dataset.cached("latents"):
        path.unlink()
    encoded = dataset.model.images
    assert equal(batches(data), first) and dataset.model.images - encoded == 5 - held


def test_epochs_take_their_variations(dataset):
    dataset.add("a.png", 128, 64, caption="one\ntwo\nthree\nfour\nfive")
    data = dataset.prepare([dataset.concept(image_variations=2, text_variations=3)], aspect_ratio_bucketing=False)
    epochs = [data.load(*data.plan(epoch)) for epoch in range(6)]
    assert torch.equal(epochs[0].latents, epochs[2].latents) and not torch.equal(epochs[0].latents, epochs[1].latents)
    assert [batch.captions for batch in epochs[:3]] == [batch.captions for batch in epochs[3:]]
    assert len({batch.captions[0] for batch in epochs}) > 1


def test_without_text_caching_captions_vary_freely(dataset):
    dataset.add("a.png", caption="a, b, c, d, e, f")
    data = dataset.prepare([dataset.concept(text={"enable_tag_shuffling": True})], cache_text=False)
    loaded = [data.load(*data.plan(epoch)) for epoch in range(8)]
    assert all(batch.text is None for batch in loaded) and not dataset.model.captions
    captions = {batch.captions[0] for batch in loaded}
    assert len(captions) > 4 and all(caption.startswith("a, ") for caption in captions)


def test_caption_dropout_gives_the_empty_caption(dataset, pooling_model):
    for number in range(8):
        dataset.add(f"{number}.png", caption=f"caption {number}")
    data = dataset.prepare(text_encoder={"dropout_probability": 0.5})
    empty = pooling_model().encode_captions([""])["hidden"][0]
    seen = set()
    for batch in batches(data, 3):
        for caption, hidden in zip(batch.captions, batch.text["hidden"], strict=True):
            seen.add(caption == "")
            assert torch.equal(hidden, empty) == (caption == "")
    assert seen == {True, False} and dataset.model.captions.count("") == 1


def test_masks(dataset):
    dataset.add("a.png", 64, 64)
    dataset.add("b.png", 64, 64)
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 64, 128))
    mask.save(dataset.folder / "a-masklabel.png")
    options = {"masked_training": True, "unmasked_weight": 0.25}
    (batch,) = batches(dataset.prepare(unmasked_probability=0.0, **options))
    assert batch.mask.shape == (2, 1, 8, 8) and batch.mask.dtype == torch.float32
    by_name = {name[-5]: mask for name, mask in zip(batch.names, batch.mask, strict=True)}
    assert by_name["b"].min() == 1
    # the column at the edge mixes pixels of both sides
    assert by_name["a"][..., :3].min() == 1 and by_name["a"][..., 5:].max() == 0.25
    (whole,) = batches(dataset.prepare(unmasked_probability=1.0, **options))
    assert whole.mask.min() == 1
    (flipped,) = batches(
        dataset.prepare([dataset.concept(image={"enable_fixed_flip": True})], unmasked_probability=0.0, **options)
    )
    turned = {name[-5]: mask for name, mask in zip(flipped.names, flipped.mask, strict=True)}
    assert torch.equal(turned["a"], by_name["a"].flip(-1))


def test_unmasked_probability_and_circles_change_what_they_should(dataset):
    dataset.add("a.png", 64, 64)
    Image.new("L", (64, 64), 0).save(dataset.folder / "a-masklabel.png")
    options = {"masked_training": True, "unmasked_weight": 0.0}
    data = dataset.prepare(unmasked_probability=0.5, **options)
    means = [batch.mask.mean().item() for batch in batches(data, 20)]
    assert set(means) == {0.0, 1.0}
    (dataset.folder / "a-masklabel.png").unlink()
    concept = dataset.concept(image={"enable_random_circular_mask_shrink": True}, image_variations=4)
    data = dataset.prepare([concept], unmasked_probability=0.0, **options)
    means = {batch.mask.mean().item() for batch in batches(data, 4)}
    assert len(means) == 4 and all(0 < mean < 1 for mean in means)


def test_validation_is_apart_and_always_the_same(dataset):
    mixed(dataset)
    dataset.add("valid/v.png", caption="one\ntwo\nthree")
    concepts = [
        dataset.concept(),
        lively(dataset, path=str(dataset.folder / "valid"), type="VALIDATION"),
    ]
    options = {"validation": True}
    config = {"text_encoder": {"dropout_probability": 1.0}}

    def prepare(validation):
        return prepare_data(
            dataset.config(**options, **config),
            concepts,
            dataset.model,
            cache_text=True,
            validation=validation,
            warn=dataset.warnings.append,
        )

    train, valid = prepare(False), prepare(True)
    assert {name for batch in batches(train) for name in batch.names}.isdisjoint(batches(valid)[0].names)
    assert valid.plan(0) == valid.plan(7) and batches(valid)[0].captions[0] in ("one", "two", "three")
    encoded = dataset.model.images
    prepare(False), prepare(True)
    # neither clears the other's entries
    assert dataset.model.images == encoded and not any("removed" in line for line in dataset.warnings)


def test_several_resolutions_in_one_run(dataset):
    for number in range(6):
        dataset.add(f"{number}.png", 128, 128)
    data = dataset.prepare([dataset.concept(image_variations=4)], resolution="64,96,64x128")
    sizes = set(itertools.chain(*(data.sizes(epoch) for epoch in range(4))))
    assert sizes == {(64, 64), (96, 96), (128, 64)}


def test_a_file_that_changes_after_the_check(dataset):
    path = dataset.add("a.png")
    report = dataset.check()
    Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(UserError, match="changed after the dataset check"):
        prepare_data(dataset.config(), [dataset.concept()], dataset.model, cache_text=True, report=report)


def test_latents_that_are_not_finite(dataset, pooling_model):
    class Broken(pooling_model):
        def encode_images(self, pixels):
            return super().encode_images(pixels) * float("nan")

    dataset.add("a.png")
    with pytest.raises(UserError, match="a.png.*not finite"):
        dataset.prepare(model=Broken())
    assert not dataset.cached("latents")


def test_progress_names_the_stages(dataset):
    mixed(dataset)
    calls = []
    prepare_data(
        dataset.config(),
        [dataset.concept()],
        dataset.model,
        cache_text=True,
        warn=dataset.warnings.append,
        progress=lambda *call: calls.append(call),
    )
    assert {stage for stage, _, _ in calls} == {"check", "latents", "captions"}
    assert all(any(call == (stage, total, total) for call in calls) for stage, _, total in calls)


def test_planned_batches_can_be_keys(dataset):
    mixed(dataset)
    data = dataset.prepare()
    assert all(isinstance(planned, PlannedBatch) for planned in {planned: None for planned in data.plan(0)})
