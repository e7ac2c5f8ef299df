"""The dataset check on good and bad folders."""

import json
import os

from modules.dataLoader.check_dataset import check_dataset
from modules.util.UserError import UserError

import pytest
from PIL import Image


def reasons(report) -> dict[str, str]:
    return {os.path.basename(rejected.path): rejected.reason for rejected in report.rejected}


def test_corpus_of_bad_files(dataset):
    good = dataset.add("good.png")
    jpeg = dataset.add("short.jpg", 200, 200)
    jpeg.write_bytes(jpeg.read_bytes()[:-2000])
    (dataset.folder / "empty.png").touch()
    (dataset.folder / "text.png").write_text("not an image at all")
    (dataset.folder / "photo.heic").write_bytes(b"whatever")
    os.symlink(dataset.folder / "nowhere.png", dataset.folder / "link.png")
    dataset.add("dot.png", 1, 1)
    dataset.add("small.png", 8, 8)
    dataset.add("latin.png").with_suffix(".txt").write_bytes("größe".encode("latin-1"))
    report = dataset.check(resolution="128")
    assert [image.path for image in report.images] == [str(good)]
    found = reasons(report)
    assert "truncated" in found["short.jpg"] and "empty" in found["empty.png"]
    assert "no image" in found["text.png"] and "not supported" in found["photo.heic"]
    assert "cannot be read" in found["link.png"] and "1x1" in found["dot.png"]
    assert "scaled up by 16.0" in found["small.png"] and "UTF-8" in found["latin.png"]
    assert all("\n" not in line for line in dataset.warnings)
    assert all(any(str(dataset.folder / name) in line for line in dataset.warnings) for name in found)


def test_nothing_left_is_an_error_that_names_a_file(dataset):
    (dataset.folder / "empty.png").touch()
    with pytest.raises(UserError, match="no image to train on.*empty.png.*the file is empty"):
        dataset.check()


def test_an_empty_folder_and_no_concept(dataset):
    with pytest.raises(UserError, match="hold none"):
        dataset.check()
    assert "no images in" in dataset.warnings[0]
    with pytest.raises(UserError, match="no enabled concept"):
        dataset.check([dataset.concept(enabled=False)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere", "name": "cat"}, "concept 1 \"cat\": the folder 'nowhere' does not exist"),
        ({"path": ""}, "path is empty"),
        ({"path": __file__}, "is a file"),
        ({"text": {"prompt_source": "concept"}}, "no prompt file"),
        ({"text": {"prompt_source": "concept", "prompt_path": "no.txt"}}, "no.txt: no such file"),
        ({"text": {"tag_dropout_enable": True, "tag_dropout_special_tags": "no.csv"}}, "no.csv: no such file"),
    ],
)
def test_concepts_that_cannot_be_used(dataset, options, message):
    dataset.add("a.png")
    with pytest.raises(UserError, match=message) as caught:
        dataset.check([dataset.concept(**options)])
    assert "\n" not in str(caught.value)


def test_options_that_are_not_supported(dataset):
    dataset.add("a.png")
    with pytest.raises(UserError, match="custom_conditioning_image"):
        dataset.check(custom_conditioning_image=True)
    concept = dataset.concept(image={"enable_random_mask_rotate_crop": True})
    with pytest.raises(UserError, match="image.enable_random_mask_rotate_crop"):
        dataset.check([concept], masked_training=True)
    dataset.check([concept])
    assert "has no effect" in dataset.warnings[0]


def test_a_disabled_concept_is_not_looked_at(dataset):
    dataset.add("a.png")
    concepts = [dataset.concept(enabled=False, path="nowhere"), dataset.concept()]
    assert [image.concept for image in dataset.check(concepts).images] == [1]


def test_subdirectories_hidden_files_and_companions(dataset):
    for name in ("b.png", "a.PNG", "sub/c.jpg", ".hidden.png", "b-masklabel.png", "b-condlabel.png", ".git/d.png"):
        dataset.add(name)
    (dataset.folder / "notes.md").touch()
    os.symlink(dataset.folder, dataset.folder / "sub" / "loop")
    assert [image.name for image in dataset.check().images] == ["a.PNG", "b.png"]
    deep = dataset.check([dataset.concept(include_subdirectories=True)])
    assert [image.name for image in deep.images] == ["a.PNG", "b.png", "sub/c.jpg"]


