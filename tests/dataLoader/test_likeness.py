"""Images of a folder that are the same, nearly the same, or hardly sharp."""

import shutil
import time

from modules.dataLoader import likeness as module
from modules.dataLoader.DatasetReport import DatasetImage
from modules.dataLoader.likeness import likeness

import numpy
import pytest
from PIL import Image, ImageFilter


def photo(seed: int, size: tuple[int, int] = (300, 200)) -> Image.Image:
    """Coarse colours with fine detail on them, other ones for each seed."""
    rng = numpy.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), numpy.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = rng.integers(-40, 40, (size[1], size[0], 1))
    return Image.fromarray(numpy.clip(numpy.asarray(coarse, numpy.int16) + fine, 0, 255).astype(numpy.uint8))


def test_a_look_at_a_folder(tmp_path):
    for index in range(8):
        photo(index).save(tmp_path / f"{index}.png")
    shutil.copyfile(tmp_path / "3.png", tmp_path / "copy.png")
    photo(5).resize((450, 300)).save(tmp_path / "larger.jpg", quality=80)
    photo(99).filter(ImageFilter.GaussianBlur(6)).save(tmp_path / "soft.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "tiny.png")
    paths = sorted(tmp_path.iterdir())
    images = [DatasetImage(0, path.name, str(path), 1, 1, str(hash(path.read_bytes())), ("",)) for path in paths]
    images.append(DatasetImage(0, "gone", str(tmp_path / "gone.png"), 1, 1, "gone", ("",)))
    found = likeness(images, 2)
    names = {str(path): path.name for path in paths}
    assert [[names[path] for path in paths] for paths in found.same] == [["3.png", "copy.png"]]
    assert [tuple(names[path] for path in pair) for pair in found.near] == [("5.png", "larger.jpg")]
    assert [names[path] for path in found.soft] == ["soft.png"]


def test_a_folder_of_one_has_nothing_to_be_like(tmp_path):
    photo(1).save(tmp_path / "one.png")
    image = DatasetImage(0, "one.png", str(tmp_path / "one.png"), 1, 1, "x", ("",))
    assert likeness([image], 1) == likeness([], 1)


def test_whoever_stops_does_not_wait_for_the_rest(monkeypatch, tmp_path):
    looked = []

    def look(path: str) -> None:
        looked.append(path)
        time.sleep(0.01)

    class Stopped(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise Stopped

    monkeypatch.setattr(module, "_look", look)
    images = [DatasetImage(0, f"{k}", f"{k}", 8, 8, f"{k}", ("",)) for k in range(200)]
    with pytest.raises(Stopped):
        likeness(images, 2, stop)
    assert 2 <= len(looked) < 100
