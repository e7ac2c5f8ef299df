"""Remembered fingerprints of weights: which files count as the same, and what becomes of a damaged list."""

import json
import os
import time

from modules.model.KnownWeights import EDGE, FILE_NAME, MOST, UNSETTLED, KnownWeights, files_digest

import pytest

PRINT = f"{'a' * 64} torch.float32"
EARLIER = time.time_ns() - 10**12


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(bytes(3 * EDGE))
    os.utime(path, ns=(EARLIER, EARLIER))
    return path


def write(path, place: int) -> None:
    """Changes one byte of a file and keeps its time of writing."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(EARLIER, EARLIER))


@pytest.mark.parametrize("place", [0, EDGE + 5, -1], ids=["header", "middle", "end"])
def test_a_file_that_changed_is_another_source(weights, place):
    before = files_digest([weights], ["x"])
    assert before == files_digest([weights], ["x"]) and len(before) == 64
    write(weights, place)
    # in the middle only the time of the change tells, where the system has one
    assert files_digest([weights], ["x"]) != before or os.name == "nt"


def test_settings_names_and_the_number_of_files_count(weights, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(weights.read_bytes())
    asked = [([weights], ["x"]), ([weights], ["y"]), ([other], ["x"]), ([weights, other], ["x"])]
    assert len({files_digest(files, settings) for files, settings in asked}) == 4


def test_sources_that_cant_be_told(weights, tmp_path):
    assert files_digest([], []) is None and files_digest([weights, tmp_path / "missing"], []) is None
    # as a file system with whole seconds notes it, of which another version may be written in the same second
    now = time.time_ns() // 10**9 * 10**9
    os.utime(weights, ns=(now, now))
    assert files_digest([weights], []) is None
    os.utime(weights, ns=(now - UNSETTLED, now - UNSETTLED))
    assert files_digest([weights], []) is not None


def test_what_is_remembered(tmp_path):
    known = KnownWeights(tmp_path / "new folder")
    source = "b" * 64
    assert known and known.find(source) is None and known.find(None) is None
    known.remember(source, PRINT)
    known.remember(None, PRINT)
    assert KnownWeights(tmp_path / "new folder").find(source) == PRINT
    nothing = KnownWeights(None)
    nothing.remember(source, PRINT)
    assert not nothing and nothing.find(source) is None


def test_a_list_that_grows_forgets_its_oldest(tmp_path):
    known = KnownWeights(tmp_path)
    old = {f"{number:064x}": PRINT for number in range(MOST)}
    (tmp_path / FILE_NAME).write_text(json.dumps(old))
    known.remember("f" * 64, PRINT)
    assert known.find(f"{0:064x}") is None and known.find(f"{1:064x}") == PRINT == known.find("f" * 64)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff", b"[" * 5000, json.dumps({"c" * 64: 1}).encode(),
                json.dumps({"c" * 64: "no hash"}).encode()]
)  # fmt: skip
def test_a_damaged_list_is_as_good_as_none(tmp_path, content):
    known = KnownWeights(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(content)
    assert known.find("c" * 64) is None
    known.remember("d" * 64, PRINT)
    assert known.find("d" * 64) == PRINT


def test_a_folder_that_cant_be_written_is_no_error(tmp_path):
    place = tmp_path / "a file"
    place.write_text("")
    known = KnownWeights(place)
    known.remember("d" * 64, PRINT)
    assert known.find("d" * 64) is None
