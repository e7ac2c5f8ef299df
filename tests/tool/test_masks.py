"""Masks by a model: what each kind finds, what of a folder is never touched, errors in words, what a training reads.

The models are of the real classes, tiny and with random weights; the ONNX file finds what is red.
"""

import json
import shutil
from pathlib import Path

from modules.model.hub import Hub
from modules.tool.mask_names import PREVIEW
from modules.tool.mask_shape import MaskShape, fill_holes, grow, is_empty, shape_mask, to_greys
from modules.tool.masker import load_masker
from modules.tool.matting_net import MattingNet
from modules.tool.WrittenMasks import MASKS_NAME
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.dataLoader.conftest import Dataset
from tests.hub_server import HubServer
from tests.load_script import load_script
from tests.tool.tiny_maskers import make_clipseg, make_mask2former, make_matting, make_segformer, make_settings

import torch

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image
from transformers import BertConfig

CPU = torch.device("cpu")
ORIENTATION = 0x0112
PERSONS = {"b-masklabel.png": "white", "c_mask.png": "black"}
RED_BOX = (8, 8, 24, 24)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Tests must not change them."""
    root = tmp_path_factory.mktemp("maskers")
    make_matting(root / "net" / "onnx" / "model.onnx")
    make_settings(root / "net")
    makers = {"clipseg": make_clipseg, "segformer": make_segformer, "mask2former": make_mask2former}
    return {"net": root / "net", **{kind: make(root / kind) for kind, make in makers.items()}}


@pytest.fixture
def load(tmp_path):
    """load(model, prompt) -> the masker, for which the network may not be asked."""

    def load(model: object, prompt: str = ""):
        hub = Hub(TrainConfig(huggingface_cache_dir=str(tmp_path / "hub"), offline_mode=True))
        return load_masker(str(model), CPU, hub, prompt)

    return load


def picture(box: tuple[int, int, int, int] = RED_BOX, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A red box on blue."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", box)
    return image


@pytest.fixture
def photos(tmp_path) -> Path:
    """Pictures with masks of a person, without any, two of one name, one without red, a broken one, one below."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for name in ("a.png", "b.png", "c.jpg", "f.png", "f.jpg", "below/h.png"):
        picture().save(folder / name)
    (folder / "d.png").write_bytes(b"no picture")
    Image.new("RGB", (48, 32), "blue").save(folder / "e.png")
    for name, color in PERSONS.items():
        Image.new("L", (48, 32), color).save(folder / name)
    return folder


@pytest.fixture
def mask(models, photos, capsys):
    """mask(options …) -> (status, what was printed) of the script on the photos, with the ONNX file."""
    script = load_script("mask")

    def mask(*options: object, folder: Path = photos, model: str = "net") -> tuple[int, str]:
        status = script.main([str(folder), "--model", str(models[model]), "--device", "cpu", *map(str, options)])
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if line.startswith(("error: ", "Stopped"))]
        return status, "\n".join([captured.out, *errors])

    return mask


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_an_onnx_file_finds_the_subject(load, tmp_path):
    values = load(make_matting(tmp_path / "plain.onnx", (0.1, 0, 0))).segment(picture())
    assert values.shape == (16, 16) and values.dtype == np.float32
    # red is 1 in these pixels, and (1 - 0.485) / 0.229 in those of ImageNet, which files without settings get
    assert values.max() == pytest.approx(1 / (1 + np.exp(-0.1 * 2.2489)), abs=1e-4)
    is_net = load(make_matting(tmp_path / "isnet-general-use.onnx", (0.1, 0, 0))).segment(picture())
    assert is_net.max() == pytest.approx(1 / (1 + np.exp(-0.05)), abs=1e-4)
    anime = load(make_matting(tmp_path / "isnetis.onnx", (0.1, 0, 0))).segment(picture())
    assert anime.max() == pytest.approx(1 / (1 + np.exp(-0.1)), abs=1e-4)
    file = make_matting(tmp_path / "any" / "birefnet.onnx", (3, -3, -3), logits=True, size=("h", "w"))
    with pytest.raises(UserError, match="pictures of any size"):
        load(file)
    make_settings(file.parent, size={"width": 24, "height": 16})
    logits = load(file.parent).segment(picture())
    assert logits.shape == (16, 24) and logits[8, 8] == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-4)
    assert logits[0, 0] == pytest.approx(1 / (1 + np.exp(3)), abs=1e-4)
    make_settings(file.parent, size={"shortest_edge": 20})
    assert load(file).segment(picture()).shape == (20, 20)


