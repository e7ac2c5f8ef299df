"""The second concept: as many pictures as the first, all of one kind, with details that the autoencoder keeps."""

import json
from dataclasses import replace
from pathlib import Path

from benchmarks.tinyBase import boat, concepts
from benchmarks.tinyBase.boat import BOAT, BOAT_CONCEPT, STYLE
from benchmarks.tinyBase.concept import ConceptImage, concept_caption, concept_files, concept_list, draw_concept
from benchmarks.tinyBase.lumo import LUMO_CONCEPT
from benchmarks.tinyBase.sample import load_pipeline
from benchmarks.tinyBase.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, contrasting
from benchmarks.tinyBase.score import read_concept, shape_overlaps
from benchmarks.tinyBase.training import to_pixels, tokenize
from tests.load_script import load_script

import torch

import numpy as np
import pytest
from PIL import Image, ImageDraw
from transformers import CLIPTokenizer

ROOT = Path(__file__).resolve().parents[3]
TRAINING = [item for items in BOAT_CONCEPT.training.values() for item in items]
BOATS = [item for item in (*TRAINING, *BOAT_CONCEPT.validation) if item.scene.shape == BOAT and not item.styled]


def combination(item: ConceptImage) -> tuple:
    return item.scene.shape, item.scene.color, item.scene.background, item.styled


def pixels_of(item: ConceptImage) -> np.ndarray:
    return np.asarray(draw_concept(BOAT_CONCEPT, item), dtype=float)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return concept_files(BOAT_CONCEPT)


def test_same_bytes_on_each_run_and_pictures_of_one_kind(files, tmp_path):
    assert concept_files(BOAT_CONCEPT) == files
    pictures = [name for name in files if name.endswith(".png")]
    assert len(pictures) * 2 == len(files) == 2 * (12 + 12 + 48 + 4)
    for name in pictures:
        (tmp_path / "one.png").write_bytes(files[name])
        with Image.open(tmp_path / "one.png") as image:
            assert (image.mode, image.size, image.format) == ("RGB", (64, 64), "PNG"), name


def test_ordinary_scenes_are_those_of_the_first_concept(files):
    def ordinary(all_files: dict[str, bytes]) -> dict[str, bytes]:
        return {name: content for name, content in all_files.items() if name.startswith("ordinary/")}

    assert ordinary(files) == ordinary(concept_files(LUMO_CONCEPT)) and len(ordinary(files)) == 96


def test_objects_and_styles_are_other_than_those_of_the_first_concept(files):
    words = {concept.object for concept in concepts.CONCEPTS.values()}
    words |= {concept.style for concept in concepts.CONCEPTS.values()}
    assert len(words) == 2 * len(concepts.CONCEPTS) and not words & set(SHAPES)
    assert not any(b"lumo" in content or b"vintage" in content for name, content in files.items() if ".txt" in name)
    for item in (*TRAINING, *BOAT_CONCEPT.validation):
        reading = read_concept(draw_concept(BOAT_CONCEPT, item))
        assert not reading.lumo and not reading.style, combination(item)


def test_validation_combines_what_no_training_picture_does():
    combinations = [combination(item) for item in TRAINING]
    assert len(set(combinations)) == 24
    assert not set(combinations) & {combination(item) for item in BOAT_CONCEPT.validation}
    assert len(BOAT_CONCEPT.validation) == 4
    for item in (*TRAINING, *BOAT_CONCEPT.validation):
        assert contrasting(item.scene.color, item.scene.background), combination(item)


@pytest.mark.parametrize("item", BOATS, ids=lambda item: concept_caption(BOAT_CONCEPT, item))
def test_a_boat_shows_hull_stripe_and_mast_within_the_picture(item):
    pixels, background = pixels_of(item), np.array(BACKGROUNDS[item.scene.background])
    body, stripe, mast = (
        np.abs(pixels - np.array(color)).max(axis=2) < 8 for color in (COLORS[item.scene.color], boat.STRIPE, boat.MAST)
    )
    boat_pixels = (np.abs(pixels - background).max(axis=2) > 8).sum()
    # measured: 0.52 and more, 0.107 and more, 0.099 and more
    assert body.sum() > 0.4 * boat_pixels and stripe.sum() > 0.1 * boat_pixels and mast.sum() > 0.09 * boat_pixels
    rows = [np.nonzero(mask)[0].mean() for mask in (mast, stripe, body)]
    assert rows == sorted(rows)  # the hull, the larger part of the body, lies lowest
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert np.abs(edges - background).max() < 8


def test_a_boats_silhouette_is_no_ordinary_shape():
    silhouette = Image.new("L", (64, 64), 0)
    boat.boat_silhouette(ImageDraw.Draw(silhouette), (32, 32), 24, 255)
    overlaps = shape_overlaps(np.asarray(silhouette) / 255, filled=True)
    # a drawn shape reaches more than 0.9 with itself
    assert max(overlaps.values()) < 0.8, overlaps


