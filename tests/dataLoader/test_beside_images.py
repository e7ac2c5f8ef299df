"""Captions and masks beside images: used where their meaning is plain, named where it is not."""

import json
import unicodedata

from modules.dataLoader.captions import LARGEST_CAPTION, CaptionError, read_lines, split_lines
from modules.dataLoader.Companions import Beside, Companions
from modules.dataLoader.find_images import list_folder
from modules.util.UserError import UserError

import pytest
from PIL import Image


def captions_of(dataset, **text) -> dict[str, tuple[str, ...]]:
    return {image.name: image.captions for image in dataset.check([dataset.concept(text=text)]).images}


def line(dataset, words: str) -> str:
    (found,) = [line for line in dataset.warnings if words in line]
    return found


# -- which file belongs to which image --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "image", "expected"),
    [
        (["a.png", "a.txt", "b.txt"], "a.png", Beside(("a.txt",))),
        (["a.png", "a.caption", "a.TXT", "a.json"], "a.png", Beside(("a.TXT", "a.caption", "a.json"))),
        (["a.PNG", "A.txt"], "a.PNG", Beside(("A.txt",))),
        (["a.png", "a.png.txt", "a.txt.txt"], "a.png", Beside(("a.txt.txt", "a.png.txt"))),
        (["a.b.png", "a.b.txt", "a.txt"], "a.b.png", Beside(("a.b.txt",))),
        # what fits one image exactly belongs to no other one
        (["a.png", "A.png", "a.txt"], "A.png", Beside()),
        (["a.png", "a.jpg", "a.png.txt"], "a.jpg", Beside()),
        (["a.png", "a.jpg", "a.txt"], "a.jpg", Beside(("a.txt",))),
        (["a.png", "a_mask.png", "a-masklabel.png"], "a.png", Beside(masks=("a-masklabel.png", "a_mask.png"))),
        (["a.png", "a-MASKLABEL.PNG"], "a.png", Beside(masks=("a-MASKLABEL.PNG",))),
        (["a.png", "A_Mask.WEBP", "a.png-mask.jpg"], "a.png", Beside(masks=("a.png-mask.jpg", "A_Mask.WEBP"))),
        (["a.png", "a.yaml", "a.npz", ".a.txt", "a.png.xmp"], "a.png", Beside(others=("a.yaml", "a.png.xmp"))),
    ],
)
def test_owners(names, image, expected):
    assert Companions(names).of(image) == expected
    assert Companions(reversed(names)).of(image) == expected


def test_a_mask_is_no_image():
    names = ["a.png", "a_mask.png", "b_mask.png", "mask.png", "c-masklabel.png", "d-condlabel.png"]
    companions = Companions(names)
    assert companions.images == ["a.png", "b_mask.png", "mask.png"], "there is no b.png beside b_mask.png"
    assert companions.lonely == ["c-masklabel.png"]


def test_unicode_forms():
    decomposed = unicodedata.normalize("NFD", "é.png")
    assert Companions([decomposed, "é.txt"]).of(decomposed).captions == ("é.txt",)


# -- captions ---------------------------------------------------------------------------------------------------------


def test_captions_under_other_names_are_used_and_said_once(dataset):
    texts = {
        "a.caption": "of a", "c.png.txt": "of c", "d.TXT": "of d", "e.txt.txt": "of e", "f.tags": "of f",
        "b.json": '{"caption": "of b", "score": 3}', "g.json": '{"tags": ["of", "g"]}', "h.png.json": '"of h"',
        "I.Caption": "of i",
    }  # fmt: skip
    for name, text in texts.items():
        (dataset.folder / name).write_text(text)
    for stem in "abcdefghi":
        dataset.add(f"{stem}.png", caption=None)
    expected = {f"{stem}.png": (f"of {stem}",) for stem in "abcdefhi"} | {"g.png": ("of, g",)}
    assert captions_of(dataset) == expected
    found = line(dataset, "another name than NAME.txt")
    assert "9 captions come from files" in found and "a.caption, b.json, c.png.txt, d.TXT" in found
    assert found.endswith("and 1 more") and len(dataset.warnings) == 1


def test_an_images_own_text_file_counts_before_others(dataset):
    dataset.add("a.png", caption="mine")
    for name in ("a.caption", "a.png.txt"):
        (dataset.folder / name).write_text("other")
    assert captions_of(dataset) == {"a.png": ("mine",)}
    assert "2 caption files not read" in line(dataset, "a.png.txt, a.caption")


@pytest.mark.parametrize(
    "content",
    [
        '{"caption": "one", "tags": "two"}', '{"boxes": [1]}', "{}", "[[1]]", '{"caption": {"en": "x"}}', "{broken",
        "[" * 5000, '{"caption": "' + "x" * LARGEST_CAPTION + '"}', '{"n": ' + "1" * 5000 + "}",
    ],
    ids=["two", "none", "empty", "list", "object", "broken", "deep", "large", "digits"],
)  # fmt: skip
def test_json_that_is_not_plain_is_named(dataset, content):
    dataset.add("a.png", caption=None)
    dataset.add("b.png")
    (dataset.folder / "a.json").write_text(content)
    assert captions_of(dataset)["a.png"] == ("",)
    assert "beside it, but not read: a.json (" in line(dataset, "a.txt: no such caption file")


def test_what_is_no_caption_is_named(dataset):
    dataset.add("a.png", caption=None)
    dataset.add("b.png")
    (dataset.folder / "a.yaml").write_text("caption: a thing")
    assert captions_of(dataset)["a.png"] == ("",)
    assert line(dataset, "a.txt: no such caption file").endswith("beside it, but not read: a.yaml")


