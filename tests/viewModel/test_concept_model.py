"""What a window shows of a concept: counts, pictures as they are trained, captions, the dataset check."""

import shutil
import subprocess
import sys
from pathlib import Path

from modules.dataLoader.check_dataset import check_dataset
from modules.dataLoader.ImageSource import ImageSource
from modules.model.BaseModel import family_of
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.load import train_config_from_dict
from modules.util.UserError import UserError
from modules.viewModel.ConceptModel import (
    caption_file,
    check_concept,
    concept_of_folder,
    grid_of,
    images_of,
    look_into,
    preview,
    read_caption,
    thumbnail,
    title_of,
    write_caption,
)

import torch

import pytest
from PIL import Image, ImageOps

# of `mini_concept`: three squares, two wide ones, two tall ones
COUNT = 7


@pytest.fixture
def folder(tmp_path, mini_concept) -> Path:
    """Its images, which a test may change."""
    return shutil.copytree(mini_concept, tmp_path / "pictures")


@pytest.fixture
def concept(folder) -> ConceptConfig:
    return ConceptConfig(path=str(folder))


@pytest.fixture
def config(mini_run):
    """At 32 pixels, on a base whose grid is 4."""
    return train_config_from_dict(mini_run.options())


@pytest.fixture
def picture(folder) -> Path:
    """Black at its left, white at its right, with nothing between."""
    path = folder.parent / "halves" / "half.png"
    path.parent.mkdir()
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (32, 0, 64, 64))
    image.save(path)
    return path


def varied(config, path: Path, variation: int = 0, **image) -> Image.Image:
    concept = ConceptConfig.from_dict({"path": str(path.parent), "image": {"enable_crop_jitter": False, **image}})
    return preview(config, concept, ("half.png", str(path)), variation).varied


def test_names(folder):
    assert title_of(ConceptConfig(name="mine", path="a/b")) == "mine"
    assert title_of(ConceptConfig(path="a/b")) == "b" and title_of(ConceptConfig()) == "new concept"


def test_a_folder_is_counted_as_it_will_be_read(concept, folder):
    facts = look_into(concept)
    assert (facts.count, Path(facts.first).name, facts.trouble) == (COUNT, "image 0.png", "")
    assert [name for name, _ in images_of(concept)] == [f"image {number}.png" for number in range(COUNT)]
    (folder / "notes.md").write_text("no image")
    (folder / "image 0-masklabel.png").write_bytes((folder / "image 0.png").read_bytes())
    shutil.copytree(folder, folder / "below")
    assert look_into(concept).count == COUNT, "masks, texts and subfolders are none"
    concept.include_subdirectories = True
    assert look_into(concept).count == 2 * COUNT


@pytest.mark.parametrize(
    ("path", "trouble"),
    [("", "no folder is chosen"), ("  ", "no folder is chosen"), ("nowhere", "there is no folder nowhere")],
)
def test_a_folder_that_is_none_is_told(path, trouble):
    facts = look_into(ConceptConfig(path=path))
    assert (facts.count, facts.trouble) == (0, trouble) and images_of(ConceptConfig(path=path)) == []


def test_a_folder_without_images_is_told(tmp_path, folder):
    outer = tmp_path / "outer"
    outer.mkdir()
    folder.rename(outer / "inner")
    assert look_into(ConceptConfig(path=str(outer))).trouble == "no images; subfolders are not included"
    (tmp_path / "empty").mkdir()
    empty = ConceptConfig(path=str(tmp_path / "empty"), include_subdirectories=True)
    assert look_into(empty).trouble == "no images"
    # where images are only in subfolders, these are meant
    assert concept_of_folder(outer).include_subdirectories and look_into(concept_of_folder(outer)).count == COUNT


def test_a_folder_below_the_project_is_written_relative(folder, tmp_path, monkeypatch):
    elsewhere = concept_of_folder(folder)
    assert (elsewhere.name, elsewhere.path, elsewhere.include_subdirectories) == ("pictures", str(folder), False)
    monkeypatch.chdir(tmp_path)
    assert concept_of_folder(folder).path == "pictures" == concept_of_folder(Path("pictures")).path


