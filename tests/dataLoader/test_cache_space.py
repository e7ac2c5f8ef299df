"""The disk that a cache will take: told before anything is encoded, and refused if it can't fit."""

import shutil
from collections import namedtuple
from dataclasses import replace

from modules.dataLoader.cache_space import CacheSpace as Space
from modules.dataLoader.cache_space import EncodedBytes, MissingEntries
from modules.dataLoader.Encoder import Encoder, reduced
from modules.dataLoader.prepare_data import prepare_data
from modules.util.enum.DataType import DataType
from modules.util.UserError import UserError

import torch

import pytest

GB = 10**9
# float32 latents of 4 channels at an eighth of the size, and 16 MB captions
MEASURED = EncodedBytes(image=0.25, mask=0.0625, conditioning=0.25, caption=15_728_640, short_caption=15_728_640)


@pytest.fixture
def free(monkeypatch):
    """free(bytes) lets every disk have so much room."""

    def give(size: int) -> None:
        usage = namedtuple("usage", "total used free")(size, 0, size)
        monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)

    return give


@pytest.mark.parametrize(("room", "fits"), [(200 * GB, True), (150 * GB, False)])
def test_ten_thousand_captions_are_told_or_refused(tmp_path, free, room, fits):
    free(room)
    told = []
    missing = MissingEntries(images=[(1024, 1024)] * 10_000, captions=10_000)
    if fits:
        Space(lambda: MEASURED, told.append).check(tmp_path, missing)
        assert "160.0 GB more (images 2.7, captions 157.3); 200.0 GB are free" in told[0]
        return
    with pytest.raises(UserError, match="no space left for it") as error:
        Space(lambda: MEASURED, told.append).check(tmp_path, missing)
    assert all(word in str(error.value) for word in ("157.3", "150.0 GB are free", "cache_dir", "latent_caching"))
    assert not told and "\n" not in str(error.value)


def test_captions_that_may_be_short_are_refused_only_where_short_ones_cant_fit(tmp_path, free):
    told, missing = [], MissingEntries(captions=1000)
    space = Space(lambda: replace(MEASURED, short_caption=5_242_880), told.append)
    for room in (20 * GB, 10 * GB):
        free(room)
        space.check(tmp_path, missing)
    assert ["It may not fit" in line for line in told] == [False, True] and all("up to 15.7 GB" in one for one in told)
    free(5 * GB)
    with pytest.raises(UserError, match="at least 5.2 GB more .captions 5.2.; 5.0 GB are free"):
        space.check(tmp_path, missing)