def test_wrong_onnx_files_are_told(load, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"broken.onnx can't be used"):
        load(tmp_path / "broken.onnx")
    make_settings(make_matting(tmp_path / "net" / "model.onnx").parent, image_std=[1, 1])
    with pytest.raises(UserError, match=r"preprocessor_config.json can't be used: .*found 2 channels"):
        load(tmp_path / "net")
    with pytest.raises(UserError, match=r"^--prompt: .*can't be asked anything"):
        load(tmp_path / "net", "a person")
    for name in ("one.onnx", "two.onnx"):
        make_matting(tmp_path / "two" / name)
    with pytest.raises(UserError, match=r"has 2 ONNX files: one.onnx, two.onnx"):
        load(tmp_path / "two")


def test_clipseg_finds_what_a_text_says(models, load):
    masker = load(models["clipseg"], "a red shape")

    def found(prompt: str, image: Image.Image | None = None) -> np.ndarray:
        masker.asked = masker.read(masker.model.config, prompt)
        return masker.segment(image or picture())

    one, other, both = map(found, ("a red shape", "the small circle", "a red shape, the small circle"))
    assert one.shape == (32, 32) and 0 <= one.min() < one.max() <= 1
    assert not np.allclose(one, other) and np.array_equal(both, np.maximum(one, other))
    assert not np.allclose(one, found("a red shape", picture((0, 0, 4, 30))))
    with pytest.raises(UserError, match="Say what, such as: a person"):
        load(models["clipseg"])
    with pytest.raises(UserError, match="can't segment a picture"):
        # more than the model has places for
        found("red " * 200)


@pytest.mark.parametrize("kind", ["segformer", "mask2former"])
def test_labels_are_found_alone_and_together(models, load, kind):
    labels = ["wall", "PERSON", "red  shape", "door, gate"]
    masker = load(models[kind], "wall")

    def found(prompt: str, image: Image.Image | None = None) -> np.ndarray:
        masker.asked = masker.read(masker.model.config, prompt)
        return masker.segment(image or picture())

    each = [found(label) for label in labels]
    if kind == "segformer":
        np.testing.assert_allclose(np.sum(each, axis=0), 1, rtol=1e-5)
    assert all(values.std() > 1e-4 and 0 <= values.min() < values.max() <= 1 for values in each)
    two = found("person, wall")
    np.testing.assert_allclose(two, np.minimum(each[0] + each[1], 1), rtol=1e-5)
    assert not np.allclose(found("wall", picture((30, 0, 48, 32))), each[0]), "the picture matters"
    with pytest.raises(UserError, match="no label 'persn'. Did you mean person"):
        found("wall, persn")
    with pytest.raises(UserError, match="of: wall, person, red shape, door, gate"):
        found("")


