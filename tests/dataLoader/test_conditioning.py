"""Conditioning images: found and checked beside images, in their geometry, cached, and read with captions."""

import os

from modules.dataLoader.cache_space import CacheSpace
from modules.dataLoader.check_dataset import check_dataset
from modules.dataLoader.DatasetReport import DatasetImage
from modules.dataLoader.ImageSource import ImageSource
from modules.dataLoader.prepare_data import prepare_data
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.UserError import UserError

import torch

import numpy as np
import pytest
from PIL import Image, ImageFilter

FILE, MASK = ConditioningSource.FILE, ConditioningSource.MASK
OWN_FILES = {"custom_conditioning_image": True}
MOVED = {
    "enable_random_flip": True, "enable_random_rotate": True, "random_rotate_max_angle": 20.0,
    "enable_crop_jitter": True,
}  # fmt: skip
COLOURED = {
    "enable_random_hue": True, "random_hue_max_strength": 0.5, "enable_random_brightness": True,
    "random_brightness_max_strength": 0.4,
}  # fmt: skip


@pytest.fixture
def conditioned(pooling_model):
    """conditioned(source) -> a model that encodes conditionings and counts them."""

    class Conditioned(pooling_model):
        def __init__(self, source, sees=False):
            super().__init__()
            self.conditioning, self.captions_see_conditioning = source, sees
            self.encoded = []
            self.instructions = []

        def encode_conditioning(self, pixels, mask):
            assert (mask is None) == (self.conditioning == FILE)
            self.encoded.append((pixels, mask))
            # of another size than the latents
            found = {"shown": torch.nn.functional.avg_pool2d(pixels, 4)}
            return found if mask is None else {**found, "shown_mask": torch.nn.functional.avg_pool2d(mask, 8)}

        def encode_instructions(self, captions, pixels):
            self.instructions += captions
            encoded = self.encode_captions(captions)
            return {**encoded, "hidden": encoded["hidden"] + pixels.mean((1, 2, 3))[:, None, None]}

        def conditioning_fingerprint(self):
            return f"{self.name}-conditioning"

    return Conditioned


def check(dataset, source, concepts=None, **options):
    dataset.warnings.clear()
    concepts = concepts or [dataset.concept()]
    return check_dataset(dataset.config(**options), concepts, conditioning=source, warn=dataset.warnings.append)


def prepare(dataset, model, concepts=None, **options):
    dataset.warnings.clear()
    concepts = concepts or [dataset.concept()]
    return prepare_data(
        dataset.config(**options), concepts, model, cache_text=True, warn=dataset.warnings.append
    )  # fmt: skip


def batches(data, epochs=1):
    return [data.load(planned) for epoch in range(epochs) for planned in data.plan(epoch)]


def pair(dataset, name="a", width=100, height=64, **save):
    """An image, and the same picture as its conditioning image."""
    path = dataset.add(f"{name}.png", width, height)
    Image.open(path).save(dataset.folder / f"{name}-condlabel.png", **save)
    return path