@pytest.mark.parametrize(
    ("room", "captions", "measured", "lines"),
    [(500 * GB, 10, 0, 0), (500 * GB, 100, 1, 1), (GB // 2, 10, 1, 1), (500 * GB, 0, 0, 0)],
    ids=["little", "much", "a small disk", "nothing"],
)
def test_little_is_neither_measured_nor_told(tmp_path, free, room, captions, measured, lines):
    free(room)
    told, asked = [], []
    Space(lambda: asked.append(1) or MEASURED, told.append).check(tmp_path, MissingEntries(captions=captions))
    assert (len(asked), len(told)) == (measured, lines)


def test_what_cant_be_measured_stops_nothing(tmp_path, free):
    free(0)
    Space(lambda: None, pytest.fail).check(tmp_path, MissingEntries(captions=10))


def test_only_what_is_missing_counts(dataset, monkeypatch):
    for name in ("a.png", "b.png"):
        dataset.add(name, caption=name)
    dataset.add("a-masklabel.png", caption=None)
    found = []
    monkeypatch.setattr(Space, "check", lambda self, directory, missing: found.append(missing))

    def prepare() -> None:
        config = dataset.config(masked_training=True)
        prepare_data(
            config, [dataset.concept()], dataset.model, cache_text=True, report=dataset.check(masked_training=True),
            space=Space(lambda: MEASURED, print),
        )  # fmt: skip

    prepare()
    dataset.add("c.png", 128, 64, caption="a.png")
    prepare()
    prepare()
    # "" is always among captions
    assert [(len(one.images), len(one.masks), one.captions) for one in found] == [(2, 1, 3), (1, 0, 0), (0, 0, 0)]
    assert found[0].images == [(64, 64)] * 2 and found[1].images != [(64, 64)]


def test_entries_that_are_the_same_count_and_are_encoded_once(dataset, monkeypatch):
    for name in ("a.png", "b.png"):
        path = dataset.add(name)
        dataset.folder.joinpath(path.stem + "-masklabel.png").write_bytes(path.read_bytes())
    same = dataset.folder / "b.png", dataset.folder / "b-masklabel.png"
    for path, other in zip(same, ("a.png", "a-masklabel.png"), strict=True):
        path.write_bytes((dataset.folder / other).read_bytes())
    found, stages = [], {}
    monkeypatch.setattr(Space, "check", lambda self, directory, missing: found.append(missing))
    # no variation differs from another one
    concept = dataset.concept(image_variations=3)
    prepare_data(
        dataset.config(masked_training=True, epochs=3), [concept], dataset.model, cache_text=True,
        report=dataset.check([concept], masked_training=True), space=Space(lambda: MEASURED, print),
        progress=lambda stage, done, total: stages.update({stage: total}),
    )  # fmt: skip
    assert (len(found[0].images), len(found[0].masks)) == (1, 1)
    assert len(dataset.cached("latents")) == len(dataset.cached("masks")) == 1
    assert stages["latents"] == stages["masks"] == 1


def test_a_refusal_comes_before_anything_is_encoded(dataset, free):
    dataset.add("a.png")
    free(1000)
    with pytest.raises(UserError, match="no space left"):
        prepare_data(
            dataset.config(), [dataset.concept()], dataset.model, cache_text=True, report=dataset.check(),
            space=Space(lambda: MEASURED, print),
        )  # fmt: skip
    assert not dataset.model.images and not dataset.model.captions


# --- captions in fewer bits


def test_captions_in_fewer_bits_are_rounded_and_have_keys_of_their_own(dataset):
    dataset.add("a.png", caption="one")
    plain = dataset.prepare()
    stored = {kind: dataset.prepare(text_cache_dtype=kind) for kind in ("BFLOAT_16", "FLOAT_16")}
    keys = {plain.text_key("one"), *(data.text_key("one") for data in stored.values())}
    assert len(keys) == 3 and plain.latent_key(0, 0) == stored["FLOAT_16"].latent_key(0, 0)
    whole = plain.text_entry("one").tensors()
    for kind, dtype in (("BFLOAT_16", torch.bfloat16), ("FLOAT_16", torch.float16)):
        own = stored[kind].text_entry("one").tensors()
        assert torch.equal(own["hidden"], whole["hidden"].to(dtype)) and own["hidden"].dtype == dtype
        assert torch.equal(own["tokens"], whole["tokens"]) and own["tokens"].dtype == whole["tokens"].dtype


def test_formats_that_are_small_enough_stay():
    tensors = {"a": torch.ones(2, dtype=torch.float16), "b": torch.ones(2, dtype=torch.bool), "c": torch.ones(2)}
    kept = reduced(tensors, DataType.BFLOAT_16)
    assert [kept[name].dtype for name in "abc"] == [torch.float16, torch.bool, torch.bfloat16]
    assert all(reduced(tensors, DataType.NONE)[name] is tensors[name] for name in "abc")


def test_numbers_that_float16_has_no_room_for_are_refused(pooling_model):
    model = pooling_model()
    model.encode_captions = lambda captions: {"hidden": torch.tensor([[1.0, 70000.0, -float("inf")]])}
    with pytest.raises(UserError, match="text_cache_dtype: found FLOAT_16, which ends at 65504.*BFLOAT_16"):
        Encoder(model, DataType.FLOAT_16).caption("x")
    assert Encoder(model, DataType.BFLOAT_16).caption("x")["hidden"].isfinite().sum() == 2