def test_what_is_no_model_for_masks_is_refused_in_words(load, mask, photos, models, tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    (tmp_path / "model.safetensors").write_bytes(b"")
    # as ZhengPeng7/BiRefNet is described
    brings_code = tmp_path / "BiRefNet"
    brings_code.mkdir()
    (brings_code / "evil.py").write_text(f"open({str(tmp_path / 'CODE_RAN')!r}, 'w')\nclass E:\n    pass\n")
    code = {"AutoConfig": "evil.E", "AutoModelForImageSegmentation": "evil.E"}
    (brings_code / "config.json").write_text(json.dumps({"architectures": ["BiRefNet"], "auto_map": code}))
    (brings_code / "model.safetensors").write_bytes(b"")
    for name, words in {
        tmp_path / "none.onnx": "none.onnx does not exist. Expected an ONNX model",
        tmp_path / "bert": "of the type bert, expected an ONNX model",
        tmp_path / "model.safetensors": "is a file, expected an ONNX model",
        brings_code: "never run here. For backgrounds name an ONNX copy",
        "some/model": "is not in the hub's cache .*offline_mode is on",
    }.items():
        with pytest.raises(UserError, match=f"^--model: .*{words}"):
            load(name)
    # a copy in ONNX beside it needs none
    make_matting(brings_code / "onnx" / "model.onnx")
    assert load(brings_code).segment(picture()).shape == (16, 16)
    assert not (tmp_path / "CODE_RAN").exists()
    folder = tmp_path / "segformer"
    shutil.copytree(models["segformer"], folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="can't be loaded"):
        load(folder, "wall")
    status, printed = mask(folder=photos / "a.png")
    assert status == 1 and "a.png is no folder" in printed
    for wrong in (["--threshold", "1"], ["--blur", "-1"], ["--grow", "1000"], ["--limit", "0"]):
        with pytest.raises(SystemExit):
            mask(*wrong)


def test_a_model_comes_from_the_hub_once(models, load, tmp_path, monkeypatch):
    server = HubServer()
    try:
        files = {path.relative_to(models["net"]).as_posix(): path.read_bytes()
                 for path in models["net"].rglob("*") if path.is_file()}  # fmt: skip
        server.add("some/net", {**files, "onnx/model_fp16.onnx": b"other", "onnx/model.onnx_data": b"far", "x.md": b""})
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        found = load_masker("some/net", CPU, Hub(TrainConfig(huggingface_cache_dir=str(tmp_path / "hub"))), "")
        assert set(server.fetched()) == {"onnx/model.onnx", "onnx/model.onnx_data", "preprocessor_config.json"}
        asked = len(server.requests)
        named = load("some/net/onnx/model.onnx")
        assert len(server.requests) == asked
        assert np.array_equal(found.segment(picture()), named.segment(picture()))
        with pytest.raises(UserError, match="offline_mode is on"):
            load("some/net/onnx/model_fp16.onnx")
    finally:
        server.close()


def test_from_values_to_a_mask():
    values = np.array([[0.0, 0.1, 0.2, 0.3, 0.4, 1.0]], np.float32)
    assert to_greys(values, 0.2, False).tolist() == [[0, 0, 255, 255, 255, 255]]
    assert to_greys(values, 0.2, True).tolist() == [[0, 64, 128, 191, 255, 255]]
    assert to_greys(values, 0.5, True).tolist() == [[0, 25, 51, 77, 102, 255]]
    found = shape_mask(np.eye(2, dtype=np.float32), (40, 20), MaskShape(invert=True))
    assert found.shape == (20, 40) and found[0, 0] == 0 and found[0, -1] == 255
    soft = shape_mask(np.eye(2, dtype=np.float32), (40, 20), MaskShape(blur=3.0))
    assert set(np.unique(shape_mask(np.eye(2, dtype=np.float32), (40, 20), MaskShape()))) == {0, 255}
    assert len(np.unique(soft)) > 10
    assert is_empty(np.full((3, 3), 127, np.uint8)) and not is_empty(np.array([[0, 128]], np.uint8))


def test_small_holes_are_filled_and_open_ones_are_not():
    mask = np.full((20, 20), 255, np.uint8)
    mask[2:4, 2:4] = mask[8:14, 8:14] = mask[0:2, 15] = 0
    filled = fill_holes(mask, 2)
    assert (filled[2:4, 2:4] == 255).all() and (filled[8:14, 8:14] == 0).all() and (filled[0:2, 15] == 0).all()
    assert (fill_holes(mask, 10)[8:14, 8:14] == 255).all() and np.array_equal(fill_holes(mask, 0), mask)


@pytest.mark.parametrize("pixels", [1, 4, 15])
def test_a_mask_grows_and_shrinks_alike_in_all_directions(pixels):
    mask = np.zeros((61, 61), np.uint8)
    mask[30, 30] = 200
    grown = grow(mask, pixels)
    rows, columns = np.nonzero(grown)
    far = np.hypot(rows - 30, columns - 30)
    assert set(grown[rows, columns]) == {200}
    assert columns.max() == rows.max() == 30 + pixels and far.max() <= pixels * 1.09
    inside = np.hypot(*np.mgrid[-30:31, -30:31]) <= pixels - 1
    assert (grown[inside] == 200).all()
    assert np.array_equal(grow(255 - mask, -pixels), 255 - grown) and np.array_equal(grow(grown, -pixels), mask)
    assert (grow(np.full((5, 5), 255, np.uint8), -pixels) == 255).all(), "what lies beyond the edge is white, too"


def test_what_a_person_made_is_never_touched(mask, photos, tmp_path):
    before, sheet = content(photos), tmp_path / "look.png"
    status, printed = mask("--preview", sheet, "--limit", 4)
    # of the first four without a mask one is broken, and one has nothing red
    assert status == 3 and content(photos) == before and "2 masks shown, none written" in printed
    assert "d.png is left out: its content is no image" in printed
    assert "e.png is left out: the mask would be black" in printed
    with Image.open(sheet) as image:
        assert image.width > 2 * 48 and image.height >= 32

    status, printed = mask()
    after, written = content(photos), {"a-masklabel.png", "f.png-masklabel.png", "f.jpg-masklabel.png"}
    assert status == 3 and set(after) - set(before) == written | {MASKS_NAME}
    assert {name: after[name] for name in before} == before
    assert "2 pictures with a mask: left alone." in printed and "3 masks written." in printed
    found = read(photos / "a-masklabel.png")
    assert found.shape == (32, 48) and found[16, 16] == 255 and found[2, 40] == 0

    Image.new("L", (48, 32), 77).save(photos / "a-masklabel.png")
    status, printed = mask()
    assert status == 3 and "0 masks written" in printed
    status, printed = mask("--overwrite", "--invert", "--subfolders")
    again = content(photos)
    assert (read(photos / "a-masklabel.png") == 77).all(), "a person changed it"
    assert {name: again[name] for name in before} == before
    for name in ("f.png-masklabel.png", "f.jpg-masklabel.png", "below/h-masklabel.png"):
        assert read(photos / name)[16, 16] == 0 and read(photos / name)[2, 40] == 255
    # with black and white changed, all of the picture without red is learnt
    assert read(photos / "e-masklabel.png").min() == 255
    (photos / "d.png").unlink()
    assert mask("--subfolders")[1].endswith("There is no picture without a mask.\n")


def test_a_preview_replaces_only_a_preview(mask, tmp_path, photos):
    sheet = tmp_path / "look.png"
    for number in range(PREVIEW):
        picture().save(photos / f"b{number}.png")
    assert f"{PREVIEW} masks shown" in mask("--preview", sheet)[1]
    first = sheet.read_bytes()
    mask("--preview", sheet, "--invert", "--limit", 1)
    assert sheet.read_bytes() != first
    picture().save(sheet)
    mine = sheet.read_bytes()
    status, printed = mask("--preview", sheet)
    assert status == 1 and "is no preview of masks. Choose another name" in printed and sheet.read_bytes() == mine
    status, printed = mask("--preview", photos / "a.jpg")
    assert status == 1 and "expected one that ends with .png" in printed


def test_the_preview_shows_what_is_learnt(mask, tmp_path, photos):
    sheet = tmp_path / "look.png"
    assert mask("--preview", sheet, "--limit", 1)[0] == 0
    with Image.open(sheet) as image:
        plain, over = (image.crop((8 + place, 8, 56 + place, 40)) for place in (0, 56))
    assert np.array_equal(np.asarray(plain), np.asarray(picture()))
    assert over.getpixel((16, 16)) == (255, 0, 0), "red is learnt, and shown as it is"
    assert over.getpixel((40, 4)) != (0, 0, 255)


def test_a_mask_that_comes_meanwhile_is_kept_and_a_stop_loses_nothing(mask, photos, monkeypatch):
    segment, made = MattingNet.segment, []

    def meanwhile(self, image: Image.Image) -> np.ndarray:
        Image.new("L", (48, 32), 9).save(photos / "a-masklabel.png")
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(image)
        return segment(self, image)

    (photos / "d.png").unlink()
    (photos / "e.png").unlink()
    monkeypatch.setattr(MattingNet, "segment", meanwhile)
    status, printed = mask()
    assert status == 130 and printed.endswith("Stopped; 1 masks are done. The same command goes on.")
    assert "a-masklabel.png has been written or changed meanwhile" in printed
    assert (read(photos / "a-masklabel.png") == 9).all()
    monkeypatch.setattr(MattingNet, "segment", segment)
    assert mask()[0] == 0 and (read(photos / "a-masklabel.png") == 9).all()
    assert not [name for name in content(photos) if name.endswith((".new", ".partial"))]


def test_the_script_asks_other_models_too(mask, photos):
    assert mask("--prompt", "wall", "--threshold", "0.22", "--soft", "--limit", 1, model="segformer")[0] == 0
    assert len(np.unique(read(photos / "a-masklabel.png"))) > 2
    options = ("--prompt", "a red shape", "--threshold", "0.2", "--overwrite", "--limit", 1)
    assert mask(*options, model="clipseg")[0] == 0
    assert set(np.unique(read(photos / "a-masklabel.png"))) == {0, 255}


def test_masks_reach_a_training(tmp_path, models):
    """Of a turned photo, too: the mask has the size of what is seen."""
    dataset = Dataset(tmp_path)
    # stored on its side: what is seen is 32 wide and 48 high, the red at the top right
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture((0, 0, 16, 16)).save(dataset.folder / "turned.jpg", exif=exif, quality=95)
    (dataset.folder / "turned.txt").write_text("a caption")
    script = load_script("mask")
    assert script.main([str(dataset.folder), "--model", str(models["net"]), "--device", "cpu"]) == 0
    found = read(dataset.folder / "turned-masklabel.png")
    assert found.shape == (48, 32) and found[4, 28] == 255 and found[40, 4] == found[4, 2] == 0

    options = {"masked_training": True, "unmasked_weight": 0.0, "unmasked_probability": 0.0, "resolution": "48"}
    data = dataset.prepare(**options)
    (batch,) = [data.load(planned) for planned in data.plan(0)]
    mask = batch.mask[0, 0]
    assert mask[0, -1] == 1 and mask[-1, 0] == mask[0, 0] == 0 and mask.shape == batch.latents.shape[2:]
    assert not [line for line in dataset.warnings if "mask" in line]


def test_it_says_that_masks_are_not_used(mask, tmp_path):
    path = tmp_path / "config.json"
    for masked in (False, True):
        path.write_text(json.dumps(TrainConfig(masked_training=masked).to_dict()))
        assert ("masked_training is off" in mask("--config", path, "--limit", 1)[1]) != masked