def test_a_thumbnail_is_the_middle_as_a_square(folder):
    small = thumbnail(str(folder / "image 3.png"), 16)
    assert small.size == (16, 16) and small.mode == "RGB"
    (folder / "image 3.png").write_bytes(b"no image")
    assert thumbnail(str(folder / "image 3.png"), 16) is None and thumbnail(str(folder / "gone.png"), 16) is None


def test_a_base_on_the_disk_tells_its_grid_and_others_have_a_usual_one(config):
    assert grid_of(config) == 4
    loaded = family_of(config).load(config, torch.device("cpu"))
    assert loaded.image_grid == 4, "as the model itself tells, once it is loaded"
    config.base_model_name = "of the/hub"
    assert grid_of(config) == 64
    for family, grid in (("STABLE_DIFFUSION_XL_10_BASE", 32), ("FLUX_2", 16)):
        config.model_type = family
        assert grid_of(config) == grid


def test_a_preview_is_what_the_encoder_gets(config, concept, folder):
    tall = images_of(concept)[5]
    shown = preview(config, concept, tall, 0)
    assert shown.original.size == (48, 80) and shown.varied.size == (24, 44)
    assert shown.facts == "48 × 80, trained in 24 × 44"
    assert (shown.captions, shown.varied_caption, shown.trouble) == (
        ("a red shape number 5",), "a red shape number 5", "",
    )  # fmt: skip
    assert not list(folder.glob("*cache*")) and len(list(folder.iterdir())) == 2 * COUNT, "nothing is written"


def test_previews_and_captions_are_those_of_training(config, concept):
    """With everything that can vary, against what prepares a run's data."""
    for key in ("random_flip", "random_rotate", "random_brightness", "random_contrast", "random_saturation"):
        setattr(concept.image, f"enable_{key}", True)
    concept.image.random_rotate_max_angle = 20.0
    concept.image.random_brightness_max_strength = concept.image.random_contrast_max_strength = 0.4
    concept.text.enable_tag_shuffling, concept.text.tag_delimiter, concept.text.keep_tags_count = True, " ", 0
    config.resolution = "32,48"
    report = check_dataset(config, [concept], warn=lambda _: None)
    source = ImageSource(config, [concept], report.images, 4)
    captions = set()
    for index, image in enumerate(images_of(concept)):
        for variation in range(3):
            shown = preview(config, concept, image, variation)
            assert shown.varied.size == source.size(index, variation)[::-1]
            pixels = ((source.pixels(index, variation) + 1) * 127.5).round().byte().permute(1, 2, 0)
            assert shown.varied.tobytes() == bytes(pixels.flatten().tolist())
            assert shown.varied_caption == source.caption(index, variation)
            captions.add(shown.varied_caption)
    assert len(captions) > COUNT


def test_each_augmentation_is_seen_and_told(config, picture):
    plain = varied(config, picture)
    assert plain.size == (32, 32)
    dark, light = plain.getpixel((2, 16)), plain.getpixel((29, 16))
    assert dark == (0, 0, 0) and light == (255, 255, 255)
    assert varied(config, picture, enable_fixed_flip=True).tobytes() == ImageOps.mirror(plain).tobytes()
    half = {"enable_fixed_brightness": True, "random_brightness_max_strength": -0.5}
    assert varied(config, picture, **half).getpixel((29, 16)) in [(127,) * 3, (128,) * 3]
    turned = varied(config, picture, enable_fixed_rotate=True, random_rotate_max_angle=90)
    # counter-clockwise: right comes to the top
    assert turned.getpixel((16, 3)) == (255, 255, 255) and turned.getpixel((16, 28)) == (0, 0, 0)
    image = {
        **half, "enable_fixed_flip": True, "enable_fixed_rotate": True, "random_rotate_max_angle": 5,
        "enable_fixed_contrast": True, "random_contrast_max_strength": 0.25, "enable_fixed_saturation": True,
        "random_saturation_max_strength": 0.1, "enable_fixed_hue": True, "random_hue_max_strength": 0.5,
    }  # fmt: skip
    concept = ConceptConfig.from_dict({"path": str(picture.parent), "image": image})
    facts = preview(config, concept, ("half.png", str(picture)), 0).facts.split(" · ")
    assert facts[1:] == [
        "mirrored", "turned by 5°", "brightness × 0.50", "contrast × 1.25", "saturation × 1.10", "hue +90°",
    ]  # fmt: skip