def mask(dataset, name="a", size=(100, 64)):
    picture = Image.new("L", size, 0)
    picture.paste(255, (0, 0, size[0] // 2, size[1]))
    picture.save(dataset.folder / f"{name}-masklabel.png")


# -- what the check says ----------------------------------------------------------------------------------------------


def test_families_without_conditioning_refuse_the_option(dataset):
    pair(dataset)
    with pytest.raises(UserError, match="custom_conditioning_image: found true, but STABLE_DIFFUSION_15 takes no"):
        check(dataset, ConditioningSource.NONE, **OWN_FILES)
    (image,) = check(dataset, ConditioningSource.NONE).images
    assert image.conditioning_path is None
    assert dataset.warnings == [
        'concept 1 "images": 1 conditioning image is not used, as STABLE_DIFFUSION_15 takes none: a-condlabel.png'
    ]


def test_families_that_need_files_say_what_is_missing(dataset):
    dataset.add("a.png")
    with pytest.raises(
        UserError, match="custom_conditioning_image: found false, but STABLE_DIFFUSION_15 learns from p"
    ):
        check(dataset, FILE)
    with pytest.raises(UserError, match=r'concept 1 "images": not one of its 1 images has a conditioning image, which'):
        check(dataset, FILE, **OWN_FILES)
    pair(dataset, "b")
    report = check(dataset, FILE, **OWN_FILES)
    assert [image.name for image in report.images] == ["b.png"]
    assert report.images[0].conditioning_path == str(dataset.folder / "b-condlabel.png")
    (rejected,) = report.rejected
    assert rejected.path.endswith("a.png")
    assert rejected.reason == "it has no conditioning image; expected NAME-condlabel.png beside NAME.png"


def test_a_concept_of_its_own_needs_files_too(dataset):
    pair(dataset)
    other = dataset.root / "other"
    other.mkdir()
    Image.new("RGB", (64, 64)).save(other / "x.png")
    concepts = [dataset.concept(), dataset.concept(path=str(other), name="bare")]
    with pytest.raises(UserError, match='concept 2 "bare": not one of its 1 images has a conditioning image'):
        check(dataset, FILE, concepts, **OWN_FILES)
    concepts[1].enabled = False
    assert len(check(dataset, FILE, concepts, **OWN_FILES).images) == 1


def spoil(path, how):
    if how == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "shape":
        Image.new("RGB", (64, 64)).save(path)
    elif how == "pipe":
        path.unlink()
        os.mkfifo(path)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("cut", "damaged or unsupported"),
        ("empty", "the file is empty"),
        ("shape", "has 64x64 px, which is another shape than the image's 100x64 px"),
        ("pipe", "cannot be read: it is a pipe, expected a file"),
    ],
)
def test_files_that_cannot_be_used(dataset, how, reason):
    pair(dataset, "a")
    pair(dataset, "b")
    spoil(dataset.folder / "a-condlabel.png", how)
    report = check(dataset, FILE, **OWN_FILES)
    assert [image.name for image in report.images] == ["b.png"]
    (rejected,) = report.rejected
    assert "its conditioning image" in rejected.reason and reason in rejected.reason


def test_other_names_and_those_without_an_image(dataset):
    path = dataset.add("a.png", 100, 64)
    for name in ("a-condlabel.jpg", "a-CONDLABEL.webp", "gone-condlabel.png"):
        Image.open(path).save(dataset.folder / name)
    (image,) = check(dataset, FILE, **OWN_FILES).images
    assert image.conditioning_path == str(dataset.folder / "a-CONDLABEL.webp")
    text = "\n".join(dataset.warnings)
    assert "no image lies beside 1 conditioning images: gone-condlabel.png" in text
    assert "1 conditioning image of another name than NAME-condlabel.png is taken" in text
    assert "1 conditioning image not read, as the image has another one that counts: a-condlabel.jpg" in text


def test_a_nearly_black_one_is_named(dataset):
    dataset.add("a.png", 100, 64)
    Image.fromarray(np.full((64, 100), 4000, dtype=np.uint16)).save(dataset.folder / "a-condlabel.png")
    check(dataset, FILE, **OWN_FILES)
    assert any("trained nearly black: a-condlabel.png" in line for line in dataset.warnings)


def test_a_copy_of_the_image_is_named(dataset):
    path = dataset.add("a.png")
    (dataset.folder / "a-condlabel.png").write_bytes(path.read_bytes())
    check(dataset, FILE, **OWN_FILES)
    assert any("1 conditioning image is the very file that is learned" in line for line in dataset.warnings)


def test_masked_families_read_masks_without_masked_training(dataset):
    pair(dataset)
    pair(dataset, "b")
    check(dataset, MASK)
    text = "\n".join(dataset.warnings)
    assert "not one of 2 images has a mask, so STABLE_DIFFUSION_15 learns to fill the whole of each" in text
    assert "2 conditioning images are not used, as custom_conditioning_image is off" in text
    mask(dataset)
    report = check(dataset, MASK)
    assert [image.mask_path is not None for image in report.images] == [True, False]
    (dataset.folder / "b-condlabel.png").unlink()
    report = check(dataset, MASK, **OWN_FILES)
    assert [image.conditioning_path is not None for image in report.images] == [True, False]
    assert "1 of 2 images has no conditioning image, so it is made" in "\n".join(dataset.warnings)


