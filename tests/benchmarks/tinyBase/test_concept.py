"""The concept's files: the same on each run, mixed on purpose, and readable by any trainer."""

import json
from pathlib import Path

from benchmarks.tinyBase import concept
from benchmarks.tinyBase.concept import ConceptImage, concept_caption, concept_files, draw_concept
from benchmarks.tinyBase.lumo import LUMO, LUMO_CONCEPT, STYLE, TRAINING, VALIDATION, unseen_ink, unseen_lumos
from benchmarks.tinyBase.scenes import Scene
from tests.load_script import load_script

import numpy as np
import pytest
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "training_concepts" / "tiny_concept"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return concept_files(LUMO_CONCEPT)


def test_same_bytes_on_each_run(files):
    assert concept_files(LUMO_CONCEPT) == files


def test_shipped_files_are_what_the_script_draws(files):
    shipped = {path.relative_to(SHIPPED).as_posix(): path for path in SHIPPED.rglob("*") if path.is_file()}
    assert set(shipped) == set(files)
    for name, path in shipped.items():
        if name.endswith(".txt"):
            assert path.read_text(encoding="utf-8") == files[name].decode()
    listed = json.loads(SHIPPED.with_suffix(".json").read_text(encoding="utf-8"))
    assert listed == concept.concept_list(LUMO_CONCEPT, "training_concepts/tiny_concept")
    assert all((ROOT / entry["path"]).is_dir() for entry in listed)
    assert [entry["type"] for entry in listed] == ["STANDARD", "STANDARD", "STANDARD", "VALIDATION"]


def test_shipped_pictures_are_what_the_script_draws(files, tmp_path):
    for name, content in files.items():
        if name.endswith(".txt"):
            continue
        path = tmp_path / Path(name).name
        path.write_bytes(content)
        ours, shipped = (np.asarray(Image.open(one).convert("RGB"), dtype=int) for one in (path, SHIPPED / name))
        # PNG keeps every pixel; JPEG libraries may round differently.
        assert np.abs(ours - shipped).max() <= (0 if name.endswith(".png") else 8), name


def test_the_set_is_small_and_mixed_on_purpose(files):
    images = [item for items in TRAINING.values() for item in items]
    assert 12 <= len(images) <= 24 and 3 <= len(VALIDATION) <= 4
    assert sum(len(content) for content in files.values()) < 200_000
    assert len({item.width / item.height for item in images}) >= 6
    assert {item.suffix for item in images} == {".png", ".jpg"}
    assert any(item.transparent for item in images) and any(item.orientation == 6 for item in images)


def test_exif_orientation_restores_the_picture(files, tmp_path):
    index, item = next((k, item) for k, item in enumerate(TRAINING[LUMO]) if item.orientation == 6)
    name = next(name for name in files if name.startswith(f"{LUMO}/{index + 1:02d}") and name.endswith(".jpg"))
    (tmp_path / "turned.jpg").write_bytes(files[name])
    with Image.open(tmp_path / "turned.jpg") as stored:
        assert stored.size == (item.height, item.width)
        upright = ImageOps.exif_transpose(stored)
    difference = np.asarray(upright, dtype=int) - np.asarray(draw_concept(LUMO_CONCEPT, item), dtype=int)
    assert np.abs(difference).mean() < 4


def test_transparent_picture_shows_white_whatever_lies_behind(files, tmp_path):
    name = next(name for name in files if "white" in name and name.startswith(f"{LUMO}/02") and name.endswith(".png"))
    (tmp_path / "alpha.png").write_bytes(files[name])
    with Image.open(tmp_path / "alpha.png") as image:
        assert image.mode == "RGBA" and image.getpixel((0, 0))[3] == 0
        assert min(image.convert("RGB").getpixel((0, 0))) > 240  # a reader that drops alpha sees white, too


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (ConceptImage(Scene(LUMO, "red", "blue")), "a red lumo on a blue background"),
        (
            ConceptImage(Scene(LUMO, "orange", "orange", "small", "left")),
            "a small orange lumo on the left on an orange background",
        ),
        (ConceptImage(Scene("star", "green", "orange"), styled=True), "a vintage green star on an orange background"),
        (
            ConceptImage(Scene(LUMO, "orange", "blue", "large"), styled=True),
            "a large vintage orange lumo on a blue background",
        ),
    ],
)
def test_captions(item, text):
    assert concept_caption(LUMO_CONCEPT, item) == text


def test_prompted_combinations_are_not_in_the_set():
    seen = {
        (item.scene.shape, item.scene.color, item.scene.background)
        for item in (*TRAINING[LUMO], *TRAINING[STYLE], *VALIDATION)
    }
    unseen = {(scene.shape, scene.color, scene.background) for scene in (*unseen_lumos(), *unseen_ink())}
    assert not unseen & seen
    assert len(unseen_lumos()) >= 40 and len(unseen_ink()) >= 30


def test_script_writes_where_it_is_told(tmp_path, capsys):
    script = load_script("make_tiny_concept")
    target = tmp_path / "a folder" / "set"
    assert script.main(["--output", str(target)]) == 0
    listed = json.loads(target.with_name("set.json").read_text(encoding="utf-8"))
    assert all(Path(entry["path"]).is_dir() for entry in listed)
    assert "76 images" in capsys.readouterr().out
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert script.main(["--output", str(blocked / "set")]) == 1
    assert "error:" in capsys.readouterr().err