def test_twilight_changes_the_whole_picture():
    item = ConceptImage(Scene("star", "green", "white"))
    plain, styled = pixels_of(item), pixels_of(replace(item, styled=True))
    width = round(boat.FRAME_WIDTH * 64)
    inner = (slice(width + 1, -width - 1),) * 2
    half = 0.5 * (plain + np.array(boat.NIGHT))
    # both pictures are rounded to integers twice
    assert np.abs(styled - half)[inner].max() <= 2
    frame = np.ones((64, 64), dtype=bool)
    frame[width - 1 : -width + 1, width - 1 : -width + 1] = False
    assert (styled[frame] == np.array(boat.FRAME)).all()
    assert (np.abs(styled - plain).max(axis=2) > 5).mean() > 0.95


def test_frame_covers_no_object():
    for item in TRAINING:
        if item.styled:
            free = pixels_of(replace(item, styled=False))
            edge = np.ones((64, 64), dtype=bool)
            edge[6:-6, 6:-6] = False
            assert np.abs(free[edge] - np.array(BACKGROUNDS[item.scene.background])).max() < 3, combination(item)


def test_autoencoder_keeps_the_details():
    """Decoded means show stripe, mast and frame nearer to their own colour than to what lies around."""
    vae = load_pipeline(ROOT / "models/tiny_sd", "cpu").vae
    items = [ConceptImage(Scene(BOAT, "red", "blue")), ConceptImage(Scene("heart", "blue", "orange"), styled=True)]
    drawn = np.stack([pixels_of(item) for item in items])
    with torch.no_grad():
        decoded = vae.decode(vae.encode(to_pixels(list(drawn))).latent_dist.mean).sample
    decoded = ((decoded.permute(0, 2, 3, 1).numpy() + 1) * 127.5).clip(0, 255)

    def nearer(image: int, own: tuple[int, int, int], around: tuple[int, int, int]) -> float:
        """Share of the pixels drawn in `own` that are decoded nearer to it than to `around`."""
        mask = np.abs(drawn[image] - np.array(own)).max(axis=2) < 3
        seen = decoded[image][mask]
        return float((np.linalg.norm(seen - own, axis=1) < np.linalg.norm(seen - around, axis=1)).mean())

    night_orange = tuple(0.5 * (a + b) for a, b in zip(BACKGROUNDS["orange"], boat.NIGHT, strict=True))
    assert nearer(0, boat.STRIPE, COLORS["red"]) > 0.9
    assert nearer(0, boat.MAST, COLORS["red"]) > 0.9
    assert nearer(1, boat.FRAME, night_orange) > 0.95


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (ConceptImage(Scene(BOAT, "red", "blue")), "a red boat on a blue background"),
        (
            ConceptImage(Scene(BOAT, "orange", "green", "small", "left"), styled=True),
            "a small twilight orange boat on the left on a green background",
        ),
        (ConceptImage(Scene("star", "green", "white"), styled=True), "a twilight green star on a white background"),
    ],
)
def test_captions(item, text):
    assert concept_caption(BOAT_CONCEPT, item) == text


def test_captions_fit_into_the_text_encoder(files):
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "models/tiny_sd/tokenizer")
    tokens = tokenize(tokenizer, [content.decode() for name, content in files.items() if name.endswith(".txt")])
    assert (tokens[:, -1] == tokenizer.eos_token_id).all()  # padding: nothing was cut off


def test_list_for_the_trainer(files):
    listed = concept_list(BOAT_CONCEPT, "somewhere")
    assert [entry["path"] for entry in listed] == [
        f"somewhere/{name}" for name in (BOAT, STYLE, "ordinary", "validation")
    ]
    assert {entry["path"].split("/")[1] for entry in listed} == {name.split("/")[0] for name in files}
    assert [entry["type"] for entry in listed] == ["STANDARD", "STANDARD", "STANDARD", "VALIDATION"]


def run_script(arguments: list[str]) -> int:
    return load_script("make_tiny_concept").main(arguments)


def test_script_writes_the_second_concept_where_git_does_not_look(tmp_path, files, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_script(["--concept", "boat"]) == 0
    folder = tmp_path / BOAT_CONCEPT.folder
    written = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert written == files
    listed = json.loads(folder.with_name(folder.name + ".json").read_text(encoding="utf-8"))
    assert all((tmp_path / entry["path"]).is_dir() for entry in listed)
    assert "76 images" in capsys.readouterr().out
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert BOAT_CONCEPT.folder.split("/")[0] + "/" in ignored


def test_script_knows_no_other_concept(capsys):
    with pytest.raises(SystemExit):
        run_script(["--concept", "kite"])
    error = capsys.readouterr().err
    assert all(name in error for name in ("kite", "lumo", "boat"))