def test_masks_say_what_they_are_for(dataset):
    pair(dataset)
    pair(dataset, "b")
    Image.new("L", (100, 64), 0).save(dataset.folder / "a-masklabel.png")

    def told(source, **options):
        check(dataset, source, **options)
        return "\n".join(dataset.warnings)

    for source, masked, use in [
        (MASK, False, "filled"), (MASK, True, "learnt and filled"), (ConditioningSource.NONE, True, "learnt"),
    ]:  # fmt: skip
        text = told(source, masked_training=masked)
        assert f"hardly anything is {use}; expected white where an image is to be {use}: a-masklabel.png" in text
        whole = 'concept 1 "images": 1 of 2 images has no mask, so it is filled as a whole: b.png'
        assert (whole in text) == (source == MASK)
    (dataset.folder / "a-masklabel.png").unlink()
    text = told(MASK, masked_training=True)
    assert (
        "masked_training is on, but not one of 2 images has a mask, so nothing is masked, and STABLE_DIFFUSION_15 "
        "learns to fill the whole of each; expected NAME-masklabel.png beside NAME.png, white where it is to be filled"
    ) in text
    assert "filled as a whole" not in text
    assert told(ConditioningSource.NONE, masked_training=True).endswith(
        "masked_training is on, but not one of 2 images has a mask, so nothing is masked; expected NAME-masklabel.png "
        "beside NAME.png"
    )


def test_a_concept_without_any_mask_is_told_beside_one_with_masks(dataset):
    pair(dataset)
    mask(dataset)
    other = dataset.root / "other"
    other.mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64)).save(other / f"{number}.png")
    circles = {"enable_random_circular_mask_shrink": True}
    for image, is_told in (({}, True), (circles, False)):
        concepts = [dataset.concept(), dataset.concept(path=str(other), name="bare", image=image)]
        check(dataset, MASK, concepts)
        line = 'concept 2 "bare": 2 of 2 images have no mask, so each is filled as a whole: 0.png, 1.png'
        assert (line in dataset.warnings) == is_told


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((1, 1), "1x1 px is too small; the shorter side must have at least 8 px"),
        ((15, 15), "15x15 px is too small for the training resolution: it would be scaled up by 8.5, the limit is 8"),
    ],
)
def test_tiny_ones_are_refused(dataset, size, reason):
    for name in "ab":
        dataset.add(f"{name}.png", 128, 128)
        Image.new("RGB", (128, 128)).save(dataset.folder / f"{name}-condlabel.png")
    Image.new("RGB", size).save(dataset.folder / "a-condlabel.png")
    report = check(dataset, FILE, resolution="128", **OWN_FILES)
    assert [image.name for image in report.images] == ["b.png"]
    assert report.rejected[0].reason == f"its conditioning image {dataset.folder / 'a-condlabel.png'}: {reason}"


# -- pixels -----------------------------------------------------------------------------------------------------------


def test_it_has_the_geometry_of_its_image_and_none_of_its_colours(dataset, conditioned):
    pair(dataset)
    moved = dataset.concept(image_variations=4, image=MOVED)
    both = dataset.concept(image_variations=4, image={**MOVED, **COLOURED})
    plain, coloured = (
        prepare(dataset, conditioned(FILE), [one], epochs=4, **OWN_FILES).source for one in (moved, both)
    )
    assert len({plain.layout(0, variation)[1] for variation in range(4)}) == 4
    for variation in range(4):
        shown, nothing = coloured.conditioning(0, variation)
        assert nothing is None
        assert torch.equal(shown, plain.pixels(0, variation))
        assert not torch.equal(shown, coloured.pixels(0, variation))


def test_of_another_size_it_shows_the_same_part(dataset, conditioned):
    path = pair(dataset, width=200, height=128)
    picture = Image.open(path).resize((200, 128)).filter(ImageFilter.GaussianBlur(3))
    picture.save(path)
    picture.resize((400, 256), Image.Resampling.BICUBIC).save(dataset.folder / "a-condlabel.png")
    concept = dataset.concept(image_variations=4, image=MOVED)
    source = prepare(dataset, conditioned(FILE), [concept], epochs=4, **OWN_FILES).source
    for variation in range(4):
        difference = (source.conditioning(0, variation)[0] - source.pixels(0, variation)).abs().mean()
        # two ways of scaling the same picture
        assert difference < 0.02