def test_captions(dataset):
    dataset.add("two.png", caption="first line\n\n  second line \n")
    dataset.add("none.png", caption=None)
    dataset.add("blank.png", caption="")
    (dataset.folder / "bom.txt").write_bytes(b"\xef\xbb\xbfwith mark")
    dataset.add("bom.png", caption=None)
    captions = {image.name: image.captions for image in dataset.check().images}
    assert captions == {
        "two.png": ("first line", "second line"),
        "none.png": ("",),
        "blank.png": ("",),
        "bom.png": ("with mark",),
    }
    missing, empty, several = dataset.warnings
    assert "none.txt: no such caption file" in missing and "1 of 4 captions has several lines" in several
    assert "1 of 4 captions is empty: blank.txt" in empty


def test_captions_from_names_and_prompt_files(dataset):
    dataset.add("a red_hat.png", caption="other")
    prompts = dataset.root / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    by_name = dataset.check([dataset.concept(text={"prompt_source": "filename"})])
    assert by_name.images[0].captions == ("a red_hat",)
    shared = dataset.check([dataset.concept(text={"prompt_source": "concept", "prompt_path": str(prompts)})])
    assert shared.images[0].captions == ("one", "two")


def test_masks(dataset):
    dataset.add("a.png", 64, 32)
    dataset.add("b.png", 64, 32)
    dataset.add("c.png", 64, 32)
    Image.new("L", (128, 64)).save(dataset.folder / "a-masklabel.png")
    Image.new("L", (32, 64)).save(dataset.folder / "b-masklabel.png")
    assert len(dataset.check().images) == 3
    report = dataset.check(masked_training=True)
    assert {image.name: image.mask_path is not None for image in report.images} == {"a.png": True, "c.png": False}
    assert "another shape" in reasons(report)["b.png"]
    (line,) = [line for line in dataset.warnings if "not the size of" in line]
    assert "1 mask has not the size of its image, to which it is scaled: a-masklabel.png (128x64 px)" in line
    Image.new("L", (64, 32)).save(dataset.folder / "a-masklabel.png")
    assert not [line for line in dataset.check(masked_training=True).warnings if "not the size of" in line]
    (dataset.folder / "a-masklabel.png").write_bytes(b"")
    assert "mask" in reasons(dataset.check(masked_training=True))["a.png"]


def test_validation_concepts(dataset):
    dataset.add("a.png")
    concepts = [dataset.concept(), dataset.concept(type="VALIDATION")]
    assert [image.concept for image in dataset.check(concepts, validation=True).images] == [0, 1]
    assert [image.concept for image in dataset.check(concepts).images] == [0]
    assert "validation is off" in dataset.warnings[0]
    with pytest.raises(UserError, match="validate with"):
        dataset.check(validation=True)


def test_size_is_upright_and_enlargement_is_told(dataset):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(dataset.folder / "a.jpg", exif=exif)
    (image,) = dataset.check([dataset.concept(text={"prompt_source": "filename"})]).images
    assert (image.width, image.height) == (20, 40)
    assert "scaled up, by 2.3" in dataset.warnings[-1]


def test_same_result_for_any_number_of_threads(dataset):
    for number in range(12):
        dataset.add(f"{number}.png")
    (dataset.folder / "bad.png").touch()
    first, second = dataset.check(dataloader_threads=1), dataset.check(dataloader_threads=4)
    assert first == second and len(first.images) == 12


def test_known_contents_are_not_decoded_again(dataset, monkeypatch):
    dataset.add("a.png")
    dataset.check()
    assert json.loads((dataset.root / "cache" / "checked_images.json").read_text())["images"]
    monkeypatch.setattr("modules.dataLoader.CheckedImages.decode_with_range", lambda data: pytest.fail("decoded"))
    assert len(dataset.check().images) == 1
    monkeypatch.undo()
    (dataset.root / "cache" / "checked_images.json").write_text("{broken")
    assert len(dataset.check().images) == 1


def test_a_cache_folder_that_cannot_be_written(dataset):
    dataset.add("a.png")
    (dataset.root / "file").touch()
    with pytest.raises(UserError, match="cache_dir"):
        dataset.check(cache_dir=str(dataset.root / "file" / "cache"))


def test_progress_is_told(dataset):
    dataset.add("a.png")
    calls = []
    check_dataset(
        dataset.config(), [dataset.concept()], warn=dataset.warnings.append, progress=lambda *call: calls.append(call)
    )
    assert calls == [("check", 0, 1), ("check", 1, 1)]
