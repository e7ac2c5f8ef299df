"""The cache on disk: atomic, verified, never cleared by accident."""

import errno
import json
import os
import time

from modules.dataLoader.TensorCache import LEFTOVER_AGE, TensorCache, checksum, pack, unpack
from modules.dataLoader.TensorStore import TensorStore
from modules.util.UserError import UserError

import torch

import pytest

KEY, OTHER = "a" * 64, "b" * 64
TENSORS = {
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "ids": torch.tensor([[1, 2]]),
    "flag": torch.tensor([True, False]),
    "none": torch.zeros(0, 3),
    "single": torch.tensor(3.0),
}


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path, warnings) -> TensorCache:
    return TensorCache(tmp_path / "cache", warnings.append)


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first
    )


def test_round_trip(cache, warnings):
    assert cache.read("latents", KEY) is None
    cache.write("latents", KEY, TENSORS)
    assert same(cache.read("latents", KEY), TENSORS)
    assert cache.read("masks", KEY) is None and not warnings
    assert [path.name for path in cache.path("latents", KEY).parent.iterdir()] == [f"{KEY}.safetensors"]


def test_checksum_sees_names_types_shapes_and_values():
    variants = [
        {"x": torch.zeros(4)},
        {"y": torch.zeros(4)},
        {"x": torch.zeros(2, 2)},
        {"x": torch.zeros(4, dtype=torch.int32)},
        {"x": torch.tensor([0.0, 0, 0, 1])},
        {"x": torch.zeros(4), "y": torch.zeros(0)},
    ]
    assert len({checksum(tensors) for tensors in variants}) == len(variants)
    assert checksum({"x": torch.arange(6.0).reshape(2, 3).T}) == checksum(
        {"x": torch.tensor([[0.0, 3], [1, 4], [2, 5]])}
    )


def test_every_damage_is_noticed(cache, warnings):
    cache.write("latents", KEY, TENSORS)
    path, data = cache.path("latents", KEY), pack(TENSORS, KEY)
    for position in range(8, len(data), 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert cache.read("latents", KEY) is None
    for length in (0, 5, 100, len(data) - 1):
        path.write_bytes(data[:length])
        assert cache.read("latents", KEY) is None
    assert len(warnings) == 1 and str(path) in warnings[0]
    path.write_bytes(data)
    assert same(cache.read("latents", KEY), TENSORS)


def test_an_entry_that_was_read_and_found_damaged_is_gone(cache, warnings, monkeypatch):
    cache.write("latents", KEY, TENSORS)
    path, data = cache.path("latents", KEY), pack(TENSORS, KEY)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert cache.read("latents", KEY) is None and not path.exists()
    assert not cache.contains("latents", KEY) and len(warnings) == 1
    cache.write("latents", KEY, TENSORS)

    def refused(path):
        raise OSError(errno.EIO, "the disk does not answer")

    monkeypatch.setattr(cache, "_read_whole", refused)
    assert cache.read("latents", KEY) is None and path.exists(), "it may be sound"


def test_what_is_there_is_told_without_reading_it(cache, warnings):
    assert not cache.contains("latents", KEY)
    cache.write("latents", KEY, TENSORS)
    path, data = cache.path("latents", KEY), pack(TENSORS, KEY)
    assert cache.contains("latents", KEY) and not cache.contains("masks", KEY) and not warnings
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert cache.contains("latents", KEY) and cache.read("latents", KEY) is None, "values are verified when read"
    long = (1 << 40).to_bytes(8, "little")
    with_key = json.dumps({"__metadata__": {"format": "1", "key": KEY}, "x": {"data_offsets": [0, None]}}).encode()
    spoilt = [data[:5], data[:100], data[:-1], data + b"x", long + data[8:], pack(TENSORS, OTHER)]
    for header in (
        b"[]", b'{"x": 1}', b'{"x": {"data_offsets": [0]}}', b"\xff", b"[" * 5000, b'{"__metadata__": 1}',
        b'{"__metadata__": null}', with_key, with_key.replace(b"null", b'"8"'), with_key.replace(b"null", b"1e999"),
    ):  # fmt: skip
        spoilt.append(len(header).to_bytes(8, "little") + header)
    for wrong in spoilt:
        path.write_bytes(wrong)
        assert not cache.contains("latents", KEY)
    assert len(warnings) == 1 and str(path) in warnings[0]


def test_the_checksum_is_verified_once_and_again_when_the_file_changes(cache, monkeypatch, warnings):
    verified = []
    monkeypatch.setattr(
        "modules.dataLoader.TensorCache.checksum", lambda tensors: verified.append(1) or checksum(tensors)
    )
    cache.write("latents", KEY, TENSORS)
    verified.clear()
    for _ in range(3):
        assert same(cache.read("latents", KEY), TENSORS)
    assert len(verified) == 1
    path = cache.path("latents", KEY)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, (1, 1))
    assert cache.read("latents", KEY) is None and warnings
    path.write_bytes(data)
    assert same(cache.read("latents", KEY), TENSORS)