def test_it_is_upright(dataset, conditioned):
    path = dataset.add("a.png", 100, 64)
    turned, exif = Image.open(path).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    turned.save(dataset.folder / "a-condlabel.png", exif=exif)
    source = prepare(dataset, conditioned(FILE), **OWN_FILES).source
    assert torch.equal(source.conditioning(0, 0)[0], source.pixels(0, 0))


def test_without_a_file_it_is_what_the_mask_leaves_of_the_image_as_it_is_trained(dataset, conditioned):
    pair(dataset)
    mask(dataset)
    concept = dataset.concept(image_variations=3, image={**MOVED, **COLOURED})
    made = prepare(dataset, conditioned(MASK), [concept], epochs=3).source
    own = prepare(dataset, conditioned(MASK), [concept], epochs=3, **OWN_FILES).source
    for variation in range(3):
        shown, filled = made.conditioning(0, variation)
        pixels = made.pixels(0, variation)
        assert torch.equal(filled, made.mask(0, variation)) and 0.2 < filled.mean() < 0.8
        assert not shown[:, filled[0] == 1].any()
        assert torch.equal(shown[:, filled[0] == 0], pixels[:, filled[0] == 0])
        from_file, same = own.conditioning(0, variation)
        assert torch.equal(same, filled) and from_file[:, filled[0] == 1].abs().max() > 0.1


def test_without_a_mask_the_whole_image_is_filled(dataset, conditioned):
    dataset.add("a.png")
    (batch,) = batches(prepare(dataset, conditioned(MASK)))
    assert not batch.conditioning["shown"].any() and batch.conditioning["shown_mask"].min() == 1
    assert batch.mask is None


# -- batches and the cache --------------------------------------------------------------------------------------------


def conditioned_set(dataset):
    for number, size in enumerate([(64, 64), (100, 50), (50, 100), (64, 64)]):
        pair(dataset, f"{number}", *size)
    return dataset.concept(image_variations=2, text_variations=3, image=MOVED)