def test_variations_differ_and_come_again(config, picture):
    change = {"enable_random_brightness": True, "random_brightness_max_strength": 0.9}
    seen = [varied(config, picture, number, **change).tobytes() for number in range(4)]
    assert len(set(seen)) > 1
    assert seen == [varied(config, picture, number, **change).tobytes() for number in range(4)]
    plain = {varied(config, picture, number).tobytes() for number in range(4)}
    assert len(plain) == 1, "without augmentations there is nothing to vary"


def test_captions_are_varied_as_in_training(config, concept, folder):
    first = images_of(concept)[0]
    (folder / "image 0.txt").write_text("one, two, three, four, five\n\nanother, line\n", encoding="utf-8")
    concept.text.enable_tag_shuffling, concept.text.keep_tags_count = True, 1
    shown = [preview(config, concept, first, number) for number in range(12)]
    assert {one.captions for one in shown} == {("one, two, three, four, five", "another, line")}
    made = {one.varied_caption for one in shown}
    assert len(made) > 2 and all(text.split(", ")[0] in ("one", "another") for text in made)
    assert {frozenset(text.split(", ")) for text in made} == {
        frozenset(("one", "two", "three", "four", "five")), frozenset(("another", "line")),
    }  # fmt: skip


def test_what_is_wrong_with_a_caption_is_told_beside_the_picture(config, concept, folder):
    first = images_of(concept)[0]
    (folder / "image 0.txt").unlink()
    shown = preview(config, concept, first, 0)
    assert shown.captions == ("",) and "no such caption file" in shown.trouble
    (folder / "image 0.txt").write_bytes(b"\xff\xfe")
    shown = preview(config, concept, first, 0)
    assert shown.captions == () and "not UTF-8" in shown.trouble and shown.varied.size == (32, 32)
    concept.text.prompt_source = "concept"
    assert "no prompt file is given" in preview(config, concept, first, 0).trouble
    concept.text.prompt_source = "filename"
    assert preview(config, concept, first, 0).captions == ("image 0",)