@pytest.mark.parametrize(
    "offsets", [[4, 8], [0, 4], [4, 4], [8, 0], [-8, 8], [0, 1 << 40], ["0", 8], [0], [0, None], None]
)
def test_a_header_whose_offsets_do_not_fit_is_refused(offsets):
    data = pack({"x": torch.zeros(2)}, KEY)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header["x"]["data_offsets"] = offsets
    text = json.dumps(header).encode()
    broken = len(text).to_bytes(8, "little") + text + bytes(8)
    with pytest.raises(ValueError, match="no sound safetensors file"):
        unpack(torch.frombuffer(bytearray(broken), dtype=torch.uint8), KEY)


@pytest.mark.parametrize(
    "header",
    [
        {"__metadata__": 1},
        {"__metadata__": None},
        {"__metadata__": [KEY]},
        {"x": {"dtype": "F32", "shape": [0], "data_offsets": [1 << 90, 1 << 90]}},
        {"x": {"dtype": "F32", "shape": [0, 1 << 90], "data_offsets": [0, 0]}},
    ],
    ids=["number", "null", "list", "far away", "large"],
)
def test_a_header_of_wrong_values_is_refused(header):
    text = json.dumps({"__metadata__": {"format": "1", "key": KEY}} | header).encode()
    with pytest.raises(ValueError):
        unpack(torch.frombuffer(bytearray(len(text).to_bytes(8, "little") + text), dtype=torch.uint8), KEY)


def test_a_header_that_has_no_end_is_refused():
    data = bytearray(b"\xff" * 8 + pack(TENSORS, KEY)[8:])
    with pytest.raises(ValueError):
        unpack(torch.frombuffer(data, dtype=torch.uint8), KEY)


def test_an_entry_under_a_wrong_name(cache):
    with pytest.raises(ValueError, match="wrong name"):
        unpack(torch.frombuffer(bytearray(pack(TENSORS, OTHER)), dtype=torch.uint8), KEY)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_disk_that_cannot_be_written(cache, monkeypatch, code):
    cache.write("latents", KEY, TENSORS)
    cache.write("latents", OTHER, TENSORS)

    def fail(*paths):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="no space left" if code != errno.EACCES else "cannot be written") as caught:
        cache.write("latents", OTHER, {"x": torch.ones(2)})
    assert "\n" not in str(caught.value) and "cache_dir" in str(caught.value)
    monkeypatch.undo()
    assert same(cache.read("latents", KEY), TENSORS) and same(cache.read("latents", OTHER), TENSORS)
    assert not list(cache.directory.rglob("*.tmp"))


def test_prune_touches_only_its_own_files(cache):
    for key in (KEY, OTHER):
        for kind in ("latents", "captions"):
            cache.write(kind, key, TENSORS)
    foreign = [
        cache.directory / "mine.safetensors",
        cache.directory / "latents" / "notes.txt",
        cache.path("latents", OTHER).with_name("model.safetensors"),
    ]
    for path in foreign:
        path.write_text("keep me")
    removed, size = cache.prune({"latents": [KEY]})
    assert removed == 1 and size > 0
    assert cache.read("latents", KEY) and cache.read("latents", OTHER) is None and cache.read("captions", OTHER)
    assert all(path.exists() for path in foreign)


def test_old_leftovers_of_killed_runs_are_removed(cache):
    cache.write("latents", KEY, TENSORS)
    old, new = (cache.path("latents", KEY).with_name(f".{KEY}.{pid}.1.tmp") for pid in (1, 2))
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - LEFTOVER_AGE - 10,) * 2)
    cache.prune({})
    assert not old.exists() and new.exists()


def test_store_keeps_to_its_memory_budget(cache):
    store = TensorStore(cache, memory_budget=40)
    built = []

    def build(number):
        built.append(number)
        return {"x": torch.full((4,), float(number))}  # 16 bytes

    keys = [f"{number:064x}" for number in range(4)]
    for _ in range(2):
        for number, key in enumerate(keys):
            assert store.fetch("latents", key, lambda number=number: build(number))["x"][0] == number
    assert built == [0, 1, 2, 3] and store.memory_bytes == 32
    cache.path("latents", keys[3]).write_bytes(b"broken")
    assert store.fetch("latents", keys[3], lambda: build(3))["x"][0] == 3 and built[-1] == 3
    assert cache.read("latents", keys[3]) is not None