@pytest.mark.parametrize("source", [FILE, MASK])
def test_batches_hold_it_and_a_second_run_encodes_nothing(dataset, conditioned, source):
    concept, model, options = conditioned_set(dataset), conditioned(source), {**OWN_FILES, "unmasked_probability": 0.0}
    mask(dataset, "1", (100, 50))
    first = batches(prepare(dataset, model, [concept], epochs=3, **options), 3)
    assert len(model.encoded) == len(dataset.cached("conditioning")) == 8
    for batch in first:
        count, height, width = len(batch.captions), *batch.size
        assert batch.conditioning["shown"].shape == (count, 3, height // 4, width // 4)
        assert ("shown_mask" in batch.conditioning) == (source == MASK)
    again = conditioned(source)
    second = batches(prepare(dataset, again, [concept], epochs=3, **options), 3)
    live = batches(prepare(dataset, conditioned(source), [concept], epochs=3, latent_caching=False, **options), 3)
    assert again.encoded == []
    for own in (second, live):
        for a, b in zip(first, own, strict=True):
            assert a.names == b.names
            assert all(torch.equal(a.conditioning[name], b.conditioning[name]) for name in a.conditioning)


def test_equal_ones_are_encoded_once(dataset, conditioned):
    """The image's colours vary, the conditioning's do not; and a whole image to be filled shows nothing."""
    for number in range(4):
        pair(dataset, f"{number}")
    image = {
        "enable_random_hue": True,
        "random_hue_max_strength": 0.5,
        "enable_crop_jitter": False,
        "enable_random_flip": False,
    }
    concept, model = dataset.concept(image_variations=8, image=image), conditioned(FILE)
    # threads read ahead of what is encoded
    prepare(dataset, model, [concept], epochs=8, dataloader_threads=8, **OWN_FILES)
    assert len(dataset.cached("latents")) == 32
    assert len(model.encoded) == len(dataset.cached("conditioning")) == 4
    whole = conditioned(MASK)
    prepare(dataset, whole, [concept], epochs=8)
    assert len(whole.encoded) == 1


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_some_samples_fill_the_whole_image(dataset, conditioned, masked, own):
    """Whether the loss is masked or not, and whether the image comes from a file of its own or not."""
    for number in range(4):
        pair(dataset, f"{number}")
        mask(dataset, f"{number}")
    options = {"masked_training": masked, "unmasked_weight": 0.0, "custom_conditioning_image": own, "batch_size": 1}
    model = conditioned(MASK)
    data = prepare(dataset, model, epochs=30, unmasked_probability=0.5, **options)
    # four images, and one that is blank
    assert len(model.encoded) == len(dataset.cached("conditioning")) == 5
    drawn = batches(data, 30)
    assert len(model.encoded) == 5, "all that the run asks for was encoded before it"
    whole = [batch for batch in drawn if batch.conditioning["shown_mask"].min() == 1]
    # 120 draws; four standard deviations around a half
    assert 38 <= len(whole) <= 82
    for batch in drawn:
        is_whole = any(batch is one for one in whole)
        assert batch.conditioning["shown"].any() != is_whole
        assert (batch.mask is not None) == masked
        assert not masked or (batch.mask.min() == 1) == is_whole
    live = prepare(dataset, conditioned(MASK), epochs=30, unmasked_probability=0.5, latent_caching=False, **options)
    for a, b in zip(drawn[:12], batches(live, 3), strict=True):
        assert a.names == b.names
        assert all(torch.equal(a.conditioning[name], b.conditioning[name]) for name in a.conditioning)
    again = conditioned(MASK)
    prepare(dataset, again, epochs=30, unmasked_probability=0.5, **options)
    assert again.encoded == [], "nothing that is needed is removed"
    never = batches(prepare(dataset, again, unmasked_probability=0.0, **options))
    assert all(batch.conditioning["shown_mask"].min() == 0 for batch in never)


def test_validation_and_families_that_fill_no_masks_never_fill_the_whole(dataset, conditioned):
    pair(dataset)
    mask(dataset)
    concepts = [dataset.concept(), dataset.concept(type="VALIDATION")]
    config = dataset.config(validation=True, unmasked_probability=1.0)
    validated = prepare_data(config, concepts, conditioned(MASK), cache_text=True, validation=True)
    (batch,) = batches(validated)
    assert batch.conditioning["shown_mask"].min() == 0
    (batch,) = batches(prepare(dataset, conditioned(FILE), unmasked_probability=1.0, masked_training=True, **OWN_FILES))
    assert batch.conditioning["shown"].any() and batch.mask.min() == 1


def test_blank_conditionings_of_one_size_count_once_in_the_disk_that_is_told(dataset, conditioned, monkeypatch):
    for name in ("a.png", "b.png"):
        dataset.add(name)
    found = []
    monkeypatch.setattr(CacheSpace, "check", lambda self, directory, missing: found.append(missing))
    prepare_data(
        dataset.config(), [dataset.concept()], conditioned(MASK), cache_text=True, space=CacheSpace(pytest.fail, print)
    )
    assert (len(found[0].images), found[0].conditioning) == (2, [(64, 64)])
    assert len(dataset.cached("conditioning")) == 1


def test_captions_see_the_blank_image_of_a_sample_that_is_filled_as_a_whole(dataset, conditioned):
    pair(dataset)
    mask(dataset)
    model = conditioned(MASK, sees=True)
    data = prepare(dataset, model, epochs=20, unmasked_probability=0.5)
    told = len(model.instructions)
    drawn = batches(data, 20)
    assert len(model.instructions) == told == 2
    seen = {bool(batch.conditioning["shown"].any()): batch.text["hidden"] for batch in drawn}
    assert torch.equal(seen[False], model.encode_captions(["a caption"])["hidden"])
    assert not torch.equal(seen[True], seen[False])


def test_keys_name_all_that_it_is_made_of(dataset, conditioned):
    path = pair(dataset)
    mask(dataset)

    def keys(source, **options):
        data = prepare(dataset, conditioned(source), **options)
        return data.conditioning_key(0, 0), data.latent_key(0, 0)

    made, latents = keys(MASK)
    own, _ = keys(MASK, **OWN_FILES)
    plain, _ = keys(FILE, **OWN_FILES)
    assert len({made, own, plain}) == 3
    Image.new("RGB", (100, 64), "red").save(dataset.folder / "a-condlabel.png")
    assert keys(MASK) == (made, latents) and keys(FILE, **OWN_FILES)[0] != plain
    Image.new("L", (100, 64), 255).save(dataset.folder / "a-masklabel.png")
    assert keys(MASK)[0] != made and keys(MASK)[1] == latents
    Image.new("RGB", (100, 64), "blue").save(path)
    before = keys(FILE, **OWN_FILES)
    assert before[1] != latents
    # the file alone counts, whatever it lies beside
    Image.new("RGB", (100, 64), "lime").save(path)
    assert keys(FILE, **OWN_FILES)[0] == before[0]


def test_keys_of_images_and_masks_are_those_of_before():
    """Caches that were written before there were conditionings are still of use; the keys come from that version."""
    image = {**MOVED, **COLOURED, "enable_random_circular_mask_shrink": True}
    del image["enable_crop_jitter"], image["enable_random_brightness"], image["random_brightness_max_strength"]
    concept = ConceptConfig.from_dict({"path": "x", "image": image})
    own = DatasetImage(0, "a.png", "a.png", 100, 64, "1" * 64, ("",), "m.png", "2" * 64, 4095.0)
    source = ImageSource(TrainConfig.from_dict({"resolution": "64"}), [concept], [own], 16)
    assert source.pixels_key(0, 1, "vae") == "7bbcf4fb2391da9e90004692852b0e432d3a65745291e8211b8dfebf111e6053"
    assert source.mask_key(0, 1, "vae") == "bcb9d21143277fc1e6b4e83aba4abdf63944426fabaa51c4da5b4fa420daf670"


def test_entries_of_older_pictures_are_removed(dataset, conditioned):
    pair(dataset)
    prepare(dataset, conditioned(FILE), **OWN_FILES)
    Image.new("RGB", (100, 64), "red").save(dataset.folder / "a-condlabel.png")
    prepare(dataset, conditioned(FILE), **OWN_FILES, clear_cache_before_training=False)
    assert len(dataset.cached("conditioning")) == 2
    prepare(dataset, conditioned(FILE), **OWN_FILES)
    assert len(dataset.cached("conditioning")) == 1 and len(dataset.cached("latents")) == 1
    # a run of a family without any leaves them to those that have some
    dataset.prepare()
    assert len(dataset.cached("conditioning")) == 1


def test_values_that_are_not_finite_are_named(dataset, conditioned):
    pair(dataset)
    model = conditioned(FILE)
    model.encode_conditioning = lambda pixels, mask: {"shown": pixels * float("nan")}
    with pytest.raises(UserError, match="a.png: its conditioning is encoded to values that are not finite"):
        prepare(dataset, model, **OWN_FILES)


def test_captions_may_be_read_together_with_it(dataset, conditioned):
    """As language models that see the picture read instructions."""
    concept, dropout = conditioned_set(dataset), {"text_encoder": {"dropout_probability": 0.3}}
    for number in range(4):
        (dataset.folder / f"{number}.txt").write_text("make it blue\nmake it green\nturn it", encoding="utf-8")
    model = conditioned(FILE, sees=True)
    data = prepare(dataset, model, [concept], epochs=6, **OWN_FILES, **dropout)
    told = len(model.instructions)
    first = batches(data, 6)
    assert len(model.instructions) == told > 0, "all that the run asks for was encoded before it"
    assert model.captions == model.instructions and "" in model.instructions
    # the same words beside other pictures
    values = {}
    for batch in first:
        for name, caption, hidden in zip(batch.names, batch.captions, batch.text["hidden"], strict=True):
            values.setdefault(caption, {}).setdefault(name, set()).add(tuple(hidden.flatten().tolist()))
    most = max(values.values(), key=len)
    assert len(most) > 1 and len(set.union(*most.values())) >= len(most)
    live = batches(prepare(dataset, conditioned(FILE, sees=True), [concept], epochs=6, latent_caching=False,
                           **OWN_FILES, **dropout), 6)  # fmt: skip
    assert all(torch.equal(a.text["hidden"], b.text["hidden"]) for a, b in zip(first, live, strict=True))
    # nothing that is needed is removed
    again = conditioned(FILE, sees=True)
    prepare(dataset, again, [concept], epochs=6, **OWN_FILES, **dropout)
    assert again.instructions == []