def test_not_one_caption_is_one_line(dataset):
    for stem in "abc":
        dataset.add(f"{stem}.png", caption=None)
    (dataset.folder / "b.yaml").touch()
    assert set(captions_of(dataset).values()) == {("",)}
    (found,) = dataset.warnings
    assert "none of the 3 images has a caption" in found and "a.txt beside a.png" in found and "b.yaml" in found
    # of another source none is expected
    dataset.warnings.clear()
    captions_of(dataset, prompt_source="filename")
    assert not dataset.warnings


PARAGRAPHS = "A cat on a mat.\r\n\r\nFrom the left.\rOil\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("A cat on a mat.", "From the left.", "Oil")),
        ({"caption_lines": "JOIN"}, ("A cat on a mat. From the left. Oil",)),
        ({"caption_lines": "JOIN_TAGS"}, ("A cat on a mat., From the left., Oil",)),
        ({"caption_lines": "JOIN_TAGS", "tag_delimiter": "; "}, ("A cat on a mat.; From the left.; Oil",)),
    ],
)
def test_captions_in_paragraphs(dataset, options, expected):
    dataset.add("a.png").with_suffix(".txt").write_bytes(PARAGRAPHS.encode())
    dataset.add("b.png", caption="")
    assert captions_of(dataset, **options) == {"a.png": expected, "b.png": ("",)}
    several = [found for found in dataset.warnings if "several lines, of which one is drawn" in found]
    assert bool(several) == (not options)
    assert all("1 of 2 captions" in found and "a.txt has 3 lines" in found for found in several)


def test_only_line_feeds_and_carriage_returns_end_a_line():
    text = "one\u2028still\x85the\x0bsame\x0cline\x1c\x1d\x1e\ntwo"
    assert split_lines(text) == ("one\u2028still\x85the\x0bsame\x0cline", "two")


def test_prompts_of_a_file_are_alternatives(dataset):
    dataset.add("a.png")
    prompts = dataset.root / "prompts.txt"
    prompts.write_text("one\u2028whole\ntwo")
    found = captions_of(dataset, prompt_source="concept", prompt_path=str(prompts), caption_lines="JOIN")
    assert found == {"a.png": ("one\u2028whole", "two")} and not dataset.warnings


def test_a_large_caption_file_is_no_caption(dataset):
    dataset.add("a.png", caption="x" * (LARGEST_CAPTION + 1))
    dataset.add("b.png")
    report = dataset.check()
    assert [image.name for image in report.images] == ["b.png"]
    assert "a.txt cannot be read: it has 1.0 MiB, the limit is 1 MiB" in report.rejected[0].reason
    # a list of prompts may be long
    assert len(read_lines(dataset.folder / "a.txt")) == 1
    with pytest.raises(CaptionError):
        read_lines(dataset.folder / "a.txt", 10)


# -- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "a-masklabel.jpg", "a-masklabel.WEBP", "A-MASKLABEL.PNG", "a_mask.png", "a-mask.png", "a.mask.png",
        "a_masklabel.png", "a.png_mask.png",
    ],
)  # fmt: skip
def test_masks_under_other_names(dataset, name):
    dataset.add("a.png")
    dataset.add("b.png")
    Image.new("L", (64, 64), 255).save(dataset.folder / name)
    report = dataset.check(masked_training=True)
    assert [(image.name, image.mask_path) for image in report.images] == [
        ("a.png", str(dataset.folder / name)), ("b.png", None),
    ]  # fmt: skip
    assert name in line(dataset, "1 mask of another name than NAME-masklabel.png is taken, and not trained")
    dataset.warnings.clear()
    assert [image.name for image in dataset.check().images] == ["a.png", "b.png"]
    assert name in line(dataset, "is not used, as masked_training is off")


def test_a_mask_of_another_name_masks(dataset):
    dataset.add("a.png")
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    half.save(dataset.folder / "a_mask.png")
    data = dataset.prepare(masked_training=True, unmasked_weight=0.0, unmasked_probability=0.0)
    (mask,) = data.load(data.plan(0)[0]).mask
    assert mask[0, :, 0].min() == 1 and mask[0, :, -1].max() == 0


def test_not_one_mask_is_said(dataset):
    dataset.add("a.png")
    dataset.check(masked_training=True)
    assert "not one of 1 images has a mask" in line(dataset, "masked_training is on")
    dataset.warnings.clear()
    dataset.check([dataset.concept(image={"enable_random_circular_mask_shrink": True})], masked_training=True)
    assert not dataset.warnings, "circles are masks"
    Image.new("L", (64, 64), 255).save(dataset.folder / "a-masklabel.png")
    dataset.check(masked_training=True)
    assert not dataset.warnings


def test_lonely_and_second_masks_are_named(dataset):
    dataset.add("a.png")
    for name in ("z-masklabel.png", "a-masklabel.png", "a_mask.png"):
        Image.new("L", (64, 64), 255).save(dataset.folder / name)
    dataset.check(masked_training=True)
    assert "z-masklabel.png" in line(dataset, "no image lies beside 1 mask")
    assert "a_mask.png" in line(dataset, "1 mask not read")


def test_every_folder_has_its_own_companions(dataset):
    dataset.add("a.png", caption=None)
    dataset.add("sub/a.png")
    listing = list_folder(dataset.folder, include_subdirectories=True)
    assert [listing.beside[path].captions for _, path in listing.images] == [(), ("a.txt",)]


def test_folders_without_images_are_still_an_error(dataset):
    (dataset.folder / "a.json").write_text(json.dumps({"caption": "x"}))
    with pytest.raises(UserError, match="hold none"):
        dataset.check()