def test_an_image_that_cannot_be_used_says_why(config, concept, folder):
    (folder / "image 0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="image 0.png"):
        preview(config, concept, images_of(concept)[0], 0)
    with pytest.raises(UserError, match=r"gone\.png"):
        preview(config, concept, ("gone.png", str(folder / "gone.png")), 0)


def test_a_caption_is_read_and_written_only_when_asked(concept, folder):
    path = caption_file(concept, str(folder / "image 2.png"))
    assert path == folder / "image 2.txt" and read_caption(path) == "a red shape number 2"
    before = {file: file.read_bytes() for file in folder.iterdir()}
    new = caption_file(concept, str(folder / "image 99.png"))
    assert read_caption(new) == "" and not new.exists()
    write_caption(path, "first line\nsecond line \n\n", "a red shape number 2")
    assert path.read_bytes() == b"first line\nsecond line\n" and read_caption(path) == "first line\nsecond line"
    write_caption(new, "new", "")
    assert new.read_bytes() == b"new\n"
    assert {file: file.read_bytes() for file in folder.iterdir() if file not in (path, new)} == {
        file: content for file, content in before.items() if file != path
    }


def test_what_another_program_wrote_meanwhile_is_not_lost(concept, folder):
    path = folder / "image 0.txt"
    known = read_caption(path)
    path.write_text("of another program", encoding="utf-8")
    with pytest.raises(UserError, match="changed by another program"):
        write_caption(path, "mine", known)
    assert path.read_text(encoding="utf-8") == "of another program"
    path.unlink()
    with pytest.raises(UserError, match="changed by another program"):
        write_caption(path, "mine", known)
    assert not path.exists()


def test_captions_that_cannot_be_read_or_written_say_why(folder):
    (folder / "image 0.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"image 0\.txt can't be read"):
        read_caption(folder / "image 0.txt")
    (folder / "image 1.txt").write_text("as it was\n", encoding="utf-8")
    (folder / ".image 1.txt.partial").mkdir()
    with pytest.raises(UserError, match=r"image 1\.txt"):
        write_caption(folder / "image 1.txt", "text", "as it was")
    assert read_caption(folder / "image 1.txt") == "as it was"


@pytest.mark.parametrize("source", ["concept", "filename"])
def test_captions_from_elsewhere_have_no_file_of_their_own(concept, folder, source):
    concept.text.prompt_source = source
    assert caption_file(concept, str(folder / "image 0.png")) is None


def test_the_check_counts_buckets_sizes_and_what_it_rejects(config, concept, folder):
    (folder / "image 0.txt").unlink()
    (folder / "image 1.png").write_bytes(b"no image")
    Image.new("RGB", (300, 4)).save(folder / "thin.png")
    found = check_concept(config, concept)
    assert found.heading == "6 images, 2 rejected files, 1 without a caption"
    rejected, buckets, sizes = (found.lines.index(head) for head in ("Rejected:", "Buckets:", "Sizes:"))
    assert rejected < buckets < sizes
    assert [Path(line.split(": left out")[0]).name for line in found.lines[rejected + 1 : buckets - 1]] == [
        "image 1.png", "thin.png",
    ]  # fmt: skip
    assert "too small" in found.lines[rejected + 2]
    assert sorted(found.lines[buckets + 1 : sizes - 1]) == sorted(
        ["  32 × 32: 2 images", "  36 × 28: 2 images", "  24 × 44: 2 images"]
    )
    assert sorted(found.lines[sizes + 1 : sizes + 4]) == [
        "  48 × 48: 2 images", "  48 × 80: 2 images", "  64 × 48: 2 images",
    ]  # fmt: skip
    assert "Worth knowing:" in found.lines and any("image 0.txt" in line for line in found.lines)


def test_the_check_tells_of_captions_that_are_cut(config, concept, folder, mini_base):
    (folder / "image 2.txt").write_text("a red shape, " * 9, encoding="utf-8")
    config.base_model_name = str(mini_base)
    (line,) = [line for line in check_concept(config, concept).lines if "tokens are read" in line]
    assert "22 tokens are read, and 1 of 7 captions has more" in line and "image 2.txt" in line
    config.base_model_name = str(folder)
    assert not [line for line in check_concept(config, concept).lines if "tokens are read" in line]


def test_buckets_are_those_of_the_pictures(config, concept):
    trained = {image.size for image in (preview(config, concept, one, 0).varied for one in images_of(concept))}
    lines = check_concept(config, concept).lines
    told = lines[lines.index("Buckets:") + 1 : lines.index("Sizes:") - 1]
    assert {tuple(map(int, line.split(":")[0].split(" × "))) for line in told} == trained
    config.aspect_ratio_bucketing = False
    lines = check_concept(config, concept).lines
    assert lines[lines.index("Buckets:") + 1] == f"  32 × 32: {COUNT} images"


def test_the_check_takes_a_concept_alone(config, concept):
    """Switched off, or for validation, it is checked all the same; and it is not changed by that."""
    concept.enabled, concept.type = False, "VALIDATION"
    assert check_concept(config, concept).heading.startswith(f"{COUNT} images, 0 rejected files")
    assert not concept.enabled and concept.type == "VALIDATION"


def test_a_concept_that_cannot_be_checked_says_why(config, concept, tmp_path):
    concept.path = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere' does not exist"):
        check_concept(config, concept)
    (tmp_path / "empty").mkdir()
    concept.path = str(tmp_path / "empty")
    with pytest.raises(UserError, match="there is no image to train on"):
        check_concept(config, concept)


def test_a_window_that_lists_concepts_needs_no_torch():
    code = "import sys, modules.viewModel.ConceptModel, modules.viewModel.ConfigList; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
